"""Driving sources: each supplies motion codes of some factors (`base.Source`)."""

from realtime.sources.base import Moment, Source, smoothstep
from realtime.sources.clip import Clip, ClipError, load_clip, save_clip
from realtime.sources.idle import Idle
from realtime.sources.mic import MicLip
from realtime.sources.preset import Preset
from realtime.sources.slider import SLIDERS, SliderSource, slider_list
from realtime.sources.webcam import Webcam, WebcamStatus

__all__ = [
    "SLIDERS",
    "Clip",
    "ClipError",
    "Idle",
    "MicLip",
    "Moment",
    "Preset",
    "SliderSource",
    "Source",
    "Webcam",
    "WebcamStatus",
    "load_clip",
    "save_clip",
    "slider_list",
    "smoothstep",
]
