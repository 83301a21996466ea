"""What no single field can know: how stages, model, devices and processes fit together."""

from ._model import nearest_multiples
from ._run import RunConfig
from ._stage import StageConfig


def check_run(
    config: RunConfig, *, num_devices: int, num_processes: int = 1, starts_from_weights: bool = False
) -> None:
    """Check what no single field can know: how stages, model, devices and processes fit together.

    Args:
        config: the run.
        num_devices: devices over all processes, at least 1.
        num_processes: processes, at least 1.
        starts_from_weights: whether it is given weights, so that a stage without samples hands them on as they are.

    Raises:
        ValueError: with every fault found, one per line.
    """
    faults: list[str] = []
    if not config.stages:
        faults.append("stages is empty: a run needs at least one stage.")
    names = [stage.name for stage in config.stages]
    for name in sorted({name for name in names if names.count(name) > 1}):
        faults.append(f"stage name {name!r} is used {names.count(name)} times; each stage needs a name of its own.")
    if num_devices % num_processes:
        faults.append(f"{num_devices} devices do not split over {num_processes} processes.")
    if config.shard != "none":
        faults += _layout_faults(config, num_devices)
    for stage in config.stages:
        faults += [f"stage {stage.name!r}: {fault}" for fault in _stage_faults(config, stage, num_devices)]
        if stage.samples < 1 and not starts_from_weights:
            faults.append(f"stage {stage.name!r}: samples=0: give the number of image-text pairs to train on.")
    if faults:
        raise ValueError("This run cannot start:\n" + "\n".join(f"  - {fault}" for fault in faults))


def _layout_faults(config: RunConfig, num_devices: int) -> list[str]:
    """Every matrix has its tower's width as one side, so it splits wherever the width does."""
    widths = {"model.vision.width": config.model.vision.width, "model.text.width": config.model.text.width}
    return [
        f"shard={config.shard!r} splits each matrix over {num_devices} devices, which do not divide {name}={width}; "
        f"use a number of devices that divides it, or shard='none'."
        for name, width in widths.items()
        if width % num_devices
    ]


def _stage_faults(config: RunConfig, stage: StageConfig, num_devices: int) -> list[str]:
    faults: list[str] = []
    patch = config.model.vision.patch_size
    if stage.image_size % patch and not config.model.vision.crop_edge:
        faults.append(
            f"image_size={stage.image_size} is not a multiple of the model's patch_size={patch}; "
            f"nearest sizes that are: {nearest_multiples(stage.image_size, patch)}."
        )
    else:
        patches = (stage.image_size // patch) ** 2
        if stage.keep_patches > patches:
            faults.append(
                f"keep_patches={stage.keep_patches} is more than the {patches} patches of a "
                f"{stage.image_size} px image; keep at most {patches}."
            )
    if stage.batch_size % num_devices:
        faults.append(
            f"batch_size={stage.batch_size} does not split over {num_devices} devices; "
            f"nearest sizes that do: {nearest_multiples(stage.batch_size, num_devices)}."
        )
    if stage.micro_batch:
        faults += _micro_batch_faults(stage, num_devices)
    if stage.batch_size < 2:
        faults.append("batch_size=1 has no negatives; a contrastive loss needs at least 2 pairs.")
    if stage.text_length > config.data.caption_tokens:
        faults.append(
            f"text_length={stage.text_length} keeps more tokens than data.caption_tokens="
            f"{config.data.caption_tokens} are read of a caption; raise caption_tokens or shorten text_length."
        )
    if config.evaluation.ema and not stage.ema_decay:
        faults.append("evaluation.ema measures averaged weights, of which ema_decay=0 keeps none; set ema_decay.")
    if stage.loss == "sigmoid" and config.model.init_logit_bias is None:
        faults.append("loss='sigmoid' needs model.init_logit_bias (SigLIP: -10).")
    schedule_steps = stage.optim.warmup_steps + stage.optim.cooldown_steps
    if stage.samples >= 1 and schedule_steps > stage.steps:
        faults.append(
            f"warmup_steps + cooldown_steps = {schedule_steps} is more than the {stage.steps} steps that "
            f"{stage.samples} samples give at batch_size={stage.batch_size}."
        )
    return faults


def _micro_batch_faults(stage: StageConfig, num_devices: int) -> list[str]:
    faults: list[str] = []
    if stage.batch_size % stage.micro_batch:
        faults.append(f"micro_batch={stage.micro_batch} does not divide batch_size={stage.batch_size}.")
    if stage.micro_batch % num_devices:
        faults.append(
            f"micro_batch={stage.micro_batch} does not split over {num_devices} devices; "
            f"nearest sizes that do: {nearest_multiples(stage.micro_batch, num_devices)}."
        )
    return faults
