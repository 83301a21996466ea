"""What a result depends on besides the weights."""

import dataclasses
import hashlib
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import equinox as eqx
import jax
from jaxtyping import PyTree

from .._checks import check_at_least
from ..config import CLIPConfig, EvalConfig, EvalResize, Interpolation, WordClassBy


CLASS_SLOT = "{c}"
"""Stands for the class name in a template, as CLIP_benchmark writes it."""
DEFAULT_TEMPLATES = ("a photo of a {c}.",)
"""Prompts for a set that brings none. The 80 of OpenAI's ImageNet evaluation come from a set's file."""

_NO_PUNCTUATION = str.maketrans("_", " ", string.punctuation.replace("_", ""))


@dataclass(frozen=True)
class Protocol:
    """How a model is measured; two results compare only if their protocols are equal."""

    image_size: int
    """Side in pixels to which images are resized."""
    resize: EvalResize
    """crop: shortest side to the size, then the centre square. squash: both sides, aspect ignored."""
    interpolation: Interpolation
    """Kernel of the antialiased resize."""
    pixel_mean: tuple[float, float, float]
    """Subtracted from pixels in [0, 1], red, green, blue."""
    pixel_std: tuple[float, float, float]
    """Pixels are divided by it."""
    context_length: int
    """Tokens of a text that the model sees."""
    text_reduction: Literal["truncate", "syntax"]
    """How a longer text is cut."""
    word_class: WordClassBy
    """How its words get their classes, which `syntax` goes by."""
    canonicalize: bool
    """Whether texts are lower-cased and stripped of punctuation before tokenising."""
    precision: str
    """Type of the weights, and the precision of matrix products where it is not the backend's default."""
    templates: tuple[str, ...] = ()
    """Prompts of zero-shot classification, with `{c}` for the class name; none for retrieval."""
    classes: int = 0
    """Number of classes."""
    class_names_sha256: str = ""
    """Digest of the class names, one per line."""

    def __post_init__(self) -> None:
        check_at_least("image_size", self.image_size, 1)
        check_at_least("context_length", self.context_length, 1)
        for template in self.templates:
            if CLASS_SLOT not in template:
                raise ValueError(f"The template {template!r} has no {CLASS_SLOT} for the class name.")

    def with_classes(self, class_names: Sequence[str], templates: Sequence[str]) -> "Protocol":
        """The protocol of a zero-shot set; `DEFAULT_TEMPLATES` stand in for none.

        Raises:
            ValueError: a template has no place for the class name.
        """
        return dataclasses.replace(
            self,
            templates=tuple(templates) or DEFAULT_TEMPLATES,
            classes=len(class_names),
            class_names_sha256=hashlib.sha256("\n".join(class_names).encode("utf-8", "surrogatepass")).hexdigest(),
        )


def make_protocol(config: EvalConfig, model: PyTree) -> Protocol:
    """The protocol of an evaluation, before a set is known.

    Args:
        config: resize, kernel, and what is done to texts.
        model: its weights give the precision, its `config` the sizes and what pixels are normalised by.
    """
    sizes: CLIPConfig = model.config
    dtypes = sorted({leaf.dtype.name for leaf in jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array))})
    products = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]
    return Protocol(
        image_size=sizes.vision.image_size,
        resize=config.resize,
        interpolation=config.interpolation,
        pixel_mean=sizes.vision.pixel_mean,
        pixel_std=sizes.vision.pixel_std,
        context_length=sizes.text.context_length,
        text_reduction=config.text_reduction,
        word_class=config.word_class,
        canonicalize=config.canonicalize,
        precision=", ".join([*dtypes, *([f"products {products}"] if products else [])]),
    )


def canonicalize(text: str) -> str:
    """Lower-case, without punctuation, words one space apart; underscores count as spaces, as in big_vision."""
    return " ".join(text.lower().translate(_NO_PUNCTUATION).split())
