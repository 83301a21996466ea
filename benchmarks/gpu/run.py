"""Everything that is asked of a GPU, in one call: `benchmarks/on_gpu.sh` installs what is missing and starts this.

Each part is a process of its own with a deadline to compile and one to measure; a part that fails says why and ends no
other. Parts of a wave compile next to each other and share what XLA's autotuning found; then they measure one by one,
alone on the card, and end, which gives their memory back. The results lie in the output folder as they come:
`results.jsonl`, `log.txt`, and `programs.tar` with the compiled programs that were timed. A table comes last.

    python benchmarks/gpu/run.py --out DIR --clipa ../CLIPA/clipa_jax [--budget_s 460] [--only b16_ours ceilings]
    python benchmarks/gpu/run.py --out DIR --tiny        # a rehearsal, on a CPU
"""

import argparse
import contextlib
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, IO

from _parts import Part, waves
from rows import table


HERE = Path(__file__).parent
ROOT = HERE.parents[1]
_ERROR_LINES = 15
_LEAST_S = 25.0
"""A wave that is left less time is not begun."""


class Run:
    """The folder of results, the time that is left, and the environment of the parts."""

    def __init__(self, out: Path, budget_s: float, environment: dict[str, str]) -> None:
        self.out, self.environment = out, environment
        self._began, self._budget_s = time.monotonic(), budget_s
        self.programs = Path(environment["PROGRAMS"])
        self.records: list[dict[str, Any]] = []

    def left_s(self) -> float:
        """Seconds until the budget is used up."""
        return self._budget_s - (time.monotonic() - self._began)

    def say(self, text: str) -> None:
        """Print and log a line with the time since the start."""
        line = f"[{time.monotonic() - self._began:6.1f} s] {text}"
        print(line, flush=True)
        with (self.out / "log.txt").open("a", encoding="utf-8") as log:
            log.write(line + "\n")

    def keep(self, record: dict[str, Any]) -> None:
        """Append a record to the results."""
        self.records.append(record)
        with (self.out / "results.jsonl").open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(record) + "\n")
        self.say(json.dumps(record))

    def keep_programs(self) -> None:
        """Move the compiled programs into one archive; they are compressed already."""
        with tarfile.open(self.out / "programs.tar", "a") as tar:
            for path in sorted(self.programs.iterdir()):
                tar.add(path, path.name)
                path.unlink()


class Process:
    """A part at work."""

    def __init__(self, part: Part, environment: dict[str, str]) -> None:
        self.part = part
        self.record: dict[str, Any] = {"part": part.name, "options": part.options}
        if part.xla_flags:
            self.record["xla_flags"] = part.xla_flags
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        flags = " ".join(filter(None, (environment.get("XLA_FLAGS", ""), part.xla_flags)))
        self._process = subprocess.Popen(
            [sys.executable, HERE / part.script, json.dumps(part.options)],
            env=environment | {"XLA_FLAGS": flags} | part.env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            # A group, so that what a part has started ends with it.
            process_group=0,
        )
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def hear(self, within_s: float, doing: str) -> bool:
        """Take the next answer into the record; False, with the reason in the record, where none came in time."""
        try:
            line = self._lines.get(timeout=max(0.1, within_s))
        except queue.Empty:
            self.record["error"] = f"It had not ended {doing} after {within_s:.0f} s."
            return False
        if not line:
            self.record["error"] = f"It ended with exit code {self._process.wait()} while {doing}."
            return False
        self.record |= json.loads(line)
        return True

    def go(self) -> None:
        """Its turn."""
        # What it ended with, if it has, is heard next.
        with contextlib.suppress(BrokenPipeError):
            _pipe(self._process.stdin).write("go\n")
            _pipe(self._process.stdin).flush()

    def end(self) -> str:
        """End it, all its processes with it; returns what it wrote to stderr, the last lines of it."""
        if self._errors.closed:
            return ""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._errors.seek(0)
        lines = [line.rstrip() for line in self._errors if line.strip()]
        self._errors.close()
        return "\n".join(line[:400] for line in lines[-_ERROR_LINES:])

    def _read(self) -> None:
        for line in _pipe(self._process.stdout):
            if line.startswith("{"):
                self._lines.put(line)
        self._lines.put("")


def _pipe(stream: IO[str] | None) -> IO[str]:
    if stream is None:
        raise RuntimeError("The part was started without pipes.")
    return stream


def run_wave(run: Run, parts: list[Part]) -> None:
    """Let the parts compile next to each other, then measure one by one."""
    left = run.left_s()
    if left < _LEAST_S:
        for part in parts:
            run.keep({"part": part.name, "error": f"Not begun: {left:.0f} s of the budget were left."})
        return
    run.say("compiling: " + ", ".join(part.name for part in parts))
    began = time.monotonic()
    processes = [Process(part, run.environment) for part in parts]
    try:
        ready = []
        for process in processes:
            # Some of what is left is kept for those that are ready by then.
            within = min(process.part.ready_s, left - 10) - (time.monotonic() - began)
            if process.hear(within, "compiling"):
                ready.append(process)
            else:
                finish(run, process)
        for process in ready:
            process.go()
            if process.hear(min(process.part.measure_s, run.left_s()), "measuring"):
                process.record["card"] = card()
            finish(run, process)
    finally:
        for process in processes:
            process.end()
    run.keep_programs()


def finish(run: Run, process: Process) -> None:
    """End a process and keep its record, with the last lines of its errors where it failed."""
    errors = process.end()
    if "error" in process.record:
        run.say(f"{process.part.name}: {process.record['error']}\n{errors}")
        process.record["stderr"] = errors
    run.keep(process.record)


def card() -> dict[str, str]:
    """Clock, power, heat and memory of the card, as it is under way."""
    names = ("clocks.sm", "power.draw", "temperature.gpu", "memory.used")
    if shutil.which("nvidia-smi") is None:
        return {}
    query = ["nvidia-smi", f"--query-gpu={','.join(names)}", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=10, check=False)
    except subprocess.TimeoutExpired:
        return {}
    return dict(zip(names, (value.strip() for value in done.stdout.split(",")), strict=False))


def check(run: Run) -> bool:
    """Make sure that JAX computes on the GPU; True if so. Flags that this XLA does not take are left out."""
    for flags in dict.fromkeys((run.environment["XLA_FLAGS"], "")):
        run.environment["XLA_FLAGS"] = flags
        try:
            done = subprocess.run(
                [sys.executable, HERE / "check.py"],
                env=run.environment, capture_output=True, text=True, timeout=90, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            run.say("check.py had not ended after 90 s.")
            return False
        if done.returncode == 0:
            run.keep({"part": "check", "xla_flags": flags, **json.loads(done.stdout.splitlines()[-1])})
            return True
        run.say(f"check.py failed with XLA_FLAGS={flags!r}:\n" + "\n".join(done.stderr.splitlines()[-_ERROR_LINES:]))
    smi = "nvidia-smi sees a GPU" if card() else "nvidia-smi sees none either"
    run.say(f"JAX does not compute on a GPU here, {smi}; the reason stands above. Nothing is measured.")
    run.keep({"part": "check", "error": f"JAX does not compute on a GPU here, {smi}."})
    return False


def environment(arguments: argparse.Namespace, scratch: Path) -> dict[str, str]:
    """What the parts find around them."""
    found = dict(os.environ)
    folders = {name: scratch / name for name in ("autotune", "inductor", "programs")}
    for folder in folders.values():
        folder.mkdir()
    found |= {
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), str(ROOT / "benchmarks"), found.get("PYTHONPATH")))),
        "PYTHONUNBUFFERED": "1",
        "PROGRAMS": str(folders["programs"]),
        "JAX_PLATFORMS": "cpu" if arguments.tiny else "cuda",
        # Parts that wait must not hold memory.
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.94",
        "TORCHINDUCTOR_CACHE_DIR": str(folders["inductor"]),
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
    }
    flags = [f"--xla_gpu_per_fusion_autotune_cache_dir={folders['autotune']}"]
    if arguments.tiny:
        flags = ["--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true"]
    found["XLA_FLAGS"] = " ".join([found.get("XLA_FLAGS", ""), *flags]).strip()
    if arguments.tiny:
        found["CUDA_VISIBLE_DEVICES"] = ""
    if arguments.clipa is not None:
        found["CLIPA"] = str(arguments.clipa.resolve())
    return found


def main() -> None:
    """Check, measure, draw the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--clipa", type=Path, help="folder clipa_jax of a checkout of UCSC-VLAA/CLIPA")
    parser.add_argument("--budget_s", type=float, default=460.0, help="seconds for everything")
    parser.add_argument("--only", nargs="*", default=[], help="names of parts")
    parser.add_argument("--more", type=Path, help="JSON with a list of further parts")
    parser.add_argument(
        "--abreast",
        type=int,
        default=max(1, (os.cpu_count() or 1) // 2),
        help="parts that compile next to each other; default: half the cores",
    )
    parser.add_argument("--tiny", action="store_true", help="rehearse at tiny sizes on a CPU")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    # Whoever ends this run ends its parts: the exit passes through run_wave.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    chosen = waves(arguments.more, arguments.only, tiny=arguments.tiny)
    with tempfile.TemporaryDirectory() as scratch:
        run = Run(arguments.out, arguments.budget_s, environment(arguments, Path(scratch)))
        checked = check(run)
        if checked:
            for wave in chosen:
                for first in range(0, len(wave), arguments.abreast):
                    run_wave(run, wave[first : first + arguments.abreast])
            run.say("done")
    print(table(run.records), flush=True)
    sys.exit(0 if checked else 2)


if __name__ == "__main__":
    main()
