"""How many images per second are embedded in bfloat16, from uint8 pixels of the host to unit vectors of the host?

`peer`: ours, vmapped and jitted as `evaluate` does; or open_clip, compiled, in inference mode under autocast.
"""

from typing import Any

import numpy as np
from _part import Facts, Measure, Options, step_times, take_part
from _sizes_gpu import Sized, sized


def ours(found: Sized, pixels: np.ndarray) -> tuple[Any, Any]:
    """The library's encoder."""
    import equinox as eqx
    import jax

    from clipa_eqx.models import for_compute, make_clip, normalize_pixels, scale_pixels

    config = found.run.model
    model = for_compute(eqx.filter_jit(make_clip)(config, key=jax.random.key(0)), "bfloat16")

    def one(model: Any, row: Any) -> Any:
        return model.encode_image(normalize_pixels(scale_pixels(row), config.vision))

    embed = jax.jit(jax.vmap(one, in_axes=(None, 0)))
    on_device = jax.device_put(pixels)
    return (lambda: np.asarray(embed(model, pixels))), (lambda: jax.block_until_ready(embed(model, on_device)))


def open_clip(found: Sized, pixels: np.ndarray) -> tuple[Any, Any]:
    """open_clip's encoder."""
    import torch
    from _peers import open_clip_model

    vision = found.run.model.vision
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = open_clip_model(found.run.model).to(device).eval()
    encode = torch.compile(model.encode_image) if device == "cuda" else model.encode_image
    mean, std = (
        torch.tensor(value, device=device)[:, None, None] * 255 for value in (vision.pixel_mean, vision.pixel_std)
    )
    host = torch.from_numpy(pixels)
    if device == "cuda":
        host = host.pin_memory()
    on_device = host.to(device)

    def embed(rows: Any) -> Any:
        with torch.inference_mode(), torch.autocast(device, torch.bfloat16):
            return encode((rows.permute(0, 3, 1, 2).float() - mean) / std, normalize=True)

    def waited() -> None:
        embed(on_device)
        if device == "cuda":
            torch.cuda.synchronize()

    return (lambda: embed(host.to(device, non_blocking=True)).float().cpu()), waited


PEERS = {"ours": ours, "open_clip": open_clip}


def prepare(options: Options) -> tuple[Facts, Measure]:
    """Compile by embedding one batch."""
    found = sized(options)
    from_host, on_device = PEERS[options["peer"]](found, found.pairs()["pixels"])
    from_host()
    on_device()

    def measure() -> Facts:
        rates = {}
        for name, run in (("images_per_s", from_host), ("images_per_s_on_device", on_device)):
            times = step_times(run, lambda _: None, warm=1, steps=10)
            rates[name] = round(1e3 * found.batch / times["ms"])
        return rates

    return {"images": found.batch}, measure


if __name__ == "__main__":
    take_part(prepare)
