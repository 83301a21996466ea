"""JPEGs cut out of the photographs that scikit-learn and scikit-image bring, for the benchmarks of reading data."""

import importlib
import io

import numpy as np
from PIL import Image


def photo_jpegs(count: int, *, size: int, quality: int, seed: int = 0) -> list[bytes]:
    """Square sub-images of photographs, brought to `size` and given the noise of a sensor.

    Args:
        count: how many.
        size: side in pixels.
        quality: of the JPEG, 4:2:0 as img2dataset writes it.
        seed: of places and noise.
    """
    # Only benchmarks need these two, so they are no dependencies; the type checker does not look for them.
    datasets, data = importlib.import_module("sklearn.datasets"), importlib.import_module("skimage.data")
    photos = [*datasets.load_sample_images().images, data.astronaut(), data.coffee(), data.chelsea()]
    rng = np.random.default_rng(seed)
    files = []
    for number in range(count):
        photo = photos[number % len(photos)]
        height, width, _ = photo.shape
        side = int(min(height, width) * rng.uniform(0.7, 1))
        top, left = rng.integers(0, height - side + 1), rng.integers(0, width - side + 1)
        part = Image.fromarray(photo[top : top + side, left : left + side]).resize(
            (size, size), Image.Resampling.BICUBIC
        )
        noisy = np.asarray(part) + rng.normal(0, 2, (size, size, 3))
        file = io.BytesIO()
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=quality, subsampling="4:2:0")
        files.append(file.getvalue())
    return files
