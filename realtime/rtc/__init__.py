"""WebRTC transport: the only place that touches aiortc's and aioice's internals.

`RtcPeer` is the whole interface; the other modules are its parts, one concept each.
"""

from realtime.rtc.audio_receive import AudioBlock
from realtime.rtc.bitrate import ceiling_bps
from realtime.rtc.connection import IceOptions, IceServer, local_addresses
from realtime.rtc.description import BadDescriptionError, NoResourcesError
from realtime.rtc.internals import problems
from realtime.rtc.peer import RtcPeer
from realtime.rtc.peer_options import PeerHandler, PeerOptions
from realtime.rtc.stats import PeerStats, Spread
from realtime.rtc.stock import StockPeer, make_peer
from realtime.rtc.video_codec import default_encoder

__all__ = [
    "AudioBlock",
    "BadDescriptionError",
    "IceOptions",
    "IceServer",
    "NoResourcesError",
    "PeerHandler",
    "PeerOptions",
    "PeerStats",
    "RtcPeer",
    "Spread",
    "StockPeer",
    "ceiling_bps",
    "default_encoder",
    "local_addresses",
    "make_peer",
    "problems",
]
