"""Does JAX see the GPU, and does a program run there?"""

import importlib.metadata
import json
import platform

import jax
import jax.numpy as jnp


def main() -> None:
    """One JSON line: the device and the versions."""
    device = jax.devices()[0]
    x = jax.random.normal(jax.random.key(0), (256, 256), jnp.bfloat16)
    product = jax.jit(lambda x: x @ x)(x)
    if not jnp.isfinite(product).all():
        raise RuntimeError(f"A product of random numbers on {device} is not finite.")
    versions = {}
    for name in ("jax", "jaxlib", "equinox", "flax", "optax", "torch", "open_clip_torch", "numpy"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    print(json.dumps({"device": device.device_kind, "python": platform.python_version(), "versions": versions}))


if __name__ == "__main__":
    main()
