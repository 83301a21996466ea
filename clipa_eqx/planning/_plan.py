"""One stage on given devices: parameters, operations, memory, hours."""

import dataclasses
import functools
from dataclasses import dataclass

import equinox as eqx
import jax

from ..config import RunConfig, stage_model, StageConfig
from ..devices import Device
from ..models import count_parameters, make_clip
from ..sharding import make_mesh
from ..train import step_flops, step_memory
from ._fit import find_fit, Fit


# Kernels' workspace, collectives' buffers and gaps between arrays are in no program's figure.
_USABLE_SHARE = 0.9

# The host sends the next batches while a step runs: the loop lets two steps queue.
_BATCHES_AHEAD = 2


@dataclass(frozen=True)
class StagePlan:
    """What one stage takes."""

    stage: str
    """Name of the stage."""
    parameters: int
    """Numbers held by the model."""
    samples: int
    """Pairs trained on, in whole batches."""
    steps: int
    """Updates."""
    flops: float
    """Operations of the stage over all devices, nothing recomputed, a multiply-add as two."""
    fit: Fit
    """The form that fits, and its memory."""
    memory_bytes: int
    """Per device: the compiled step, and the batches that wait behind it."""
    hours: float
    """Wall time of the stage on the devices."""


def plan_stage(
    config: RunConfig, stage: StageConfig, device: Device, *, mfu: float, samples_per_s: float = 0.0
) -> StagePlan:
    """Plan a stage for the devices of this process, which stand in for those meant.

    Args:
        config: the run.
        stage: one of its stages.
        device: the chip meant.
        mfu: share of the peak that the model's own operations reach, in (0, 1].
        samples_per_s: pairs per second over all devices, as measured; 0: from `mfu`.

    Raises:
        ValueError: the stage does not fit the devices' number.
    """
    if config.layers == "auto":
        config = dataclasses.replace(config, layers="scan")  # As on the chips meant; a CPU's choice is another.
    mesh = make_mesh()
    measure = functools.cache(lambda run, form: step_memory(run, form, mesh))
    waiting = _BATCHES_AHEAD * batch_bytes(config, stage) // mesh.size
    usable = _USABLE_SHARE * device.memory_bytes - waiting
    fit = find_fit(config, stage, num_devices=mesh.size, memory_bytes=usable, measure=measure)
    flops = step_flops(config, stage) * stage.steps
    samples = stage.steps * stage.batch_size
    by_peak = flops / (mesh.size * device.peak_flops(stage.compute_dtype) * mfu)
    shapes = eqx.filter_eval_shape(make_clip, stage_model(config, stage), key=jax.random.key(0))
    return StagePlan(
        stage=stage.name,
        parameters=count_parameters(shapes),
        samples=samples,
        steps=stage.steps,
        flops=flops,
        fit=fit,
        memory_bytes=fit.memory.total + waiting,
        hours=(samples / samples_per_s if samples_per_s else by_peak) / 3600,
    )


def batch_bytes(config: RunConfig, stage: StageConfig) -> int:
    """Bytes of one step's raw pixels, token ids and word classes over all devices."""
    return stage.batch_size * (3 * stage.image_size**2 + 5 * config.data.caption_tokens)
