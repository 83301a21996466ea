"""Pictures: crops, kernels, scaled decoding, colour modes, orientation, and what is refused."""

import importlib.util
import io
import math
import struct
import zlib

import numpy as np
import pytest
from data_files import encode, picture
from PIL import Image

from clipa_eqx.config import AugmentConfig, DataConfig
from clipa_eqx.data import eval_image, find_decoder, ImageError, training_image
from clipa_eqx.data.image._crop import draw_crop, DRAWS


WHOLE = AugmentConfig(crop_area_min=1.0, crop_aspect_max=1.0)
MOST = 10**7


def train(data, size=16, augment=WHOLE, draws=(0.25,) * DRAWS, max_pixels=MOST, decoder="pillow"):
    return training_image(data, size, augment, draws=draws, max_pixels=max_pixels, decoder=decoder)


def train_fast(data, *arguments, **options):
    return train(data, *arguments, **options, decoder="fast")


BOTH = (train, train_fast)


def evaluate(data, size=16, resize="squash", interpolation="bilinear", max_pixels=MOST):
    return eval_image(data, size, resize=resize, interpolation=interpolation, max_pixels=max_pixels)


def difference(a, b):
    return np.abs(a.astype(int) - b.astype(int)).mean()


def test_crops_have_the_stated_distribution():
    rng = np.random.default_rng(0)
    augment = AugmentConfig(crop_area_min=0.4, crop_aspect_max=4 / 3)
    count, width, height = 4000, 1000, 1000
    boxes = np.array([draw_crop(width, height, augment, row.tolist()) for row in rng.random((count, DRAWS))])
    left, top, across, down = boxes.T
    assert (left >= 0).all()
    assert (top >= 0).all()
    assert (left + across <= width).all()
    assert (top + down <= height).all()
    area, aspect = across * down / (width * height), np.log(across / down)
    assert area.min() > 0.399
    assert np.abs(aspect).max() < math.log(4 / 3) + 0.01
    # A box of area a fits with chance min(1, -ln a / ln 4/3), so 0.3 of 0.35 + 0.119 have an area below 0.7.
    small = area < 0.7
    assert abs(small.mean() - 0.64) < 0.03
    assert abs(aspect.mean()) < 0.02
    assert abs(np.std(aspect[small]) - math.log(4 / 3) / math.sqrt(3)) < 0.01
    slack = width - across[small]
    assert abs((left[small] / slack).mean() - 0.5) < 0.03
    assert abs(np.corrcoef(left[small] / slack, top[small] / (height - down[small]))[0, 1]) < 0.1


def test_crops_of_extreme_pictures():
    narrow = AugmentConfig(crop_area_min=0.9, crop_aspect_max=1.5)
    draws = [0.9] * DRAWS
    assert draw_crop(1000, 100, narrow, draws) == (425, 0, 150, 100)
    assert draw_crop(100, 1000, narrow, draws) == (0, 425, 100, 150)
    assert draw_crop(1, 1, narrow, draws) == (0, 0, 1, 1)
    assert draw_crop(1, 5000, narrow, draws) == (0, 2499, 1, 2)
    last = 1 - 2.0**-53
    assert draw_crop(100, 100, WHOLE, [last] * DRAWS) == (0, 0, 100, 100)


def test_the_box_is_cut_where_it_was_drawn():
    image = picture(1, 64, 64)
    augment = AugmentConfig(crop_area_min=0.25, crop_aspect_max=1.0)
    draws = [0.0, 0.5] * 10 + [0.5, 0.99, 0.7]
    assert draw_crop(64, 64, augment, draws) == (16, 32, 32, 32)
    pixels = train(encode(image, "PNG"), 32, augment, draws)
    assert (pixels == np.asarray(image)[32:64, 16:48]).all()
    mirrored = train(encode(image, "PNG"), 32, AugmentConfig(0.25, 1.0, mirror=True), [*draws[:-1], 0.3])
    assert (mirrored == pixels[:, ::-1]).all()
    assert (train(encode(image, "PNG"), 32, AugmentConfig(0.25, 1.0, mirror=True), draws) == pixels).all()


def photo_like(seed, width, height):
    """A picture whose detail falls with its size, as that of photographs does."""
    octaves = [
        (2**-step, np.asarray(picture(seed + step, width, height, cell=128 >> step), float)) for step in range(6)
    ]
    mixed = sum(weight * (octave - 128) for weight, octave in octaves) + 128
    return Image.fromarray(mixed.clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("read", BOTH)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_scaled_decoding_differs_little_from_a_full_decode(interpolation, read):
    augment = AugmentConfig(0.4, 4 / 3, interpolation)
    kernel = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[interpolation]
    rng = np.random.default_rng(2)
    differences = []
    for width, height, size in ((301, 407, 64), (512, 513, 30), (256, 200, 112), (129, 999, 16), (900, 880, 224)):
        data = encode(photo_like(width, width, height))
        full = Image.open(io.BytesIO(data)).convert("RGB")
        for draws in rng.random((3, DRAWS)).tolist():
            left, top, across, down = draw_crop(width, height, augment, draws)
            expected = full.resize((size, size), kernel, box=(left, top, left + across, top + down))
            differences.append(difference(read(data, size, augment, draws), np.asarray(expected)))
    assert max(differences) <= 1.5
    assert max(differences) > 0, "no picture was decoded at a smaller scale"


def test_evaluation_resizes_as_torchvision_does():
    for width, height in ((100, 61), (61, 100), (64, 64), (33, 500), (20, 31)):
        image = picture(3, width, height, cell=5)
        short = min(width, height)
        resized = image.resize((32 * width // short, 32 * height // short), Image.Resampling.BICUBIC)
        left, top = round((resized.width - 32) / 2), round((resized.height - 32) / 2)
        expected = np.asarray(resized.crop((left, top, left + 32, top + 32)))
        found = evaluate(encode(image, "PNG"), 32, "crop", "bicubic")
        assert np.abs(found.astype(int) - expected).max() <= 1
        squashed = np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR))
        assert (evaluate(encode(image, "PNG"), 32) == squashed).all()


def test_colour_modes():
    image = picture(4, 32, 32)
    expected = np.asarray(image.resize((16, 16), Image.Resampling.BILINEAR))
    gray = np.asarray(image.convert("L").resize((16, 16), Image.Resampling.BILINEAR))[..., None]
    transparent = image.convert("RGBA")
    transparent.putalpha(100)
    palette = image.quantize(255)
    palette_pixels = np.asarray(palette.convert("RGB").resize((16, 16), Image.Resampling.BILINEAR))
    cases = [
        (encode(image, "PNG"), expected, 0),
        (encode(image, "BMP"), expected, 0),
        (encode(image, "WEBP", lossless=True), expected, 0),
        (encode(image, "JPEG", progressive=True, subsampling=0, quality=98), expected, 2),
        (encode(image.convert("CMYK"), "JPEG", quality=98), expected, 4),
        (encode(image.convert("L"), "JPEG", quality=98), gray, 2),
        (encode(image.convert("L"), "PNG"), gray, 1),
        (encode(transparent, "PNG"), expected, 0),
        (encode(transparent.convert("LA"), "PNG"), gray, 1),
        (encode(palette, "PNG"), palette_pixels, 0),
        (encode(palette, "PNG", transparency=bytes([0, 128] * 100)), palette_pixels, 0),
        (encode(palette, "GIF", save_all=True, append_images=[picture(5, 32, 32)]), palette_pixels, 0),
        (encode(image.convert("1"), "PNG"), gray, 80),
    ]
    for data, pixels, allowed in cases:
        for found in (train(data), train_fast(data), evaluate(data)):
            assert found.shape == (16, 16, 3)
            assert found.dtype == np.uint8
            assert difference(found, np.broadcast_to(pixels, found.shape)) <= allowed
    first = evaluate(encode(image, "WEBP", save_all=True, append_images=[picture(5, 32, 32)], lossless=True))
    assert (first == expected).all()


def test_sixteen_bit_gray_is_scaled():
    levels = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    levels[1:-1] += 200
    data = encode(Image.fromarray(levels), "PNG")
    expected = np.rint(levels / 257)[..., None].repeat(3, axis=-1)
    assert (evaluate(data) == expected).all()
    assert (train(data) == expected).all()


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_pictures_stand_upright():
    upright = picture(6, 40, 40)
    stored = {
        1: lambda image: image,
        2: lambda image: image[:, ::-1],
        3: lambda image: image[::-1, ::-1],
        4: lambda image: image[::-1],
        5: lambda image: image.transpose(1, 0, 2),
        6: lambda image: np.rot90(image),
        7: lambda image: np.rot90(image, 2).transpose(1, 0, 2),
        8: lambda image: np.rot90(image, -1),
    }
    expected = np.asarray(upright.resize((20, 20), Image.Resampling.BILINEAR))
    for orientation, store in stored.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        image = Image.fromarray(np.ascontiguousarray(store(np.asarray(upright))))
        for form in ("PNG", "JPEG"):
            data = encode(image, form, exif=exif)
            for found in (evaluate(data, 20), evaluate(data, 20, "crop"), train(data, 20), train_fast(data, 20)):
                assert difference(found, expected) < (0.5 if form == "PNG" else 4)
    for broken in (b"Exif\0\0nonsense", b"Exif\0\0MM\0*\xff\xff\xff\xff", struct.pack(">I", 7)):
        assert difference(evaluate(encode(upright, "JPEG", exif=broken), 20), expected) < 4


def bomb(width, height):
    """A PNG of a few bytes that claims a size."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("default::PIL.Image.DecompressionBombWarning")
def test_what_is_refused_and_why():
    jpeg, png = encode(picture(7, 64, 64)), encode(picture(7, 64, 64), "PNG")
    cases = [
        (b"", "empty file"),
        (b"<html>not found</html>", "not a picture of a known format"),
        (jpeg[: len(jpeg) // 2], "truncated|Premature end"),
        (png[: len(png) // 2], "truncated|broken"),
        (bomb(4000, 4000), "4000 x 4000 pixels are more than max_pixels=10000000"),
        (bomb(60000, 60000), "DecompressionBomb"),
        (bomb(0, 5), "0|known format"),
        (bomb(50, 50), "truncated|broken"),
        (encode(picture(7), "TIFF"), "not a picture of a known format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not a picture of a known format"),
    ]
    for data, reason in cases:
        for read in (*BOTH, evaluate):
            with pytest.raises(ImageError, match=reason) as one:
                read(data)
            with pytest.raises(ImageError) as two:
                read(data)
            assert str(one.value) == str(two.value), "reasons must not change from run to run"


def test_only_the_fast_decoder_notices_damage_inside_the_pixels():
    data = bytearray(encode(photo_like(3, 300, 200)))
    data[len(data) // 2 : len(data) // 2 + 40] = bytes(40)
    assert train(bytes(data)).shape == (16, 16, 3)
    with pytest.raises(ImageError, match="Corrupt JPEG data"):
        train_fast(bytes(data))


def test_which_decoder_a_config_means(monkeypatch):
    assert [find_decoder(DataConfig(decoder=name)) for name in ("pillow", "fast", "auto")] == ["pillow", "fast", "fast"]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert find_decoder(DataConfig()) == "pillow"
    with pytest.raises(ImportError, match=r"simplejpeg and cykooz_resizer: pip install 'clipa_eqx\[fast\]'"):
        find_decoder(DataConfig(decoder="fast"))


def test_hostile_bytes_give_pixels_or_an_image_error():
    rng = np.random.default_rng(8)
    for form in ("JPEG", "PNG", "WEBP", "GIF", "BMP"):
        data = encode(picture(8, 40, 30), form)
        for _ in range(40):
            broken = bytearray(data)
            for place in rng.integers(0, len(data), 4):
                broken[place] = rng.integers(0, 256)
            for read in (*BOTH, evaluate):
                try:
                    pixels = read(bytes(broken), max_pixels=10**5)
                except ImageError:
                    continue
                assert pixels.shape == (16, 16, 3)


def test_extreme_shapes():
    for width, height in ((1, 1), (1, 3000), (3000, 1), (2, 2)):
        for form in ("JPEG", "PNG"):
            data = encode(picture(9, width, height), form)
            for read in BOTH:
                assert read(data, 1).shape == (1, 1, 3)
                assert read(data, 24, AugmentConfig()).shape == (24, 24, 3)
            for resize in ("crop", "squash"):
                assert evaluate(data, 224, resize).shape == (224, 224, 3)
