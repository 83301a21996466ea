"""Where the process of a command begins: SIGTERM is answered before anything that takes time."""

import signal
import sys
from collections.abc import Sequence

from ..termination import conclude, EXIT_CODE, interruptible, SIGNALS, Terminated, watching


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `clipa`; returns the exit code: 0, 1 for a fault, 130 when interrupted, 143 when ended by SIGTERM, before
    which a training run saves a checkpoint.

    Args:
        arguments: None: those of this process, which ends with the command.
    """
    with watching():
        try:
            with interruptible():
                from ._main import main as run

                code = run(arguments)
        except Terminated:
            conclude()
            sys.stderr.write("clipa: stopped by SIGTERM\n")
            code = EXIT_CODE
    if code in (0, EXIT_CODE) and arguments is None:
        # One more must not change what the process ends with, while it waits for the others to end too.
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
    return code
