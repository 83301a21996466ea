"""How blocks are computed on each kind of device."""

import dataclasses
from dataclasses import dataclass
from typing import Literal

from ..config import AttentionKernel
from ._attention import Kernel


@dataclass(frozen=True)
class Form:
    """A way to compute the blocks of a stack: values and gradients are the same in each, up to rounding."""

    attention: Kernel = "xla"
    """What computes attention."""
    fold_norms: bool = False
    """Whether scale and bias of a norm are multiplied into the layer that reads it, by `fold_norm`."""
    keep_products: Literal["never", "scan", "always"] = "never"
    """Where the backward pass is given the products with weights alone and recomputes the rest, attention too: in
    scanned blocks, which then copy less into their stacks, or in written-out ones as well."""


_FORMS = {
    "cpu": Form(),
    # Written-out blocks keep what XLA keeps: a TPU loses more by the borders of what is recomputed than it gains.
    "tpu": Form(keep_products="scan"),
    "gpu": Form(fold_norms=True, keep_products="scan"),
}


def form_for(platform: str, attention: AttentionKernel = "auto") -> Form:
    """The form for a kind of device, chosen by its compiler's estimates (benchmarks/compiled_step.py).

    Args:
        platform: JAX's name of the kind.
        attention: what computes attention.
    """
    form = _FORMS.get(platform, Form())
    if attention == "xla" or (attention == "auto" and platform != "gpu"):
        return form
    return dataclasses.replace(form, attention="cudnn")


# Measured or estimated: what one more written-out block costs the compiler, over what it saves a step.
_STEPS_PER_BLOCK = {"tpu": 1000, "gpu": 200}
_CPU_DEPTH = 12


def layers_for(platform: str, depth: int, steps: int | None) -> Literal["scan", "unroll"]:
    """Whether blocks are scanned or written out.

    Args:
        platform: JAX's name of the kind of device.
        depth: blocks.
        steps: how often the program runs; None: not known.
    """
    if platform == "cpu":
        return "unroll" if depth <= _CPU_DEPTH else "scan"
    if steps is None or platform not in _STEPS_PER_BLOCK:
        return "scan"
    return "unroll" if steps >= depth * _STEPS_PER_BLOCK[platform] else "scan"
