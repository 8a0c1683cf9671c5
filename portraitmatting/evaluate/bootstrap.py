"""How sure a mean is, by drawing the images anew, whatever their distribution."""

import itertools
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
_EXACT_UP_TO = 12  # 2**12 sign patterns are fewer than RESAMPLES
_CHUNK = 500  # rows drawn at a time, which bounds memory on large benchmarks

Scores = NDArray[np.float64]


def bootstrap_interval(scores: Scores, seed: int = 0) -> tuple[float, float]:
    """1-d scores, one an image -> 95 % interval (low, high) of their mean; NaNs below 2 scores.

    The percentile bootstrap with 10,000 resamples (Efron and Tibshirani, "An Introduction to the
    Bootstrap", 1993, chapter 13), too narrow for a handful of images. The same seed draws the
    same images for every metric.
    """
    if len(scores) < 2:
        return float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    draws = (rng.integers(len(scores), size=(rows, len(scores))) for rows in _chunks())
    means = np.concatenate([scores[draw].mean(axis=1) for draw in draws])
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def paired_p_value(differences: Scores, seed: int = 0) -> float:
    """1-d differences, one an image -> two-sided p value of their mean being zero; NaN if empty.

    The sign-flip permutation test (Fisher, "The Design of Experiments", 1935): if neither method
    were better, each difference could as well have had the other sign. All sign patterns for up to
    12 images, else 10,000 random ones, of which the smallest p value is 1/10,001 (Phipson and
    Smyth, "Permutation P-values Should Never Be Zero", 2010).
    """
    count = len(differences)
    if count == 0:
        return float("nan")
    # Ties with the observed pattern must count, whatever the order of summation rounds to.
    observed = abs(differences.sum()) * (1 - 1e-12)
    if count <= _EXACT_UP_TO:
        signs = np.array(list(itertools.product((-1.0, 1.0), repeat=count)))
        return float(np.mean(np.abs(signs @ differences) >= observed))
    rng = np.random.default_rng(seed)
    patterns = (rng.choice((-1.0, 1.0), size=(rows, count)) for rows in _chunks())
    as_far = sum(int((np.abs(p @ differences) >= observed).sum()) for p in patterns)
    return (as_far + 1) / (RESAMPLES + 1)


def _chunks() -> Iterator[int]:
    return itertools.repeat(_CHUNK, RESAMPLES // _CHUNK)
