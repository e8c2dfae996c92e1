"""Aggregates of scores over tasks and seeds (Agarwal et al. 2021, arXiv 2108.13264), in numpy.

Scores are a list of arrays, one for each task, with a number for each training seed: the mean over its
evaluation episodes. Tasks may have different numbers of seeds. Point estimates are those of rliable 1.2.0;
given the same resampled scores, so are the intervals (tests/test_report.py).
"""

import numpy as np

Scores = list[np.ndarray]  # of each task: [..., seed]
RESAMPLES = 10_000


def iqm(scores: Scores) -> np.ndarray:
    """The interquartile mean: of all tasks' scores together, less a quarter (rounded down) at either end."""
    pooled = np.sort(np.concatenate(scores, axis=-1))
    cut = pooled.shape[-1] // 4
    return pooled[..., cut : pooled.shape[-1] - cut].mean(axis=-1)


def resample(scores: Scores, rng: np.random.Generator, n: int = RESAMPLES) -> Scores:
    """n bootstrap samples, stratified: each task's seeds are drawn anew from that task's; [n, seed] each."""
    return [x[rng.integers(len(x), size=(n, len(x)))] for x in scores]


def interval(samples: np.ndarray, level: float = 0.95) -> np.ndarray:
    """The percentile interval, [2], of a statistic with the bootstrap values [n]."""
    return np.percentile(samples, [50 * (1 - level), 50 * (1 + level)], axis=0)
