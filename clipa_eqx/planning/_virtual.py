"""As many devices as a plan asks for, on a machine that has none."""

import os

import jax


def start_virtual_devices(count: int) -> None:
    """Split this machine's CPU into `count` devices; call it before anything has asked for a device.

    A program compiled for them is laid out as for so many accelerators, and costs no memory until it is called.

    Raises:
        ValueError: the devices of this process are there already, in another number.
    """
    # Code of programs that never run need not be fast; how memory is laid out is decided before.
    flags = f"--xla_force_host_platform_device_count={count} --xla_backend_optimization_level=0"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}"
    jax.config.update("jax_platforms", "cpu")
    if jax.device_count() != count or jax.default_backend() != "cpu":
        raise ValueError(
            f"A plan for {count} devices needs a process of its own: this one has started with {jax.device_count()} "
            f"of {jax.default_backend()!r} already."
        )
