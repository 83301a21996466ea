"""What memory does a run take that starts from the weights of an L/14, beyond its own state?

Weights of random numbers in this package's form are opened as `--init-from` opens them and put where the first stage
holds them, with AdamW's two moments, in a process of its own on one CPU device, whose memory is the host's.
`beyond_state` is the peak of resident memory above that of the same process after a tiny model went the same way, less
the bytes of the state, over the bytes of the weights. It must be 1.2 or less. Linux only; needs 2 GB of disk in the
system's temporary directory and 7 GB of memory. Prints one JSON line and appends it to results/start_memory.json; exits
with 1 where the bound is missed.

    python benchmarks/start_memory.py [PRESET]
"""

import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
from weights_full_size import random_model, small

from clipa_eqx.interop import Preprocess, Pretrained, save_pretrained
from clipa_eqx.models import count_parameters, presets


MEASURE = """
import dataclasses
import re
import sys
from pathlib import Path
import jax
from clipa_eqx.config import load_run_config
from clipa_eqx.init_from import starting_model
from clipa_eqx.sharding import make_mesh
from clipa_eqx.train._stage import first_state, start_stage

def status(name):
    return 1024 * int(re.search(name + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1])

def begin(root):
    config = dataclasses.replace(load_run_config(Path(root) / "config.json"), init_from=root)
    stage = dataclasses.replace(config.stages[0], samples=256)
    mesh = make_mesh()
    start = start_stage(config, stage, starting_model(config), mesh)
    return jax.block_until_ready(first_state(start, stage, mesh, key=jax.random.key(0)).model)

begin(sys.argv[1])
before = status("VmRSS")
kept = begin(sys.argv[2])
print(status("VmHWM") - before)
"""
STATE = 3
"""The weights and AdamW's two moments, in bytes of the weights."""
MOST = 1.2


def main() -> None:
    """Write, start, print."""
    name = sys.argv[1] if sys.argv[1:] else "clipa-l14"
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        for folder, config in (("tiny", small(presets[name])), ("full", presets[name])):
            model = random_model(config)
            parameters = count_parameters(model)
            preprocess = Preprocess(config.vision.image_size, "squash", "bilinear")
            save_pretrained(Pretrained(model, config, preprocess, None), root / folder)
            del model
        command = [sys.executable, "-c", MEASURE, str(root / "tiny"), str(root / "full")]
        grown = int(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
    beyond = grown / (4 * parameters) - STATE
    result = {
        "model": name,
        "parameters": parameters,
        "beyond_state": round(beyond, 3),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
    }
    sys.stdout.write(json.dumps(result) + "\n")
    if name == "clipa-l14":
        with (Path(__file__).parent / "results" / "start_memory.json").open("a") as file:
            file.write(json.dumps(result) + "\n")
    if beyond > MOST:
        sys.exit(1)


if __name__ == "__main__":
    main()
