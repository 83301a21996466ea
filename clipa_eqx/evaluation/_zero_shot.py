"""Zero-shot classification."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from ..data import ClassificationSet, Tokenizer
from ._embed import embed_images, embed_texts, Encoder
from ._protocol import CLASS_SLOT, Protocol
from ._rank import first_right


def zero_shot(
    model: Encoder,
    images: ClassificationSet,
    tokenizer: Tokenizer,
    protocol: Protocol,
    *,
    unseen: Sequence[int] = (),
    batch_size: int = 256,
) -> dict[str, Any]:
    """Classify images by the class whose prompts are nearest (Radford et al., arXiv 2103.00020, section 3.1.4).

    An image that cannot be read counts as wrong, and is reported.

    Args:
        model: gives unit vectors.
        images: the set; its own templates, or else `DEFAULT_TEMPLATES`.
        tokenizer: that of the model.
        protocol: how images and texts reach the model.
        unseen: classes to report on by themselves, by label.
        batch_size: images or texts at once, at least 1.

    Returns:
        What JSON can hold: `top1`, `top5` and `mean_per_class` as shares, `per_class` by label (None where a class has
        no image), `top1_unseen` where `unseen` classes have images, the counts `images`, `classes` and `unreadable`,
        `skipped` files by reason, `faults` by key, and the whole `protocol`.

    Raises:
        ValueError: a label of `unseen` is not that of a class.
    """
    classes = len(images.class_names)
    wrong = [label for label in unseen if not 0 <= label < classes]
    if wrong:
        raise ValueError(f"unseen has the label {wrong[0]}; it must be one of 0 to {classes - 1}.")
    protocol = protocol.with_classes(images.class_names, images.templates)
    vectors = class_vectors(model, images.class_names, tokenizer, protocol, batch_size=batch_size)
    embedded = embed_images(model, images, protocol, batch_size=batch_size)
    labels = np.array([images.label(index) for index in range(len(images))], np.int32)
    ranks = first_right(embedded.embeds, vectors, query_owner=labels, answer_owner=np.arange(classes))

    right = embedded.readable & (ranks == 0)
    per_class = [float(right[labels == label].mean()) if np.any(labels == label) else None for label in range(classes)]
    result: dict[str, Any] = {
        "top1": float(right.mean()),
        "top5": float((embedded.readable & (ranks < 5)).mean()),
        "mean_per_class": float(np.mean([share for share in per_class if share is not None])),
        "images": len(images),
        "classes": classes,
        "unreadable": len(images) - int(embedded.readable.sum()),
        "skipped": images.skipped,
        "per_class": per_class,
        "faults": embedded.faults,
        "protocol": dataclasses.asdict(protocol),
    }
    among_unseen = np.isin(labels, list(unseen))
    if among_unseen.any():
        result["top1_unseen"] = float(right[among_unseen].mean())
    return result


def class_vectors(
    model: Encoder, class_names: Sequence[str], tokenizer: Tokenizer, protocol: Protocol, *, batch_size: int = 256
) -> Float[np.ndarray, "classes embed"]:
    """A unit vector per class: the mean of its prompts' unit vectors, scaled to length 1.

    Args:
        model: gives unit vectors.
        class_names: at least 1.
        tokenizer: that of the model.
        protocol: with at least one template.
        batch_size: texts at once, at least 1.

    Raises:
        ValueError: there is no class or no template.
    """
    prompts = [template.replace(CLASS_SLOT, name) for name in class_names for template in protocol.templates]
    embeds = embed_texts(model, prompts, tokenizer, protocol, batch_size=batch_size)
    means = embeds.reshape(len(class_names), len(protocol.templates), -1).mean(axis=1)
    return means / np.linalg.norm(means, axis=1, keepdims=True).clip(1e-12)


def read_unseen(folder: Path) -> tuple[int, ...]:
    """Labels in a set's `unseen.txt`, one per line: classes that training did not show. Empty without that file.

    Raises:
        ValueError: a line is not a number.
    """
    file = folder / "unseen.txt"
    if not file.is_file():
        return ()
    lines = file.read_text(encoding="utf-8", errors="replace").split()
    wrong = [line for line in lines if not (line.isascii() and line.isdigit())]
    if wrong:
        raise ValueError(f"{file} holds {wrong[0][:20]!r}; it must hold one label per line.")
    return tuple(int(line) for line in lines)
