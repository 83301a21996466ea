"""What accelerators can do: memory and peak arithmetic by name, as their makers state them."""

import re
from dataclasses import dataclass


_GIB = 2**30
_TERA = 1e12


@dataclass(frozen=True)
class Device:
    """One chip as JAX sees it. Rates are dense, without structured sparsity, a multiply-add counted as two."""

    name: str
    """Short name, as `clipa plan` takes it."""
    kinds: tuple[str, ...]
    """Pieces of `jax.Device.device_kind` that tell the chip; the first row of the table that matches counts."""
    memory_bytes: int
    """Memory of the chip; a little of it is taken before the first array."""
    bfloat16_flops: float
    """Peak operations per second of bfloat16 matrix products, summed in float32."""
    float32_flops: float
    """The same for float32 arrays at JAX's default precision: TF32 on NVIDIA, bfloat16 products on TPU."""
    source: str
    """Where the numbers stand."""

    def peak_flops(self, dtype: str) -> float:
        """Peak operations per second at a compute type, `bfloat16` or `float32`.

        Raises:
            ValueError: another type.
        """
        peaks = {"bfloat16": self.bfloat16_flops, "float32": self.float32_flops}
        if dtype not in peaks:
            raise ValueError(f"Peaks are known for {', '.join(peaks)}, got {dtype!r}.")
        return peaks[dtype]


def _row(name: str, kinds: tuple[str, ...], gib: int, bfloat16: float, float32: float, source: str) -> Device:
    return Device(name, kinds, gib * _GIB, bfloat16 * _TERA, float32 * _TERA, source)


# Data sheets that print rates "with sparsity" are halved here. More telling names stand before those they contain.
DEVICES: tuple[Device, ...] = (
    _row("B200", ("B200",), 180, 2250, 1125, "NVIDIA HGX B200 data sheet"),
    _row("GH200", ("GH200",), 96, 989, 494.5, "NVIDIA GH200 data sheet"),
    _row("H200", ("H200",), 141, 989, 494.5, "NVIDIA H200 data sheet, SXM"),
    _row("H100-PCIe", ("H100 PCIe",), 80, 756, 378, "NVIDIA H100 data sheet, PCIe"),
    _row("H100-NVL", ("H100 NVL",), 94, 835, 417.5, "NVIDIA H100 NVL data sheet"),
    _row("H100", ("H100",), 80, 989, 494.5, "NVIDIA H100 data sheet, SXM"),
    _row("A100-80GB", ("A100-SXM4-80GB", "A100 80GB"), 80, 312, 156, "NVIDIA A100 data sheet"),
    _row("A100", ("A100",), 40, 312, 156, "NVIDIA A100 data sheet"),
    _row("A10", ("NVIDIA A10",), 24, 125, 62.5, "NVIDIA A10 data sheet"),
    _row("L40S", ("L40S",), 48, 362, 183, "NVIDIA L40S data sheet"),
    _row("L4", ("NVIDIA L4",), 24, 121, 60, "NVIDIA L4 data sheet"),
    _row("RTX-A6000", ("RTX A6000",), 48, 154.8, 77.4, "NVIDIA GA102 white paper"),
    _row("RTX-3090", ("RTX 3090",), 24, 71, 35.6, "NVIDIA GA102 white paper"),
    _row("RTX-4090", ("RTX 4090",), 24, 165.2, 82.6, "NVIDIA Ada white paper"),
    _row("RTX-5090", ("RTX 5090",), 32, 209.5, 104.8, "NVIDIA RTX Blackwell white paper"),
    _row("TPU-v4", ("TPU v4",), 32, 275, 275, "Google Cloud TPU v4 documentation"),
    _row("TPU-v5e", ("TPU v5 lite", "TPU v5e"), 16, 197, 197, "Google Cloud TPU v5e documentation"),
    _row("TPU-v5p", ("TPU v5",), 95, 459, 459, "Google Cloud TPU v5p documentation"),
    _row("TPU-v6e", ("TPU v6 lite", "TPU v6e"), 32, 918, 918, "Google Cloud TPU v6e documentation"),
)
"""Chips that are known; a CPU has no row, because its peak depends on the model and on how many cores are free."""


def find_device(name: str) -> Device | None:
    """The row of a chip.

    Args:
        name: a short name of the table, in any case, or a `device_kind` as JAX gives it.

    Returns:
        The row, or None for a chip that is not in the table.
    """
    for device in DEVICES:
        if name.lower() == device.name.lower():
            return device
    # Whole words: an A10G is no A10.
    found = (device for device in DEVICES if any(re.search(rf"{re.escape(kind)}\b", name) for kind in device.kinds))
    return next(found, None)
