"""Parse the command line, run one command, turn faults into one clear message and an exit code."""

import json
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any, Protocol

import tyro

from ._data_convert import Convert
from ._data_index import Index
from ._data_inspect import Inspect
from ._data_tokenizer import TrainTokenizer
from ._data_world import MakeWorld
from ._demo import Demo
from ._evaluate import Evaluate
from ._plan import Plan
from ._train import Train
from ._weights import Export, Import, Verify


class Command(Protocol):
    """What every command is: a frozen dataclass of its arguments that can run."""

    @property
    def json(self) -> bool:
        """Whether to print the result as one JSON object on the last line."""
        ...

    def run(self) -> dict[str, Any]:
        """Do the work; returns what the JSON line holds."""
        ...


DataCommands = (
    Annotated[MakeWorld, tyro.conf.subcommand("make-world", prefix_name=False)]
    | Annotated[TrainTokenizer, tyro.conf.subcommand("train-tokenizer", prefix_name=False)]
    | Annotated[Index, tyro.conf.subcommand("index", prefix_name=False)]
    | Annotated[Inspect, tyro.conf.subcommand("inspect", prefix_name=False)]
    | Annotated[Convert, tyro.conf.subcommand("convert", prefix_name=False)]
)

# Faults that a user can mend: bad input, missing files, a run that diverged, an extra that is not installed.
_USER_FAULTS = (ValueError, OSError, FloatingPointError, ImportError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `clipa`; returns the exit code: 0, 1 for a fault (one message on stderr), 130 when interrupted, 143 when
    ended by SIGTERM, which a training run answers with a checkpoint.

    With CLIPA_DEBUG=1 in the environment a fault shows its whole traceback.
    """
    command = _parse(sys.argv[1:] if arguments is None else arguments)
    try:
        result = command.run()
    except InterruptedError as stop:
        sys.stderr.write(f"clipa: {stop}; the same command continues from there\n")
        return 143
    except _USER_FAULTS as error:
        if os.environ.get("CLIPA_DEBUG") == "1":
            raise
        sys.stderr.write(f"clipa: {type(error).__name__}: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("clipa: interrupted; the same command continues from the last checkpoint\n")
        return 130
    if command.json:
        sys.stdout.write(json.dumps(result) + "\n")
    return 0


def _parse(arguments: Sequence[str]) -> Command:
    commands = {
        "demo": (Demo, "Make the built-in world, train a tiny CLIP on it in two stages, measure it."),
        "train": (Train, "Train a recipe, or a config of your own; start again to resume."),
        "evaluate": (Evaluate, "Measure a trained model: zero-shot classification and retrieval."),
        "export": (Export, "Write a model for users of open_clip or Hugging Face."),
        "import": (Import, "Read weights of open_clip or Hugging Face into a run directory."),
        "verify": (Verify, "Check a model by stored embeddings, or by open_clip itself."),
        "plan": (Plan, "Tell memory, hours and cost of a recipe on given devices, and what makes it fit."),
        "data": (DataCommands, "Make, index, inspect and convert data; train a tokenizer."),
    }
    if not arguments or arguments[0] not in commands:
        lines = "\n".join(f"  {name:10}{help}" for name, (_, help) in commands.items())
        text = f"usage: clipa COMMAND ...\n\ncommands:\n{lines}\n\nclipa COMMAND --help shows a command's options.\n"
        if arguments and arguments[0] in ("-h", "--help"):
            sys.stdout.write(text)
            raise SystemExit(0)
        came = f"unknown command {arguments[0]!r}" if arguments else "no command"
        sys.stderr.write(f"clipa: {came}\n{text}")
        raise SystemExit(2)
    kind, description = commands[arguments[0]]
    return tyro.cli(kind, prog=f"clipa {arguments[0]}", description=description, args=list(arguments[1:]))
