"""Figures of a study (support/study.py): the answers on one picture, a figure per question, Delta-Q beside the loss."""
import re
import textwrap

import matplotlib.style
import numpy as np
from matplotlib.colors import LinearSegmentedColormap, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from scipy.stats import spearmanr

from support import drawing
from support.drawing import FAINT, INK
from support.study import COMMON, NONE, columns, progress, questions, task, words

COLOURS = LinearSegmentedColormap.from_list("", ["#b3480a", "#ef9f5c", "#fbf7f0", "#8fbbdd", "#1f639f"])
NORM = TwoSlopeNorm(1, 0, 1.6)                                         # a share of 1 is the pale middle
EMPTY, LATE = "#f1f1f1", "#b3480a"
LOOKS = {COMMON: "#0072b2", NONE: "#8a8a8a"}                           # colours after Okabe and Ito, here and below
ALGORITHMS = {"TD3": "#0072b2", "PPO": "#009e73", "SAC": "#cc79a7", "A2C": "#a08a00", "R2D1": "#d55e00", "DDPG": "#56b4e9",
              "REINFORCE": "#8a6a55", "BCQ": "#222222"}


def number(x):
    return f"{x:.{2 if abs(x) < 10 else 0}f}".replace("-", "\u2212") if np.isfinite(x) else "-"


def answers(study, table):
    """The picture that answers all: a row per choice, a column per case, the share of memory's gain that is kept."""
    tasks, asked, rows = columns(study, table), questions(study), table.set_index(["case", "arm"])
    cases = [case for _, them in tasks for case in them]
    left, top, tall, head, gap = 2.85, 1.75, 0.42, 0.36, 0.1            # all in inches
    wide = min(1.1, (12 - left - 0.1 - gap * (len(tasks) - 1)) / len(cases))
    bottom = top + 0.62 + sum(head + tall * len(arms) for arms in asked.values())
    with matplotlib.style.context(drawing.STYLE):
        fig = Figure(figsize=(12, bottom + 0.75), dpi=150)
        ax = fig.add_axes((0, 0, 1, 1))
        ax.set(xlim=(0, 12), ylim=(bottom + 0.75, 0))
        ax.axis("off")

        def write(x, y, text, size=10, **look):
            ax.text(x, y, text, **dict(size=size, color=INK, ha="left", va="center", linespacing=1.15) | look)
        write(0.15, 0.28, "How much of what memory gains is left, when one thing about it is changed?", 17, weight="bold")
        write(0.15, 0.83, textwrap.fill(
            f"The reference: {words(study, COMMON)}. Each row changes one thing about it. A number is the share of what memory "
            "adds to the score (the mean return while training) that is kept: 1 is as good as the reference, 0 no better than no "
            f"memory. Below it is its 95% interval over {study.seeds} seeds. A ring \u25cb marks what is not told apart from the "
            "reference.", 150), 10, color=FAINT)
        left_of, x = {}, left
        for name, them in tasks:
            size = 9.5 if len(them) > 1 else 7.5
            write(x + wide * len(them) / 2, top + 0.05, name, size, ha="center", va="bottom", weight="bold")
            ax.plot([x + 0.05, x + wide * len(them) - 0.05], [top + 0.14] * 2, color=INK, lw=0.8)
            for case in them:
                left_of[case] = x
                write(x + wide / 2, top + 0.3, study.cases[case]["policy"], 10, ha="center")
                write(x + wide / 2, top + 0.47, progress(study, case), 6.5, ha="center", color=LATE)
                x += wide
            x += gap
        y = top + 0.62
        for question, arms in asked.items():
            write(0.15, y + head / 2 + 0.03, question, 10.5, weight="bold")
            write(4, y + head / 2 + 0.03, textwrap.shorten(study.answers.get(question, ""), 110, placeholder=" ..."), 9)
            y += head
            for arm in arms:
                write(0.3, y + tall / 2, words(study, arm) + "\n(small: score without, with)" * (arm == NONE), 10)
                for case in cases:
                    cell(write, ax, (left_of[case], y, wide, tall), rows, case, arm, study.seeds)
                y += tall
        key(write, ax, left, bottom + 0.28)
        planned, begun = sum(case["planned"] for case in study.cases.values()), set(cases)
        if len(study.runs) < planned:
            write(7.5, bottom + 0.35, f"Unfinished: {len(study.runs)} of {planned} runs.\n" + textwrap.fill(
                ", ".join(f"{case}: none yet" for case in study.cases if case not in begun), 70), 8, color=LATE, va="top")
    return fig


def cell(write, ax, box, rows, case, arm, seeds):
    """One share: its number, its interval, its colour, its mark. Empty if the case has no such arm."""
    if (case, arm) not in rows.index:
        return
    (x, y, wide, tall), row = box, rows.loc[(case, arm)]
    shown = np.isfinite(row.share)                                     # else memory gains nothing here, or not yet
    colour = COLOURS(NORM(row.share)) if shown else EMPTY
    ink = "white" if shown and np.dot(colour[:3], (0.3, 0.59, 0.11)) < 0.55 else INK if shown else FAINT
    same = row.share_kind == "interval" and row.share_low <= 1 <= row.share_high
    # Arms that are the same computation, as windows of 32 steps and whole episodes of 11, have the same scores to the bit
    small = "identical" if row.share_low == row.share_high == 1 else \
        f"{number(row.share_low)}{' to ' if row.share_low < 0 else chr(0x2013)}{number(row.share_high)}"
    lines = [(("\u25cb " if same else "") + number(row.share), 10.5), (small, 7.2)]
    if arm == NONE:
        lines = [("0" if shown else "no gain shown", 10.5 if shown else 7.2),
                 (f"{number(row.score)}, {number(rows.loc[(case, COMMON)].score)}", 7.2)]
    elif not shown:
        lines = [("no gain shown" if row.share_n > 1 else "too few seeds", 7.2)]
    if row.share_n < seeds:
        lines.append(("range, " * (row.share_kind == "range") + f"n={row.share_n:.0f}", 6.2))
    ax.add_patch(Rectangle((x, y), wide, tall, facecolor=colour, edgecolor="white", lw=1.5))
    at = y + tall / 2 - sum(size for _, size in lines) / 2 / 72 * 1.05
    for (text, size), bold in zip(lines, (not same, False, False)):
        at += size / 72 * 1.05
        size = min(size, 0.94 * wide * 72 / (0.6 * len(text)))         # so that the text fits
        write(x + wide / 2, at - 0.02, text, size, ha="center", va="baseline", color=ink, weight=700 if bold and shown else 400)


def key(write, ax, x, y):
    """The scale of colours."""
    for i, share in enumerate(np.linspace(0, 1.6, 161)):
        ax.add_patch(Rectangle((x + 0.02 * i, y), 0.021, 0.14, facecolor=COLOURS(NORM(share)), lw=0))
    for share, text in ((0, "0: no better\nthan no memory"), (1, "1: as good as\nthe reference"), (1.6, "more:\nbetter")):
        write(x + 2 * share, y + 0.3, text, 7.5, ha="left" if not share else "center", color=FAINT)


def question(study, table, asked):
    """One question: its arms between the reference and no memory, a panel per case."""
    arms, panels = list(dict.fromkeys([COMMON, *questions(study)[asked], NONE])), []
    for name, cases in columns(study, table):
        _, unit, *ends = task(study.cases[cases[0]])
        ends = drawing.limits([study.runs[study.runs.case.isin(cases)].score], *ends)
        for case in cases:
            mine = study.runs[study.runs.case == case]
            if mine.arm.isin(questions(study)[asked]).any():
                panels.append((f"{study.cases[case]['policy']}: {name}", unit, ends, [
                    ("the reference" if arm == COMMON else words(study, arm), LOOKS.get(arm, "#d55e00"),
                     mine[mine.arm == arm].score, None) for arm in arms]))
    return drawing.dot_plot(study.answers.get(asked, asked), ("the mean of all its evaluations but the one before training.", ""),
                            panels, min(3, len(panels)))


def staleness(study, table):
    """Does Delta-Q predict the loss? A dot is an arm of a case."""
    known = table[table.delta_q_first.notna() & table.share.notna() & (table.arm != COMMON)]
    tasks, loss = [cases for _, cases in columns(study, table)], 1 - known.share
    with matplotlib.style.context(drawing.STYLE):
        fig = Figure(figsize=(9, 5.6), dpi=150, layout="constrained")
        ax = fig.subplots()
        for case, mine in known.groupby("case", sort=False):
            marker = "osD^vP*"[[case in cases for cases in tasks].index(True) % 7]
            ax.plot(mine.delta_q_first, loss[mine.index], marker, color=ALGORITHMS.get(study.cases[case]["policy"], INK), ms=7,
                    alpha=0.75, mew=0, label=case)
        ax.axhline(0, color=INK, lw=0.8)
        ax.set_xscale("symlog", linthresh=1e-3)
        ax.xaxis.set_major_formatter("{x:g}")
        ax.set(xlabel="Delta-Q at a window's first trained step, mean over runs",
               ylabel="loss: share of memory's gain that is not kept")
        if len(known):
            fig.legend(loc="outside right center", frameon=False)
        rank = spearmanr(known.delta_q_first, loss).statistic if len(known) > 2 else np.nan
        return drawing.finish(
            fig, f"Does a stale start of a window (Delta-Q) predict what is lost? Rank correlation {number(rank)}",
            f"A dot is an arm of a case, {len(known)} in all; the correlation is Spearman's. Delta-Q (Kapturowski et al. 2019) "
            "is how far the critic's values are off because a window starts from another state than the one unrolled over the "
            "episode.")


def draw(study, table):
    """All figures of a study, {file's name: figure}."""
    return {"answers": answers(study, table), "staleness": staleness(study, table),
            **{re.sub(r"\W+", "_", asked).strip("_"): question(study, table, asked)
               for asked, arms in questions(study).items() if set(arms) & set(table.arm)}}
