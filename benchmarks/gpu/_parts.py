"""Every part of the measurement, as data; the order is that of importance.

To measure another form of the step, add a line to `FORMS`. Parts of one wave compile next to each other, then measure
one by one; waves follow each other until the time is used up.
"""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Part:
    """One process: one script with its options."""

    name: str
    """Of the record and of the kept program."""
    script: str
    """File beside this one, or a path."""
    options: dict[str, Any] = field(default_factory=dict)
    """What the script takes; of `step.py`: case, batch, and fields of RunConfig, StageConfig and OptimConfig to
    replace, under run, stage and optim."""
    ready_s: float = 120.0
    """Until it has compiled."""
    measure_s: float = 30.0
    """From then on, once it is its turn."""
    env: dict[str, str] = field(default_factory=dict)
    """Environment of the process."""
    xla_flags: str = ""
    """Further flags of XLA."""


def form(name: str, case: str = "b16", **options: Any) -> Part:
    """A form of this project's step."""
    own = {key: options.pop(key) for key in ("ready_s", "measure_s", "env", "xla_flags", "script") if key in options}
    return Part(f"{case}_{name}", own.pop("script", "step.py"), {"case": case} | options, **own)


def peers(case: str, *, compile: str = "whole", ready_s: float = Part.ready_s) -> tuple[Part, ...]:
    """The step with CLIPA's Flax modules and with open_clip."""
    return (
        Part(f"{case}_flax", "step_flax.py", {"case": case}, ready_s),
        Part(f"{case}_open_clip", "step_open_clip.py", {"case": case, "compile": compile}, ready_s),
    )


FORMS = (
    form("scan", run={"layers": "scan"}),
    form("unroll_full", run={"layers": "unroll"}, stage={"remat_image": "full", "remat_text": "full"}),
    form("scan_full", run={"layers": "scan"}, stage={"remat_image": "full", "remat_text": "full"}),
    form("unroll_dots", run={"layers": "unroll"}, stage={"remat_image": "dots", "remat_text": "dots"}),
    form("unroll_no_triton", run={"layers": "unroll"}, xla_flags="--xla_gpu_enable_triton_gemm=false"),
)
"""Forms of B/16 beside the one that is chosen by itself and the one written out."""

_TILES = {"micro_batch": 512, "loss_tile": 4096, "remat_image": "full", "remat_text": "full"}
_GLOBAL_BATCH = form(
    "global_batch", "h14", batch=32_768, stage=_TILES, optim={"moment_dtype": "bfloat16"}, steps=1, measure_s=75
)

WAVES: tuple[tuple[Part, ...], ...] = (
    (Part("ceilings", "ceilings.py", ready_s=60, measure_s=30),),
    (form("ours"), form("unroll", run={"layers": "unroll"}), *peers("b16")),
    FORMS[:3],
    (form("ours", "h14"), *peers("h14", compile="blocks", ready_s=140)),
    (
        form("ours", "l16"),
        *peers("l16", compile="blocks"),
        _GLOBAL_BATCH,
        Part("embed_ours", "embed.py", {"case": "b16_224", "peer": "ours"}),
        Part("embed_open_clip", "embed.py", {"case": "b16_224", "peer": "open_clip"}),
    ),
    (Part("loader", "loader.py", ready_s=25, measure_s=45),),
    FORMS[3:],
)
_FORMS_WAVE = 2


def waves(more: Path | None, only: list[str], *, tiny: bool) -> list[list[Part]]:
    """The parts that are asked for.

    Args:
        more: a JSON list of further parts, each an object with the fields of `Part`; they go with the first forms.
        only: names of parts; empty: all.
        tiny: rehearse.
    """
    found = [list(wave) for wave in WAVES]
    if more is not None:
        found[_FORMS_WAVE][:0] = [Part(**part) for part in json.loads(more.read_text())]
    unknown = set(only) - {part.name for wave in found for part in wave}
    if unknown:
        raise ValueError(
            f"There is no part {', '.join(sorted(unknown))}; there are: "
            + ", ".join(part.name for wave in found for part in wave)
            + "."
        )
    chosen = [[part for part in wave if not only or part.name in only] for wave in found]
    added = {"tiny": True} if tiny else {}
    return [
        [dataclasses.replace(part, options=part.options | added | {"name": part.name}) for part in wave]
        for wave in chosen
        if wave
    ]
