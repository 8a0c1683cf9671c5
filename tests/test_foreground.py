"""Foreground colours by every method, and loading pymatting."""

import importlib.util
import os
import subprocess
import sys
import threading
import time

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from portraitmatting import foreground, pymatting_solvers, torch_solvers
from portraitmatting.errors import PortraitmattingError
from portraitmatting.foreground import METHODS, estimate_foreground
from portraitmatting.images.pixels import to_dtype
from portraitmatting.pymatting_solvers import load_solver
from portraitmatting.torch_solvers import blur_fusion, fusion_windows, multi_level

DTYPES = [np.uint8, np.uint16, np.float32, np.float64]


def scene(height=96, width=128):
    """An image in 0..1, its alpha and its true foreground colours: a disc in warm colours, with a
    wide soft edge, in front of a green wall."""
    y, x = np.mgrid[:height, :width]
    far = np.hypot(x - width / 2, y - height / 2) / min(height, width)
    alpha = np.clip((0.45 - far) / 0.05, 0, 1).astype(np.float32)
    colours = np.dstack([0.6 + 0.3 * x / width, 0.3 + 0.2 * y / height, np.full(x.shape, 0.2)])
    wall = np.dstack([0.1 * np.ones(x.shape), 0.6 + 0.3 * y / height, 0.3 * x / width])
    return alpha[..., None] * colours + (1 - alpha[..., None]) * wall, alpha, colours


def edge_error(estimate, alpha, colours):
    edge = (alpha > 0.1) & (alpha < 1)
    return np.abs(estimate[edge] - colours[edge]).mean()


@pytest.mark.parametrize(("method", "better"), [("ml", 8), ("cf", 8), ("fast", 4)])
def test_colours_at_the_edge_are_close_to_the_true_ones(method, better):
    image, alpha, colours = scene()
    untouched = edge_error(image, alpha, colours)
    estimate = estimate_foreground(image, alpha, method)
    assert edge_error(estimate, alpha, colours) < untouched / better


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_dtype_and_opaque_pixels_are_kept(method, dtype):
    image, alpha, _ = scene(40, 50)
    image = to_dtype(image, dtype)
    estimate = estimate_foreground(image, alpha.astype(np.float64), method)
    assert estimate.dtype == dtype
    assert estimate.shape == image.shape
    assert np.array_equal(estimate[alpha == 1], image[alpha == 1])
    assert np.isfinite(estimate).all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 1), (1, 60), (47, 1), (3, 200)])
@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_images_of_every_size_work(method, size, level):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
    estimate = estimate_foreground(image, np.full(size, level), method)
    assert estimate.shape == image.shape
    assert estimate.dtype == np.uint8


def test_method_none_returns_the_image():
    image, alpha, _ = scene(9, 9)
    assert np.array_equal(estimate_foreground(image, alpha, "none"), image)


@pytest.mark.parametrize(
    ("image", "alpha", "method", "says"),
    [
        (np.zeros((4, 4)), np.zeros((4, 4)), "ml", "HxWx3"),
        (np.zeros((4, 4, 4)), np.zeros((4, 4)), "ml", "HxWx3"),
        (np.zeros((4, 4, 3)), np.zeros((4, 5)), "ml", r"\(4, 5\).*\(4, 4\)"),
        (np.zeros((4, 4, 3)), np.zeros((4, 4, 1)), "ml", "does not fit"),
        (np.zeros((4, 4, 3)), np.full((4, 4), 255.0), "ml", "alpha.*0..1.*255"),
        (np.zeros((4, 4, 3)), np.full((4, 4), np.nan), "ml", "alpha.*nan"),
        (np.zeros((4, 4, 3)), np.full((4, 4), 255, np.uint8), "ml", "alpha.*uint8"),
        (np.full((4, 4, 3), 255.0), np.zeros((4, 4)), "ml", "image.*0..1"),
        (np.zeros((4, 4, 3), np.int32), np.zeros((4, 4)), "fast", "int32"),
        (np.zeros((4, 4, 3)), np.zeros((4, 4)), "best", "'best': use ml, cf, fast, none"),
    ],
)
def test_wrong_arguments_are_an_error_of_one_line(image, alpha, method, says):
    with pytest.raises(PortraitmattingError, match=says) as caught:
        estimate_foreground(image, alpha, method)
    assert str(caught.value).isprintable()


def textured(height, width):
    """`scene` with noise, and with thin strands at its edge: an 8-bit image and its alpha."""
    _, alpha, colours = scene(height, width)
    y, x = np.mgrid[:height, :width]
    random = np.random.default_rng(0)
    strands = 0.5 + 0.5 * np.sin(x * 0.9 + y * 0.13) * np.sin(y * 0.021)
    alpha = np.where((alpha > 0) & (alpha < 1), alpha * strands, alpha).astype(np.float32)
    wall = np.dstack([y % 97 / 97, x % 61 / 61, np.full(x.shape, 0.4)])
    image = alpha[..., None] * colours + (1 - alpha[..., None]) * wall
    return to_dtype((image + random.normal(0, 0.01, image.shape)).clip(0, 1), np.uint8), alpha


@pytest.mark.parametrize("method", ["ml", "fast"])
def test_colours_are_estimated_only_where_they_are_needed(method):
    image, alpha = textured(200, 300)
    estimate = estimate_foreground(image, alpha, method)
    far = ~cv2.dilate(((alpha > 0) & (alpha < 1)).astype(np.uint8), np.ones((9, 9))).astype(bool)
    assert np.array_equal(estimate[far], image[far])
    soft = (alpha > 0) & (alpha < 1)
    assert np.abs(estimate[soft].astype(int) - image[soft]).max() > 20


@pytest.mark.parametrize("method", ["ml", "fast"])
def test_colours_of_a_large_image_are_close_to_those_without_shrinking(method, monkeypatch):
    """Colours are compared in grey levels and weighted with alpha, as they are seen."""
    image, alpha = textured(1300, 1900)
    large = estimate_foreground(image, alpha, method)
    monkeypatch.setitem(foreground._TILE, "cpu", 999)
    retiled = estimate_foreground(image, alpha, method)
    # There are no seams: sums in another order may round one value in a million differently.
    assert np.abs(retiled.astype(int) - large).max() <= 1
    assert np.mean(retiled != large) < 1e-5
    monkeypatch.setattr(foreground, "LARGEST", image.size)
    whole = estimate_foreground(image, alpha, method)
    seen = np.abs(large.astype(float) - whole) * alpha[..., None]
    soft = (alpha > 0) & (alpha < 1)
    assert not seen[~soft].any()
    assert seen[soft].mean() < (1.5 if method == "ml" else 3)
    assert seen.max() < 40


@pytest.mark.parametrize("size", [(90, 120), (300, 41), (1, 50)])
def test_multi_level_in_pytorch_is_close_to_pymattings(size):
    image, alpha = textured(*size)
    front, back = load_solver("ml")(image / np.float32(255), alpha)
    planes = torch.from_numpy(image).permute(2, 0, 1) / 255
    both = multi_level(planes, torch.from_numpy(alpha)).permute(1, 2, 0).numpy()
    for ours, theirs, weight in ((both[..., :3], front, alpha), (both[..., 3:], back, 1 - alpha)):
        seen = np.abs(ours - theirs) * weight[..., None] * 255
        assert seen.mean() < 0.5
        assert seen.max() < 40


@pytest.mark.parametrize("method", ["ml", "fast"])
def test_too_little_memory_is_an_error_of_one_line(method, monkeypatch):
    def fail(*_):
        raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(foreground, "load_solver", lambda _: fail)
    monkeypatch.setattr(foreground, "blur_fusion", fail)
    image, alpha, _ = scene(9, 9)
    with pytest.raises(PortraitmattingError, match=r"not enough memory.*use.*'none'") as caught:
        estimate_foreground(image, alpha, method)
    assert str(caught.value).isprintable()


# Blur fusion


def slow_blur_fusion(image, alpha, windows):
    """The paper's equations pixel by pixel, HxWx3 float64."""

    def mean(colours, weight, window):
        before, result = window // 2, np.empty_like(colours)
        for y, x in np.ndindex(weight.shape):
            part = np.s_[max(0, y - before) : y + before + 1, max(0, x - before) : x + before + 1]
            total = (colours[part] * weight[part][..., None]).sum((0, 1)) / window**2
            result[y, x] = (total + 1e-5 * colours[y, x]) / (weight[part].sum() / window**2 + 1e-5)
        return result

    front = back = image
    own = alpha[..., None]
    for window in windows:
        front_mean, back = mean(front, alpha, window), mean(back, 1 - alpha, window)
        front = front_mean + own * (image - own * front_mean - (1 - own) * back)
        front = front.clip(0, 1)
    return front


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (5, 3), (40, 30), (150, 20)])
@pytest.mark.parametrize("box", ["cpu", "other devices"])
def test_blur_fusion_equals_the_slow_reference(monkeypatch, size, box):
    if box == "other devices":  # their code, run on the CPU
        monkeypatch.setattr(torch_solvers, "_box", torch_solvers._box_by_pooling)
    random = np.random.default_rng(1)
    image, alpha = random.random((*size, 3)), (random.random(size) * 2 - 0.5).clip(0, 1)
    planes = torch.from_numpy(image).permute(2, 0, 1).float()
    both = blur_fusion(planes, torch.from_numpy(alpha).float(), fusion_windows(*size))
    slow = slow_blur_fusion(image, alpha, fusion_windows(*size))
    assert np.abs(both[:3].permute(1, 2, 0).numpy() - slow).max() < 2e-6


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 8).map(lambda n: 2 * n + 1))
def test_box_means_of_the_cpu_and_of_other_devices_agree(height, width, window):
    planes = torch.from_numpy(np.random.default_rng(0).random((2, 3, height, width), np.float32))
    assert torch.allclose(
        torch_solvers._box(planes, window), torch_solvers._box_by_pooling(planes, window), atol=1e-6
    )


def test_blur_fusion_keeps_the_colours_where_alpha_is_constant():
    image = torch.rand(3, 20, 20, generator=torch.Generator().manual_seed(0))
    for level in (0.0, 1.0):
        estimate = blur_fusion(image, torch.full((20, 20), level), (7, 3))
        assert torch.allclose(estimate[:3], image, atol=1e-4)


def test_windows_grow_with_the_image():
    assert fusion_windows(1, 1) == (7, 3)
    assert fusion_windows(1080, 1920) == fusion_windows(1920, 1080) == (135, 19)
    assert all(window % 2 for size in range(1, 4000, 37) for window in fusion_windows(size, 9999))


# pymatting


def in_a_new_process(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **environment},
    )


def test_pymatting_is_loaded_late_and_leaves_its_package_importable():
    done = in_a_new_process(
        "import sys, numpy as np\n"
        "from portraitmatting.foreground import estimate_foreground\n"
        "image, alpha = np.full((9, 9, 3), 0.5), np.full((9, 9), 0.5)\n"
        "for method in ('fast', 'none'):\n"
        "    estimate_foreground(image, alpha, method)\n"
        "assert not [name for name in sys.modules if name.startswith(('pymatting', 'numba'))]\n"
        "ours = estimate_foreground(image, alpha, 'ml')\n"
        "assert 'pymatting' not in sys.modules\n"
        "from pymatting.foreground.estimate_foreground_ml import estimate_foreground_ml\n"
        "print(np.abs(ours - estimate_foreground_ml(image, alpha)).max() < 1e-6)"
    )
    assert done.stdout.strip() == "True"


def test_a_long_first_import_is_explained(monkeypatch, capsys):
    monkeypatch.setattr(pymatting_solvers, "_solvers", {})
    monkeypatch.setattr(pymatting_solvers, "_PATIENCE", 0.01)
    monkeypatch.setattr(
        pymatting_solvers,
        "_load",
        lambda _: time.sleep(0.2) or (lambda image, alpha: (image, image)),
    )
    image, alpha, _ = scene(9, 9)
    estimate_foreground(image, alpha)
    assert "once" in capsys.readouterr().err
    estimate_foreground(image, alpha)
    assert capsys.readouterr().err == ""


def test_the_error_without_pymatting_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(pymatting_solvers, "_solvers", {})
    monkeypatch.setattr(pymatting_solvers.importlib.util, "find_spec", lambda _: None)
    image, alpha, _ = scene(9, 9)
    with pytest.raises(PortraitmattingError, match="pip install pymatting"):
        estimate_foreground(image, alpha)


def test_threads_may_estimate_at_once():
    """With numba's workqueue layer, two threads in numba at once would abort the process."""
    in_a_new_process(
        "import threading, numpy as np, torch\n"
        "from portraitmatting.foreground import estimate_foreground\n"
        "image = np.random.default_rng(0).random((200, 200, 3))\n"
        "alpha = image[..., 0]\n"
        "def work():\n"
        "    for _ in range(4):\n"
        "        assert np.isfinite(estimate_foreground(image, alpha)).all()\n"
        "        torch.rand(300, 300) @ torch.rand(300, 300)\n"
        "threads = [threading.Thread(target=work) for _ in range(4)]\n"
        "[thread.start() for thread in threads]\n"
        "[thread.join() for thread in threads]",
        NUMBA_THREADING_LAYER="workqueue",
    )


def test_threads_load_pymatting_once(monkeypatch):
    loads = []
    monkeypatch.setattr(pymatting_solvers, "_solvers", {})
    monkeypatch.setattr(
        pymatting_solvers,
        "_load",
        lambda method: loads.append(method) or (lambda image, _: (image, image)),
    )
    image, alpha, _ = scene(9, 9)
    threads = [threading.Thread(target=estimate_foreground, args=(image, alpha)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert loads == ["ml"]


@pytest.mark.parametrize(
    ("variable", "value"), [("NUMBA_DISABLE_JIT", "1"), ("NUMBA_THREADING_LAYER", "tbb")]
)
def test_a_setting_that_stops_numba_is_named_in_an_error_of_one_line(variable, value):
    if value == "tbb" and importlib.util.find_spec("tbb"):
        pytest.skip("TBB is here")
    done = in_a_new_process(
        "import numpy as np\n"
        "from portraitmatting.foreground import estimate_foreground\n"
        "image, alpha = np.full((9, 9, 3), 0.5), np.full((9, 9), 0.5)\n"
        "estimate_foreground(image, alpha, 'fast')\n"
        "try:\n"
        "    estimate_foreground(image, alpha, 'ml')\n"
        "except ValueError as error:\n"
        "    print(error)",
        **{variable: value},
    )
    assert done.stdout.count("\n") == 1
    assert variable in done.stdout and "unset it" in done.stdout and "'fast'" in done.stdout


def test_numba_without_a_folder_gets_a_private_one(monkeypatch, tmp_path):
    import numba

    folders = []

    def load(method):
        folders.append(numba.config.CACHE_DIR)
        if not folders[-1].startswith(str(tmp_path)):
            raise RuntimeError("cannot cache function: no locator available for file")
        return lambda image, alpha: (image, image)

    monkeypatch.setattr(pymatting_solvers, "_solvers", {})
    monkeypatch.setattr(pymatting_solvers, "_load", load)
    monkeypatch.setattr(pymatting_solvers.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    image, alpha, _ = scene(9, 9)
    estimate_foreground(image, alpha)
    (made,) = tmp_path.iterdir()
    assert folders == ["", str(made)]
    if os.name == "posix":
        assert made.stat().st_mode & 0o077 == 0
        made.chmod(0o777)  # now others could write code into it
        assert pymatting_solvers._private_folder() != str(made)
