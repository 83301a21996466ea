"""Images and texts to unit vectors, in batches of one shape, shared by all devices of all processes."""

import itertools
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import cast, NamedTuple, Protocol as Interface, runtime_checkable, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, UInt8

from .._checks import check_at_least
from .._types import Pixels, TokenIds
from ..config import CLIPConfig, DataConfig
from ..data import Caption, eval_image, ImageError, LiveTexts, Tokenizer, word_classifier
from ..models import normalize_pixels, scale_pixels
from ..reduction import syntax_text, truncate_text
from ..sharding import make_mesh, replicate, rows_of_all, texts_of_all, to_global
from ._protocol import canonicalize, Protocol


_READ_TOKENS = 64
"""Tokens of a text that are read before it is cut to the model's context."""
_DECODE_THREADS = 8

_T = TypeVar("_T")


@runtime_checkable
class Encoder(Interface):
    """What is needed of a model: a PyTree with two methods for one example each, both of which give unit vectors."""

    @property
    def config(self) -> CLIPConfig:
        """Its image size and context length are those the model takes."""
        ...

    def encode_image(self, pixels: Pixels) -> Float[Array, " embed"]:
        """Embed one normalised image."""
        ...

    def encode_text(self, tokens: TokenIds) -> Float[Array, " embed"]:
        """Embed one text."""
        ...


@runtime_checkable
class ImageFiles(Interface):
    """Images by index, as evaluation sets have them; several threads may read at once."""

    def __len__(self) -> int: ...

    def key(self, index: int) -> str:
        """Which record an image is."""
        ...

    def read(self, index: int) -> bytes:
        """The image file."""
        ...


class ImageEmbeds(NamedTuple):
    """Embeddings of a set of images."""

    embeds: Float[np.ndarray, "images embed"]
    """One row per image; the row of an unreadable one means nothing."""
    readable: Bool[np.ndarray, " images"]
    """Which images could be read."""
    faults: dict[str, str]
    """Why the others could not, by key."""


def embed_images(model: Encoder, images: ImageFiles, protocol: Protocol, *, batch_size: int = 256) -> ImageEmbeds:
    """Embed every image of a set, in order.

    Files are decoded in threads while the device embeds the batch before. Batches are padded to one shape, so one
    function is compiled for all. An image that cannot be read or decoded is reported, not raised. Several processes
    call it together: each embeds its share, and all get the whole.

    Args:
        model: gives unit vectors; whole on a device of this process.
        images: the image files, at least 1.
        protocol: size, resize and kernel.
        batch_size: most images at once on this process, at least 1; rounded up to a multiple of its devices.

    Raises:
        ValueError: there is no image.
    """
    mesh = make_mesh(jax.local_devices())
    model = replicate(model, mesh)
    readable = np.ones(len(images), bool)
    faults: dict[str, str] = {}

    def decode(index: int) -> UInt8[np.ndarray, "height width 3"]:
        try:
            return eval_image(
                images.read(index),
                protocol.image_size,
                resize=protocol.resize,
                interpolation=protocol.interpolation,
                max_pixels=DataConfig.max_pixels,
            )
        except (ImageError, OSError) as error:
            readable[index] = False
            faults[images.key(index)] = str(error)
            return np.zeros((protocol.image_size, protocol.image_size, 3), np.uint8)

    share = _share(range(len(images)))
    with ThreadPoolExecutor(_DECODE_THREADS) as threads:
        batches = (
            _embed_pixels(model, _on_devices(np.stack(list(threads.map(decode, rows))), size, mesh))
            for rows, size in _batches(share, batch_size, mesh)
        )
        embeds = _of_all(_gathered(batches, len(share)), len(images))
    for text in texts_of_all(json.dumps(faults)):
        faults |= json.loads(text)
    return ImageEmbeds(embeds, _of_all(readable[share], len(images)), dict(sorted(faults.items())))


def embed_texts(
    model: Encoder, texts: Sequence[str], tokenizer: Tokenizer, protocol: Protocol, *, batch_size: int = 256
) -> Float[np.ndarray, "texts embed"]:
    """Embed texts, in order. Several processes call it together, as `embed_images`.

    Args:
        model: gives unit vectors; whole on a device of this process.
        texts: at least 1.
        tokenizer: that of the model.
        protocol: context length, how longer texts are cut, whether they are canonicalised.
        batch_size: most texts at once on this process, at least 1; rounded up to a multiple of its devices.

    Raises:
        ValueError: there is no text.
    """
    mesh = make_mesh(jax.local_devices())
    model = replicate(model, mesh)
    syntax = protocol.text_reduction == "syntax"
    # Where nothing goes by classes, the cheapest ones serve.
    reader = LiveTexts(tokenizer, word_classifier(tokenizer, protocol.word_class if syntax else "piece"))
    length = max(_READ_TOKENS, protocol.context_length)
    cut = _Cut(protocol.context_length, syntax, tokenizer.pad_id, tokenizer.end_id)

    def embed(rows: Sequence[str], size: int) -> Float[Array, "rows embed"]:
        rows = [canonicalize(text) for text in rows] if protocol.canonicalize else rows
        tokens, word_class = reader.read([Caption(0, 0, text) for text in rows], length)
        priority = word_class.astype(np.int32)
        return _embed_tokens(model, _on_devices(tokens, size, mesh), _on_devices(priority, size, mesh), cut)

    share = [texts[index] for index in _share(range(len(texts)))]
    batches = (embed(rows, size) for rows, size in _batches(share, batch_size, mesh))
    return _of_all(_gathered(batches, len(share)), len(texts))


class _Cut(NamedTuple):
    """How texts are cut; static under jit."""

    keep: int
    syntax: bool
    pad_id: int
    end_id: int | None


@eqx.filter_jit
def _embed_pixels(model: Encoder, pixels: UInt8[Array, "rows height width 3"]) -> Float[Array, "rows embed"]:
    return jax.vmap(lambda image: model.encode_image(normalize_pixels(scale_pixels(image), model.config.vision)))(
        pixels
    )


@eqx.filter_jit
def _embed_tokens(
    model: Encoder, tokens: Int[Array, "rows length"], priority: Int[Array, "rows length"], cut: _Cut
) -> Float[Array, "rows embed"]:
    def embed(tokens: TokenIds, priority: Int[Array, " length"]) -> Float[Array, " embed"]:
        if cut.syntax:
            kept = syntax_text(tokens, cut.keep, priority=priority, pad_id=cut.pad_id, end_id=cut.end_id)
        else:
            kept = truncate_text(tokens, cut.keep, pad_id=cut.pad_id, end_id=cut.end_id)
        return model.encode_text(jnp.take(tokens, kept))

    return jax.vmap(embed)(tokens, priority)


def _share(items: range) -> list[int]:
    """The items of this process, as many on each: where they do not divide, the last one stands in."""
    size = -(-len(items) // jax.process_count())
    first = jax.process_index() * size
    return [min(index, items.stop - 1) for index in range(first, first + size)]


def _of_all(rows: np.ndarray, count: int) -> np.ndarray:
    """The rows of all shares, without the ones that stood in."""
    return rows_of_all(rows)[:count]


def _batches(items: Sequence[_T], batch_size: int, mesh: Mesh) -> Iterator[tuple[Sequence[_T], int]]:
    """Items in even batches, each with the rows it is padded to: the same for all, so that one function serves."""
    check_at_least("batch_size", batch_size, 1)
    if not items:
        raise ValueError("There is nothing to embed: give at least one image or text.")
    batches = -(-len(items) // batch_size)
    size = -(-len(items) // (batches * mesh.size)) * mesh.size
    for first in range(0, len(items), size):
        yield items[first : first + size], size


def _on_devices(rows: np.ndarray, size: int, mesh: Mesh) -> Array:
    """Rows padded with zeros to `size`, split over the devices."""
    padded = np.concatenate([rows, np.zeros((size - len(rows), *rows.shape[1:]), rows.dtype)])
    return cast(Array, to_global(padded, mesh))


def _gathered(batches: Iterator[Float[Array, "rows embed"]], count: int) -> Float[np.ndarray, "count embed"]:
    """Results on the host; each is fetched once the next batch is under way."""
    ahead = itertools.chain(batches, [None])
    waiting = next(ahead)
    rows: list[np.ndarray] = []
    while waiting is not None:
        following = next(ahead)
        rows.append(np.asarray(waiting, np.float32))
        waiting = following
    return np.concatenate(rows)[:count]
