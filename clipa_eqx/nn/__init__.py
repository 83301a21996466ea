"""The parts that towers are built from: layers, blocks, the block stack, position tables, pools."""

from ._attention import attend as attend, Attention as Attention
from ._block import activate as activate, Block as Block, BlockInit as BlockInit, MLP as MLP
from ._form import Form as Form, form_for as form_for, layers_for as layers_for
from ._layers import (
    fold_norm as fold_norm,
    Initializer as Initializer,
    LayerNorm as LayerNorm,
    Linear as Linear,
    wide_dtype as wide_dtype,
    xavier_uniform as xavier_uniform,
)
from ._pool import (
    AttentionPool as AttentionPool,
    mean_of_image as mean_of_image,
    mean_of_text as mean_of_text,
    read_position as read_position,
)
from ._position import sincos_1d as sincos_1d, sincos_2d as sincos_2d, sincos_2d_mae as sincos_2d_mae
from ._stack import Split as Split, Stack as Stack
