"""The towers, CLIP, named sizes, and moving weights between image sizes and context lengths."""

from ._clip import (
    CLIP as CLIP,
    count_parameters as count_parameters,
    make_clip as make_clip,
    with_execution as with_execution,
)
from ._presets import presets as presets, text_size as text_size, vision_size as vision_size
from ._text import TextTower as TextTower
from ._vision import VisionTower as VisionTower
