"""What a step costs, counted by the compiler."""

import dataclasses
import math
from dataclasses import dataclass

import jax
from jax.sharding import Mesh

from ..config import RunConfig, StageConfig, TextConfig, VisionConfig
from ..sharding import make_mesh
from ._stage import abstract_batch, lower_step


def step_flops(config: RunConfig, stage: StageConfig) -> float:
    """Floating-point operations of one optimiser step of a stage, forward, backward and update, over all devices.

    The step is traced on shapes alone and counted by XLA's cost analysis, a multiply-add as two. Blocks are written out
    for the count, and the batch and the logits taken whole, since the analysis counts a loop's body once. Nothing is
    recomputed, so these are the model's own operations. Nothing is compiled or allocated: the largest models can be
    asked about.

    Raises:
        RuntimeError: the backend does not count.
    """
    plain = dataclasses.replace(
        stage, micro_batch=0, loss_tile=0, loss_ring=False, remat_image="none", remat_text="none"
    )
    config = dataclasses.replace(config, layers="unroll", shard="none")
    cost = lower_step(config, plain, make_mesh(jax.devices()[:1])).cost_analysis()
    if not cost or "flops" not in cost:
        raise RuntimeError(f"XLA gives no cost analysis on the backend {jax.default_backend()!r}; count on a CPU.")
    return cost["flops"]


@dataclass(frozen=True)
class StepMemory:
    """Bytes that each device holds while a step runs, as the compiler laid them out."""

    state: int
    """Weights, optimiser moments and averages."""
    batch: int
    """Pixels and token ids of one step."""
    temporary: int
    """Everything else: gradients, activations, logits."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.state + self.batch + self.temporary


def step_memory(config: RunConfig, stage: StageConfig, mesh: Mesh) -> StepMemory:
    """What one compiled step of a stage holds on each device of a mesh.

    The figure is that of the backend that compiles: attention kernels and the order of operations differ between
    backends, so a CPU's program, which writes every attention matrix out, is an estimate from above for a GPU.

    Raises:
        ValueError: the stage does not fit the mesh.
        RuntimeError: the backend does not tell.
    """
    analysis = lower_step(config, stage, mesh).compile().memory_analysis()
    if analysis is None:
        raise RuntimeError(f"The backend {jax.default_backend()!r} does not tell a program's memory; ask a CPU.")
    batch = abstract_batch(config.data, stage, mesh)
    batch_bytes = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(batch)) // mesh.size
    # The state is donated: what comes out lies where it was.
    beside = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return StepMemory(
        state=analysis.argument_size_in_bytes - batch_bytes,
        batch=batch_bytes,
        temporary=analysis.temp_size_in_bytes + beside,
    )


def model_flops(config: RunConfig, stage: StageConfig) -> float:
    """Operations of the matrix products of one optimiser step, as model FLOP utilisation counts them.

    Twice per multiply-add, three times a forward pass, nothing for what is recomputed, for norms, activations or the
    optimiser. Plain arithmetic on the config: no device is asked.

    Args:
        config: the run.
        stage: the stage whose step is counted; batch over all devices.
    """
    vision, text = config.model.vision, config.model.text
    patches = stage.keep_patches or (stage.image_size // vision.patch_size) ** 2
    pixels = 3 * vision.patch_size**2
    # The patch embedding has no gradient of its input.
    products = _tower(vision, patches + vision.class_token, reads_one=vision.pool == "first")
    products += patches * pixels * vision.width * 2 / 3
    products += _tower(text, stage.text_length, reads_one=text.pool != "mean_real")
    products += sum(tower.width * config.model.embed for tower in (vision, text) if tower.projection != "none")
    if vision.pool == "attention":
        tokens = patches + vision.class_token
        products += 2 * (tokens + 1) * vision.width**2 + 2 * tokens * vision.width + 2 * vision.width * vision.hidden
    logits = stage.batch_size * config.model.embed
    return 6.0 * stage.batch_size * (products + logits)


def _tower(tower: VisionConfig | TextConfig, tokens: int, *, reads_one: bool) -> int:
    """Multiply-adds of the blocks for one example, forward; if one token is read, the last block computes only that."""
    key_value = 2 * tower.width**2
    per_query = 2 * tower.width**2 + 2 * tower.width * tower.hidden + 2 * tokens * tower.width
    queries = (tower.depth - 1) * tokens + (1 if reads_one else tokens)
    return tower.depth * tokens * key_value + queries * per_query
