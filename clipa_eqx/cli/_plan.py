"""`clipa plan`: what a recipe takes on given devices, before any is rented."""

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, TYPE_CHECKING

import tyro

from .._checks import check_at_least, check_between
from ..config import check_run, DataConfig, load_run_config, override, RunConfig
from ..recipes import get_recipe, PublishedHours, run_config, scale_recipe


if TYPE_CHECKING:
    from ..devices import Device
    from ..planning import StagePlan

_GIB = 2**30


@dataclass(frozen=True)
class Plan:
    """Say what each stage of a run takes on given devices, and which switches make it fit.

    Memory is that of the step compiled for as many virtual devices, from shapes alone. A CPU's program writes attention
    matrices out and is an estimate from above for a GPU.
    """

    recipe: Annotated[str, tyro.conf.Positional] = ""
    """Name of a recipe; clipa train --list shows them."""
    config: Path | None = None
    """A config.json instead of a recipe."""
    devices: int = 1
    """Devices over which the batch is split."""
    device: str = "H100"
    """Which chip: H100, H200, A100-80GB, A100 (40 GB), TPU-v4, TPU-v5e, TPU-v5p and others."""
    stages: tuple[str, ...] = ()
    """Names of stages to plan; none: all."""
    scale: str = "1"
    """Shrink the recipe, as `clipa train --scale` does."""
    mfu: float = 0.4
    """Share of the chip's peak that is assumed to be reached, for the hours; measure your own with a short run."""
    samples_per_s: tuple[float, ...] = ()
    """Pairs per second over all devices that a short run reached, one per planned stage, instead of --mfu."""
    price_per_hour: float = 0.0
    """Price of one device for an hour, in any currency; 0: no cost is given."""
    set: tuple[str, ...] = ()
    """Change single fields, as `clipa train --set` does."""
    json: bool = False
    """Print one JSON object as the last line."""

    def __post_init__(self) -> None:
        check_at_least("devices", self.devices, 1)
        check_at_least("price_per_hour", self.price_per_hour, 0)
        check_between("mfu", self.mfu, 0.0, 1.0, low_open=True)

    def run(self) -> dict[str, Any]:
        """Compile, search, tell."""
        from ..devices import DEVICES, find_device

        config, published = self._resolve()
        device = find_device(self.device)
        if device is None:
            names = ", ".join(known.name for known in DEVICES)
            raise ValueError(f"--device {self.device!r} is not in the table; there are: {names}.")
        check_run(config, num_devices=self.devices)
        chosen = [stage for stage in config.stages if not self.stages or stage.name in self.stages]
        if not chosen or (self.samples_per_s and len(self.samples_per_s) != len(chosen)):
            names = ", ".join(stage.name for stage in config.stages)
            raise ValueError(
                f"The run has the stages {names}; --stages names some of them, and --samples-per-s one number for "
                f"each that is planned: got --stages {self.stages}, --samples-per-s {self.samples_per_s}."
            )
        from ..planning import plan_stage, start_virtual_devices

        start_virtual_devices(self.devices)
        rates = self.samples_per_s or (0.0,) * len(chosen)
        plans = [
            plan_stage(config, stage, device, mfu=self.mfu, samples_per_s=rate)
            for stage, rate in zip(chosen, rates, strict=True)
        ]
        rows = [self._row(plan, published) for plan in plans]
        _print(rows, device, self)
        return {
            "recipe": config.recipe,
            "device": device.name,
            "devices": self.devices,
            "device_memory_gib": device.memory_bytes / _GIB,
            "device_source": device.source,
            "stages": rows,
        }

    def _resolve(self) -> tuple[RunConfig, tuple[PublishedHours, ...]]:
        if bool(self.recipe) == (self.config is not None):
            raise ValueError("Give the name of a recipe or --config FILE, one of the two.")
        if self.config is not None:
            return override(load_run_config(self.config), self.set), ()
        try:
            recipe = scale_recipe(get_recipe(self.recipe), Fraction(self.scale))
        except ZeroDivisionError as error:
            raise ValueError(f"--scale takes a fraction as 1/256 or 0.5, got {self.scale!r}.") from error
        return override(run_config(recipe, data=DataConfig()), self.set), recipe.published_hours

    def _row(self, plan: "StagePlan", published: tuple[PublishedHours, ...]) -> dict[str, Any]:
        device_hours = plan.hours * self.devices
        row: dict[str, Any] = {
            "stage": plan.stage,
            "parameters": plan.parameters,
            "samples": plan.samples,
            "flops": plan.flops,
            "memory_gib": round(plan.memory_bytes / _GIB, 2),
            "state_gib": round(plan.fit.memory.state / _GIB, 2),
            "temporary_gib": round(plan.fit.memory.temporary / _GIB, 2),
            "fits": plan.fit.fits,
            "switches": plan.fit.switches,
            "hours": round(plan.hours, 2),
            "device_hours": round(device_hours, 1),
        }
        if self.price_per_hour:
            row["cost"] = round(device_hours * self.price_per_hour, 2)
        for entry in published:
            if entry.stage == plan.stage:
                row["published_gpu_hours_up_to_here"] = entry.gpu_hours
        return row


def _print(rows: list[dict[str, Any]], device: "Device", plan: Plan) -> None:
    from rich.console import Console
    from rich.table import Table

    titles = ["stage", "parameters", "samples", "FLOPs", "GiB per device", "fits", "switches", "hours", "device hours"]
    table = Table(*titles, "cost", "published GPU-hours, with earlier stages", box=None)
    for row in rows:
        switches = " ".join(f"{name}={value}" for name, value in row["switches"].items())
        table.add_row(
            row["stage"],
            f"{row['parameters'] / 1e6:.0f} M",
            f"{row['samples']:.3g}",
            f"{row['flops']:.3g}",
            f"{row['memory_gib']:.1f}",
            "yes" if row["fits"] else "no",
            switches or "as written",
            f"{row['hours']:.1f}",
            f"{row['device_hours']:.0f}",
            f"{row.get('cost', '')}",
            f"{row.get('published_gpu_hours_up_to_here', '')}",
        )
    console = Console(width=max(Console().width, 160))
    console.print(table)
    how = (
        "as measured" if plan.samples_per_s else f"at {plan.mfu:.0%} of the peak of the stage's type ({device.source})"
    )
    console.print(
        f"{plan.devices} x {device.name}, {device.memory_bytes / _GIB:.0f} GiB each, of which nine tenths are counted "
        f"on; hours {how}."
    )
