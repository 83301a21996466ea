"""Compiling, for which SIGTERM need not wait."""

import atexit
import os
import sys
import threading
from concurrent.futures import Future

import jax

from ..termination import EXIT_CODE, interruptible, Terminated


def compile_step(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    """Compile in a thread of its own: XLA takes minutes for a large model and cannot be told to give up.

    Raises:
        Terminated: SIGTERM came. The compiler goes on until it is done, or until the process ends.
    """
    compiled: Future[jax.stages.Compiled] = Future()

    def work() -> None:
        try:
            compiled.set_result(lowered.compile())
        except BaseException as error:  # whatever it is, who waits for the program must see it
            compiled.set_exception(error)

    thread = threading.Thread(target=work, name="compile", daemon=True)
    thread.start()
    try:
        with interruptible():
            return compiled.result()
    except Terminated:
        atexit.register(_leave_amid, thread)
        raise


def _leave_amid(compiler: threading.Thread) -> None:
    """End a process that SIGTERM stopped, if its compiler still runs: taking JAX down below it would abort it."""
    if compiler.is_alive():
        jax.distributed.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(EXIT_CODE)
