"""Which image patches and which text tokens are kept: pure functions of one example that run inside jit."""

from ._image import (
    block_keep as block_keep,
    grid_keep as grid_keep,
    keep_patches as keep_patches,
    random_keep as random_keep,
    resize_image as resize_image,
    take_patches as take_patches,
)
from ._text import (
    block_text as block_text,
    keep_tokens as keep_tokens,
    random_text as random_text,
    syntax_text as syntax_text,
    truncate_text as truncate_text,
)
