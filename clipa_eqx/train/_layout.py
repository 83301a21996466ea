"""Where a training state lies: what each device holds, and how the step comes by the rest."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

from ..config import Shard
from ..models import CLIP
from ..nn import Split, Stack
from ..sharding import DATA_AXIS, gather, split_axis, weight_specs
from ._state import TrainState


def parameter_specs(model: CLIP, shard: Shard, num_devices: int) -> Any:
    """How the parameters lie between steps: split with shard='all', else whole on each device."""
    return weight_specs(model, num_devices) if shard == "all" else _whole(model)


def gradient_specs(tree: Any, shard: Shard, num_devices: int) -> Any:
    """How gradients, optimiser moments and averaged weights lie: split unless shard='none'."""
    return _whole(tree) if shard == "none" else weight_specs(tree, num_devices)


def state_shardings(state: TrainState, shard: Shard, mesh: Mesh) -> TrainState:
    """The sharding of every array of a state; shapes suffice.

    Raises:
        ValueError: an array does not split over the devices.
    """
    specs = gradient_specs(state, shard, mesh.size)
    if shard == "optimizer":
        specs = eqx.tree_at(lambda state: state.model, specs, replace_fn=_whole)
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)


def gather_model(model: CLIP, specs: Any) -> CLIP:
    """Inside the mapped step: every array whole, but for the stacks, which gather one block at a time.

    Differentiating through it leaves on each device the part of the summed gradient that belongs to its part of the
    array: the transpose of a gather is a sum that is scattered.
    """
    stacks = lambda clip: (clip.vision.stack, clip.text.stack)
    outside = eqx.tree_at(stacks, specs, replace_fn=_whole)
    model = jax.tree.map(gather, model, outside)
    pairs = zip(stacks(model), stacks(specs), strict=True)
    return eqx.tree_at(stacks, model, tuple(_splitting(stack, spec) for stack, spec in pairs))


def _splitting(stack: Stack, specs: Any) -> Stack:
    """The stack, told along which axes its blocks are split; a block has one axis less than the stacked arrays."""
    axes = tuple(axis if axis is None else axis - 1 for axis in map(split_axis, jax.tree.leaves(specs.blocks)))
    return stack if set(axes) == {None} else dataclasses.replace(stack, split=Split(DATA_AXIS, axes))


def _whole(tree: Any) -> Any:
    return jax.tree.map(lambda _: P(), tree)
