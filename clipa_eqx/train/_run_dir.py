"""The directory of a run: what it was started with, and where its parts lie."""

import dataclasses
import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from ..config import config_to_json, load_run_config, RunConfig
from ..data import find_decoder


# Fields that change how a run is carried out but not one bit of its weights: a resumed run may change them.
_FREE = (
    "checkpoint.",
    "evaluation.",
    "data.threads",
    "data.processes",
    "data.prefetch",
    "data.remote.",
    "data.stall_timeout_s",
    "log_every_steps",
    # The digest of the weights counts, not where they lie.
    "init_from",
)

# Where a run's data lies; the same data under another path is the same.
PATHS = ("data.train", "data.mixture.", "data.tokenizer")

# Fields that change no mathematics, only the order of sums: a resumed run may change them too, as it may change its
# devices, and goes on with the same weights up to rounding. The last name of a dotted path.
_ROUNDING = ("shard", "layers", "attention", "micro_batch", "loss_tile", "remat_image", "remat_text")

_PACKAGES = (
    "clipa_eqx",
    "jax",
    "jaxlib",
    "equinox",
    "optax",
    "grain",
    "orbax-checkpoint",
    "numpy",
    "pillow",
    "simplejpeg",
    "cykooz-resizer",
    "tokenizers",
)


class RunDirectory:
    """Paths inside a run's directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.config = root / "config.json"
        self.environment = root / "environment.json"
        self.metrics = root / "metrics.jsonl"
        self.skipped = root / "skipped.jsonl"
        self.tensorboard = root / "tensorboard"
        self.profile = root / "profile"
        self.tokenizer = root / "tokenizer"
        self.model = root / "model.safetensors"
        self.average = root / "model-ema.safetensors"

    def checkpoints(self, stage: str) -> Path:
        """Where one stage's checkpoints lie."""
        return self.root / "checkpoints" / stage

    def init_digest(self) -> str:
        """Digest of the weights that the run here began with; empty if it drew them, or has not begun."""
        return load_run_config(self.config).init_digest if self.config.exists() else ""

    def given(self) -> tuple[str, ...]:
        """Names of what the run here was given as values when it began."""
        return load_run_config(self.config).given if self.config.exists() else ()

    def has_checkpoint(self) -> bool:
        """Whether a stage has a whole checkpoint to go on from."""
        return any(step.name.isdecimal() for step in self.root.glob("checkpoints/*/*"))

    def settle(self, config: RunConfig) -> RunConfig:
        """The config with what the run here began with: its decoder, and the kind of image positions of its weights.

        Two decoders differ by rounding, so a run that is resumed where other packages are installed must not change;
        in a new run `data.decoder='auto'` is the best that is installed.

        Raises:
            ImportError: the packages of that decoder are not installed here.
        """
        decoder = config.data.decoder
        if self.config.exists():
            begun = load_run_config(self.config)
            decoder = begun.data.decoder if decoder == "auto" else decoder
            stored = begun.init_digest and begun.model.vision.position == "frozen"
            if stored and config.model.vision.position.startswith("sincos"):
                # The table that came with the weights.
                vision = dataclasses.replace(config.model.vision, position="frozen")
                config = dataclasses.replace(config, model=dataclasses.replace(config.model, vision=vision))
        decoder = find_decoder(dataclasses.replace(config.data, decoder=decoder))
        return dataclasses.replace(config, data=dataclasses.replace(config.data, decoder=decoder))

    def check(self, config: RunConfig, fingerprints: dict[str, str] | None = None) -> list[str]:
        """Make sure that nothing is here yet, or that what is here is this very run.

        Args:
            config: the run to start or continue.
            fingerprints: of its data and vocabulary. Where they are those that the run was started with, the paths may
                be others.

        Returns:
            Changes since the run was started that alter its weights by rounding only.

        Raises:
            ValueError: the directory holds another run, or files of something else.
        """
        if not self.config.exists():
            if self.root.exists() and any(self.root.iterdir()):
                raise ValueError(f"{self.root} is not empty and holds no run; choose a new or an empty run directory.")
            return []
        found = differences(config_to_json(load_run_config(self.config)), config_to_json(config))
        free = _FREE + PATHS if fingerprints and self._fingerprints() == fingerprints else _FREE
        changes = [change for change in found if not change.startswith(free)]
        rounding = [change for change in changes if change.split(":")[0].split(".")[-1] in _ROUNDING]
        if rounding != changes:
            raise ValueError(
                f"{self.root} holds a run of another config; choose another run directory, or the same config. "
                "Changed:\n" + "\n".join(f"  - {change}" for change in changes if change not in rounding)
            )
        return rounding

    def _fingerprints(self) -> dict[str, str] | None:
        """Of the data and vocabulary that the run here reads; None if that is not on file."""
        if not self.environment.exists():
            return None
        return json.loads(self.environment.read_text(encoding="utf-8")).get("fingerprints")

    def _ancestry(self, config: RunConfig) -> list[dict[str, Any]]:
        """As it was when the run began: the weights may be gone by now."""
        if self.environment.exists():
            begun = json.loads(self.environment.read_text(encoding="utf-8")).get("ancestry")
            if begun is not None:
                return begun
        return ancestry(config)

    def claim(self, config: RunConfig, fingerprints: dict[str, str] | None = None) -> None:
        """Write what the run is and with what it is carried out.

        Args:
            config: the run.
            fingerprints: of its data and vocabulary.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        environment = describe_environment() | {"fingerprints": fingerprints, "ancestry": self._ancestry(config)}
        self.config.write_text(json.dumps(config_to_json(config), indent=2) + "\n", encoding="utf-8")
        self.environment.write_text(json.dumps(environment, indent=2) + "\n", encoding="utf-8")


def ancestry(config: RunConfig) -> list[dict[str, Any]]:
    """The weights that a run started from, and those that they came from in turn, the nearest first.

    Each entry holds `from` and `digest`; weights of a run also its `recipe` and `seed`, those of a checkpoint its
    `stage` and `step`.
    """
    if not (config.init_from or config.init_digest):
        return []
    entry: dict[str, Any] = {"from": config.init_from, "digest": config.init_digest}
    source = Path(config.init_from)
    folders = [folder for folder in (source, *source.parents[:3]) if (folder / "environment.json").is_file()]
    if not config.init_from or not folders:
        return [entry]
    paths = RunDirectory(folders[0])
    if source.parent.parent.name == "checkpoints" and source.name.isdecimal():
        entry |= {"stage": source.parent.name, "step": int(source.name)}
    parent = load_run_config(paths.config)
    entry |= {"recipe": parent.recipe, "seed": parent.seed}
    return [entry, *json.loads(paths.environment.read_text(encoding="utf-8")).get("ancestry", [])]


def describe_environment() -> dict[str, Any]:
    """Versions, devices and git state, for a run's record."""
    return {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "devices": [f"{device.platform}:{device.device_kind}" for device in jax.devices()],
        "processes": jax.process_count(),
        "git": _git_state(),
    }


def versions() -> dict[str, str | None]:
    """Of the packages that must be the same on all processes of a run."""
    return {name: _version(name) for name in ("clipa_eqx", "jax", "jaxlib")}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_state() -> dict[str, Any] | None:
    """Commit of the working directory and whether files differ from it; None outside a checkout."""
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10)
        status = subprocess.run(
            ["git", "status", "--porcelain"], capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit.stdout.strip(), "changed": bool(status.stdout.strip())}


def differences(old: Any, new: Any, where: str = "") -> Iterator[str]:
    """Each value in which two JSON objects of one form differ, by its dotted path."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in new:
            yield from differences(old.get(name), new[name], f"{where}.{name}" if where else name)
    elif isinstance(old, list | tuple) and isinstance(new, list | tuple) and len(old) == len(new):
        for place, (before, after) in enumerate(zip(old, new, strict=True)):
            yield from differences(before, after, f"{where}.{place}")
    elif old != new:
        yield f"{where}: {old!r} there, {new!r} here"
