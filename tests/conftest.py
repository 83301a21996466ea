"""Settings that every test runs under. They are made before any JAX backend starts."""

import os
import signal


# Eight CPU devices stand in for a mesh; the test machine needs no accelerator. Tests compile much and compute little,
# so LLVM is told not to optimise: half the time of the whole run.
os.environ["JAX_PLATFORMS"] = "cpu"
# Commands that run inside this process keep no programs, so that no test depends on one before it.
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        "--xla_backend_optimization_level=0",
    ]
)

import jax
import pytest


# A shell starts background jobs with SIGINT ignored, which the processes that tests interrupt would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session", autouse=True)
def own_cache_folder(tmp_path_factory):
    """Commands keep indexes, texts and compiled programs in the user's cache folder; tests have one of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def getkey():
    """A function that gives a new key at each call, the same ones at each run of the test."""
    key = jax.random.key(0)
    count = 0

    def get():
        nonlocal count
        count += 1
        return jax.random.fold_in(key, count)

    return get
