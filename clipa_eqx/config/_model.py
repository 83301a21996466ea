"""Towers and the model they form."""

import math
from dataclasses import dataclass, field
from typing import Literal

from .._checks import check_at_least, check_between, check_choice


Activation = Literal["gelu", "gelu_tanh", "gelu_quick"]
VisionPosition = Literal["learned", "frozen", "sincos2d", "sincos2d_mae"]
TextPosition = Literal["learned", "sincos1d"]
ImagePool = Literal["first", "mean", "mean_all", "norm_mean", "attention"]
TextPool = Literal["last", "end", "last_real", "mean_real"]
Projection = Literal["linear", "linear_bias", "none"]
PixelTriple = tuple[float, float, float]

IMAGENET_MEAN: PixelTriple = (0.485, 0.456, 0.406)
"""Mean of ImageNet's training pixels in [0, 1], red, green, blue (big_vision, CLIPA-JAX)."""
IMAGENET_STD: PixelTriple = (0.229, 0.224, 0.225)
"""Standard deviation that goes with it."""
OPENAI_MEAN: PixelTriple = (0.48145466, 0.4578275, 0.40821073)
"""Mean of the training pixels of OpenAI's CLIP; open_clip's default."""
OPENAI_STD: PixelTriple = (0.26862954, 0.26130258, 0.27577711)
"""Standard deviation that goes with it."""


@dataclass(frozen=True)
class VisionConfig:
    """A vision transformer over square patches (Dosovitskiy et al., arXiv 2010.11929)."""

    image_size: int = 224
    """Side of the square image in pixels for which a stored position table is made."""
    patch_size: int = 16
    """Side of a patch in pixels; divides `image_size`, or see `crop_edge`."""
    crop_edge: bool = False
    """Leave out the pixels at the right and the bottom that fill no patch, as a strided convolution does (SigLIP
    so400m/14 at 384 px); otherwise an image that leaves any is an error."""
    width: int = 768
    """Features per token; divisible by `heads`, and by 4 with a sine-cosine table."""
    depth: int = 12
    """Number of transformer blocks."""
    heads: int = 12
    """Attention heads per block."""
    hidden: int = 3072
    """Features inside the MLP of a block."""
    position: VisionPosition = "sincos2d"
    """learned: a trained table. frozen: a stored table that is not trained (converted weights). sincos2d: computed,
    frequencies i/(width/4 - 1) as big_vision and CLIPA-JAX. sincos2d_mae: i/(width/4) as MAE and open_clip."""
    class_token: bool = True
    """Prepend a learned class token. CLIPA keeps one even when it pools by the mean of patches."""
    pool: ImagePool = "mean"
    """first: the class token. mean: mean of patches, norm after (CLIPA v2). mean_all: mean with the class token, norm
    after (CLIPA v1 in torch). norm_mean: norm, then mean of patches (SigLIP). attention: norm, then a probe attends."""
    input_norm: bool = False
    """A layer norm before the first block (OpenAI and LAION models: yes; CLIPA: no)."""
    patch_bias: bool = False
    """A bias in the patch embedding."""
    activation: Activation = "gelu_tanh"
    """gelu: exact (erf). gelu_tanh: tanh form (CLIPA as trained). gelu_quick: x * sigmoid(1.702 x) (OpenAI)."""
    norm_eps: float = 1e-6
    """Epsilon of every layer norm: 1e-6 as CLIPA trained, 1e-5 as torch's default."""
    drop_path: float = 0.0
    """Stochastic depth: chance to skip a residual branch in the last block; rises linearly from 0 at the first."""
    layer_scale: float = 0.0
    """Initial value of a learned per-feature scale on each residual branch; 0 leaves it out."""
    projection: Projection = "linear"
    """How the pooled vector reaches the joint space; none needs width == embed."""
    pixel_mean: PixelTriple = IMAGENET_MEAN
    """Subtracted from pixels in [0, 1], per channel: ImageNet's (CLIPA) or OpenAI's (open_clip)."""
    pixel_std: PixelTriple = IMAGENET_STD
    """What they are then divided by."""

    def __post_init__(self) -> None:
        _check_tower(self)
        for value in self.pixel_std:
            check_between("pixel_std", value, 0.0, math.inf, low_open=True)
        check_at_least("patch_size", self.patch_size, 1)
        check_at_least("image_size", self.image_size, self.patch_size)
        check_choice("position", self.position, VisionPosition)
        check_choice("pool", self.pool, ImagePool)
        if self.image_size % self.patch_size and not self.crop_edge:
            raise ValueError(
                f"image_size={self.image_size} is not a multiple of patch_size={self.patch_size}; "
                f"nearest sizes that are: {nearest_multiples(self.image_size, self.patch_size)}."
            )
        if self.position.startswith("sincos") and self.width % 4:
            raise ValueError(f"position={self.position!r} needs a width divisible by 4, got width={self.width}.")
        if self.pool in ("first", "mean_all") and not self.class_token:
            raise ValueError(f"pool={self.pool!r} reads the class token: set class_token=True or pool='mean'.")

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches at `image_size`."""
        side = self.image_size // self.patch_size
        return side, side

    @property
    def patches(self) -> int:
        """Number of patches at `image_size`."""
        return self.grid[0] * self.grid[1]


@dataclass(frozen=True)
class TextConfig:
    """A text transformer over token ids."""

    context_length: int = 32
    """Most tokens that the position table holds; shorter sequences use its first rows."""
    vocab_size: int = 32000
    """Rows of the embedding table. CLIPA keeps 32000 rows for BERT's 30522 word pieces."""
    width: int = 512
    """Features per token; divisible by `heads`."""
    depth: int = 12
    """Number of transformer blocks."""
    heads: int = 8
    """Attention heads per block."""
    hidden: int = 2048
    """Features inside the MLP of a block."""
    position: TextPosition = "learned"
    """learned: a trained table. sincos1d: computed."""
    pool: TextPool = "last"
    """last: the last slot, padding or not (CLIPA). end: the first end-of-text token (OpenAI). last_real: the last token
    that is not padding. mean_real: mean over tokens that are not padding."""
    causal: bool = False
    """Tokens attend only to themselves and earlier ones (OpenAI and LAION: yes; CLIPA: no)."""
    mask_padding: bool = False
    """Hide padding from attention. CLIPA does not: the slot it pools is usually padding."""
    pad_id: int = 0
    """Token id of padding."""
    end_id: int = -1
    """Token id that ends a text; needed by pool='end'. -1: the vocabulary has none."""
    activation: Activation = "gelu_tanh"
    """gelu: exact (erf). gelu_tanh: tanh form. gelu_quick: x * sigmoid(1.702 x)."""
    norm_eps: float = 1e-6
    """Epsilon of every layer norm."""
    drop_path: float = 0.0
    """Stochastic depth, as in the vision tower."""
    layer_scale: float = 0.0
    """Initial value of a learned per-feature scale on each residual branch; 0 leaves it out."""
    projection: Projection = "linear"
    """How the pooled vector reaches the joint space; none needs width == embed."""

    def __post_init__(self) -> None:
        _check_tower(self)
        check_at_least("context_length", self.context_length, 1)
        check_at_least("vocab_size", self.vocab_size, 1)
        check_choice("position", self.position, TextPosition)
        check_choice("pool", self.pool, TextPool)
        if self.pool == "end" and self.end_id < 0:
            raise ValueError("pool='end' reads the end-of-text token: set end_id to its id in the vocabulary.")
        for name, value in (("pad_id", self.pad_id), ("end_id", self.end_id)):
            if value >= self.vocab_size:
                raise ValueError(f"{name}={value} lies outside a vocabulary of {self.vocab_size} ids.")


@dataclass(frozen=True)
class CLIPConfig:
    """Two towers and the joint space."""

    embed: int = 512
    """Width of the joint embedding space."""
    vision: VisionConfig = field(default_factory=VisionConfig)
    """The image tower."""
    text: TextConfig = field(default_factory=TextConfig)
    """The text tower."""
    init_logit_scale: float = math.log(1 / 0.07)
    """Natural logarithm of the initial inverse temperature (OpenAI, CLIPA: ln(1/0.07) = 2.659; SigLIP: ln 10)."""
    init_logit_bias: float | None = None
    """Initial bias of the sigmoid loss (SigLIP: -10); none for the softmax loss."""

    def __post_init__(self) -> None:
        check_at_least("embed", self.embed, 1)
        for name, tower in (("vision", self.vision), ("text", self.text)):
            if tower.projection == "none" and tower.width != self.embed:
                raise ValueError(
                    f"{name}.projection='none' hands the pooled vector on as it is, so {name}.width={tower.width} "
                    f"must equal embed={self.embed}; set {name}.projection='linear'."
                )


def _check_tower(tower: VisionConfig | TextConfig) -> None:
    for name in ("width", "depth", "heads", "hidden"):
        check_at_least(name, getattr(tower, name), 1)
    check_between("norm_eps", tower.norm_eps, 0.0, 1.0, low_open=True)
    check_between("drop_path", tower.drop_path, 0.0, 1.0, high_open=True)
    check_between("layer_scale", tower.layer_scale, 0.0, math.inf)
    check_choice("activation", tower.activation, Activation)
    check_choice("projection", tower.projection, Projection)
    if tower.width % tower.heads:
        raise ValueError(f"width={tower.width} does not split over heads={tower.heads}.")


def nearest_multiples(value: int, unit: int) -> str:
    """The multiples of `unit` on both sides of a value, for messages."""
    below, above = value // unit * unit, -(-value // unit) * unit
    return f"{below} and {above}" if below else f"{above}"
