"""How blocks are computed on each kind of device."""

import dataclasses
import math
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
    keep_products: bool = False
    """Whether scanned blocks keep the products with weights alone for the backward pass, which recomputes the rest,
    attention too: less is copied into their stacks. Written-out blocks copy nothing, and recomputing costs them time
    (10 % of a step of B/16 on an H100, for half of its memory)."""


# On an H100 folding made a step of B/16 5 % faster; on a TPU its compiler sees no gain.
_FORMS = {"cpu": Form(), "tpu": Form(keep_products=True), "gpu": Form(fold_norms=True, keep_products=True)}


def form_for(platform: str, attention: AttentionKernel = "auto", *, compute_capability: float = 0.0) -> Form:
    """The form for a kind of device.

    Args:
        platform: JAX's name of the kind.
        attention: what computes attention; auto: cuDNN on NVIDIA GPUs from Ampere on.
        compute_capability: of an NVIDIA GPU.

    Raises:
        ValueError: cuDNN is asked for on a device that it does not serve.
    """
    form = _FORMS.get(platform, Form())
    served = platform == "gpu" and compute_capability >= 8
    if attention == "cudnn" and not served:
        raise ValueError(
            "attention='cudnn' needs NVIDIA GPUs of compute capability 8.0 or later, the devices here are "
            f"{platform} ({compute_capability}): use attention='auto' or 'xla'."
        )
    return dataclasses.replace(form, attention="cudnn") if served and attention != "xla" else form


# Steps after which a written-out block has made up for its compilation: on an H100 1.5 s, for 1.2 ms of a step of B/16;
# on a TPU v5e, by its compiler's estimate and on a small host, 15 s for 3 ms.
_STEPS = {"gpu": 1500, "tpu": 5000}
_CPU_DEPTH = 12


def layers_for(platform: str, depth: int, steps: int | None) -> Literal["scan", "unroll"]:
    """Whether blocks are scanned or written out.

    Written out they compile for longer, and run faster, since they copy nothing into and out of stacks.

    Args:
        platform: JAX's name of the kind of device.
        depth: blocks.
        steps: how often the program runs; None: not known.
    """
    if platform == "cpu":
        return "unroll" if depth <= _CPU_DEPTH else "scan"
    return "unroll" if steps is not None and steps >= _STEPS.get(platform, math.inf) else "scan"
