"""The folder job: what it reads and writes, and that nothing is lost, doubled or half-done."""

import errno
import io
import json
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from portraitmatting import (
    ModelConfig,
    PortraitMatting,
    PortraitmattingError,
    Predictor,
    read_image,
    write_image,
)
from portraitmatting.atomic import check_replaceable
from portraitmatting.folder import job as job_module
from portraitmatting.folder import pipeline as pipeline_module
from portraitmatting.folder import plan as plan_module
from portraitmatting.folder.job import Summary, matte_folder
from portraitmatting.folder.journal import NAME, Journal
from portraitmatting.folder.pipeline import Budget, available_memory, pixels_in_flight
from portraitmatting.folder.plan import KINDS, plan_folder
from portraitmatting.folder.results import ResultOptions, folds_names
from portraitmatting.foreground import METHODS

PLAIN = ResultOptions(foreground="none")
"""Nothing to compile or estimate."""


@pytest.fixture(scope="module")
def model() -> PortraitMatting:
    torch.manual_seed(0)
    return PortraitMatting(ModelConfig.tiny()).eval()


@pytest.fixture
def predictor(model) -> Predictor:
    return Predictor(model, short_side=32)


@pytest.fixture
def photos(tmp_path) -> Path:
    """An empty folder."""
    (tmp_path / "photos").mkdir()
    return tmp_path / "photos"


@pytest.fixture
def output(tmp_path) -> Path:
    return tmp_path / "mattes"


def pixels(shape: tuple[int, int] = (20, 24), dtype: type = np.uint8, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, np.iinfo(dtype).max, (*shape, 3), dtype, endpoint=True)


def fill(folder: Path, *names: str) -> None:
    """Images that differ from each other."""
    for seed, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_image(folder / name, pixels(seed=seed))


def files(folder: Path) -> set[str]:
    """All there is below a folder, save the journal; temporary files too."""
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != NAME)
    return {path.relative_to(folder).as_posix() for path in paths}


@pytest.fixture
def run(photos, output, predictor) -> Callable[..., Summary]:
    """The job from `photos` to `output`, alpha only unless said otherwise."""

    def go(
        *kinds: str, predictor: Predictor = predictor, style: ResultOptions = PLAIN, **options
    ) -> Summary:
        planned = {key: options.pop(key) for key in ("image_format", "bits") if key in options}
        plan = plan_folder(photos, output, kinds or ("alpha",), **planned)
        return matte_folder(plan, predictor, style, **options)

    return go


# Plans


def test_the_tree_is_mirrored(photos, output, run):
    fill(photos, "a.jpg", "b.PNG", "sub/a.jpg", "sub/deeper/ü.v1.webp")
    assert run("alpha", "rgba").done == 4
    names = "a.png", "b.png", "sub/a.png", "sub/deeper/ü.v1.png"
    assert files(output) == {f"{kind}/{name}" for kind in ("alpha", "rgba") for name in names}


def test_a_single_file_needs_no_suffix_that_is_known(photos, output, predictor):
    fill(photos, "a.png", "b.png")
    (photos / "b.png").rename(photos / "b.dat")
    for name in ("a.png", "b.dat"):
        assert matte_folder(plan_folder(photos / name, output), predictor, PLAIN).done == 1
    assert files(output) == {"alpha/a.png", "alpha/b.png", "rgba/a.png", "rgba/b.png"}


def test_an_output_inside_the_input_is_no_input(photos, predictor):
    fill(photos, "a.jpg")
    for expected in (Summary(done=1), Summary(skipped=1)):
        plan = plan_folder(photos, photos / "mattes", ["rgba"])
        assert matte_folder(plan, predictor, PLAIN) == expected
    assert files(photos) == {"a.jpg", "mattes/rgba/a.png"}


def test_an_input_inside_the_output_is_fine(photos, predictor):
    fill(photos, "a.png")
    assert matte_folder(plan_folder(photos, photos.parent), predictor, PLAIN).done == 1


def refusal(*arguments, **options) -> str:
    with pytest.raises(PortraitmattingError) as caught:
        plan_folder(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_sources_of_one_name_are_both_done(photos, output, run):
    fill(photos, "sub/a.jpg", "sub/a.png", "a.png")
    assert run().done == 3
    assert files(output) == {"alpha/a.png", "alpha/sub/a.jpg.png", "alpha/sub/a.png.png"}
    plan = plan_folder(photos, output)
    assert plan.remarks() == [
        "2 images share a name with another: their results keep the suffix "
        "(sub/a.jpg becomes sub/a.jpg.png)"
    ]
    fill(photos, "sub/a.jpg.jpg")
    assert run().done == 1
    assert "alpha/sub/a.jpg.jpg.png" in files(output)


@pytest.mark.parametrize(("one", "other"), [("Anna.jpg", "anna.jpg"), ("\xe9.png", "e\u0301.png")])
def test_the_outputs_file_system_says_which_names_are_one(
    photos, output, run, monkeypatch, one, other
):
    fill(photos, one, other)
    assert run().done == len(files(output)) == 2
    monkeypatch.setattr(plan_module, "folds_names", lambda folder: True)
    assert "would both be written as one file" in refusal(photos, output)
    (photos / other).rename(photos / f"{other}.png")
    fill(photos, f"{one}.png"[:-4] + "x.png")
    assert len(plan_folder(photos, output).sources) == 3


def test_a_file_system_is_asked(tmp_path, monkeypatch):
    assert not folds_names(tmp_path / "not" / "there")
    exists, lower = os.path.exists, lambda path: str(path).lower()
    monkeypatch.setattr(
        "os.path.exists",
        lambda path: lower(path) in map(lower, tmp_path.iterdir()) or exists(path),
    )
    assert folds_names(tmp_path / "not" / "there")
    assert not list(tmp_path.iterdir())


def test_places_that_cannot_be(photos, output, tmp_path):
    assert "no images found" in refusal(photos, output)
    assert "no such file or folder" in refusal(photos / "nowhere", output)
    fill(photos, "a.png")
    assert "is the input folder too" in refusal(photos, photos)
    assert "is the input folder too" in refusal(photos, tmp_path / "x" / ".." / "photos")
    output.write_bytes(b"")
    assert "is no folder" in refusal(photos, output)
    fill(photos, "a.jpg")  # of one name: whether the output folds names is asked, where none can be
    assert "is no folder" in refusal(photos, output)


def test_results_never_overwrite_sources(photos, output, run):
    fill(photos, "a.png")
    run("alpha")
    assert "could overwrite it" in refusal(output / "alpha", output)
    assert "could overwrite it" in refusal(output / "alpha" / "a.png", output)
    (photos / "link.png").symlink_to(output / "alpha" / "link.png")
    fill(output, "alpha/link.png")
    assert "could overwrite it" in refusal(photos, output)
    assert len(plan_folder(photos, output, ["rgba"]).sources) == 2


def test_formats_that_cannot_hold_what_is_asked(photos, output):
    fill(photos, "a.png")
    assert "unknown format 'bmp'" in refusal(photos, output, image_format="bmp")
    assert "unknown output 'mask'" in refusal(photos, output, ["alpha", "mask"])
    assert "JPEG has no transparency" in refusal(photos, output, image_format="JPG")
    assert "12 bits" in refusal(photos, output, bits=12)
    assert "webp holds 8 bits" in refusal(photos, output, image_format="webp", bits=16)
    assert plan_folder(photos, output, ["alpha", "alpha"], ".JPG").kinds == ("alpha",)


def test_links_are_followed_once_and_broken_ones_reported(photos, output, run):
    fill(photos, "sub/a.png")
    (photos / "sub" / "loop").symlink_to(photos, target_is_directory=True)
    (photos / "again.png").symlink_to(photos / "sub" / "a.png")
    (photos / "dangling.png").symlink_to(photos / "gone.png")
    summary = run()
    assert summary.done == 2
    assert list(summary.failed) == [Path("dangling.png")]
    assert files(output) == {"alpha/sub/a.png", "alpha/again.png"}


# Results


@pytest.mark.parametrize(
    ("image_format", "bits", "depths"),
    [
        ("png", None, (np.uint8, np.uint16)),
        ("tiff", None, (np.uint8, np.uint16)),
        ("webp", None, (np.uint8, np.uint8)),
        ("png", 8, (np.uint8, np.uint8)),
        ("png", 16, (np.uint16, np.uint16)),
        ("jpg", None, (np.uint8, np.uint8)),
    ],
)
def test_every_kind_in_one_run(photos, output, predictor, run, image_format, bits, depths):
    shapes = {"eight": (20, 24), "sixteen": (24, 20)}
    write_image(photos / "eight.png", pixels(shapes["eight"]))
    write_image(photos / "sixteen.png", pixels(shapes["sixteen"], np.uint16))
    kinds = [kind for kind in KINDS if image_format != "jpg" or kind != "rgba"]
    style = ResultOptions(foreground="none", background="#ff0000")
    assert run(*kinds, style=style, image_format=image_format, bits=bits).done == 2
    # JPEG changes values a little, and 8 bits round.
    slack = 40 if image_format == "jpg" else 1
    for name, depth in zip(shapes, depths, strict=True):
        matte = predictor.predict(read_image(photos / f"{name}.png").pixels)
        image = matte.image / np.iinfo(matte.image.dtype).max
        alpha = matte.alpha[..., None]
        expected = {
            "alpha": np.repeat(alpha, 3, axis=2),
            "foreground": image,
            "composite": image * alpha + (1 - alpha) * [1.0, 0.0, 0.0],
            "rgba": image * alpha + (1 - alpha),  # as read_image lays it over white
        }
        for kind in kinds:
            outputs = read_image(output / kind / f"{name}.{image_format}").pixels
            assert outputs.dtype == depth
            np.testing.assert_allclose(
                outputs / np.iinfo(depth).max, expected[kind], atol=slack / 255
            )
    if image_format != "jpg":
        with Image.open(output / "alpha" / f"eight.{image_format}") as alpha_file:
            # WebP knows no grey.
            assert alpha_file.mode in ("L", "I;16") or image_format == "webp"


def test_icc_profiles_are_kept(photos, output, run):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(pixels()).save(photos / "a.png", icc_profile=profile)
    Image.fromarray(pixels()).save(photos / "b.jpg", icc_profile=profile)
    run("rgba", "foreground")
    for kind in ("rgba", "foreground"):
        for name in ("a.png", "b.png"):
            assert read_image(output / kind / name).icc_profile == profile


def test_exif_orientation_is_applied(photos, output, run):
    image = Image.new("RGB", (24, 10), "black")
    image.paste("white", (0, 0, 8, 10))  # stored at the left, to be seen at the top
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(photos / "a.jpg", exif=exif, quality=100)
    run("foreground")
    upright = read_image(output / "foreground" / "a.png").pixels
    assert upright.shape == (24, 10, 3)
    assert upright[:7].min() > 200
    assert upright[9:].max() < 50


def unusual(folder: Path) -> None:
    """Images of every odd kind, which can be read."""
    rgb = Image.fromarray(pixels())
    rgb.convert("CMYK").save(folder / "cmyk.jpg")
    rgb.convert("P").save(folder / "palette.png")
    rgb.convert("P").save(folder / "transparent.gif", transparency=3)
    rgb.convert("L").save(folder / "grey.jpg")
    rgb.convert("1").save(folder / "bilevel.tif")
    rgb.convert("RGBA").save(folder / "alpha.webp")
    rgb.save(folder / "animated.gif", save_all=True, append_images=[Image.new("RGB", rgb.size)])
    rgb.save(folder / "large.BMP")
    rgb.save(folder / "renamed.jpg", format="PNG")
    Image.fromarray(np.zeros((20, 24), np.uint16)).save(folder / "grey16.png")


def broken(folder: Path) -> None:
    """Files that are no images, or no longer."""
    whole = io.BytesIO()
    Image.fromarray(pixels((64, 64))).save(whole, "JPEG")
    (folder / "truncated.jpg").write_bytes(whole.getvalue()[:1500])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.jpg").write_text("This is no image.\n")
    (folder / "page.jpeg").write_text("<!DOCTYPE html><html></html>")
    (folder / "noise.tiff").write_bytes(bytes(range(256)))


def test_unusual_files_are_read_and_broken_ones_reported(photos, output, run):
    unusual(photos)
    broken(photos)
    summary = run("alpha", "foreground")
    names = {"truncated.jpg", "empty.png", "text.jpg", "page.jpeg", "noise.tiff"}
    assert {str(name) for name in summary.failed} == names
    for name, reason in summary.failed.items():
        assert str(photos / name) in reason
        assert "\n" not in reason
    assert summary.done == len(files(photos)) - len(names) == 10
    assert len(files(output)) == 20
    for name in files(output):
        assert read_image(output / name).pixels.shape == (20, 24, 3)


def test_odd_names(photos, output, run):
    names = ["a b.png", "-dash.png", "--output.png", "naïve 写真.png", "new\nline.png", "'q\".png"]
    if sys.platform != "win32":
        names.append(os.fsdecode(b"latin\xe9.png"))
    fill(photos, *names)
    (photos / "bad\nname.png").write_bytes(b"")
    summary = run()
    assert summary.done == len(names)
    assert {Path(name).name for name in files(output)} == set(names)
    assert "bad\\nname.png" in str(summary)
    assert len(str(summary).splitlines()) <= 3  # one of them for images with nobody
    assert run().skipped == len(names)


def test_an_unreadable_file_is_reported(photos, run, monkeypatch):
    fill(photos, "a.png", "b.png")
    read_bytes = Path.read_bytes

    def guarded(path: Path) -> bytes:
        if path.name == "a.png":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", guarded)
    summary = run()
    assert summary.done == 1
    assert "Permission denied" in summary.failed[Path("a.png")]


def test_the_foreground_is_estimated_once_and_only_where_needed(photos, run, monkeypatch):
    calls = []

    def estimate(image, *_):
        calls.append(image.shape)
        return image

    for module in ("matte", "foreground"):
        monkeypatch.setattr(f"portraitmatting.{module}.estimate_foreground", estimate)
    fill(photos, "a.png")
    run("alpha", style=ResultOptions("ml"))
    assert calls == []
    run(*KINDS, style=ResultOptions("ml"))
    assert calls == [(4, 4, 3), (20, 24, 3)]  # the first one loads pymatting


@pytest.mark.parametrize("method", METHODS)
def test_every_method_works_and_leaves_pytorch_its_threads(photos, output, run, method):
    fill(photos, "a.png")
    before = torch.get_num_threads()
    torch.set_num_threads(before + 2)  # numba, which pymatting uses, would set its own number
    try:
        assert run("rgba", style=ResultOptions(method)).done == 1
        assert torch.get_num_threads() == before + 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        ValueError("did not converge"),
        RuntimeError(
            "[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate"
        ),
    ],
)
def test_an_image_that_defeats_the_foreground_is_reported(photos, output, run, monkeypatch, error):
    def estimate(image, *_):
        if image.shape == (30, 30, 3):
            raise error
        return image

    for module in ("matte", "foreground"):
        monkeypatch.setattr(f"portraitmatting.{module}.estimate_foreground", estimate)
    fill(photos, "a.png", "z.png")
    write_image(photos / "hard.png", pixels((30, 30)))
    summary = run("rgba")
    assert (summary.done, list(summary.failed)) == (2, [Path("hard.png")])
    expected = "converge" if isinstance(error, ValueError) else "not enough memory"
    assert expected in summary.failed[Path("hard.png")]


def test_styles_that_cannot_be():
    with pytest.raises(PortraitmattingError, match="foreground method 'best': use one of ml"):
        ResultOptions(foreground="best")
    with pytest.raises(PortraitmattingError, match="no-such"):
        ResultOptions(background="no-such.png")


# A result belongs to one image


@pytest.fixture
def cards(tmp_path) -> tuple[Path, Path]:
    """Two memory cards, each with an image of the same name, length and time."""
    cards = tmp_path / "card1" / "DCIM", tmp_path / "card2" / "DCIM"
    for card, color in zip(cards, ("red", "blue"), strict=True):
        card.mkdir(parents=True)
        Image.new("RGB", (24, 20), color).save(card / "DSC_1.bmp")
        os.utime(card / "DSC_1.bmp", (1e9, 1e9))
    return cards


def test_another_image_of_the_same_name_is_refused(cards, output, predictor):
    def go(card: Path, **options) -> Summary:
        plan = plan_folder(card, output, ["foreground"])
        return matte_folder(plan, predictor, PLAIN, **options)

    assert go(cards[0]) == Summary(done=1)
    with pytest.raises(
        PortraitmattingError, match=r"DSC_1.png: is the result of another image, .*card1"
    ):
        go(cards[1])
    os.utime(cards[1] / "DSC_1.bmp")
    with pytest.raises(PortraitmattingError, match="choose another output"):
        go(cards[1])
    assert read_image(output / "foreground" / "DSC_1.png").pixels[0, 0].tolist() == [255, 0, 0]
    assert go(cards[1], overwrite=True) == Summary(done=1)
    assert read_image(output / "foreground" / "DSC_1.png").pixels[0, 0].tolist() == [0, 0, 255]
    # What has moved, or is reached by another path, is the same image.
    cards[1].rename(moved := cards[1].parent / "moved")
    assert go(moved) == Summary(skipped=1)
    link = moved.parent / "link"
    link.symlink_to(moved)
    assert go(link) == Summary(skipped=1)


def test_names_that_differ_in_case_between_runs(photos, output, run, monkeypatch):
    fill(photos, "Anna.png")
    run()
    (photos / "Anna.png").rename(photos / "moved.png")
    write_image(photos / "anna.png", pixels((30, 30)))
    (photos / "moved.png").unlink()
    (output / "alpha" / "anna.png").symlink_to(output / "alpha" / "Anna.png")
    monkeypatch.setattr("portraitmatting.folder.journal.folds_names", lambda folder: True)
    with pytest.raises(PortraitmattingError, match="is the result of another image"):
        run()


def test_several_inputs_keep_the_tree_they_share(tmp_path, output, predictor, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fill(tmp_path, "trip/1/a.jpg", "trip/2/a.jpg", "trip/2/b.png", "c.jpg")
    matte_folder(plan_folder(["trip/1", "trip/2"], output, ["alpha"]), predictor, PLAIN)
    assert files(output) == {"alpha/1/a.png", "alpha/2/a.png", "alpha/2/b.png"}
    plan = plan_folder(["trip/2/*.png", "trip/1", "trip/1/a.jpg", "c.jpg"], output)
    assert list(map(str, plan.sources)) == ["c.jpg", "trip/1/a.jpg", "trip/2/b.png"]
    plan = plan_folder(["../" + tmp_path.name + "/c.jpg", "trip"], output)
    assert str(plan.sources[0]) == "c.jpg"
    assert (plan.root / plan.sources[0]).samefile("c.jpg")
    assert "no file matches this pattern" in refusal(["*.gif"], output)
    assert "no input" in refusal([], output)
    for empty in ("", " ", ["trip", ""]):
        assert "empty name" in refusal(empty, output)
    assert "empty name" in refusal("trip", "")


def test_folders_that_hold_results_are_no_inputs(photos, output, run, predictor):
    fill(photos, "a.png", "alpha/mine.png")
    matte_folder(plan_folder(photos, photos / "old", ["alpha"]), predictor, PLAIN)
    fill(photos / "old", "own.png", "rgba/result.png")
    assert list(map(str, plan_folder(photos, output).sources)) == [
        "a.png",
        "alpha/mine.png",
        "old/own.png",
    ]


def test_what_is_not_read_is_counted(photos, output, run):
    fill(photos, "a.png")
    (photos / "b.CR2").write_bytes(b"")
    (photos / "sub").mkdir()
    (photos / "sub" / "c.psd").write_bytes(b"8BPS")
    (photos / "notes.txt").write_text("no image")
    assert str(run()).splitlines()[:2] == ["1 done, 0 skipped, 0 failed", "2 not read: .cr2, .psd"]
    (photos / "a.png").unlink()
    assert "2 not read: .cr2, .psd, and no other images" in refusal(photos, output)


def test_videos_are_sent_to_their_command(photos, output):
    (photos / "clip.mp4").write_bytes(b"")
    assert "eval_webcam.py" in refusal(photos, output)
    assert "python eval_webcam.py" in refusal(photos / "clip.mp4", output)


def test_a_tree_deeper_than_calls_can_be(photos, output, run):
    deep = photos
    for _ in range(1100):
        deep = deep / "d"
        deep.mkdir()
    write_image(deep / "a.png", pixels())
    assert run().done == 1
    assert run().skipped == 1
    # Python 3.11's own ways to remove or list a tree cannot do this one.
    for folder in (photos, output):
        os.system(f"rm -rf '{folder}'")


# Batches, threads and memory


def test_results_do_not_depend_on_workers(photos, tmp_path, model):
    shapes = [(20, 24), (33, 70), (64, 48), (90, 90), (24, 20), (50, 40)]
    for index, shape in enumerate(shapes):
        write_image(photos / f"{index}.png", pixels(shape, np.uint16, seed=index))
    outputs = []
    for workers in (1, 2, 8):
        plan = plan_folder(photos, tmp_path / str(workers), KINDS)
        summary = matte_folder(plan, Predictor(model, 64), ResultOptions("fast"), workers=workers)
        assert summary == Summary(done=6)
        outputs.append({name: (plan.output / name).read_bytes() for name in files(plan.output)})
    assert len(outputs[0]) == 24
    assert outputs[0] == outputs[1] == outputs[2]


def test_progress_is_reported(photos, run):
    fill(photos, "a.png", "b.png")
    (photos / "c.png").write_bytes(b"")
    seen = []
    run(progress=lambda summary, total: seen.append((summary.done + len(summary.failed), total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_nobody_is_named(photos, run, monkeypatch):
    fill(photos, "a.png", "b.png")
    finish = Predictor.finish

    def empty(self, estimate):
        matte = finish(self, estimate)
        return replace(matte, alpha=np.zeros_like(matte.alpha))

    monkeypatch.setattr(Predictor, "finish", empty)
    assert "2 with nobody in the matte: a.png, b.png" in str(run())


def test_a_transparent_image_stays_transparent(photos, output, run):
    image = np.dstack([pixels(), np.zeros((20, 24), np.uint8)])
    image[:, 12:, 3] = 255
    Image.fromarray(image).save(photos / "a.png")
    run("alpha", "rgba")
    assert not read_image(output / "alpha" / "a.png").pixels[:, :12].any()
    with Image.open(output / "rgba" / "a.png") as result:
        assert not np.asarray(result)[:, :12, 3].any()


def test_pixels_in_flight_are_bounded_in_order():
    budget, order, most, used = Budget(10), [], 0, 0
    entered, go_on = threading.Barrier(2), threading.Event()
    lock = threading.Lock()

    def take(name: int, pixels: int) -> None:
        nonlocal most, used
        with budget.take(pixels):
            with lock:
                used += pixels
                most = max(most, used if pixels <= 10 else 10)
                order.append(name)
            if name == 0:
                entered.wait()
                go_on.wait()
            with lock:
                used -= pixels

    threads = [threading.Thread(target=take, args=(0, 6))]
    threads[0].start()
    entered.wait()
    for name, pixels in enumerate((25, 4, 4), 1):  # larger than all: alone, but not for ever
        threads.append(threading.Thread(target=take, args=(name, pixels)))
        threads[-1].start()
        while len(budget._waiting) < name:
            time.sleep(0.001)
    assert order == [0]  # nobody overtakes
    go_on.set()
    for thread in threads:
        thread.join()
    assert order[:2] == [0, 1]
    assert sorted(order) == [0, 1, 2, 3]
    assert most <= 10


def test_an_image_that_needs_more_memory_than_there_is(photos, run, monkeypatch):
    fill(photos, "a.png", "b.png")
    monkeypatch.setattr(pipeline_module, "available_memory", lambda: 2 * 10**9)
    monkeypatch.setattr(
        job_module, "count_pixels", lambda path: 10**8 if path.name == "a.png" else 480
    )
    summary = run()
    assert summary.done == 1
    assert "100 megapixels need about 4.0 GB" in summary.failed[Path("a.png")]


def test_what_a_machine_or_container_has_left():
    free = available_memory()
    assert free is None or 10**6 < free < 10**14
    assert 0 < pixels_in_flight(2) <= 2 * 24_000_000
    assert pixels_in_flight(2, gpu_memory=24_000) == 1000


def test_batches_are_batches(photos, output, predictor, run, monkeypatch):
    for index in range(9):
        write_image(photos / f"wide{index}.png", pixels((20, 40)))
        if index < 3:
            write_image(photos / f"high{index}.png", pixels((40, 20)))
    expected = predictor.predict(pixels((20, 40))).alpha
    batches = []
    forward = predictor.model.forward

    def counting(batch):
        batches.append(tuple(batch.shape))
        return forward(batch)

    monkeypatch.setattr(predictor.model, "forward", counting)
    assert run(batch_size=4).done == 12
    wide, high = (3, 32, 64), (3, 64, 32)
    assert sorted(batches) == sorted([(4, *wide), (4, *wide), (1, *wide), (3, *high)])
    outputs = read_image(output / "alpha" / "wide8.png").pixels[..., 0] / 255
    np.testing.assert_allclose(outputs, expected, atol=0.6 / 255)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_while_results_are_written_no_estimate_is_kept(photos, run, monkeypatch, batch_size):
    """On a GPU that is the image and its matte, and pinned memory for both."""
    for index in range(4):
        write_image(photos / f"{index}.png", pixels((30, 40)))
    estimate, write, tensors, kept = Predictor.estimate, job_module._Job._write, {}, []

    def watched(self, batch):
        estimates = estimate(self, batch)
        for prepared, made in zip(batch, estimates, strict=True):
            tensors[id(prepared.image.pixels)] = [
                weakref.ref(t) for t in (prepared.tensor, made.alpha)
            ]
        return estimates

    def written(self, task, matte, image):
        deadline = time.monotonic() + 5
        refs = tensors[id(matte.image)]
        while any(ref() is not None for ref in refs) and time.monotonic() < deadline:
            time.sleep(0.01)  # the network's thread may be about to let go
        kept.append(sum(ref() is not None for ref in refs))
        write(self, task, matte, image)

    monkeypatch.setattr(Predictor, "estimate", watched)
    monkeypatch.setattr(job_module._Job, "_write", written)
    run(batch_size=batch_size)
    assert len(kept) >= 4 and not any(kept)


def test_a_full_disk_ends_the_job_while_images_are_still_read():
    """In a process of its own: images that nobody would run any more waited for ever."""
    code = """if True:
        import threading, time
        import numpy as np
        from portraitmatting import ModelConfig, PortraitMatting, Predictor
        from portraitmatting.folder.pipeline import Pipeline, Stop
        from portraitmatting.images.decode import DecodedImage
        full = threading.Event()
        def read(index):
            if index >= 2:
                full.wait()
                time.sleep(0.3)
            return DecodedImage(np.zeros((64, 64, 3), np.uint8))
        def write(*_):
            full.set()
            raise OSError(28, "No space left on device")
        predictor = Predictor(PortraitMatting(ModelConfig.tiny()), 64)
        try: Pipeline(predictor, lambda _: 100, read, write, print).run(range(9), 2, 1)
        except Stop as stop: print(stop)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "No space left on device\n", done.stderr


def test_images_do_not_wait_for_company_for_ever(photos, run, monkeypatch):
    """As many sizes as images: what waits must not grow with the folder."""
    most, batch_size = 0, 2
    for index in range(12):
        write_image(photos / f"{index:02}.png", pixels((4, 4 + 4 * index)))
    monkeypatch.setattr(
        Predictor, "network_size", lambda self, image: (32, 32 * (image.shape[1] // 4))
    )
    estimate, read = Predictor.estimate, []
    monkeypatch.setattr(
        job_module, "read_image", lambda path: read.append(path) or read_image(path)
    )
    done = 0

    def watched(self, batch):
        nonlocal most, done
        most, done = max(most, len(read) - done), done + len(batch)
        return estimate(self, batch)

    monkeypatch.setattr(Predictor, "estimate", watched)
    assert run(batch_size=batch_size, workers=1).done == 12
    assert most <= 2 * batch_size + 1 + (1 + batch_size) + 1


def test_reading_never_runs_far_ahead_of_writing(photos, run, monkeypatch):
    fill(photos, *(f"{index}.png" for index in range(30)))
    limit, too_many = 3, threading.Event()
    read, written, most = 0, 0, 0

    def counted_read(path):
        nonlocal read, most
        read += 1
        most = max(most, read - written)
        if most > limit:
            too_many.set()
        return read_image(path)

    def slow_write(path, *rest):
        nonlocal written
        too_many.wait(0.05)  # time for readers to run away, if they can
        write_image(path, *rest)
        written += 1

    monkeypatch.setattr(job_module, "read_image", counted_read)
    monkeypatch.setattr(job_module, "write_image", slow_write)
    assert run(workers=3).done == 30
    assert 2 <= most <= limit


def test_a_batch_size_of_nothing_is_refused(photos, run):
    fill(photos, "a.png")
    for wrong in ({"batch_size": 0}, {"workers": 0}):
        with pytest.raises(PortraitmattingError, match="expected 1 or more"):
            run(**wrong)


def test_an_image_too_large_for_memory_is_reported_and_the_others_go_on(photos, run, monkeypatch):
    fill(photos, "a.png", "b.png")
    write_image(photos / "long.png", pixels((10, 40)))
    forward = PortraitMatting.forward

    def short_of_memory(self, batch):
        if len(batch) * batch.shape[-1] > 70:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, batch)

    monkeypatch.setattr(PortraitMatting, "forward", short_of_memory)
    summary = run(batch_size=2)
    assert summary.done == 2
    assert "long.png: out of memory on cpu" in summary.failed[Path("long.png")]


@pytest.mark.parametrize("batch_size", [1, 2])
def test_a_folder_job_has_a_thread_for_each_image_and_one_for_batches(
    photos, output, predictor, monkeypatch, batch_size
):
    threads: dict[str, set[str]] = {}
    for step in ("prepare", "estimate", "finish"):
        original = getattr(Predictor, step)

        def watched(self, item, step=step, original=original):
            threads.setdefault(step, set()).add(threading.current_thread().name)
            return original(self, item)

        monkeypatch.setattr(Predictor, step, watched)
    fill(photos, "a.png", "b.png", "c.png")
    plan = plan_folder(photos, output, ["alpha"])
    assert matte_folder(plan, predictor, PLAIN, batch_size, workers=2).done == 3
    assert threads["prepare"] == threads["finish"]
    if batch_size == 1:
        assert threads["estimate"] == threads["prepare"]
    else:
        assert len(threads["estimate"]) == 1
        assert not threads["estimate"] & threads["prepare"]


# Going on where an earlier run ended


def stamps(folder: Path) -> dict[str, int]:
    return {name: (folder / name).stat().st_ino for name in files(folder)}


def test_a_second_run_has_nothing_to_do(photos, output, run, monkeypatch):
    fill(photos, "a.png", "b/c.jpg")
    assert run("alpha", "composite") == Summary(done=2)
    before = stamps(output)
    monkeypatch.setattr(job_module, "read_image", None)
    assert run("alpha", "composite") == Summary(skipped=2)
    assert stamps(output) == before


def redone(run: Callable[..., Summary], output: Path, *kinds: str, **changes) -> set[str]:
    """The results that a run makes anew."""
    before = stamps(output)
    run(*kinds, **changes)
    return {name for name, stamp in stamps(output).items() if before.get(name) != stamp}


def test_a_changed_source_is_done_again(photos, output, run):
    fill(photos, "a.png", "b.png")
    run()
    stat = (photos / "a.png").stat()
    write_image(photos / "a.png", pixels((30, 30)))
    os.utime(photos / "a.png", ns=(stat.st_atime_ns, stat.st_mtime_ns))  # another length
    assert redone(run, output, "alpha") == {"alpha/a.png"}
    assert read_image(output / "alpha" / "a.png").pixels.shape == (30, 30, 3)
    os.utime(photos / "b.png", ns=(0, 10**18))  # another time
    assert redone(run, output, "alpha") == {"alpha/b.png"}
    assert redone(run, output, "alpha") == set()


def test_a_missing_result_is_made_again(photos, output, run):
    fill(photos, "a.png", "b.png")
    run("alpha", "rgba")
    (output / "rgba" / "a.png").unlink()
    assert redone(run, output, "alpha", "rgba") == {"rgba/a.png"}


def test_a_result_that_is_not_whole_is_made_again(photos, output, run):
    fill(photos, "a.png", "b.png", "c.png")
    run()
    (output / "alpha" / "a.png").write_bytes(b"")
    whole = (output / "alpha" / "b.png").read_bytes()
    (output / "alpha" / "b.png").write_bytes(whole[:-1])
    assert redone(run, output, "alpha") <= {"alpha/a.png", "alpha/b.png"}
    assert (output / "alpha" / "b.png").read_bytes() == whole
    assert read_image(output / "alpha" / "a.png").pixels.shape == (20, 24, 3)


def test_a_kind_that_was_not_asked_for_before_is_added(photos, output, run):
    fill(photos, "a.png")
    run("alpha")
    assert redone(run, output, *KINDS) == {f"{kind}/a.png" for kind in KINDS if kind != "alpha"}


def test_other_settings_redo_what_they_change(photos, output, run, model, tmp_path):
    fill(photos, "a.png")
    everything = {f"{kind}/a.png" for kind in KINDS}
    colours = everything - {"alpha/a.png"}
    run(*KINDS)
    other = PortraitMatting(ModelConfig.tiny())
    for predictor in (Predictor(model, 64), Predictor(model, 32, "bf16"), Predictor(other, 32)):
        assert redone(run, output, *KINDS, predictor=predictor) == everything
    assert redone(run, output, *KINDS) == everything  # back again
    assert redone(run, output, *KINDS, bits=16) == everything
    assert redone(run, output, *KINDS, bits=16, style=ResultOptions("fast")) == colours
    style = ResultOptions("fast", "blue")
    assert redone(run, output, *KINDS, bits=16, style=style) == {"composite/a.png"}
    backdrop = tmp_path / "backdrop.png"
    write_image(backdrop, pixels())
    style = ResultOptions("fast", str(backdrop))
    assert redone(run, output, *KINDS, bits=16, style=style) == {"composite/a.png"}
    assert redone(run, output, *KINDS, bits=16, style=style) == set()
    os.utime(backdrop, ns=(0, 10**18))
    assert redone(run, output, *KINDS, bits=16, style=style) == {"composite/a.png"}


def test_overwrite_does_everything_again(photos, output, run):
    fill(photos, "a.png")
    run()
    assert redone(run, output, "alpha", overwrite=True) == {"alpha/a.png"}


def test_failures_are_tried_again(photos, run):
    fill(photos, "a.png")
    (photos / "b.png").write_bytes(b"")
    assert len(run().failed) == 1
    write_image(photos / "b.png", pixels())
    assert run() == Summary(done=1, skipped=1)


@pytest.mark.parametrize(
    "rest", [b'["alpha/b.pn', b"\xff\xfe\n", b"3\n", b"{}\n\n", b'["a", 1, 2]\n']
)
def test_a_torn_journal_costs_no_more_than_what_is_torn(photos, output, run, rest):
    fill(photos, "a.png", "b.png")
    run()
    journal = output / NAME
    first, *_ = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(first + rest)
    assert run() == Summary(done=1, skipped=1)
    assert run() == Summary(skipped=2)  # what was added is not glued to the rest


def test_a_journal_cut_at_any_byte_keeps_its_whole_lines(photos, output, run):
    fill(photos, "a.png", "b\xe9.png", "c\n.png")
    run()
    journal = output / NAME
    whole = journal.read_bytes()
    ends = [index for index, byte in enumerate(whole) if byte == ord("\n")]
    names = [json.loads(line)[0] for line in whole.splitlines()]
    for cut in range(len(whole) + 1):
        journal.write_bytes(whole[:cut])
        with Journal(output) as opened:
            assert list(opened._entries) == names[: sum(end <= cut for end in ends)]
            opened.add(output / "alpha" / "new.png", "state", photos, "")
        with Journal(output) as opened:
            assert list(opened._entries)[-1] == "alpha/new.png"


def test_journals_of_two_runs_mix_by_whole_lines(output):
    output.mkdir()
    names = [output / f"{'x' * 200}{index}.png" for index in range(200)]

    def note(part: list[Path]) -> None:
        with Journal(output) as journal:
            for name in part:
                journal.add(name, "state", name, "")

    threads = [threading.Thread(target=note, args=(names[start::4],)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # One that opens while another's line is only half there ends it: the line stays whole, and an
    # empty one follows.
    lines = [line for line in (output / NAME).read_text().splitlines() if line]
    assert sorted(json.loads(line)[0] for line in lines) == sorted(name.name for name in names)


def test_two_runs_at_once_do_no_harm(photos, output, run, model):
    fill(photos, *(f"{index}.png" for index in range(6)))
    summaries = []
    threads = [
        threading.Thread(
            target=lambda: summaries.append(run("rgba", predictor=Predictor(model, 32)))
        )
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [summary.done + summary.skipped for summary in summaries] == [6, 6]
    assert files(output) == {f"rgba/{index}.png" for index in range(6)}
    assert run("rgba") == Summary(skipped=6)


def test_what_a_killed_run_left_is_neither_input_nor_result(photos, run, predictor):
    fill(photos, "a.png", ".0123456789abcdef.tmp.png", "mattes/alpha/.0123456789abcdef.tmp.png")
    plan = plan_folder(photos, photos / "mattes", ["alpha"])
    assert plan.sources == [Path("a.png")]
    assert matte_folder(plan, predictor) == Summary(done=1)


# Ends before the end


def test_an_output_that_cannot_be_made_is_one_error(photos, tmp_path, predictor):
    fill(photos, "a.png")
    (tmp_path / "file").write_bytes(b"")
    plan = plan_folder(photos, tmp_path / "file" / "mattes")
    with pytest.raises(PortraitmattingError, match=r"file/mattes: cannot write there \(Not a dir"):
        matte_folder(plan, predictor, PLAIN)


def test_a_result_without_a_folder_is_reported(photos, output, run):
    fill(photos, "a.png", "sub/b.png")
    (output / "alpha").mkdir(parents=True)
    (output / "alpha" / "sub").write_bytes(b"")
    summary = run()
    assert summary.done == 1
    assert "File exists" in summary.failed[Path("sub/b.png")]
    assert str(photos / "sub" / "b.png") in summary.failed[Path("sub/b.png")]


def no_space_after(monkeypatch, count: int, number: int) -> None:
    """The disk takes `count` more images, and half of another."""
    write_bytes, left = Path.write_bytes, [count]

    def limited(path: Path, data: bytes) -> int:
        left[0] -= 1
        if left[0] < 0:
            write_bytes(path, data[: len(data) // 2])
            raise OSError(number, os.strerror(number), str(path))
        return write_bytes(path, data)

    monkeypatch.setattr(Path, "write_bytes", limited)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
def test_a_full_disk_ends_the_run_and_keeps_what_is_done(photos, output, run, monkeypatch, number):
    fill(photos, *(f"{index}.png" for index in range(8)))
    with monkeypatch.context() as patch:
        no_space_after(patch, 5, number)
        summary = run("alpha", "rgba", workers=1)
    assert (summary.done, summary.failed) == (2, {})
    assert os.strerror(number) in summary.stopped
    assert "\n" not in summary.stopped
    made = files(output)
    assert len(made) == 5  # whole ones, and no temporary file
    for name in made:
        read_image(output / name)
    before = stamps(output)
    assert run("alpha", "rgba") == Summary(done=6, skipped=2)
    assert before.items() <= stamps(output).items()


def test_a_disk_too_full_for_the_journal_ends_the_run(photos, output, run, monkeypatch):
    fill(photos, "a.png", "b.png")
    append = Journal._append

    def short(self, line):
        self._file.write(line[:5])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Journal, "_append", short)
    assert "No space" in run(workers=1).stopped
    monkeypatch.setattr(Journal, "_append", append)
    assert run() == Summary(done=2)
    assert run() == Summary(skipped=2)


def test_the_journal_notices_when_only_part_of_a_line_was_written(output):
    with Journal(output) as journal:
        real, journal._file = journal._file, io.BytesIO()
        journal._file.write = lambda line: len(line) - 1
        with pytest.raises(OSError, match="No space"):
            journal.add(output / "a.png", "state", output, "")
        journal._file = real


@pytest.mark.parametrize("call", [1, 3])
@pytest.mark.parametrize(
    "moment", ["read_image", "prepare", "estimate", "finish", "write_image", "Journal.add"]
)
def test_ctrl_c_at_any_moment_keeps_what_is_done(photos, output, run, monkeypatch, moment, call):
    fill(photos, *(f"{index}.png" for index in range(5)))
    owner, name = {
        "read_image": (job_module, moment),
        "write_image": (job_module, moment),
        "Journal.add": (Journal, "add"),
    }.get(moment, (Predictor, moment))
    original, calls = getattr(owner, name), []

    def interrupted(*arguments, **options):
        calls.append(1)
        if len(calls) == call:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, interrupted)
        summary = run(workers=1)
    assert summary.interrupted
    assert summary.done == call - 1
    made = files(output)
    assert len(made) == summary.done + (moment == "Journal.add")
    for result in made:
        read_image(output / result)
    assert run() == Summary(done=5 - summary.done, skipped=summary.done)
    assert len(files(output)) == 5


def test_outputs_are_proved_before_the_work(photos, output, predictor, tmp_path):
    fill(photos, "a.png")
    output.mkdir()
    (output / "alpha").write_bytes(b"")
    plan = plan_folder(photos, output, ["rgba", "alpha"])
    with pytest.raises(PortraitmattingError, match=r"alpha: cannot write there"):
        matte_folder(plan, predictor, PLAIN)
    assert files(output) == {"alpha"}
    for path, reason in ((output, "is a folder"), (Path(os.devnull), "no ordinary file")):
        with pytest.raises(OSError, match=reason):
            check_replaceable(path)
    check_replaceable(output / "alpha")
    check_replaceable(output / "new.png")
    assert files(output) == {"alpha"}
    with pytest.raises(FileNotFoundError):
        check_replaceable(tmp_path / "nowhere" / "a.png")


def test_a_mounted_file_cannot_be_replaced(tmp_path, monkeypatch):
    (tmp_path / "a b.png").write_bytes(b"")
    mounts = tmp_path / "mountinfo"
    name = str(tmp_path / "a b.png").replace(" ", r"\040")
    mounts.write_text(f"36 35 98:0 /file {name} rw - ext4 /dev/sda rw\n")
    monkeypatch.setattr("portraitmatting.atomic._MOUNTS", mounts)
    with pytest.raises(OSError, match="is a mount point"):
        check_replaceable(tmp_path / "a b.png")
    check_replaceable(tmp_path / "b.png")


# What the user sees


def test_a_summary_for_people():
    summary = Summary(3, 2, {Path("a.png"): "p/a.png: empty", Path("b"): "p/b: gone"})
    assert str(summary).splitlines() == [
        "3 done, 2 skipped, 2 failed",
        "failed: p/a.png: empty",
        "failed: p/b: gone",
    ]
    summary = Summary(1, stopped="interrupted", interrupted=True)
    assert str(summary).splitlines()[1] == (
        "stopped: interrupted; what is done is kept, run again to go on"
    )


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_bar_counts_what_is_to_do(photos, run, monkeypatch):
    fill(photos, "a.png", "b.png")
    run()
    fill(photos, "c.png", "d.png", "e.png")
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    run(progress=True)
    last = terminal.getvalue().split("\r")[-1]
    assert "3/3" in last  # and not 5/5: what is skipped would make its rate a lie
    assert "images/s" in last
    assert "<" in last  # the time left


def test_no_bar_but_on_a_terminal_and_if_asked_for(photos, run, monkeypatch):
    fill(photos, "a.png")
    monkeypatch.setattr("sys.stderr", log := io.StringIO())
    run(progress=True)
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    run(overwrite=True)
    assert log.getvalue() == terminal.getvalue() == ""


def test_what_compiling_says_comes_before_the_bar(photos, run, monkeypatch):
    monkeypatch.setattr("sys.stderr", terminal := Terminal())

    def estimate(image, *_):
        if image.shape == (4, 4, 3):
            print("Preparing foreground estimation", file=terminal)
        return image

    for module in ("matte", "foreground"):
        monkeypatch.setattr(f"portraitmatting.{module}.estimate_foreground", estimate)
    fill(photos, "a.png")
    run("rgba", progress=True)
    assert terminal.getvalue().startswith("Preparing")
    shown = len(terminal.getvalue())
    run("rgba", progress=True)  # with nothing to do, there is nothing to prepare
    assert "Preparing" not in terminal.getvalue()[shown:]


def test_kinds_of_images_are_named_if_there_are_several(photos):
    write_image(photos / "a.png", pixels())
    assert plan_folder(photos).describe_sources() == "1 image"
    for name in ("b.JPG", "c.jpg"):
        write_image(photos / name, pixels())
    assert plan_folder(photos).describe_sources() == "3 images (2 .jpg, 1 .png)"


@pytest.mark.parametrize("batch_size", [1, 2])
def test_an_output_that_is_not_finite_fails_its_image_by_name(
    photos, run, predictor, monkeypatch, batch_size
):
    fill(photos, "a.png", "spoilt.png", "z.png")
    spoilt = pixels(seed=1)
    estimate = Predictor.estimate

    def spoiling(self, batch):
        return [
            answer._replace(alpha=torch.full_like(answer.alpha, torch.nan))
            if np.array_equal(answer.image.pixels, spoilt)
            else answer
            for answer in estimate(self, batch)
        ]

    monkeypatch.setattr(Predictor, "estimate", spoiling)
    summary = run(batch_size=batch_size)
    assert (summary.done, list(summary.failed)) == (2, [Path("spoilt.png")])
    assert "spoilt.png: the network's output is not finite" in summary.failed[Path("spoilt.png")]
    monkeypatch.undo()
    again = run()
    assert (again.done, again.skipped) == (1, 2)
