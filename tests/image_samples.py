"""Small images for the tests of image files, and reading them back."""

import io

import numpy as np

from portraitmatting.images.files import read_image


def noise(*shape, dtype=np.uint8):
    full = np.iinfo(dtype).max
    return np.random.default_rng(0).integers(0, full + 1, shape).astype(dtype)


def smooth(height=48, width=64):
    y, x = np.mgrid[:height, :width]
    return np.dstack([x * 255 / width, y * 255 / height, 255 - x * 255 / width]).astype(np.uint8)


def saved(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def read_bytes(tmp_path, data, name="image.png"):
    path = tmp_path / name
    path.write_bytes(data)
    return read_image(path)


def close(pixels, expected, tolerance=3):
    return np.abs(pixels.astype(int) - np.asarray(expected).astype(int)).mean() < tolerance
