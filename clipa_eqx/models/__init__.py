"""The towers, CLIP, named sizes, and moving weights between image sizes and context lengths."""

from ._clip import (
    CLIP as CLIP,
    count_parameters as count_parameters,
    make_clip as make_clip,
    with_execution as with_execution,
)
from ._pixels import normalize_pixels as normalize_pixels, scale_pixels as scale_pixels
from ._precision import for_compute as for_compute
from ._presets import presets as presets
from ._text import make_text as make_text, TextTower as TextTower
from ._transfer import transfer as transfer
from ._vision import make_vision as make_vision, VisionTower as VisionTower
from ._weights import (
    aligned_empty as aligned_empty,
    load_weights as load_weights,
    named_leaves as named_leaves,
    save_weights as save_weights,
    weights_digest as weights_digest,
)
