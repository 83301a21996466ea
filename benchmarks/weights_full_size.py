"""Does a full-size CLIPA L/14 go through CLIPA-JAX's layout byte for byte, and what memory does loading one take?

- round trip: a checkpoint of 413,947,393 random numbers in CLIPA-JAX's layout is loaded and exported; the two files
  must be equal in every byte.
- memory: the same model in open_clip's form, in this package's own and in CLIPA-JAX's is loaded in a process of its
  own; `peak_ratio` is the peak of resident memory above that of the process after it has loaded a tiny model of the
  same form, over the bytes of the weights. It must be 1.2 or less for the first two, and PyTorch must not be imported.

Needs 7 GB of disk in the system's temporary directory (or TMPDIR) and 4 GB of memory. Linux only. Prints one JSON line
and appends it to results/weights_full_size.json; exits with 1 where a bound is missed.

    python benchmarks/weights_full_size.py [tiny]
"""

import dataclasses
import hashlib
import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np

from clipa_eqx.config import CLIPConfig
from clipa_eqx.interop import (
    export_clipa_jax,
    export_open_clip,
    load_clipa_jax,
    Preprocess,
    Pretrained,
    save_pretrained,
)
from clipa_eqx.models import CLIP, count_parameters, make_clip, presets


MEASURE = """
import re
import sys
import jax
from clipa_eqx.interop import load_clipa_jax, load_pretrained

def status(name):
    return 1024 * int(re.search(name + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1])

def load(path):
    return load_clipa_jax(path) if path.endswith(".npz") else load_pretrained(path).model

load(sys.argv[1])
before = status("VmRSS")
model = jax.block_until_ready(load(sys.argv[2]))
print(status("VmHWM") - before, "torch" in sys.modules)
"""
MOST = {"open_clip": 1.2, "own": 1.2}
"""Largest `peak_ratio` of a form."""


def small(config: CLIPConfig) -> CLIPConfig:
    """One narrow block per tower."""
    narrow = {"width": 64, "depth": 1, "heads": 4, "hidden": 64}
    return dataclasses.replace(
        config,
        vision=dataclasses.replace(config.vision, **narrow),
        text=dataclasses.replace(config.text, **narrow, vocab_size=100),
    )


def random_model(config: CLIPConfig) -> CLIP:
    """Random numbers in every array."""
    shapes = eqx.filter_eval_shape(make_clip, config, key=jax.random.key(0))
    leaves, structure = jax.tree.flatten(shapes)
    rng = np.random.default_rng(0)
    return jax.tree.unflatten(
        structure, [jax.device_put(rng.standard_normal(leaf.shape, np.float32)) for leaf in leaves]
    )


def write_forms(config: CLIPConfig, root: Path) -> dict[str, Path]:
    """The same random model in each form."""
    model = random_model(config)
    pretrained = Pretrained(model, config, Preprocess(config.vision.image_size, "squash", "bilinear"), None)
    root.mkdir()
    export_open_clip(pretrained, root / "open_clip")
    save_pretrained(pretrained, root / "own")
    export_clipa_jax(model, root / "clipa_jax.npz")
    return {"open_clip": root / "open_clip", "own": root / "own", "clipa_jax": root / "clipa_jax.npz"}


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def measure(tiny: Path, path: Path, parameters: int) -> dict[str, Any]:
    """Peak memory of loading, over the weights' bytes."""
    command = [sys.executable, "-c", MEASURE, str(tiny), str(path)]
    grown, torch = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return {"peak_ratio": round(int(grown) / (4 * parameters), 3), "torch_imported": torch == "True"}


def main() -> None:
    """Write, load, compare, print."""
    full = presets["clipa-l14"]
    config = small(full) if sys.argv[1:] == ["tiny"] else full
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        tiny, forms = write_forms(small(full), root / "tiny"), write_forms(config, root / "full")
        model = load_clipa_jax(forms["clipa_jax"])
        parameters = count_parameters(model)
        export_clipa_jax(model, root / "again.npz")
        equal = digest(root / "again.npz") == digest(forms["clipa_jax"])
        del model
        memory = {name: measure(tiny[name], path, parameters) for name, path in forms.items()}
    result = {
        "parameters": parameters,
        "round_trip_byte_equal": equal,
        "memory": memory,
        "python": platform.python_version(),
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
    }
    print(json.dumps(result))
    if config == full:
        results = Path(__file__).parent / "results"
        results.mkdir(exist_ok=True)
        with (results / "weights_full_size.json").open("a") as file:
            file.write(json.dumps(result) + "\n")
        kept = all(memory[name]["peak_ratio"] <= most for name, most in MOST.items())
        if not (equal and kept and not any(row["torch_imported"] for row in memory.values())):
            sys.exit(1)


if __name__ == "__main__":
    main()
