"""Intervals over seeds. The kind was chosen by measuring how often it misses: studies/coverage.py, docs/study.md.

Student's t, for a mean and for a difference. Arms are compared seed by seed: runs of one seed are evaluated on the same
episodes, so what makes a seed's episodes hard is in both of its scores and cancels. A share of a gain has Fieller's interval:
all shares r for which Student's interval of the seeds' (arm - none) - r (common - none) includes 0. With r = 1 that number is
arm - common. So the share's interval includes 1 exactly where that of the difference includes 0.
"""
import numpy as np
from scipy.stats import t

FEW = 5                                                                # with fewer seeds there is only a range
LAST = 5                                                               # evaluations at a run's end, whose mean is its number
LEVEL = 0.95
INTERVAL = "95% interval (Student's t)"


def factor(n):
    """Half the width of an interval of the mean of n numbers, in their standard deviations."""
    return t.ppf((1 + LEVEL) / 2, n - 1) / n ** 0.5


def interval(x):
    """(seeds, ...) -> low, high of the mean over seeds, (...), and "interval"; or lowest, highest and "range"; or NaN and ""."""
    x = np.asarray(x, float)
    if len(x) < 2:
        return np.full(x.shape[1:], np.nan), np.full(x.shape[1:], np.nan), ""
    if len(x) < FEW:
        return x.min(0), x.max(0), "range"
    half = factor(len(x)) * x.std(0, ddof=1)
    return x.mean(0) - half, x.mean(0) + half, "interval"


def share(arm, common, none):
    """Share of the gain common - none that arm keeps, and low, high, kind of it. Each (seeds,), the same seeds in the same order.

    NaN and "" if the gain itself is not shown to be above 0: the share would have no bounds.
    """
    kept, gain = np.subtract(arm, none, dtype=float), np.subtract(common, none, dtype=float)
    low, _, kind = interval(gain)
    if not low > 0:
        return np.nan, np.nan, np.nan, ""
    k, g = kept.mean(), gain.mean()
    if kind == "range":
        return k / g, (kept / gain).min(), (kept / gain).max(), kind
    square = factor(len(gain)) ** 2 / (len(gain) - 1)
    a = g * g - square * ((gain - g) * (gain - g)).sum()               # r is in the interval if a r^2 - 2 b r + c <= 0
    b = g * k - square * ((gain - g) * (kept - k)).sum()
    c = k * k - square * ((kept - k) * (kept - k)).sum()
    half = max(b * b - a * c, 0) ** 0.5
    return k / g, (b - half) / a, (b + half) / a, kind
