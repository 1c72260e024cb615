"""Put one connection's figures together."""

from __future__ import annotations

import time
from collections.abc import Sequence

from models.rates import WIRE_RATE_HZ
from realtime.rtc.media_path import MediaPath
from realtime.rtc.receivers import AudioReceiver, VideoReceiver
from realtime.rtc.senders import AudioSender, VideoSender
from realtime.rtc.stats import PeerStats


def snapshot(
    audio_in: AudioReceiver | None,
    video_in: VideoReceiver | None,
    audio_out: AudioSender | None,
    video_out: VideoSender | None,
    paths: Sequence[MediaPath],
) -> PeerStats:
    """`PeerStats` of a connection, whose streams may not be there yet. Event loop."""
    if audio_in is None or video_in is None or audio_out is None or video_out is None:
        return PeerStats()
    audio, video = audio_in.buffer.stats, video_in.buffer.stats
    senders = (audio_out, video_out)
    rtts = [s.round_trip_s for s in senders if s.round_trip_s is not None]
    reporting = [path for path in paths if path.transport_wide]
    return PeerStats(
        audio_packets=audio.packets,
        audio_lost=audio.lost_packets,
        audio_late=audio.late_packets,
        audio_depth=audio_in.buffer.depth,
        recovered_ms=audio.recovered_samples * 1000 / WIRE_RATE_HZ,
        concealed_ms=audio.concealed_samples * 1000 / WIRE_RATE_HZ,
        filled_ms=audio.filled_samples * 1000 / WIRE_RATE_HZ,
        waited_ms=audio.waited_samples * 1000 / WIRE_RATE_HZ,
        reorder_hold_ms=audio_in.buffer.hold_s * 1000,
        shortened_ms=audio.shortened_samples * 1000 / WIRE_RATE_HZ,
        video_packets=video.packets,
        video_lost=video.lost_packets,
        video_depth=video_in.buffer.depth,
        webcam_frames=video_in.frames_decoded,
        nacks_sent=video.nacks,
        recovered_packets=video.recovered_packets,
        plis_sent=video.plis,
        freezes=video_in.freezes.count,
        freeze_ms=video_in.freezes.total_ms,
        video_codec=video_out.codec,
        encoder=video_out.encoder_name,
        frames_sent=video_out.frames_sent,
        frames_replaced=video_out.frames_replaced,
        key_frames=video_out.key_frames,
        key_frame_requests=video_out.key_frame_requests,
        nacks_received=sum(s.nacks_received for s in senders),
        retransmitted=sum(s.retransmitted for s in senders),
        copies_sent=video_out.protection.copies_sent,
        redundant_sent=audio_out.redundant_sent,
        plis_received=sum(s.plis_received for s in senders),
        target_bps=video_out.target_bps,
        ceiling_bps=video_out.ceiling_bps,
        actual_bps=video_out.rate.bps(time.monotonic()),
        encode=video_out.encode_times.spread(),
        capture_to_send=video_out.capture_to_send.spread(),
        packets_sent=sum(s.packets_sent for s in senders),
        bytes_sent=sum(s.bytes_sent for s in senders),
        round_trip_ms=min(rtts) * 1000 if rtts else None,
        estimate_bps=reporting[0].estimator.bps if reporting else 0,
        feedback="transport-cc" if reporting else "remb" if video_out.remb else "none",
        path_loss=reporting[0].estimator.loss if reporting else 0.0,
        pacer_packets=sum(path.queued for path in paths),
        pacer_max_ms=max((path.stats.pacer_max_ms for path in paths), default=0.0),
        malformed_packets=sum(path.stats.malformed for path in paths),
    )
