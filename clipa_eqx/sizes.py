"""Sizes of towers by letter, as CLIPA pairs them."""

from typing import Any, cast, Literal, NamedTuple

from ._checks import check_choice
from .config import CLIPConfig, TextConfig, VisionConfig


Size = Literal["Ti", "S", "M", "B", "L", "H", "g", "G", "e"]
"""Size letters of Zhai et al. (arXiv 2106.04560, table 2); G is the one that OpenCLIP and CLIPA call bigG."""


class _Row(NamedTuple):
    width: int
    depth: int
    hidden: int
    heads: int


# CLIPA-JAX, models/vit.py; the same on its t5x branch.
_VISION: dict[str, _Row] = {
    "Ti": _Row(192, 12, 768, 3),
    "S": _Row(384, 12, 1536, 6),
    "M": _Row(512, 12, 2048, 8),
    "B": _Row(768, 12, 3072, 12),
    "L": _Row(1024, 24, 4096, 16),
    "H": _Row(1280, 32, 5120, 16),
    "g": _Row(1408, 40, 6144, 16),
    # The heads and the MLP (4.9231 times the width) of OpenCLIP's ViT-bigG-14.
    "G": _Row(1664, 48, 8192, 16),
    "e": _Row(1792, 56, 15360, 16),
}

# CLIPA-JAX has three tables of text towers that disagree above L: models/text_transformer.py on its main branch, and
# models/ and models_t5x/ on its t5x branch. Where weights are released, they decide.
_TEXT: dict[str, _Row] = {
    "Ti": _Row(192, 12, 768, 3),
    "S": _Row(384, 12, 1536, 6),
    "M": _Row(512, 12, 2048, 8),
    # All three tables, and OpenCLIP's ViT-B.
    "B": _Row(512, 12, 2048, 8),
    # All three tables, and the released ViT-L-14-CLIPA.
    "L": _Row(768, 12, 3072, 12),
    # hidden 4096 on the main branch and in the released ViT-H-14-CLIPA; models_t5x has 3072.
    "H": _Row(1024, 24, 4096, 16),
    # models_t5x. The main branch has 1408/40/6144/16, models/ on t5x 1280/36/5120/16; no weights are released.
    "g": _Row(1280, 32, 5120, 20),
    # models_t5x and the released ViT-bigG-14-CLIPA. The other two tables have 1664/48/8192/16, 1.9 G parameters.
    "G": _Row(1280, 32, 5120, 20),
    "e": _Row(1792, 56, 15360, 16),
}

# CLIPA-JAX keys its `out_dim` by the letter of the image tower. It trains no Ti, M and e: embed = the text width.
EMBED: dict[str, int] = {
    "Ti": 192,
    "S": 384,
    "M": 512,
    "B": 512,
    "L": 768,
    "H": 1024,
    "g": 1280,
    "G": 1280,
    "e": 1792,
}
"""Width of the joint space by the letter of the image tower."""


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


def clip_size(
    name: str, *, vision: dict[str, Any] | None = None, text: dict[str, Any] | None = None, **fields: Any
) -> CLIPConfig:
    """Both towers by one name, as CLIPA writes it: size letter, slash, patch size.

    Args:
        name: for example `B/16` or `H/14`.
        vision: other fields of `VisionConfig`.
        text: other fields of `TextConfig`.
        **fields: other fields of `CLIPConfig`.

    Raises:
        ValueError: the name has another form, the letter is unknown, or a field is out of range.
    """
    letter, _, patch = name.partition("/")
    if not patch.isdecimal():
        raise ValueError(f"A model size is written as a letter, a slash and the patch size, as B/16; got {name!r}.")
    check_choice("size", letter, Size)
    size = cast(Size, letter)
    return CLIPConfig(
        **{
            "embed": EMBED[size],
            "vision": vision_size(size, patch_size=int(patch), **(vision or {})),
            "text": text_size(size, **(text or {})),
            **fields,
        }
    )
