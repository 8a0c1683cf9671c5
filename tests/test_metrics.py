"""The metrics against slow references written straight from their definitions, and by hand."""

import math
from collections import deque
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from portraitmatting import metrics
from portraitmatting.errors import ImageError
from portraitmatting.trimap import draw_trimap, unknown_region

# ---------------------------------------------------------------- slow references


def pixels(mask):
    return [(y, x) for y, x in product(*map(range, mask.shape)) if mask[y, x]]


def slow_sad(alpha, truth, mask):
    return sum(abs(alpha[p] - truth[p]) for p in pixels(mask)) / 1000


def slow_mse(alpha, truth, mask):
    return sum((alpha[p] - truth[p]) ** 2 for p in pixels(mask)) / len(pixels(mask))


def slow_mad(alpha, truth, mask):
    return sum(abs(alpha[p] - truth[p]) for p in pixels(mask)) / len(pixels(mask))


def slow_gradient(alpha, y, x):
    """Magnitude at one pixel from the two full 9x9 filters, scaled to unit norm."""

    def g(t):
        return math.exp(-(t**2) / (2 * 1.4**2)) / (1.4 * math.sqrt(2 * math.pi))

    taps = [(i, j) for i in range(-4, 5) for j in range(-4, 5)]
    weights = {(i, j): g(i) * (-j * g(j) / 1.4**2) for i, j in taps}
    norm = math.sqrt(sum(w**2 for w in weights.values()))
    height, width = alpha.shape
    along_x = along_y = 0.0
    for i, j in taps:
        at = alpha[min(max(y - i, 0), height - 1), min(max(x - j, 0), width - 1)]
        along_x += weights[i, j] / norm * at
        along_y += weights[j, i] / norm * at
    return math.sqrt(along_x**2 + along_y**2)


def slow_grad(alpha, truth, mask):
    return (
        sum((slow_gradient(alpha, *p) - slow_gradient(truth, *p)) ** 2 for p in pixels(mask)) / 1000
    )


def neighbours(y, x, shape):
    for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
        if 0 <= v < shape[0] and 0 <= u < shape[1]:
            yield v, u


def slow_largest_region(solid):
    best, seen = set(), set()
    for start in pixels(solid):
        if start in seen:
            continue
        region, queue = {start}, deque([start])
        while queue:
            for p in neighbours(*queue.popleft(), solid.shape):
                if solid[p] and p not in region:
                    region.add(p)
                    queue.append(p)
        seen |= region
        if len(region) > len(best):
            best = region
    return best


def slow_conn(alpha, truth, mask):
    level = {}
    for k in range(1, 11):
        region = slow_largest_region((alpha >= k / 10) & (truth >= k / 10))
        for p in pixels(np.ones_like(mask)):
            if p not in region and p not in level:
                level[p] = (k - 1) / 10

    def phi(value, p):
        d = value - level.get(p, 1.0)
        return 1 - (d if d >= 0.15 else 0)

    return sum(abs(phi(alpha[p], p) - phi(truth[p], p)) for p in pixels(mask)) / 1000


def slow_iou(alpha, truth, mask):
    ours = {p for p in pixels(mask) if alpha[p] >= 0.5}
    theirs = {p for p in pixels(mask) if truth[p] >= 0.5}
    return len(ours & theirs) / len(ours | theirs) if ours | theirs else 1.0


def slow_boundary_error(alpha, truth, mask):
    solids = [set(pixels(a >= 0.5)) for a in (alpha, truth)]
    outlines = [
        [p for p in sorted(s) if any(n not in s for n in neighbours(*p, alpha.shape))]
        for s in solids
    ]
    if not all(outlines):
        return 0.0 if solids[0] == solids[1] else math.hypot(*alpha.shape)
    distances = [
        min(math.dist(p, q) for q in other)
        for outline, other in (outlines, outlines[::-1])
        for p in outline
        if mask[p]
    ]
    return sum(distances) / len(distances) if distances else 0.0


SLOW = {
    "SAD": slow_sad,
    "MSE": slow_mse,
    "MAD": slow_mad,
    "Grad": slow_grad,
    "Conn": slow_conn,
    "IoU": slow_iou,
    "Boundary": slow_boundary_error,
}


@st.composite
def pairs(draw):
    """(alpha, truth, mask): 8-bit levels as float, in blobs that connect; some of mask set."""
    height, width = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    noise = draw(st.sampled_from([0, 10, 60, 255]))
    coarse = rng.choice([0, 0, 26, 51, 128, 153, 255, 255], size=(4, 4))
    truth = coarse.repeat(3, 0).repeat(3, 1)[:height, :width]
    alpha = np.clip(truth + rng.integers(-noise, noise + 1, truth.shape), 0, 255)
    mask = rng.random((height, width)) < draw(st.sampled_from([0.3, 1.0]))
    mask[0, 0] = True
    return (alpha / 255).astype(dtype), (truth / 255).astype(dtype), mask


@pytest.mark.parametrize("name", metrics.METRICS)
def test_every_metric_equals_its_slow_reference(name):
    @given(pairs())
    def check(pair):
        alpha, truth, mask = pair
        # 8-bit levels divided in the array's own precision, as the evaluation does.
        exact = SLOW[name](alpha.astype(np.float64), truth.astype(np.float64), mask)
        exact_whole = SLOW[name](
            alpha.astype(np.float64), truth.astype(np.float64), np.ones_like(mask)
        )
        tolerance = {"rel": 1e-5, "abs": 1e-7}
        assert metrics.METRICS[name](alpha, truth, mask) == pytest.approx(exact, **tolerance)
        assert metrics.METRICS[name](alpha, truth) == pytest.approx(exact_whole, **tolerance)

    check()


# ---------------------------------------------------------------- worked by hand


def row(*values):
    return np.array([values], dtype=np.float64)


def test_differences_by_hand():
    alpha, truth = row(0.5, 1, 0, 0.5), row(0, 1, 0, 1)
    assert metrics.sad(alpha, truth) == pytest.approx(1 / 1000)
    assert metrics.mse(alpha, truth) == pytest.approx(0.5 / 4)
    assert metrics.mad(alpha, truth) == pytest.approx(1 / 4)
    unknown = np.array([[True, False, False, False]])
    assert metrics.sad(alpha, truth, unknown) == pytest.approx(0.5 / 1000)
    assert metrics.mse(alpha, truth, unknown) == pytest.approx(0.25)
    assert metrics.mad(alpha, truth, unknown) == pytest.approx(0.5)


def test_gradient_of_a_step_by_hand():
    # A vertical step seen by the two unit-norm kernels: 2.22546 along it; across it 1.19615,
    # .69926, .23697 and .04330 at the four columns on either side. The empty matte has no gradient.
    truth = np.repeat([[0.0] * 6 + [1.0] * 6], 5, axis=0)
    expected = 5 * 2.22546**2 * 2 * (1.19615**2 + 0.69926**2 + 0.23697**2 + 0.04330**2) / 1000
    assert metrics.grad(np.zeros_like(truth), truth) == pytest.approx(expected, rel=1e-4)


def test_the_gradient_error_ignores_a_constant_offset():
    truth = np.random.default_rng(0).random((9, 11)) * 0.5
    assert metrics.grad(truth + 0.25, truth) == pytest.approx(0, abs=1e-12)


def test_connectivity_by_hand():
    # Pixel 3 is missing from the matte: phi 1 against 0. Pixel 4, cut off by it, is equally
    # disconnected in both and does not count.
    assert metrics.conn(row(1, 1, 1, 0, 1), row(1, 1, 1, 1, 1)) == pytest.approx(1 / 1000)
    # The level is .8, so the truth stands .2 above it: more than theta.
    assert metrics.conn(row(1, 1, 0.8), row(1, 1, 1)) == pytest.approx(0.2 / 1000)
    # Only .1 above its level: less than theta.
    assert metrics.conn(row(1, 1, 0.9), row(1, 1, 1)) == 0


def test_connectivity_uses_four_neighbours():
    truth = np.array([[1.0, 1, 0], [1, 1, 0], [0, 0, 1]])
    alpha = truth.copy()
    alpha[2, 2] = 0.5  # touches the square by its corner alone: level 0, so .5 against 1
    assert metrics.conn(alpha, truth) == pytest.approx(0.5 / 1000)


def test_iou_by_hand():
    assert metrics.iou(row(0.5, 0.49, 1, 0), row(1, 1, 1, 0)) == pytest.approx(2 / 3)
    assert metrics.iou(row(0, 0.2), row(0, 0)) == 1
    assert metrics.iou(row(1, 0), row(0, 0)) == 0


def test_boundary_error_by_hand():
    ours, theirs = np.zeros((6, 9)), np.zeros((6, 9))
    ours[:, :3], theirs[:, :5] = 1, 1
    assert metrics.boundary_error(ours, theirs) == 2  # outlines at columns 2 and 4
    nobody = np.zeros((3, 4))
    assert metrics.boundary_error(nobody, nobody) == 0
    assert metrics.boundary_error(nobody, np.ones((3, 4))) == 5  # a missed person: the diagonal


def test_dtssd_by_hand():
    still = [np.zeros((2, 2))] * 3
    flicker = [np.zeros((2, 2)), np.array([[0.5, 0], [0, 0]]), np.zeros((2, 2))]
    assert metrics.dtssd(flicker, still) == pytest.approx(0.25)
    assert metrics.dtssd([f + 0.5 for f in still], still) == 0  # constantly wrong, but steady
    masks = [np.array([[True, False], [False, False]])] * 3
    assert metrics.dtssd(iter(flicker), iter(still), iter(masks)) == pytest.approx(0.5)


def test_dtssd_weights_all_steps_equally():
    truths = [np.zeros((1, 4))] * 4
    alphas = [row(0, 0, 0, 0), row(1, 1, 1, 1), row(1, 1, 1, 1), row(1, 1, 1, 0)]
    assert metrics.dtssd(alphas, truths) == pytest.approx((1 + 0 + 0.5) / 3)


@pytest.mark.parametrize("name", metrics.METRICS)
def test_the_ground_truth_itself_scores_perfectly(name):
    truth = np.random.default_rng(1).random((20, 30), dtype=np.float32)
    score = metrics.METRICS[name](truth, truth)
    assert score == (1 if name == "IoU" else 0)


@pytest.mark.parametrize("name", metrics.METRICS)
def test_scores_are_plain_floats(name):
    rng = np.random.default_rng(3)
    alpha, truth = rng.random((2, 20, 30), dtype=np.float32)
    assert type(metrics.METRICS[name](alpha, truth, truth > 0.3)) is float


@pytest.mark.parametrize("name", metrics.METRICS)
def test_inputs_are_not_changed(name):
    rng = np.random.default_rng(2)
    alpha, truth = rng.random((2, 20, 30))
    copies = alpha.copy(), truth.copy()
    metrics.METRICS[name](alpha, truth, truth > 0.5)
    assert np.array_equal(alpha, copies[0]) and np.array_equal(truth, copies[1])


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize("name", metrics.METRICS)
@pytest.mark.parametrize(
    ("alpha", "truth", "mask", "message"),
    [
        (np.zeros((2, 3)), np.zeros((3, 2)), None, "alpha is 3x2, the ground truth 2x3"),
        (np.full((2, 2), 255, np.uint8), np.zeros((2, 2)), None, "uint8"),
        (np.full((2, 2), 255.0), np.zeros((2, 2)), None, r"alpha spans 255 to 255.*\[0, 1\]"),
        (np.zeros((2, 2)), np.full((2, 2), np.nan), None, "the ground truth spans nan"),
        (np.zeros((2, 2, 1)), np.zeros((2, 2, 1)), None, "HxW"),
        (np.zeros((2, 2)), np.zeros((2, 2)), np.ones((2, 2), np.uint8), "bool"),
        (np.zeros((2, 2)), np.zeros((2, 2)), np.ones((1, 2), bool), "shape"),
        (np.zeros((2, 2)), np.zeros((2, 2)), np.zeros((2, 2), bool), "no pixel"),
    ],
)
def test_wrong_inputs_are_an_error_of_one_line(name, alpha, truth, mask, message):
    with pytest.raises(ImageError, match=message) as error:
        metrics.METRICS[name](alpha, truth, mask)
    assert "\n" not in str(error.value)


def test_dtssd_refuses_clips_of_one_frame_or_of_different_lengths():
    frame = np.zeros((2, 2))
    with pytest.raises(ImageError, match="two"):
        metrics.dtssd([frame], [frame])
    with pytest.raises(ValueError, match="shorter"):
        metrics.dtssd([frame] * 3, [frame] * 2)
    with pytest.raises(ImageError, match="2x2 is followed by 3x1"):
        metrics.dtssd([frame, row(0, 0, 0)], [frame, row(0, 0, 0)])


# ---------------------------------------------------------------- trimaps


def slow_trimap(alpha, radius):
    trimap = np.full(alpha.shape, 128, np.uint8)
    for p in product(*map(range, alpha.shape)):
        near = [alpha[q] for q in product(*map(range, alpha.shape)) if math.dist(p, q) <= radius]
        if min(near) > 1 - 0.5 / 255:
            trimap[p] = 255
        if max(near) < 0.5 / 255:
            trimap[p] = 0
    return trimap


@given(pairs(), st.sampled_from([0, 1, 1.5, 2, 4]))
def test_drawn_trimap_equals_its_slow_reference(pair, radius):
    _, truth, _ = pair
    assert np.array_equal(draw_trimap(truth, radius), slow_trimap(truth, radius))


def test_unknown_region_takes_the_nearest_class():
    trimap = np.array([[0, 63, 65, 127, 128, 129, 190, 192, 255]], np.uint8)
    assert unknown_region(trimap).tolist() == [[False] * 2 + [True] * 5 + [False] * 2]


def test_a_negative_radius_is_refused():
    with pytest.raises(ImageError, match="-1"):
        draw_trimap(np.zeros((2, 2)), -1)
