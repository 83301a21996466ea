"""Checkpoints of one stage: state and data position together, written asynchronously by Orbax."""

import functools
from pathlib import Path
from types import TracebackType
from typing import Any

import equinox as eqx
import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from ..config import CheckpointConfig, load_run_config, RunConfig, stage_model
from ..models import CLIP, make_clip, transfer
from ._state import TrainState


class Checkpoints:
    """The checkpoints in one directory, numbered by step.

    A checkpoint appears under its number only when it is whole, so a killed run never leaves a half-written one.
    Use as a context manager: leaving it waits for writes that are under way.
    """

    def __init__(self, directory: Path, config: CheckpointConfig) -> None:
        policies: list[preservation_policy.PreservationPolicy] = [preservation_policy.LatestN(config.keep_last)]
        if config.keep_every:
            policies.append(preservation_policy.EveryNSteps(config.keep_every))
        self._manager = ocp.CheckpointManager(
            directory.resolve(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=preservation_policy.AnyPreservationPolicy(policies), enable_async_checkpointing=True
            ),
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._manager.close()

    def latest_step(self) -> int | None:
        """Step of the newest whole checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState, position: dict[str, Any]) -> None:
        """Begin to write a checkpoint; returns once the state is copied off the devices.

        Args:
            step: updates done in this stage.
            state: the state after them.
            position: JSON values that say where the data stands.
        """
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(_raw_arrays(state)), position=ocp.args.JsonSave(position)
            ),
            force=True,
        )

    def restore(self, step: int, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """Read a checkpoint into the shapes, types and shardings of `like`, whatever layout it was written in.

        Args:
            step: one of the steps that were saved.
            like: a state; shapes with shardings suffice.

        Raises:
            ValueError: the checkpoint is of another model or optimiser.
        """
        shardings = {_name(path): leaf.sharding for path, leaf in jax.tree_util.tree_leaves_with_path(like)}
        abstract = {
            name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=shardings[name])
            for name, leaf in jax.eval_shape(_raw_arrays, like).items()
        }
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract), position=ocp.args.JsonRestore()),
            )
        except (KeyError, ValueError, TypeError) as error:
            raise ValueError(
                f"The checkpoint at step {step} in {self._manager.directory} does not fit this run: "
                f"use the config it was written with, or another run directory. Orbax says: {error}"
            ) from error
        return _from_raw_arrays(restored["state"], like), restored["position"]


def _raw_arrays(state: TrainState) -> dict[str, Any]:
    """Plain nested dicts of ordinary arrays, named by path: what Orbax writes without knowing our classes."""
    named = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        named[_name(path)] = jax.random.key_data(leaf) if is_key else leaf
    return named


def _from_raw_arrays(named: dict[str, Any], like: TrainState) -> TrainState:
    def restore(path: tuple[Any, ...], leaf: Any) -> jax.Array:
        array = named[_name(path)]
        is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return jax.random.wrap_key_data(array) if is_key else array

    return jax.tree_util.tree_map_with_path(restore, like)


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def newest_checkpoint(run_dir: Path) -> Path | None:
    """The folder of the newest whole checkpoint of a run: of the last stage that has one; None: there is none."""
    if not (run_dir / "config.json").is_file():
        return None
    for stage in reversed(load_run_config(run_dir / "config.json").stages):
        steps = [folder for folder in (run_dir / "checkpoints" / stage.name).glob("*") if folder.name.isdecimal()]
        if steps:
            return max(steps, key=lambda folder: int(folder.name))
    return None


def load_checkpoint(folder: Path, config: RunConfig, stage_name: str) -> CLIP:
    """The model alone of one checkpoint, whole on one device.

    Args:
        folder: of the checkpoint, named by its step.
        config: the run that wrote it.
        stage_name: the stage that it belongs to.

    Raises:
        ValueError: it is damaged, or of another model.
    """
    shapes = eqx.filter_eval_shape(make_clip, stage_model(config, config.stages[0]), key=jax.random.key(0))
    for stage in config.stages:
        move = functools.partial(transfer, config=stage_model(config, stage), image_positions=stage.position_transfer)
        shapes = eqx.filter_eval_shape(move, shapes)
        if stage.name == stage_name:
            break
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    put = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here)
    wanted = {f"model.{_name(path)}": put(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)}
    try:
        with ocp.PyTreeCheckpointer() as checkpointer:
            restored = checkpointer.restore(
                (folder / "state").resolve(),
                args=ocp.args.PyTreeRestore(
                    item=wanted,
                    restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
                    partial_restore=True,
                ),
            )
    except (KeyError, ValueError, TypeError, OSError) as error:
        raise ValueError(
            f"The checkpoint {folder} cannot be read as a model of its run. Orbax says: {error}"
        ) from error
    fill = lambda path, _: restored[f"model.{_name(path)}"]
    return jax.tree_util.tree_map_with_path(fill, shapes)
