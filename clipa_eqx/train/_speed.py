"""How well a run uses its devices."""

import jax

from ..config import RunConfig, StageConfig
from ..devices import find_device
from ._cost import model_flops


def speed_figures(config: RunConfig, stage: StageConfig, samples_per_s: float) -> dict[str, float]:
    """What can be said of the devices at a measured speed; nothing here waits for them.

    Args:
        config: the run.
        stage: the stage that runs.
        samples_per_s: pairs trained per second over all devices.

    Returns:
        `mfu`: model FLOP utilisation (Chowdhery et al., arXiv 2204.02311, appendix B), the share of the devices' peak
        at the stage's compute type that matrix products of the model take; only for chips of the table in `devices`.
        `memory_gb`: most memory that arrays took so far on a device of this process; only where the backend counts it.
    """
    figures: dict[str, float] = {}
    chip = find_device(jax.devices()[0].device_kind)
    if chip is not None:
        peak = chip.peak_flops(stage.compute_dtype) * jax.device_count()
        figures["mfu"] = model_flops(config, stage) / stage.batch_size * samples_per_s / peak
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    most = max(stat.get("peak_bytes_in_use", 0) for stat in stats)
    if most:
        figures["memory_gb"] = most / 1e9
    return figures
