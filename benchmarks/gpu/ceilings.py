"""At what rate does this very card multiply matrices of bfloat16, and copy?"""

from typing import Any

from _part import Facts, Measure, Options, step_times, take_part


PRODUCTS = {
    "square": (8192, 8192, 8192),
    "b16_widen": (51200, 768, 3072),
    "b16_narrow": (51200, 3072, 768),
    "b16_qkv": (51200, 768, 2304),
    "b16_weight": (768, 51200, 3072),
    "l16_widen": (37888, 1024, 4096),
    "h14_widen": (18944, 1280, 5120),
}
"""Rows, inner and columns: a large one, and those of a block of B/16, L/16 and H/14 at the sizes measured here."""
COPIED = 2**31


def prepare(options: Options) -> tuple[Facts, Measure]:
    """Compile every product and the copy."""
    import jax
    import jax.numpy as jnp

    shrink = 64 if options.get("tiny") else 1
    random = jax.jit(lambda key, shape: jax.random.normal(key, shape, jnp.bfloat16), static_argnums=1)
    product, copy = jax.jit(lambda a, b: a @ b), jax.jit(lambda x: x + 1)
    sizes = {name: tuple(n // shrink for n in shape) for name, shape in PRODUCTS.items()}

    def operands(shape: tuple[int, ...]) -> tuple[Any, Any]:
        rows, inner, cols = shape
        return random(jax.random.key(0), (rows, inner)), random(jax.random.key(1), (inner, cols))

    for shape in sizes.values():
        jax.block_until_ready(product(*operands(shape)))

    def measure() -> Facts:
        found: Facts = {}
        for name, shape in sizes.items():
            a, b = operands(shape)
            times = step_times(lambda a=a, b=b: product(a, b), jax.block_until_ready, steps=20)
            # Queued: a single product of this size ends before the host has noticed.
            rows, inner, cols = shape
            found[f"{name}_tflops"] = round(2e-9 * rows * inner * cols / times["ms_queued"], 3)
        copied = COPIED // shrink**2
        x = random(jax.random.key(2), (copied // 2,))
        times = step_times(lambda: copy(x), jax.block_until_ready, steps=20)
        found["copy_tb_per_s"] = round(2e-9 * copied / times["ms_queued"], 5)
        return found

    return {"device": jax.devices()[0].device_kind}, measure


if __name__ == "__main__":
    take_part(prepare)
