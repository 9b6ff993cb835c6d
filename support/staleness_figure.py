"""The figure that lays a study's Delta-Q (support/staleness.py) beside what is lost: a dot per arm and case."""
import matplotlib.style
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from support import drawing
from support.study import COMMON, columns
from support.words import decimals

COLOURS = {"TD3": "#0072b2", "PPO": "#009e73", "SAC": "#cc79a7", "A2C": "#a08a00", "R2D1": "#d55e00", "DDPG": "#56b4e9",
           "REINFORCE": "#8a6a55", "BCQ": "#222222"}                   # after Okabe and Ito
SAYS = {0: "next to nothing", 0.2: "a little", 0.5: "much", 0.8: "nearly all"}     # from which rank correlation on


def draw(study, table):
    """How much does Delta-Q say about the loss?"""
    known = table[table.delta_q_first.notna() & table.share.notna() & (table.arm != COMMON)]
    tasks, loss = [cases for _, cases in columns(study, table)], 1 - known.share
    with matplotlib.style.context(drawing.STYLE):
        fig = Figure(figsize=(9, 5.6), dpi=150, layout="constrained")
        ax = fig.subplots()
        for case, mine in known.groupby("case", sort=False):
            marker = "osD^vP*"[[case in cases for cases in tasks].index(True) % 7]
            colour = COLOURS.get(study.cases[case]["policy"], drawing.INK)
            ax.plot(mine.delta_q_first, loss[mine.index], marker, color=colour, ms=7, alpha=0.75, mew=0, label=case)
        ax.axhline(0, color=drawing.INK, lw=0.8)
        ax.set_xscale("symlog", linthresh=1e-3)
        ax.set_xlim(-2e-4, 1.5 * max(known.delta_q_first, default=1))
        ax.xaxis.set_major_formatter("{x:g}")
        ax.set(xlabel="Delta-Q at a window's first trained step, mean over runs",
               ylabel="share of memory's gain that is lost\n(0: as good as the reference, 1: no better than no memory)")
        if len(known):
            fig.legend(loc="outside right center", frameon=False)
        rank = spearmanr(known.delta_q_first, loss).statistic if len(known) > 2 else float("nan")
        says = [word for least, word in SAYS.items() if abs(rank) >= least] or ["nothing yet"]
        return drawing.finish(
            fig, f"How stale a window's start is (Delta-Q) says {says[-1]} about what is lost",
            f"A dot is one change to the reference, for one algorithm on one task; there are {len(known)}. The rank correlation "
            f"(Spearman's) of their Delta-Q and their loss is {decimals(rank)}: 1 if the staler one always lost more, 0 if there "
            "were no order. Delta-Q (Kapturowski et al. 2019) is how far the critic's values are off because a window "
            "starts from another state than the one unrolled over the episode.")
