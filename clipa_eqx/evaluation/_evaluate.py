"""Everything that an `EvalConfig` asks for, once or again and again during training."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..config import EvalConfig
from ..data import ClassificationSet, open_classification, open_retrieval, RetrievalSet, Tokenizer
from ._embed import Encoder
from ._protocol import make_protocol
from ._retrieval import retrieval
from ._zero_shot import read_unseen, zero_shot


def evaluate(model: Encoder, tokenizer: Tokenizer, config: EvalConfig) -> dict[str, Any]:
    """Measure a model as a config says.

    Args:
        model: image size and context length are those of its config.
        tokenizer: that of the model.
        config: which sets, and the protocol.

    Returns:
        `classification` and `retrieval`, where the config names a set: the results of
        [`zero_shot`][clipa_eqx.evaluation.zero_shot] and [`retrieval`][clipa_eqx.evaluation.retrieval].

    Raises:
        FileNotFoundError: a set is missing.
        ValueError: a set is damaged.
    """
    return {name: measure(model) for name, measure in _measures(config, tokenizer).items()}


def make_evaluators(config: EvalConfig, tokenizer: Tokenizer) -> tuple[Callable[[Encoder], dict[str, float]], ...]:
    """Evaluators for a training run: each measures a model on one set, at the sizes in the model's config.

    Sets are opened now, so a missing one is found before training starts.

    Args:
        config: which sets, and the protocol.
        tokenizer: that of the run.

    Returns:
        One function per set. Its scalars: `top1`, `top5`, `mean_per_class`, `top1_unseen`; or
        `image_to_text_recall@1` and its like.

    Raises:
        FileNotFoundError: a set is missing.
        ValueError: a set is damaged.
    """

    def scalars(measure: Callable[[Encoder], dict[str, Any]], model: Encoder) -> dict[str, float]:
        return {name: value for name, value in measure(model).items() if isinstance(value, float)}

    return tuple(functools.partial(scalars, measure) for measure in _measures(config, tokenizer).values())


def _measures(config: EvalConfig, tokenizer: Tokenizer) -> dict[str, Callable[[Encoder], dict[str, Any]]]:
    measures: dict[str, Callable[[Encoder], dict[str, Any]]] = {}
    if config.classification:
        measures["classification"] = _classification(
            open_classification(config.classification), read_unseen(Path(config.classification)), tokenizer, config
        )
    if config.retrieval:
        measures["retrieval"] = _retrieval(open_retrieval(config.retrieval), tokenizer, config)
    return measures


def _classification(
    images: ClassificationSet, unseen: tuple[int, ...], tokenizer: Tokenizer, config: EvalConfig
) -> Callable[[Encoder], dict[str, Any]]:
    return lambda model: zero_shot(
        model, images, tokenizer, make_protocol(config, model), unseen=unseen, batch_size=config.batch_size
    )


def _retrieval(images: RetrievalSet, tokenizer: Tokenizer, config: EvalConfig) -> Callable[[Encoder], dict[str, Any]]:
    return lambda model: retrieval(model, images, tokenizer, make_protocol(config, model), batch_size=config.batch_size)
