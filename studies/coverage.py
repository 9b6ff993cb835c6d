"""How often does an interval over seeds miss? Simulated, since the truth has to be known. Writes studies/coverage.csv.

    python studies/coverage.py                                  (some minutes)

Scores are drawn as those of the studies are: runs that are stuck or have solved the task, runs that all solve it at slightly
different times, skewed ones, arms that spread differently, seeds whose evaluation episodes are harder for every arm. Each draw
has an arm, the common arm and one without memory, of n seeds each. An interval is made of

    mean         of the arm
    difference   arm - common
    share        (arm - none) / (common - none), where common is shown to be better than none

by each of these methods:

    percentile   bootstrap: each arm's seeds are resampled on their own
    BCa          the same bootstrap, corrected for bias and skew
    bootstrap t  the same bootstrap, of Student's ratio
    unpaired     for a mean Student's t, for a difference Welch's, for a share Fieller's with Welch's degrees of freedom
    paired       Student's t of the seeds' own differences, for a share Fieller's with these

coverage: how often it holds the truth, which should be 0.95. width: the mean width over that of `paired` (difference alone).
"""
import os
import sys

import numpy as np
import pandas as pd
from scipy.stats import norm, t

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from support.statistics import LEVEL, factor  # noqa: E402

DRAWS, RESAMPLES = 4_000, 999
TAILS = np.array([(1 - LEVEL) / 2, (1 + LEVEL) / 2])
METHODS = ["percentile", "BCa", "bootstrap t", "unpaired", "paired"]


def cue(rng, chance, stuck=0.0, delay=0.05):
    """A run's share of right choices: 1 from a random time on, or stuck, on one side or on a mix of both."""
    side = rng.random(chance.shape)
    solved = 1 - 0.5 * delay * rng.gamma(3, 1 / 2, chance.shape)
    return np.where(rng.random(chance.shape) < stuck, side * chance + (1 - side) * (1 - chance), solved)


def cues(rng, size, arm, common):
    """Three arms on a cue task, the last without memory. It is chance how many of a seed's 50 cues are of one kind."""
    chance = rng.binomial(50, 0.5, size) / 50
    return np.stack([cue(rng, chance, **arm), cue(rng, chance, **common), cue(rng, chance, stuck=1)])


def spread(rng, size, means, own, shared=0.0, skew=False):
    """Three arms around their means; `shared` is what a seed's episodes add to all arms; skewed ones have a tail below."""
    noise = 1 - rng.exponential(1, (3, *size)) if skew else rng.normal(0, 1, (3, *size))
    return np.reshape(means, (3, 1, 1)) + np.reshape(own, (3, 1, 1)) * noise + shared * rng.normal(0, 1, size)


SITUATIONS = {
    "all solve, at slightly different times": lambda *a: cues(*a, dict(delay=0.05), dict(delay=0.05)),
    "all solve, the arm three times as late": lambda *a: cues(*a, dict(delay=0.3), dict(delay=0.1)),
    "stuck: 1 of 10, common none": lambda *a: cues(*a, dict(stuck=0.1), dict()),
    "stuck: 1 of 10 in both": lambda *a: cues(*a, dict(stuck=0.1), dict(stuck=0.1)),
    "stuck: 3 of 10, common 1 of 10": lambda *a: cues(*a, dict(stuck=0.3), dict(stuck=0.1)),
    "stuck: 5 of 10, common none": lambda *a: cues(*a, dict(stuck=0.5), dict()),
    "stuck: 9 of 10, common none": lambda *a: cues(*a, dict(stuck=0.9), dict()),
    "one hump, equal spread": lambda *a: spread(*a, [-800, -700, -1300], [100, 100, 100]),
    "one hump, the arm's spread four times as wide": lambda *a: spread(*a, [-800, -700, -1300], [200, 50, 50]),
    "one hump, skewed": lambda *a: spread(*a, [-800, -700, -1300], [150, 100, 50], skew=True),
    "one hump, seeds differ in all arms alike": lambda *a: spread(*a, [-600, -450, -1050], [50, 50, 50], 70),
    "one hump, a small gain": lambda *a: spread(*a, [-900, -850, -1000], [80, 80, 80], 50)}


def estimate(quantity, means):
    """(3, ...) -> the quantity, and its derivatives by the three means."""
    a, c, n = means
    if quantity == "share":
        share = (a - n) / (c - n)
        return share, np.stack([np.ones_like(a), -share, share - 1]) / (c - n)
    return (a, np.reshape([1, 0, 0], (3,) + a.ndim * (1,))) if quantity == "mean" else \
        (a - c, np.reshape([1, -1, 0], (3,) + a.ndim * (1,)))


def bootstraps(quantity, x, rng):
    """Low and high, (draws,), of the three bootstraps. x: (3, draws, n). The draws share their choices of seeds."""
    n, middle = x.shape[-1], x.mean(-1, keepdims=True)
    times = np.swapaxes(rng.multinomial(n, np.full(n, 1 / n), (3, RESAMPLES)), 1, 2) / n
    means = (x - middle) @ times                                       # (3, draws, resamples)
    squares = np.maximum((x - middle) ** 2 @ times - means ** 2, 0) * n / (n - 1)

    def error(slope, variance):
        return ((slope ** 2 * variance).sum(0) / n) ** 0.5
    value, slope = estimate(quantity, middle[..., 0])
    again, slopes = estimate(quantity, means + middle)
    yield np.quantile(again, TAILS, axis=1)
    pull = slope[..., None] * (x - middle)
    skew = (pull ** 3).sum((0, 2)) / np.maximum(6 * (pull ** 2).sum((0, 2)) ** 1.5, 1e-300)
    bias = norm.ppf(np.clip(((again < value[:, None]) + 0.5 * (again == value[:, None])).mean(1), 1e-3, 1 - 1e-3))
    z = bias + norm.ppf(TAILS)[:, None]
    ordered, at = np.sort(again, axis=1), norm.cdf(bias + z / (1 - skew * z))
    yield np.take_along_axis(ordered, (at * (RESAMPLES - 1)).round().astype(int).T, 1).T
    ratio = (again - value[:, None]) / np.maximum(error(slopes, squares), 1e-12)
    yield value - np.quantile(ratio, TAILS[::-1], axis=1) * error(slope, x.var(-1, ddof=1))


def misses(quantity, x, truth, rng):
    """Yields, for each method: its name, whether it held the truth (draws,), its mean width."""
    n = x.shape[-1]
    for method, (low, high) in zip(METHODS, bootstraps(quantity, x, rng)):
        yield method, (low <= truth) & (truth <= high), (high - low).mean()
    of = np.reshape([1, -truth, truth - 1] if quantity == "share" else [1, -1 * (quantity == "difference"), 0], (3, 1, 1))
    distance = abs((of * x).sum(0).mean(-1) - (truth if quantity != "share" else 0))
    parts = of[..., 0] ** 2 * x.var(-1, ddof=1) / n
    error, freedom = parts.sum(0) ** 0.5, parts.sum(0) ** 2 / np.maximum((parts ** 2 / (n - 1)).sum(0), 1e-300)
    half = t.ppf(TAILS[1], freedom) * error
    yield "unpaired", distance <= half, 2 * half.mean()
    half = factor(n) * (of * x).sum(0).std(-1, ddof=1)
    yield "paired", distance <= half, 2 * half.mean()


def main():
    np.seterr(divide="ignore", invalid="ignore")                       # a resample without any gain
    rows = []
    for situation, draw in SITUATIONS.items():
        truths = draw(np.random.default_rng(1), (10_000, 100)).mean((1, 2))
        for n in (10, 5):
            rng = np.random.default_rng(0)
            scores = draw(rng, (DRAWS, n))
            for quantity in ("mean", "difference", "share"):
                gain = scores[1] - scores[2]
                x = scores[:, gain.mean(1) > factor(n) * gain.std(1, ddof=1)] if quantity == "share" else scores
                truth, held, widths = estimate(quantity, truths)[0], {}, {}
                for chunk in np.array_split(x, max(1, x.shape[1] // 100), axis=1):
                    for method, holds, width in misses(quantity, chunk, truth, rng):
                        held.setdefault(method, []).append(holds)
                        widths.setdefault(method, []).append(width)
                for method in METHODS:
                    width = np.mean(widths[method]) / np.mean(widths["paired"])
                    rows.append(dict(quantity=quantity, situation=situation, n=n, method=method,
                                     coverage=f"{np.concatenate(held[method]).mean():.3f}",
                                     width=f"{width:.2f}" if quantity == "difference" else ""))
    table = pd.DataFrame(rows)
    table.to_csv(os.path.splitext(os.path.abspath(__file__))[0] + ".csv", index=False, lineterminator="\n")
    print(table.assign(coverage=table.coverage.astype(float)).pivot_table(
        index=["quantity", "n", "situation"], columns="method", values="coverage", sort=False).to_string())


if __name__ == "__main__":
    main()
