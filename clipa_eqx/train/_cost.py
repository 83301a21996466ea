"""What a step costs, counted by the compiler."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, cast, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ..config import DataConfig, RunConfig, stage_model, StageConfig, TextConfig, VisionConfig
from ..models import make_clip, with_execution
from ..sharding import batch_sharding, make_mesh
from ._layout import state_shardings
from ._optim import make_optimizer, make_schedule, trainable_mask
from ._state import init_state, TrainState
from ._step import DeviceBatch, make_train_step


_T = TypeVar("_T")


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


def lower_step(config: RunConfig, stage: StageConfig, mesh: Mesh) -> jax.stages.Lowered:
    """The step of a stage on a mesh, from shapes alone: nothing is allocated until it is compiled and called.

    `.compile()` gives the program whose memory and collectives can be read, with the layout that `config.shard` names.

    Raises:
        ValueError: the stage does not fit the mesh; `check_run` names all such faults.
    """
    schedule = make_schedule(stage.optim, stage.steps)

    def start() -> TrainState:
        model = make_clip(stage_model(config, stage), key=jax.random.key(0))
        model = with_execution(model, layers=config.layers, remat_image=stage.remat_image, remat_text=stage.remat_text)
        averaged = eqx.filter(model, trainable_mask(stage.optim, model)) if stage.ema_decay else None
        optimizer = make_optimizer(stage.optim, schedule, model)
        return init_state(model, optimizer, averaged=averaged, key=jax.random.key(0))

    state = eqx.filter_eval_shape(start)
    optimizer = make_optimizer(stage.optim, schedule, state.model)
    state = _placed(state, state_shardings(state, config.shard, mesh))
    batch = _abstract_batch(config.data, stage)
    batch = _placed(batch, jax.tree.map(lambda _: batch_sharding(mesh), batch))
    return make_train_step(stage, schedule, optimizer, mesh, shard=config.shard).lower(state, batch)


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
    batch = _abstract_batch(config.data, stage)
    batch_bytes = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(batch)) // mesh.size
    # The state is donated: what comes out lies where it was.
    beside = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return StepMemory(
        state=analysis.argument_size_in_bytes - batch_bytes,
        batch=batch_bytes,
        temporary=analysis.temp_size_in_bytes + beside,
    )


def _placed(shapes: _T, shardings: Any) -> _T:
    put = lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
    return jax.tree.map(put, shapes, shardings)


def _abstract_batch(data: DataConfig, stage: StageConfig) -> DeviceBatch:
    rows, length, side = stage.batch_size, data.caption_tokens, stage.image_size
    shapes = {
        "pixels": jax.ShapeDtypeStruct((rows, side, side, 3), jnp.uint8),
        "tokens": jax.ShapeDtypeStruct((rows, length), jnp.int32),
        "word_class": jax.ShapeDtypeStruct((rows, length), jnp.uint8),
    }
    return cast(DeviceBatch, shapes)


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
