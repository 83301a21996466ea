"""Sizes of towers, and models by name."""

from typing import Any, Literal, NamedTuple

from .._checks import check_choice
from ..config import CLIPConfig, TextConfig, VisionConfig


Size = Literal["Ti", "S", "M", "B", "L", "H", "g", "G", "e"]
"""Size letters of Zhai et al. (arXiv 2106.04560, table 2); G is the one that OpenCLIP and CLIPA call bigG."""


class _Row(NamedTuple):
    width: int
    depth: int
    hidden: int
    heads: int


# CLIPA-JAX, models/vit.py. G has the heads and the MLP of OpenCLIP's ViT-bigG-14.
_VISION: dict[str, _Row] = {
    "Ti": _Row(192, 12, 768, 3),
    "S": _Row(384, 12, 1536, 6),
    "M": _Row(512, 12, 2048, 8),
    "B": _Row(768, 12, 3072, 12),
    "L": _Row(1024, 24, 4096, 16),
    "H": _Row(1280, 32, 5120, 16),
    "g": _Row(1408, 40, 6144, 16),
    "G": _Row(1664, 48, 8192, 16),
    "e": _Row(1792, 56, 15360, 16),
}

# CLIPA-JAX, models/text_transformer.py, for Ti to H and e. g and G are those of models_t5x on the branch that trained
# bigG: the released bigG text tower has them, and the larger towers of the main branch were never released.
_TEXT: dict[str, _Row] = {
    "Ti": _Row(192, 12, 768, 3),
    "S": _Row(384, 12, 1536, 6),
    "M": _Row(512, 12, 2048, 8),
    "B": _Row(512, 12, 2048, 8),
    "L": _Row(768, 12, 3072, 12),
    # The branch has hidden 3072 here; the released H/14 weights have 4096.
    "H": _Row(1024, 24, 4096, 16),
    "g": _Row(1280, 32, 5120, 20),
    "G": _Row(1280, 32, 5120, 20),
    "e": _Row(1792, 56, 15360, 16),
}


def vision_size(size: Size, *, patch_size: int = 16, **fields: Any) -> VisionConfig:
    """An image tower by size letter.

    Args:
        size: letter of the size table; case counts.
        patch_size: side of a patch in pixels.
        **fields: other fields of `VisionConfig`.

    Raises:
        ValueError: an unknown letter, or a field out of range.
    """
    check_choice("size", size, Size)
    return VisionConfig(**{**_VISION[size]._asdict(), "patch_size": patch_size, **fields})


def text_size(size: Size, **fields: Any) -> TextConfig:
    """A text tower by the size letter of the image tower that CLIPA pairs it with.

    Args:
        size: letter of the size table; case counts.
        **fields: other fields of `TextConfig`.

    Raises:
        ValueError: an unknown letter, or a field out of range.
    """
    check_choice("size", size, Size)
    return TextConfig(**{**_TEXT[size]._asdict(), **fields})


def _clipa(size: Size, patch_size: int, embed: int, pool: Literal["first", "mean"]) -> CLIPConfig:
    """CLIPA as trained in JAX; `embed` is its `out_dim`, which depends on the size letter alone."""
    return CLIPConfig(embed, vision_size(size, patch_size=patch_size, pool=pool), text_size(size))


def _openai(embed: int, vision: VisionConfig, text: _Row, activation: Literal["gelu", "gelu_quick"]) -> CLIPConfig:
    """A model with OpenAI's text tower: byte pairs, causal, pooled at the end-of-text token."""
    return CLIPConfig(
        embed,
        vision,
        TextConfig(
            context_length=77,
            vocab_size=49408,
            causal=True,
            pool="end",
            end_id=49407,
            activation=activation,
            norm_eps=1e-5,
            **text._asdict(),
        ),
    )


def _openai_vision(size: Size, patch_size: int, activation: Literal["gelu", "gelu_quick"]) -> VisionConfig:
    return vision_size(
        size,
        patch_size=patch_size,
        position="learned",
        pool="first",
        input_norm=True,
        activation=activation,
        norm_eps=1e-5,
    )


presets: dict[str, CLIPConfig] = {
    # No CLIPA recipe has Ti; its embed follows the rule of S, embed = width.
    "clipa-ti16": _clipa("Ti", 16, 192, "first"),
    # CLIPA v1 (arXiv 2305.07017): clipa_jax configs model_s, model_b, model_l, all with pool tok.
    "clipa-s16": _clipa("S", 16, 384, "first"),
    "clipa-b16": _clipa("B", 16, 512, "first"),
    "clipa-l16": _clipa("L", 16, 768, "first"),
    # CLIPA v2 (arXiv 2306.15658): pool gap. Released as ViT-L-14-CLIPA; no config of this size is published.
    "clipa-l14": _clipa("L", 14, 768, "mean"),
    # clipa_jax configs model_h/84_8 and 70_8; released as ViT-H-14-CLIPA.
    "clipa-h14": _clipa("H", 14, 1024, "mean"),
    # Branch t5x, config model_g; no weights are released.
    "clipa-g14": _clipa("g", 14, 1280, "mean"),
    # Branch t5x, config model_bigG; released as ViT-bigG-14-CLIPA.
    "clipa-bigg14": _clipa("G", 14, 1280, "mean"),
    # OpenAI's CLIP (arXiv 2103.00020, tables 19 and 20).
    "openai-vit-b-32": _openai(512, _openai_vision("B", 32, "gelu_quick"), _TEXT["B"], "gelu_quick"),
    "openai-vit-b-16": _openai(512, _openai_vision("B", 16, "gelu_quick"), _TEXT["B"], "gelu_quick"),
    "openai-vit-l-14": _openai(768, _openai_vision("L", 14, "gelu_quick"), _TEXT["L"], "gelu_quick"),
    # open_clip model_configs/ViT-H-14.json, trained on LAION-2B.
    "laion-vit-h-14": _openai(1024, _openai_vision("H", 14, "gelu"), _TEXT["H"], "gelu"),
}
"""Models by name."""
