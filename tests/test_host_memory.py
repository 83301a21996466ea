"""Freed memory that the process keeps, seen in the pages that the kernel has to hand out."""

import os
import platform
import subprocess
import sys

import pytest


# Touches large memory in a thread, as XLA does, and prints the new pages of all but the first time.
TOUCHES = """
import resource, sys, threading
import numpy as np
from clipa_eqx.host_memory import keep_freed_memory

applies = keep_freed_memory() if sys.argv[1] == "keep" else False

def touch():
    np.empty(100_000_000, np.uint8).fill(1)

def pages():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def turns():
    touch()
    before = pages()
    for _ in range(4):
        touch()
    print(applies, pages() - before)

thread = threading.Thread(target=turns)
thread.start()
thread.join()
"""


def _run(choice, platforms):
    environment = os.environ | {"JAX_PLATFORMS": platforms}
    command = [sys.executable, "-c", TOUCHES, choice]
    applies, pages = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()
    return applies == "True", int(pages)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_freed_memory_is_not_asked_of_the_kernel_again():
    pages_of_all = 4 * 100_000_000 // os.sysconf("SC_PAGE_SIZE")
    applies, pages = _run("keep", "cpu")
    assert applies
    assert pages < 0.01 * pages_of_all
    # Huge pages, where a machine has them always on, are fewer.
    assert _run("leave", "cpu")[1] > max(10 * pages, 50)


def test_a_machine_with_an_accelerator_is_left_alone():
    assert _run("keep", "cuda,cpu")[0] is False
