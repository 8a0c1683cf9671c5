"""Sources, augmentation and the promise that a sample depends on (seed, step, index) alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from portraitmatting.errors import PortraitmattingError
from portraitmatting.images.files import write_image
from portraitmatting.training.augment import crop, degrade, own_colours
from portraitmatting.training.config import Augment, DataSource, config_from_dict
from portraitmatting.training.data import TrainingData, join, trimap_classes
from portraitmatting.training.sources import open_source, read_cutout, soften
from training_scenes import grey, photo_folder, portrait, recipe

CALM = Augment(close_up=0, flip=0, rotation=0, aspect=0, colour=0, grey=0, blur=0, noise=0, jpeg=0)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """One folder of every kind."""
    root = tmp_path_factory.mktemp("data")
    photo_folder(root / "photos", 5)
    for name in ("mask", "teacher"):
        (root / "masks" / name).mkdir(parents=True)
    (root / "masks" / "image").mkdir()
    (root / "cutouts").mkdir()
    (root / "backgrounds").mkdir()
    (root / "whole").mkdir()
    for i in range(3):
        image, alpha = portrait(i)
        room = np.pad(alpha, 8)
        body = np.where(
            room[..., None] == 0, np.uint8([255, 0, 255]), np.pad(image, ((8,), (8,), (0,)))
        )
        Image.fromarray(np.dstack([body, room])).save(root / "whole" / f"w{i}.png")
        Image.fromarray(np.dstack([image, alpha])).save(root / "whole" / f"cut-at-the-edge{i}.png")
        write_image(root / "masks" / "image" / f"m{i}.jpg", image)
        write_image(
            root / "masks" / "mask" / f"m{i}.png",
            grey(np.where(alpha > 127, 255, 0).astype(np.uint8)),
        )
        write_image(root / "masks" / "teacher" / f"m{i}.png", grey(alpha))
        hidden = np.where(alpha[..., None] == 0, np.uint8([255, 0, 255]), image)
        Image.fromarray(np.dstack([hidden, alpha])).save(root / "cutouts" / f"c{i}.png")
        green = np.zeros((80, 120, 3), np.uint8)
        green[..., 1] = 60 + i
        write_image(root / "backgrounds" / f"b{i}.png", green)
    return root


def all_kinds(root):
    return [
        {
            "kind": "photos",
            "folder": f"{root}/photos",
            "replace": 0.5,
            "backgrounds": f"{root}/backgrounds",
        },
        {"kind": "cutouts", "folder": f"{root}/cutouts", "backgrounds": f"{root}/backgrounds"},
        {"kind": "masks", "folder": f"{root}/masks"},
        {"kind": "backgrounds", "folder": f"{root}/backgrounds"},
    ]


def data(root, **changes) -> TrainingData:
    values = recipe(root / "photos", data=all_kinds(root), batch_size=8, **changes)
    return TrainingData(config_from_dict(values))


def same(a, b) -> bool:
    return (
        all(np.array_equal(x, y) for x, y in zip(a[:3], b[:3], strict=True)) and a.names == b.names
    )


def test_a_batch_has_the_promised_layout_and_ranges(folders):
    one = data(folders)
    whole = join([one.sample(0, i) for i in range(16)])
    count, _, height, width = whole.image.shape
    assert whole.image.shape == (16, 3, height, width) and min(height, width) == 32
    assert whole.alpha.shape == (count, 1, height, width)
    assert whole.trimap.shape == (count, height, width)
    assert whole.image.dtype == whole.alpha.dtype and str(whole.trimap.dtype) == "torch.int64"
    for values in (whole.image, whole.alpha):
        assert values.min() >= 0 and values.max() <= 1
    assert set(whole.trimap.unique().tolist()) == {0, 1, 2}
    kinds = {"photos", "cutouts", "masks", "backgrounds"}
    assert kinds == {k for k in kinds for n in whole.names if f"/{k}/" in n.split(" over ")[0]}


def test_samples_do_not_depend_on_threads_order_or_start(folders):
    one, two = data(folders), data(folders)
    from_zero = list(one.batches(0, 4, range(8), threads=4))
    from_two = list(two.batches(2, 4, range(3, 6), threads=1))
    for late, early in zip(from_two, from_zero[2:], strict=True):
        assert all(same(a, b) for a, b in zip(late, early[3:6], strict=True))


def test_seeds_steps_and_indices_give_other_samples(folders):
    one, other = data(folders), data(folders, seed=1)
    first = one.sample(0, 0)
    assert not same(first, other.sample(0, 0))
    assert not same(first, one.sample(0, 1))


def test_an_error_in_a_thread_reaches_the_consumer(tmp_path):
    photos = photo_folder(tmp_path / "photos", 2)
    for path in (photos / "alpha").iterdir():
        write_image(path, np.zeros((10, 10, 3), np.uint8))
    broken = TrainingData(config_from_dict(recipe(photos)))
    with pytest.raises(PortraitmattingError, match=r"p\d\.png is 10x10, its image 48x64"):
        list(broken.batches(0, 2, range(2), threads=2))


@pytest.mark.parametrize("kind", ["cutouts", "scenes"])
def test_colours_under_transparency_never_show(folders, kind):
    """The cut-outs hide magenta; backgrounds are green, people have no such hue."""
    source = {"kind": kind, "folder": f"{folders}/cutouts", "backgrounds": f"{folders}/backgrounds"}
    if kind == "scenes":
        source["folder"] = f"{folders}/whole"
    samples = calm_samples(source, 12)
    assert any(float(sample.alpha.max()) > 0.9 for sample in samples)
    for sample in samples:
        image, alpha = sample.image[0].numpy(), sample.alpha[0, 0].numpy()
        red, green, blue = image[:, alpha < 0.5]
        assert (np.minimum(red, blue) - green).max() < 0.35
        back = image[:, alpha == 0]
        assert (back[1] > 0.2).all() and (back[[0, 2]] < 1e-5).all()


def calm_samples(source: dict, count: int, side: int = 64):
    still = dict.fromkeys(
        ("close_up", "flip", "rotation", "aspect", "colour", "grey", "blur", "noise", "jpeg"), 0
    )
    values = recipe("", data=[source], augment=still, sizes=[[0, side]])
    one = TrainingData(config_from_dict(values))
    return [one.sample(step, 0) for step in range(count)]


def test_cutouts_stand_on_the_lower_edge(folders):
    source = open_source(
        DataSource("cutouts", f"{folders}/cutouts", backgrounds=f"{folders}/backgrounds")
    )
    scenes = [source.draw(np.random.default_rng(seed)) for seed in range(6)]
    assert all(scene.alpha[-1].max() == 1 for scene in scenes)
    originals = [read_cutout(p) for p in sorted((folders / "cutouts").iterdir())]
    counts = {int((alpha == 1).sum()) for _, alpha in originals}
    assert all(int((scene.alpha == 1).sum()) in counts for scene in scenes)


def test_a_replaced_background_leaves_person_and_matte(folders):
    source = {"kind": "photos", "folder": f"{folders}/photos", "replace": 1}
    for sample in calm_samples(source | {"backgrounds": f"{folders}/backgrounds"}, 4):
        outside = sample.image[0].numpy()[:, sample.alpha[0, 0].numpy() == 0]
        assert " over " in sample.names[0] and (outside[[0, 2]] < 0.01).all()


def test_new_backgrounds_leave_no_halo_of_the_old_one(folders):
    """The multi-level estimate at crop size: a soft edge mixes person and new background only."""
    _, alpha = portrait(0, 64, 64)
    alpha = alpha.astype(np.float32) / 255
    person, old = np.float32([0.9, 0.2, 0.2]), np.float32([0.2, 0.2, 0.9])
    image = alpha[..., None] * person + (1 - alpha[..., None]) * old
    colours = own_colours(image, alpha, "ml", NoLuck())
    soft = (alpha > 0.2) & (alpha < 0.9)
    assert np.abs(colours[soft] - person).max() < 0.05


class NoLuck:
    def random(self) -> float:
        return 1.0


def test_scenes_hold_whole_people_only_up_to_as_many_as_asked(folders):
    source = DataSource(
        "scenes", f"{folders}/whole", backgrounds=f"{folders}/backgrounds", people=3
    )
    scenes = [open_source(source).draw(np.random.default_rng(seed)) for seed in range(12)]
    assert {scene.name.count(" and ") + 1 for scene in scenes} == {1, 2, 3}
    for scene in scenes:
        assert "cut-at-the-edge" not in scene.name and min(scene.alpha.shape) == 480
        assert 0 < scene.alpha.max() <= 1 and scene.alpha.mean() < 0.5
    with pytest.raises(PortraitmattingError, match="hardly a matte stays clear"):
        photos = DataSource("scenes", f"{folders}/photos", backgrounds=f"{folders}/backgrounds")
        open_source(photos).draw(np.random.default_rng(0))


def test_balanced_sources_draw_a_small_subfolder_as_often_as_a_large_one(tmp_path):
    for name, count in (("large", 9), ("small", 1)):
        (tmp_path / name).mkdir()
        for number in range(count):
            write_image(tmp_path / name / f"{number}.png", np.zeros((8, 8, 3), np.uint8))
    for balance, low, high in ((False, 2, 30), (True, 80, 120)):
        source = open_source(DataSource("backgrounds", str(tmp_path), balance=balance))
        names = [source.draw(np.random.default_rng(seed)).name for seed in range(200)]
        assert low <= sum("small" in name for name in names) <= high


def test_negatives_are_empty(folders):
    scene = open_source(DataSource("backgrounds", f"{folders}/backgrounds")).draw(
        np.random.default_rng(0)
    )
    assert not scene.alpha.any() and scene.alpha.shape == scene.image.shape[:2]


def test_the_teacher_rules_near_the_edge_and_the_mask_elsewhere():
    mask = np.zeros((40, 40), np.float32)
    mask[:, 20:] = 1
    teacher = np.full((40, 40), 0.25, np.float32)
    out = soften(mask, teacher, band=0.1)  # 4 pixels either way
    assert (out[:, :15] == 0).all() and (out[:, 25:] == 1).all() and (out[:, 17:23] == 0.25).all()
    assert (soften(np.ones((8, 8), np.float32), teacher[:8, :8], 0.1) == 1).all()


@pytest.mark.parametrize(
    "break_it, message",
    [
        (lambda r: (r / "alpha" / "p1.png").unlink(), "has no .*p1.png"),
        (lambda r: [p.unlink() for p in (r / "image").iterdir()], "holds no images"),
        (lambda r: r.rename(r.with_name("gone")), "no such folder"),
    ],
)
def test_a_folder_that_lacks_something_is_refused_at_the_start(tmp_path, break_it, message):
    photos = photo_folder(tmp_path / "photos", 2)
    break_it(photos)
    with pytest.raises(PortraitmattingError, match=message):
        open_source(DataSource("photos", str(photos)))


def test_a_cutout_without_transparency_is_refused(tmp_path):
    write_image(tmp_path / "a.png", np.zeros((9, 9, 3), np.uint8))
    with pytest.raises(PortraitmattingError, match="expected an image with an alpha channel"):
        read_cutout(tmp_path / "a.png")


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    size=st.sampled_from([(32, 32), (32, 64), (96, 64)]),
    seed=st.integers(0, 1000),
    empty=st.booleans(),
)
def test_any_image_crops_to_any_size(height, width, size, seed, empty):
    rng = np.random.default_rng(seed)
    image = rng.random((height, width, 3), np.float32)
    alpha = (
        np.zeros((height, width), np.float32) if empty else rng.random((height, width), np.float32)
    )
    out, matte = crop(image, alpha, size, Augment(), rng)
    out = degrade(out, Augment(), rng)
    assert out.shape == (*size, 3) and matte.shape == size
    assert out.dtype == matte.dtype == np.float32
    assert out.min() >= 0 and out.max() <= 1 and matte.min() >= 0 and matte.max() <= 1


def test_image_and_matte_move_together():
    """An image that is its own matte stays so, however it is cropped, turned and mirrored."""
    _, alpha = portrait(0, 128, 96)
    unit = alpha.astype(np.float32) / 255
    wild = Augment(rotation=40, aspect=0.3)
    for seed in range(20):
        out, matte = crop(np.dstack([unit] * 3), unit, (64, 64), wild, np.random.default_rng(seed))
        np.testing.assert_allclose(out[..., 1], matte, atol=1e-5)


def test_no_augmentation_shows_the_scene_as_it_is():
    image, alpha = (a.astype(np.float32) / 255 for a in portrait(1, 64, 64))
    out, matte = crop(image, alpha, (64, 64), CALM, np.random.default_rng(3))
    assert np.array_equal(degrade(out, CALM, np.random.default_rng(0)), out)
    assert abs(matte.mean() - alpha.mean()) < 0.06


def test_close_ups_are_closer_than_scenes():
    image, alpha = (a.astype(np.float32) / 255 for a in portrait(1, 256, 192))
    shares = {}
    for chance in (0.0, 1.0):
        some = [
            crop(image, alpha, (64, 64), Augment(close_up=chance), np.random.default_rng(s))[
                1
            ].mean()
            for s in range(40)
        ]
        shares[chance] = np.mean(some)
    assert shares[1.0] > shares[0.0] + 0.1


def test_trimap_ignores_residue_and_widens_with_the_radius():
    alpha = np.zeros((40, 40), np.float32)
    alpha[:, 20:] = 0.99
    alpha[:, :20] = 0.01
    narrow, wide = trimap_classes(alpha, 1), trimap_classes(alpha, 6)
    assert (narrow == 1).sum() < (wide == 1).sum() < wide.size / 2
    assert (wide[:, 0] == 0).all() and (wide[:, -1] == 2).all()


@pytest.mark.parametrize("changes", [{"close_up": 1.5}, {"smallest_crop": 0.0}, {"aspect": 1.0}])
def test_impossible_augmentation_is_refused(changes):
    with pytest.raises(PortraitmattingError, match="augment"):
        Augment(**changes)
