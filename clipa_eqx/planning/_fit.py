"""Which switches make a stage fit into the memory of its devices."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ..config import RunConfig, StageConfig
from ..train import StepMemory


Measure = Callable[[RunConfig, StageConfig], StepMemory]
"""Memory per device of one step, as `clipa_eqx.train.step_memory` compiles it."""

_TILE = 1024

# Fewer pairs than this leave a device's matrix units idle.
_LEAST_PAIRS_PER_DEVICE = 8


@dataclass(frozen=True)
class Fit:
    """A stage in a form, and what it takes."""

    config: RunConfig
    stage: StageConfig
    switches: dict[str, str]
    """What differs from the run as written, by field name; the value as `--set` takes it."""
    memory: StepMemory
    fits: bool
    """Whether the memory suffices; where nothing fits this is the leanest form tried."""


def find_fit(config: RunConfig, stage: StageConfig, *, num_devices: int, memory_bytes: float, measure: Measure) -> Fit:
    """The first form of a stage that fits, in order of what the switches cost.

    Nothing, then tiles of the logits, then micro-batches (each pair is embedded once more), the largest that fit, then
    those with remat of the towers (each block computed once more), then with the optimiser's state split over the
    devices, then with all of it split (weights gathered for every use). Value and gradient are the same in all forms.

    Args:
        config: the run.
        stage: one of its stages.
        num_devices: devices over which the batch is split.
        memory_bytes: what each device can hold.
        measure: asks the compiler; called once or a few times for each form.
    """
    tried: Fit | None = None
    for run, form in _forms(config, stage, num_devices):
        tried = _in_micro_batches(run, form, config, stage, num_devices, memory_bytes, measure)
        if tried.fits:
            return tried
    if tried is None:
        raise ValueError(f"stage {stage.name!r} has no form to try.")
    return tried


def _forms(config: RunConfig, stage: StageConfig, num_devices: int) -> Iterator[tuple[RunConfig, StageConfig]]:
    """Runs and stages from cheap to dear; each is tried whole, then in micro-batches where it has a tile."""
    yield config, stage
    tiled = stage if stage.loss_tile else dataclasses.replace(stage, loss_tile=_TILE)
    yield config, tiled
    lean = dataclasses.replace(tiled, remat_image="full", remat_text="full")
    if lean != tiled:
        yield config, lean
    layouts = {"none": ("optimizer", "all"), "optimizer": ("all",), "all": ()}[config.shard]
    for shard in layouts if num_devices > 1 else ():
        yield dataclasses.replace(config, shard=shard), lean


def _in_micro_batches(
    config: RunConfig,
    stage: StageConfig,
    written_config: RunConfig,
    written: StageConfig,
    num_devices: int,
    memory_bytes: float,
    measure: Measure,
) -> Fit:
    """The whole batch if it fits, else the largest micro-batch that does, else the smallest."""

    def fit(micro_batch: int) -> Fit:
        form = dataclasses.replace(stage, micro_batch=micro_batch)
        memory = measure(config, form)
        switches = _switches(written_config, written, config, form)
        return Fit(config, form, switches, memory, memory.total <= memory_bytes)

    whole = fit(stage.micro_batch)
    # What a micro-batch does not shrink: the state, and the whole batch's pixels.
    least = whole.memory.state + whole.memory.batch
    if whole.fits or not stage.loss_tile or stage.micro_batch or least > memory_bytes:
        return whole
    sizes = _micro_batches(stage, num_devices)
    if not sizes:
        return whole
    best = fit(sizes[0])
    if not best.fits or len(sizes) == 1:
        return best
    # Memory grows in proportion to the micro-batch: one more figure tells where to look.
    second = fit(sizes[1])
    growth = (second.memory.total - best.memory.total) / (sizes[1] - sizes[0])
    room = sizes[0] + (memory_bytes - best.memory.total) / growth if growth > 0 else math.inf
    if second.fits:
        best = second
    for size in [size for size in sizes[:1:-1] if size <= room]:
        larger = fit(size)
        if larger.fits:
            return larger
    return best


def _micro_batches(stage: StageConfig, num_devices: int) -> list[int]:
    """Parts of a batch by halves, smallest first, that split over the devices."""
    sizes: list[int] = []
    size = stage.batch_size
    while size % 2 == 0 and (size // 2) % num_devices == 0 and size // 2 >= _LEAST_PAIRS_PER_DEVICE * num_devices:
        size //= 2
        sizes.insert(0, size)
    return sizes


def _switches(written_run: RunConfig, written: StageConfig, run: RunConfig, stage: StageConfig) -> dict[str, str]:
    changed = {
        name: str(getattr(stage, name))
        for name in ("loss_tile", "micro_batch", "remat_image", "remat_text")
        if getattr(stage, name) != getattr(written, name)
    }
    return changed if run.shard == written_run.shard else {**changed, "shard": run.shard}
