"""The evaluation: benchmark folders, scoring, reports, the command line."""

import csv
import itertools
import json
import math
import os
import sys

import numpy as np
import pytest
import tifffile
from PIL import Image

from portraitmatting import metrics
from portraitmatting.checkpoint.format import CheckpointInfo, save_checkpoint
from portraitmatting.cli import run
from portraitmatting.commands.evaluate import main
from portraitmatting.errors import ImageError, PortraitmattingError
from portraitmatting.evaluate.benchmark import find_benchmark
from portraitmatting.evaluate.contact_sheet import draw_contact_sheet, error_image
from portraitmatting.evaluate.evaluation import (
    MattingMethod,
    evaluate,
    from_checkpoint,
    from_folder,
    from_predictor,
)
from portraitmatting.evaluate.report import bootstrap_interval, format_report, paired_p_value
from portraitmatting.images.files import read_alpha
from portraitmatting.trimap import draw_trimap, unknown_region

SIZE = (24, 32)


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def disc(centre, size=SIZE):
    """A soft disc as uint8."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    distance = np.hypot(rows - size[0] / 2, columns - centre)
    return np.rint(np.clip(8.5 - distance, 0, 1) * 255).astype(np.uint8)


def fill(root, names, image="image", alpha="alpha", trimap=None):
    for number, name in enumerate(names):
        save(root / image / f"{name}.png", np.full((*SIZE, 3), 90, np.uint8))
        save(root / alpha / f"{name}.png", disc(10 + 3 * number))
        if trimap:
            # Wider than any that would be drawn, so that it can be told apart.
            save(root / trimap / f"{name}.png", np.full(SIZE, 128, np.uint8))


@pytest.fixture
def plain(tmp_path):
    """A benchmark of three images."""
    fill(tmp_path / "bench", ["a", "b", "c"])
    return tmp_path / "bench"


def shifted(by):
    """A method that adds `by` grey levels to the truth."""

    def matte(sample, image):
        levels = np.asarray(Image.open(sample.ground_truth)).astype(int) + by
        return np.clip(levels, 0, 255).astype(np.float32) / np.float32(255)

    return MattingMethod(f"shifted {by}", matte, {"by": str(by)})


# ---------------------------------------------------------------- folders


@pytest.mark.parametrize(
    ("parts", "layout", "trimap"),
    [
        ([(".", "image", "alpha")], "plain", False),
        ([(".", "image", "matte")], "PPM-100", False),
        ([("val", "fg", "alpha")], "PPM-100", False),
        ([(".", "original", "mask")], "AIM-500", True),
        ([(".", "blurred_image", "mask")], "P3M-10k", True),
        (
            [
                ("validation/P3M-500-P", "blurred_image", "mask"),
                ("validation/P3M-500-NP", "original_image", "mask"),
            ],
            "P3M-10k",
            True,
        ),
    ],
)
def test_layouts_are_recognised_by_their_folders(tmp_path, parts, layout, trimap):
    for place, image, alpha in parts:
        fill(tmp_path / place, ["x2", "x10"], image, alpha, "trimap" if trimap else None)
    (tmp_path / "train" / "blurred_image").mkdir(parents=True)
    benchmark = find_benchmark(tmp_path)
    assert benchmark.layout.startswith(f"{layout}: ")
    assert len(benchmark.samples) == 2 * len(parts)
    for place, image, _ in parts:
        assert (tmp_path / place / image / "x2.png") in [s.image for s in benchmark.samples]
    assert all(sample.ground_truth.is_file() for sample in benchmark.samples)
    assert all((sample.trimap is not None) == trimap for sample in benchmark.samples)
    names = [sample.name for sample in benchmark.samples]
    assert len(set(names)) == len(names)


def test_samples_come_nested_and_in_natural_order(tmp_path):
    fill(tmp_path, ["clip/frame10", "clip/frame9", "b/1"])
    assert [s.name for s in find_benchmark(tmp_path).samples] == [
        "b/1",
        "clip/frame9",
        "clip/frame10",
    ]


def test_folder_mistakes_are_named(tmp_path):
    with pytest.raises(PortraitmattingError, match=r"nowhere: no such folder"):
        find_benchmark(tmp_path / "nowhere")
    with pytest.raises(
        PortraitmattingError, match="no benchmark found: expected image/ and alpha/"
    ):
        find_benchmark(tmp_path)
    (tmp_path / "image").mkdir()
    (tmp_path / "alpha").mkdir()
    with pytest.raises(PortraitmattingError, match="image: holds no images"):
        find_benchmark(tmp_path)
    fill(tmp_path, ["a", "b", "c"])
    (tmp_path / "alpha" / "b.png").unlink()
    with pytest.raises(PortraitmattingError, match=r"no alpha for .*b\.png: add .*b\.png"):
        find_benchmark(tmp_path)
    (tmp_path / "alpha" / "c.png").unlink()
    with pytest.raises(PortraitmattingError, match=r"b\.png \(nor for 1 more\)"):
        find_benchmark(tmp_path)
    save(tmp_path / "image" / "a.jpg", np.zeros((*SIZE, 3), np.uint8))
    with pytest.raises(PortraitmattingError, match="differ by suffix only"):
        find_benchmark(tmp_path)


# ---------------------------------------------------------------- mattes on disk


def test_mattes_of_any_depth_are_read_exactly(tmp_path):
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    exact = (levels / 255).astype(np.float32)
    save(tmp_path / "grey.png", levels)
    save(tmp_path / "rgb.png", np.repeat(levels[..., None], 3, axis=2))
    save(tmp_path / "deep.png", levels.astype(np.uint16) * 257)
    colours = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    save(tmp_path / "cutout.png", np.dstack([colours, levels]))
    opaque = np.full_like(levels, 255)
    save(tmp_path / "opaque.png", np.dstack([levels] * 3 + [opaque]))
    for name in ("grey", "rgb", "deep", "cutout", "opaque"):
        alpha = read_alpha(tmp_path / f"{name}.png")
        assert alpha.dtype == np.float32
        assert np.array_equal(alpha, exact), name
    Image.fromarray(levels > 99).save(tmp_path / "bit.png")
    assert np.array_equal(read_alpha(tmp_path / "bit.png"), levels > 99)


def test_what_is_no_matte_is_refused(tmp_path):
    save(tmp_path / "photo.png", np.random.default_rng(0).integers(0, 256, (4, 4, 3), np.uint8))
    with pytest.raises(ImageError, match=r"photo\.png: a colour image"):
        read_alpha(tmp_path / "photo.png")
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(ImageError, match=r"text\.png: "):
        read_alpha(tmp_path / "text.png")
    with pytest.raises(ImageError, match=r"gone\.png: "):
        read_alpha(tmp_path / "gone.png")


@pytest.mark.parametrize("kind", ["float32", "float16", "bits", "deep", "turned"])
def test_a_matte_means_the_same_in_every_kind_of_file(tmp_path, kind):
    levels = disc(10) // 255 * 255 if kind == "bits" else disc(10)
    path = tmp_path / "matte.tif"
    if kind.startswith("float"):
        tifffile.imwrite(path, (levels / 255).astype(kind))
    elif kind == "bits":
        tifffile.imwrite(path, levels > 0, photometric="minisblack")
    elif kind == "deep":
        tifffile.imwrite(path, levels.astype(np.uint16) * 257, compression="zlib")
    else:
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(np.rot90(levels)).save(tmp_path / "matte.png", exif=exif)
        path = tmp_path / "matte.png"
    assert np.allclose(read_alpha(path), levels / 255, atol=3e-4)


@pytest.mark.parametrize(
    ("dtype", "top"),
    [("uint8", 1), ("uint8", 2), ("uint8", 100), ("uint16", 255), ("uint16", 4095)],
)
def test_levels_of_another_scale_are_refused(tmp_path, dtype, top):
    path = tmp_path / "matte.tif"
    tifffile.imwrite(path, (disc(10) > 0).astype(dtype) * np.dtype(dtype).type(top))
    with pytest.raises(ImageError, match=f"ends at level {top} of .*multiply it by"):
        read_alpha(path)


def test_integers_of_32_bits_are_refused(tmp_path):
    tifffile.imwrite(tmp_path / "matte.tif", disc(10).astype(np.int32))
    with pytest.raises(ImageError, match="integers"):
        read_alpha(tmp_path / "matte.tif")


def test_a_faint_matte_is_one_all_the_same(tmp_path):
    levels = np.zeros((64, 64), np.uint8)
    levels[3, 3:20] = 1
    save(tmp_path / "faint.png", levels)
    assert read_alpha(tmp_path / "faint.png").max() == np.float32(1) / np.float32(255)


# ---------------------------------------------------------------- scoring


def test_rows_hold_what_the_metrics_say(plain):
    report = evaluate(plain, [shifted(40)], ["whole", "unknown"], band=0.1)
    assert [(row.image, row.region) for row in report.rows] == [
        (name, region) for name in "abc" for region in ("whole", "unknown")
    ]
    for row in report.rows:
        truth = read_alpha(plain / "alpha" / f"{row.image}.png")
        alpha = np.minimum(truth + np.float32(40 / 255), 1)
        unknown = unknown_region(draw_trimap(truth, 0.1 * 24))
        mask = None if row.region == "whole" else unknown
        expected = {name: metric(alpha, truth, mask) for name, metric in metrics.METRICS.items()}
        assert row.scores == pytest.approx(expected, rel=1e-5)
    whole, unknown = report.rows[:2]
    assert whole.pixels == SIZE[0] * SIZE[1]
    assert 0 < unknown.pixels < whole.pixels
    assert unknown.scores["SAD"] < whole.scores["SAD"]


def test_the_ground_truth_scores_perfectly(plain):
    for row in evaluate(plain, [shifted(0)]).rows:
        assert row.scores == {name: 1 if name == "IoU" else 0 for name in metrics.METRICS}


def test_the_benchmarks_own_trimaps_are_used(plain, tmp_path):
    fill(tmp_path / "with", ["a", "b", "c"], trimap="trimap")
    own = evaluate(tmp_path / "with", [shifted(9)], ["unknown"])
    drawn = evaluate(plain, [shifted(9)], ["unknown"])
    assert {row.pixels for row in own.rows} == {SIZE[0] * SIZE[1]}
    assert max(row.pixels for row in drawn.rows) < SIZE[0] * SIZE[1]
    assert "benchmark's trimaps" in own.protocol["regions"]["unknown"]
    assert "no trimaps" in drawn.protocol["regions"]["unknown"]
    (tmp_path / "with" / "trimap" / "b.png").unlink()
    partly = evaluate(tmp_path / "with", [shifted(9)], ["unknown"])
    assert [failure.image for failure in partly.failures] == ["b"]


def test_what_cannot_be_scored_is_listed_and_the_rest_goes_on(plain):
    mattes = plain.parent / "mattes"
    for name in "ab":
        save(mattes / f"{name}.png", disc(10))
    save(mattes / "a.png", disc(10, (10, 10)))
    report = evaluate(plain, [from_folder("tool", mattes), shifted(1)])
    assert [(row.method, row.image) for row in report.rows] == [
        ("shifted 1", "a"),
        ("tool", "b"),
        ("shifted 1", "b"),
        ("shifted 1", "c"),
    ]
    reasons = {failure.image: failure.reason for failure in report.failures}
    assert "the matte by tool is 10x10, its image 32x24" in reasons["a"]
    assert "no matte" in reasons["c"]

    save(plain / "alpha" / "a.png", disc(10, (10, 10)))
    save(plain / "alpha" / "b.png", disc(10) // 255)
    (plain / "image" / "c.png").write_bytes(b"")
    report = evaluate(plain, [shifted(1)])
    assert report.rows == []
    reasons = {failure.image: failure.reason for failure in report.failures}
    assert "10x10" in reasons["a"]
    assert "multiply it by 255" in reasons["b"]
    assert "empty" in reasons["c"]
    assert report.means() == [] and report.comparisons() == []


def test_an_empty_unknown_region_is_a_failure_of_that_region_only(plain):
    save(plain / "alpha" / "b.png", np.zeros(SIZE, np.uint8))
    report = evaluate(plain, [shifted(0)], ["unknown", "whole"])
    assert [(f.image, f.region) for f in report.failures] == [("b", "unknown")]
    assert sum(row.image == "b" for row in report.rows) == 1


def test_folders_may_be_flat_or_a_tree_and_hold_cutouts(tmp_path):
    fill(tmp_path / "bench", ["one/a", "two/b"])
    colours = np.zeros((*SIZE, 3), np.uint8)
    save(tmp_path / "tree" / "one" / "a.webp", np.dstack([colours, disc(10)]))
    save(tmp_path / "tree" / "two" / "b.png", disc(13))
    save(tmp_path / "flat" / "a.png", disc(10))
    save(tmp_path / "flat" / "b.png", disc(13))
    methods = [from_folder(name, tmp_path / name) for name in ("tree", "flat")]
    report = evaluate(tmp_path / "bench", methods)
    assert len(report.rows) == 4
    assert all(row.scores["SAD"] == 0 for row in report.rows)
    with pytest.raises(PortraitmattingError, match="no mattes found for x"):
        from_folder("x", tmp_path / "nowhere")


def test_clips_get_dtssd(tmp_path):
    fill(tmp_path, [f"{clip}/{frame}" for clip in "pq" for frame in range(8, 12)])
    rng = np.random.default_rng(5)
    noise = {f"{clip}/{f}": int(rng.integers(0, 60)) for clip in "pq" for f in range(8, 12)}
    noisy = MattingMethod("noisy", lambda s, i: shifted(noise[s.name]).matte(s, i), {})
    report = evaluate(tmp_path, [noisy], video=True)
    for clip in "pq":
        rows = [row for row in report.rows if row.image.startswith(clip)]
        assert [row.image for row in rows] == [f"{clip}/{f}" for f in range(8, 12)]
        assert math.isnan(rows[0].scores["dtSSD"])
        truths = [read_alpha(tmp_path / "alpha" / f"{row.image}.png") for row in rows]
        extra = [np.float32(noise[row.image] / 255) for row in rows]
        alphas = [np.minimum(t + e, 1) for t, e in zip(truths, extra, strict=True)]
        mean = np.mean([row.scores["dtSSD"] for row in rows[1:]])
        assert mean == pytest.approx(metrics.dtssd(alphas, truths), rel=1e-4)
    assert {m.metric: m.count for m in report.means()}["dtSSD"] == 6


def test_a_lost_frame_breaks_the_succession(tmp_path):
    fill(tmp_path, ["1", "2", "3", "4"])
    (tmp_path / "image" / "2.png").write_bytes(b"")
    report = evaluate(tmp_path, [shifted(1)], video=True)
    known = {row.image: not math.isnan(row.scores["dtSSD"]) for row in report.rows}
    assert known == {"1": False, "3": False, "4": True}


def test_wrong_arguments_are_named(plain):
    with pytest.raises(PortraitmattingError, match="nothing to score"):
        evaluate(plain, [])
    with pytest.raises(PortraitmattingError, match="two methods are called shifted 1"):
        evaluate(plain, [shifted(1), shifted(1)])
    with pytest.raises(PortraitmattingError, match="border"):
        evaluate(plain, [shifted(1)], ["border"])
    with pytest.raises(PortraitmattingError, match="band -1"):
        evaluate(plain, [shifted(1)], band=-1)


def test_a_predictor_is_scored_as_its_files_would_be(plain, tiny_predictor):
    mattes = plain.parent / "mattes"
    for path in (plain / "image").iterdir():
        alpha = tiny_predictor.predict(np.asarray(Image.open(path))).alpha
        save(mattes / path.name, np.rint(alpha * 255).astype(np.uint8))
    report = evaluate(plain, [from_predictor(tiny_predictor), from_folder("saved", mattes)])
    pairs = itertools.pairwise(report.rows)
    assert all(x.scores == y.scores for x, y in pairs if x.image == y.image)
    assert all(c.difference == 0 and c.p_value == 1 for c in report.comparisons())


# ---------------------------------------------------------------- intervals and tests


def test_interval_of_many_scores_is_that_of_the_normal_law():
    scores = np.random.default_rng(0).normal(5, 2, 400)
    low, high = bootstrap_interval(scores)
    half = 1.96 * scores.std() / 20
    assert low == pytest.approx(scores.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(scores.mean() + half, abs=0.1 * half)
    assert bootstrap_interval(scores) == (low, high)
    assert bootstrap_interval(scores, seed=1) != (low, high)


def test_interval_of_few_scores():
    assert bootstrap_interval(np.full(5, 3.0)) == (3, 3)
    assert all(map(math.isnan, bootstrap_interval(np.array([3.0]))))


def slow_p_value(differences):
    observed = abs(sum(differences))
    flips = list(itertools.product((-1, 1), repeat=len(differences)))
    sums = [abs(np.dot(signs, differences)) for signs in flips]
    return sum(total >= observed - 1e-9 for total in sums) / len(flips)


def test_p_value_counts_every_sign_pattern():
    rng = np.random.default_rng(1)
    for count in (1, 2, 5, 8):
        differences = rng.normal(0.5, 1, count)
        assert paired_p_value(differences) == slow_p_value(differences)
    assert paired_p_value(np.full(12, 0.1)) == 2 / 2**12
    assert paired_p_value(np.zeros(4)) == 1


def test_p_value_by_random_patterns_agrees_with_all_of_them():
    differences = np.random.default_rng(2).normal(0.4, 1, 15)
    assert paired_p_value(differences) == pytest.approx(slow_p_value(differences), abs=0.015)
    assert paired_p_value(np.full(40, 0.1)) == 1 / 10_001
    assert paired_p_value(np.zeros(40)) == 1


def test_comparisons_are_second_minus_first_over_common_images(plain):
    mattes = plain.parent / "mattes"
    for name, centre in (("a", 10), ("b", 14)):
        save(mattes / f"{name}.png", disc(centre))
    report = evaluate(plain, [shifted(100), from_folder("tool", mattes)])
    comparisons = {c.metric: c for c in report.comparisons()}
    assert list(comparisons) == list(metrics.METRICS)
    sad = {(row.method, row.image): row.scores["SAD"] for row in report.rows}
    gaps = [sad["tool", name] - sad["shifted 100", name] for name in "ab"]
    assert comparisons["SAD"].difference == pytest.approx(np.mean(gaps))
    assert (comparisons["SAD"].first, comparisons["SAD"].second) == ("shifted 100", "tool")
    assert comparisons["SAD"].count == 2
    assert comparisons["SAD"].p_value == slow_p_value(gaps)
    means = {(m.method, m.metric): m for m in report.means()}
    assert means["shifted 100", "SAD"].count == 3
    assert means["tool", "SAD"].mean == pytest.approx(np.mean([sad["tool", n] for n in "ab"]))


# ---------------------------------------------------------------- reports


def test_csv_and_json_say_what_the_report_says(plain, tmp_path):
    report = evaluate(plain, [shifted(9), shifted(20)], video=True)
    report.write_csv(tmp_path / "s.csv")
    report.write_json(tmp_path / "s.json")
    with (tmp_path / "s.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(report.rows)
    assert float(lines[-1]["SAD"]) == report.rows[-1].scores["SAD"]
    assert lines[0]["dtSSD"] == "" and float(lines[-1]["dtSSD"]) == report.rows[-1].scores["dtSSD"]
    content = json.loads((tmp_path / "s.json").read_text(encoding="utf-8"))
    assert content["images"][0]["scores"]["dtSSD"] is None
    assert content["means"][0]["mean"] == report.means()[0].mean
    assert content["comparisons"][0]["p_value"] == report.comparisons()[0].p_value
    assert content["protocol"]["methods"]["shifted 9"] == {"by": "9"}
    with pytest.raises(PortraitmattingError, match="cannot be written"):
        report.write_csv(tmp_path / "missing" / "s.csv")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_the_text_shows_scores_intervals_differences_and_protocol(plain):
    (plain / "image" / "c.png").write_bytes(b"")
    text = format_report(evaluate(plain, [shifted(9), shifted(20)], ["whole", "unknown"]))
    for part in ("shifted 9, unknown", "shifted 20 minus shifted 9, whole", "not scored: 1"):
        assert part in text
    for part in ("95 % interval", "protocol", "benchmark: ", "sizes: 32x24", "in thousands"):
        assert part in text
    # Means of one region stand side by side.
    header = text[text.index("mean and 95 % interval, whole") :].splitlines()[1]
    assert "shifted 9" in header and "shifted 20" in header


def test_the_worst_cases_come_first_and_only_so_many(plain):
    offsets = {"a": 20, "b": 60, "c": 40}
    uneven = MattingMethod("uneven", lambda s, i: shifted(offsets[s.name]).matte(s, i), {})
    failing = from_folder("failing", plain / "alpha")
    report = evaluate(plain, [uneven, failing], worst=2)
    assert [case.title.split()[0] for case in report.worst] == ["b", "c"]
    assert [caption for caption, _ in report.worst[0].tiles] == [
        "image",
        "ground truth",
        "uneven",
        "error",
        "failing",
        "error",
    ]
    sheet = draw_contact_sheet(report.worst)
    assert sheet.dtype == np.uint8 and sheet.ndim == 3
    assert evaluate(plain, [uneven], worst=0).worst == []


def test_equally_bad_cases_do_not_confuse(plain):
    for name in "abc":
        save(plain / "alpha" / f"{name}.png", disc(12))
    assert len(evaluate(plain, [shifted(30)], worst=2).worst) == 2


def test_a_failed_matte_has_its_place_on_the_sheet(plain):
    mattes = plain.parent / "mattes"
    save(mattes / "a.png", disc(10))
    report = evaluate(plain, [shifted(5), from_folder("tool", mattes)])
    assert len({len(case.tiles) for case in report.worst}) == 1
    captions = [caption for case in report.worst for caption, _ in case.tiles]
    assert captions.count("tool: failed") == 2
    draw_contact_sheet(report.worst)


def test_errors_are_red_for_too_much_and_blue_for_too_little():
    image = error_image(np.array([[1.0, 0.0, 0.5]]), np.array([[0.0, 1.0, 0.5]]))
    red, blue, white = image[0].astype(int)
    assert red[0] > red[2] and blue[2] > blue[0] and white.tolist() == [255, 255, 255]


# ---------------------------------------------------------------- command line


@pytest.fixture
def call(monkeypatch, capsys):
    """Run the command line; returns (exit code, stdout, stderr)."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["evaluate", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            run(main)
        return stopped.value.code, *capsys.readouterr()

    return call


@pytest.fixture
def checkpoint(tmp_path, tiny_model):
    path = tmp_path / "tiny.safetensors"
    save_checkpoint(path, tiny_model, CheckpointInfo("a test", "none", 64))
    return path


def test_command_line_scores_checkpoints_and_mattes_side_by_side(call, plain, checkpoint, tmp_path):
    code, out, _ = call(
        *(plain, "--checkpoint", checkpoint, "--short-side", 32, 64, "--device", "cpu"),
        *("--mattes", f"truth={plain / 'alpha'}", "--regions", "whole", "unknown"),
        *("--csv", tmp_path / "s.csv", "--json", tmp_path / "s.json"),
        *("--contact-sheet", tmp_path / "sheet.png", "--worst", 2),
    )
    assert code == 0
    assert "plain: image/ with alpha/, 3 images" in out
    assert "truth minus tiny@32, whole" in out
    protocol = json.loads((tmp_path / "s.json").read_text())["protocol"]
    assert list(protocol["methods"]) == ["tiny@32", "tiny@64", "truth"]
    facts = protocol["methods"]["tiny@64"]
    assert facts["short side"] == "64" and facts["precision"] == "float32"
    assert facts["checkpoint"] == "tiny.safetensors" and len(facts["sha256"]) == 64
    assert len((tmp_path / "s.csv").read_text().splitlines()) == 1 + 3 * 3 * 2
    assert Image.open(tmp_path / "sheet.png").format == "PNG"


def test_command_line_mattes_alone_need_no_network(call, plain, monkeypatch):
    monkeypatch.setenv("PORTRAITMATTING_CHECKPOINTS", str(plain))
    code, out, _ = call(plain, "--mattes", f"truth={plain / 'alpha'}")
    assert code == 0 and "truth, whole" in out


def test_command_line_exits_1_if_anything_failed(call, plain):
    mattes = plain.parent / "mattes"
    save(mattes / "a.png", disc(10))
    code, out, _ = call(plain, "--mattes", f"tool={mattes}")
    assert code == 1 and "not scored: 2" in out
    (mattes / "a.png").rename(mattes / "z.png")
    code, out, _ = call(plain, "--mattes", f"tool={mattes}", "--contact-sheet", "none.png")
    assert code == 1 and "not scored: 3" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "no such folder"),
        (["{plain}", "--mattes", "folder"], "give it a name"),
        (["{plain}", "--mattes", "tool=nowhere"], "no mattes found for tool"),
        (["{plain}", "--checkpoint", "none.safetensors"], "none.safetensors"),
        (["{plain}", "--csv", "missing/folder/s.csv"], "no such folder"),
        (["{plain}", "--checkpoint", "{checkpoint}", "--short-side", "250"], "multiple of 32"),
        (["{plain}", "--checkpoint", "{checkpoint}", "{checkpoint}"], "two methods"),
        (["{plain}", "--checkpoint", "{checkpoint}", "--device", "abacus"], "abacus"),
    ],
)
def test_command_line_mistakes_are_one_line(call, plain, checkpoint, arguments, message):
    places = {"plain": plain, "checkpoint": checkpoint}
    code, _, err = call(*(argument.format(**places) for argument in arguments))
    assert code == 2
    assert err.startswith("error: ") and message in err and err.count("\n") == 1


@pytest.mark.parametrize("option", ["--csv", "--json", "--contact-sheet"])
@pytest.mark.parametrize("name", ["", "alpha/a.png/s.png", "s.gif"])
def test_outputs_that_cannot_be_are_refused_before_the_work(call, plain, option, name):
    if name == "s.gif" and option != "--contact-sheet":
        return
    code, out, err = call(plain, "--mattes", f"t={plain / 'alpha'}", option, plain / name)
    assert code == 2 and not out
    assert err.startswith("error: ") and err.count("\n") == 1


def test_names_that_are_no_unicode_are_reported(call, plain, tmp_path):
    for folder in ("image", "alpha"):
        (plain / folder / "c.png").rename(plain / folder / os.fsdecode(b"\xe9.png"))
    outputs = ("--csv", tmp_path / "s.csv", "--json", tmp_path / "s.json")
    sheet = ("--contact-sheet", tmp_path / "s.png")
    assert call(plain, "--mattes", f"t={plain / 'alpha'}", *outputs, *sheet)[0] == 0
    images = json.loads((tmp_path / "s.json").read_text(encoding="utf-8"))["images"]
    assert os.fsdecode(b"\xe9") in {image["image"] for image in images}


def test_checkpoints_may_be_named(checkpoint):
    method = from_checkpoint(str(checkpoint), name="mine", short_side=32, device="cpu")
    assert method.name == "mine" and method.facts["short side"] == "32"
    assert from_checkpoint(str(checkpoint), device="cpu").name == "tiny"
