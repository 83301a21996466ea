"""How fast is a JPEG cropped and resized for training, and how far is the result from a full decode?

Every method takes the same boxes, drawn as training draws them. `full` decodes the whole picture with Pillow and
resizes the box with the antialiased kernel of the same name, as torchvision does; the difference to it is the mean of
|levels| of 255. Methods:

- pillow, fast: the library's two decoders.
- opencv_area, opencv_linear: OpenCV's decoder at 1/8, 1/4, 1/2 and its two usual kernels, the second not antialiased,
  on a box of whole pixels; left out where opencv-python-headless is not installed.

One thread, rounds interleaved. Appends one JSON line to results/decode.json.

    pip install scikit-image scikit-learn opencv-python-headless
    python benchmarks/decode.py [files]
"""

import importlib.metadata
import importlib.util
import io
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from _photos import photo_jpegs
from PIL import Image

from clipa_eqx.config import AugmentConfig, Interpolation
from clipa_eqx.data import draw_crop, DRAWS, training_image


ROUNDS = 5
MOST_PIXELS = 10**8
INPUTS = ((512, 90), (256, 95))
SIZES = (64, 84, 112, 160, 224)
KERNELS: dict[Interpolation, Image.Resampling] = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}

Method = Callable[[bytes, list[float]], np.ndarray]


def make_methods(side: int, size: int, kernel: Interpolation) -> dict[str, Method]:
    """What is compared, by name; `full` is the reference."""
    augment = AugmentConfig(interpolation=kernel)

    def full(data: bytes, draws: list[float]) -> np.ndarray:
        box = draw_crop(side, side, augment, draws)
        picture = Image.open(io.BytesIO(data)).convert("RGB")
        return np.asarray(picture.resize((size, size), KERNELS[kernel], box=box.shrunk(1)))

    def library(decoder: Any) -> Method:
        return lambda data, draws: training_image(
            data, size, augment, draws=draws, max_pixels=MOST_PIXELS, decoder=decoder
        )

    methods: dict[str, Method] = {"full": full, "pillow": library("pillow"), "fast": library("fast")}
    if importlib.util.find_spec("cv2") is None:
        return methods
    cv2 = importlib.import_module("cv2")
    cv2.setNumThreads(0)
    flags = {8: cv2.IMREAD_REDUCED_COLOR_8, 4: cv2.IMREAD_REDUCED_COLOR_4, 2: cv2.IMREAD_REDUCED_COLOR_2}

    def opencv(resampling: int) -> Method:
        def read(data: bytes, draws: list[float]) -> np.ndarray:
            box = draw_crop(side, side, augment, draws)
            divisor = box.divisor(size)
            pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags.get(divisor, cv2.IMREAD_COLOR))
            left, top, right, bottom = (round(edge) for edge in box.shrunk(divisor))
            return cv2.resize(pixels[top:bottom, left:right], (size, size), interpolation=resampling)[..., ::-1]

        return read

    return methods | {"opencv_area": opencv(cv2.INTER_AREA), "opencv_linear": opencv(cv2.INTER_LINEAR)}


def measure(files: list[bytes], side: int, size: int, kernel: Interpolation) -> dict[str, dict[str, float]]:
    """Rate and difference of every method."""
    draws = np.random.default_rng(1).random((len(files), DRAWS)).tolist()
    methods = make_methods(side, size, kernel)
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    pixels: dict[str, list[np.ndarray]] = {}
    for _ in range(ROUNDS):
        for name, method in methods.items():
            start = time.perf_counter()
            pixels[name] = [method(data, numbers) for data, numbers in zip(files, draws, strict=True)]
            seconds[name].append((time.perf_counter() - start) / len(files))
    results = {}
    for name in methods:
        differences = [
            np.abs(found.astype(np.int16) - expected).mean()
            for found, expected in zip(pixels[name], pixels["full"], strict=True)
        ]
        ratios = [full / own for full, own in zip(seconds["full"], seconds[name], strict=True)]
        results[name] = {
            "images_per_s": round(1 / statistics.median(seconds[name])),
            "times_full": round(statistics.median(ratios), 2),
            "difference": round(float(np.mean(differences)), 2),
            "difference_worst": round(float(np.max(differences)), 2),
        }
    return results


def main() -> None:
    """Measure every input, size and kernel; the number of files may stand on the command line."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 60
    rows = []
    for side, quality in INPUTS:
        files = photo_jpegs(count, size=side, quality=quality)
        for size in SIZES:
            for kernel in KERNELS:
                methods = measure(files, side, size, kernel)
                rows.append({"input": side, "quality": quality, "size": size, "kernel": kernel, "methods": methods})
                print(f"{side} px q{quality} -> {size} {kernel}")
                for name, result in methods.items():
                    print(f"  {name:14}", "  ".join(f"{label} {value:g}" for label, value in result.items()))
    packages = ("pillow", "simplejpeg", "cykooz-resizer", "numpy")
    record = {
        "files": count,
        "rounds": ROUNDS,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in packages},
        "rows": rows,
    }
    with (Path(__file__).parent / "results" / "decode.json").open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
