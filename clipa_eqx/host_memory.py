"""Memory of the host, where its processor is the device."""

import ctypes
import importlib.metadata
import importlib.util
import os
import platform


# Parameters of glibc's mallopt (malloc.h): freed memory goes back to the kernel from this size on; blocks that the
# kernel maps one by one; heaps that threads share.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> bool:
    """Let the process keep what it frees; call it before JAX starts its threads.

    On a CPU, XLA allocates the temporaries of a step anew each time. glibc returns blocks of that size to the kernel,
    which clears every page again when it is next touched: a quarter of the processor time of a small step
    (benchmarks/train_step.py). The price is that the process stays as large as it ever was, and that its threads
    allocate from one heap; so nothing is done where JAX finds an accelerator, or on another system than Linux with
    glibc.

    Returns:
        Whether it is done here.
    """
    if platform.libc_ver()[0] != "glibc" or not _processor_only():
        return False
    libc = ctypes.CDLL(None)
    # No size is large enough to go back, none is mapped apart, and there is one heap, the only one without a limit.
    return all(libc.mallopt(name, value) for name, value in ((_TRIM_THRESHOLD, -1), (_MMAP_MAX, 0), (_ARENA_MAX, 1)))


def _processor_only() -> bool:
    """Whether JAX will run on the CPU, found without starting it: the packages of accelerators name themselves."""
    platforms = os.environ.get("JAX_PLATFORMS")
    if platforms:
        return platforms == "cpu"
    return not importlib.metadata.entry_points(group="jax_plugins") and importlib.util.find_spec("libtpu") is None
