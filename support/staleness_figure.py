"""The figure that lays a study's Delta-Q (support/staleness.py) beside what is lost: a dot per arm and case."""
import matplotlib.style
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from support import drawing
from support.study import COMMON, columns, identical
from support.words import ALGORITHMS, decimals

SAYS = {0: "next to nothing", 0.3: "a little", 0.7: "much", 0.9: "nearly all"}     # from which rank correlation on
START = {"hidden_init", "burn_in", "hidden_refresh", "critic_hidden"}  # flags that change nothing but what a window starts from
WORDS = {"name", "words", "question"}                                  # what an arm has besides flags


def only_starts(study, arm):
    """Does an arm change nothing about the common one but what a window starts from?"""
    flags = [{(k, str(v)) for k, v in study.arms[name].items() if k not in WORDS} for name in (COMMON, arm)]
    return {k for k, _ in flags[0] ^ flags[1]} <= START


def draw(study, table):
    """How much does Delta-Q say about the loss? Arms that are the common one to the bit are left out: they say nothing."""
    known = table[table.delta_q_first.notna() & table.share.notna() & ~identical(table) & (table.arm != COMMON)]
    known = known.assign(loss=1 - known.share, starts=[only_starts(study, arm) for arm in known.arm])
    tasks, starts = [cases for _, cases in columns(study, table)], known[known.starts]
    with matplotlib.style.context(drawing.STYLE):
        fig = Figure(figsize=(9, 5.6), dpi=150, layout="constrained")
        ax = fig.subplots()
        for case, mine in known.groupby("case", sort=False):
            marker = "osD^vP*"[[case in cases for cases in tasks].index(True) % 7]
            colour = ALGORITHMS.get(study.cases[case]["policy"], drawing.INK)
            for filled, them in mine.groupby("starts"):
                ax.plot(them.delta_q_first, them.loss, marker, color=colour, ms=7, alpha=0.8, mew=1.2,
                        mfc=colour if filled else "white", label=case if filled == mine.starts.any() else None)
        ax.axhline(0, color=drawing.INK, lw=0.8)
        ax.set_xscale("symlog", linthresh=1e-3)
        ax.set_xlim(-2e-4, 1.5 * max(known.delta_q_first, default=1))
        ax.xaxis.set_major_formatter("{x:g}")
        ax.set(xlabel="Delta-Q at a window's first trained step, mean over runs",
               ylabel="share of memory's gain that is lost\n(0: as good as the reference, 1: no better than no memory)")
        if len(known):
            fig.legend(loc="outside right center", frameon=False)
        rank = spearmanr(starts.delta_q_first, starts.loss).statistic if len(starts) > 2 else float("nan")
        says = [word for least, word in SAYS.items() if abs(rank) >= least] or ["nothing yet"]
        return drawing.finish(
            fig, f"How stale a window's start is (Delta-Q) says {says[-1]} about what other starts lose",
            f"A dot is one change to the reference, for one algorithm on one task. Filled dots ({len(starts)}) change only what "
            f"a window starts from; the rank correlation (Spearman's) of their Delta-Q and their loss is {decimals(rank)}: 1 if "
            "the staler one always lost more, 0 if there were no order. Hollow dots change something else, such as a window's "
            "length, and may lose for other reasons. Delta-Q (Kapturowski et al. 2019): how far the critic's values are off "
            "because a window starts from another state than the one unrolled over the episode.")
