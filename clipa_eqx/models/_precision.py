"""In which number type a model computes."""

import equinox as eqx
import jax
import jax.numpy as jnp

from ..config import FloatType
from ..nn import LayerNorm
from ._clip import CLIP


def for_compute(model: CLIP, dtype: FloatType) -> CLIP:
    """The model as a training step computes with it: one rule for every number type.

    Matrices, biases, embeddings and position tables become `dtype`, and activations with them. Norms keep the type of
    the weights, as temperature and bias of the logits do; softmax, norms, embeddings and losses compute in at least
    float32 whatever comes in. Weights stay what they are: the gradient through the cast arrives in their type.

    Args:
        model: with weights in float32.
        dtype: of matrix products and activations.
    """
    is_norm = lambda part: isinstance(part, LayerNorm)
    cast = lambda part: part if is_norm(part) else part.astype(jnp.dtype(dtype))
    towers = lambda clip: (clip.vision, clip.text)
    return eqx.tree_at(towers, model, jax.tree.map(cast, towers(model), is_leaf=is_norm))
