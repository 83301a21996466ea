"""Retrieval between images and their captions."""

import dataclasses
from typing import Any

import numpy as np

from ..data import RetrievalSet, Tokenizer
from ._embed import embed_images, embed_texts, Encoder
from ._protocol import Protocol
from ._rank import first_right


_DEPTHS = (1, 5, 10)


def retrieval(
    model: Encoder, images: RetrievalSet, tokenizer: Tokenizer, protocol: Protocol, *, batch_size: int = 256
) -> dict[str, Any]:
    """Recall at 1, 5 and 10 in both directions.

    From an image, any of its captions is right; from a caption, its image. An image that cannot be read is found by
    none of its captions and finds none; other captions do not meet it.

    Args:
        model: gives unit vectors.
        images: the set.
        tokenizer: that of the model.
        protocol: how images and texts reach the model.
        batch_size: images or texts at once, at least 1.

    Returns:
        What JSON can hold: `image_to_text_recall@1`, `text_to_image_recall@1` and so on as shares, the counts `images`,
        `captions` and `unreadable`, `skipped` files by reason, `faults` by key, and the `protocol`.
    """
    captions = [images.captions(index) for index in range(len(images))]
    owner = np.repeat(np.arange(len(images)), [len(texts) for texts in captions])
    texts = embed_texts(
        model, [text for texts in captions for text in texts], tokenizer, protocol, batch_size=batch_size
    )
    embeds, readable, faults = embed_images(model, images, protocol, batch_size=batch_size)
    numbers = np.arange(len(images))
    from_image = first_right(embeds, texts, query_owner=numbers, answer_owner=owner)
    from_text = first_right(texts, embeds, query_owner=owner, answer_owner=numbers, usable=readable)
    return {
        **{f"image_to_text_recall@{depth}": float((readable & (from_image < depth)).mean()) for depth in _DEPTHS},
        **{f"text_to_image_recall@{depth}": float((from_text < depth).mean()) for depth in _DEPTHS},
        "images": len(images),
        "captions": len(owner),
        "unreadable": len(images) - int(readable.sum()),
        "skipped": images.skipped,
        "faults": faults,
        "protocol": dataclasses.asdict(protocol),
    }
