"""Figures of a study (support/study.py): the answers on one picture, a figure per question, Delta-Q beside the loss."""
import re
import textwrap

import matplotlib.style
import numpy as np
from matplotlib.colors import LinearSegmentedColormap, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from scipy.stats import spearmanr

from support.statistics import FEW, INTERVAL
from support.study import COMMON, NONE

COLOURS = LinearSegmentedColormap.from_list("", ["#b3480a", "#ef9f5c", "#fbf7f0", "#8fbbdd", "#1f639f"])
NORM = TwoSlopeNorm(1, 0, 1.6)                                         # a share of 1 is the pale middle
INK, FAINT, EMPTY, LATE = "#1a1a1a", "#5f5f5f", "#f1f1f1", "#b3480a"
LOOKS = {COMMON: "#0072b2", NONE: "#8a8a8a"}                           # after Okabe and Ito, as the next lines
ALGORITHMS = {"TD3": "#0072b2", "PPO": "#009e73", "SAC": "#cc79a7", "A2C": "#a08a00", "R2D1": "#d55e00", "DDPG": "#56b4e9",
              "REINFORCE": "#8a6a55", "BCQ": "#222222"}
# Of an environment: its task in words; what its score counts; the least and the most it can be, if there are any
TASKS = [(r"Cue(?:Discrete)?(\d+)-v0", r"Recall a cue\nseen \1 steps ago", "share of right choices", 0, 1),
         (r"Pendulum-v1", r"Swing up\na pendulum", "return (0 is best)", None, 0),
         (r"CartPole-v1", r"Balance a pole\non a cart", "steps upright", 0, 500),
         (r"HopperBulletEnv-v0", r"Hop on\none leg", "return", 0, None),
         (r"(.*)", r"\1", "return", None, None)]
STYLE = ["default", {"font.size": 8, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
                     "grid.color": "#e8e8e8", "axes.axisbelow": True}]


def task(case):
    """Of a case: its task in words, what its score counts, least, most."""
    pattern, words, unit, low, high = next(entry for entry in TASKS if re.fullmatch(entry[0], case["env"]))
    seen = f"\n{case['observe']} only" if case.get("observe", "full") != "full" else ""
    return re.sub(pattern, words, case["env"]) + seen, unit, low, high


def words(study, arm):
    return study.arms[arm].get("words", arm)


def questions(study):
    """{question: its arms, those that all figures have left out}, Q1 first."""
    asked = {}
    for name, arm in study.arms.items():
        if name != COMMON:
            asked.setdefault(arm["question"], []).append(name)
    return dict(sorted(asked.items()))


def columns(study, table):
    """The cases that have runs, those of one task side by side: [(task in words, [cases])]."""
    tasks = {}
    for case in study.cases:
        if case in set(table.case):
            tasks.setdefault(task(study.cases[case])[0], []).append(case)
    return list(tasks.items())


def progress(study, case):
    """In words, how much of a case is there; empty if all is."""
    there, planned = (study.runs.case == case).sum(), study.cases[case]["planned"]
    return f"{there} of {planned} runs" if there < planned else ""


def number(x):
    return f"{x:.{2 if abs(x) < 10 else 0}f}".replace("-", "\u2212") if np.isfinite(x) else "-"


def span(low, high):
    return f"{number(low)}{' to ' if min(low, high) < 0 else chr(0x2013)}{number(high)}"


def answers(study, table):
    """The picture that answers all: a row per choice, a column per case, the share of memory's gain that is kept."""
    tasks, asked, rows = columns(study, table), questions(study), table.set_index(["case", "arm"])
    cases = [case for _, them in tasks for case in them]
    left, top, tall, head, gap = 2.85, 1.75, 0.42, 0.36, 0.1            # all in inches
    wide = min(1.1, (12 - left - 0.1 - gap * (len(tasks) - 1)) / len(cases))
    bottom = top + 0.62 + sum(head + tall * len(arms) for arms in asked.values())
    with matplotlib.style.context(STYLE):
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
        places, x = {}, left
        for name, them in tasks:
            size = 9.5 if len(them) > 1 else 7.5
            write(x + wide * len(them) / 2, top + 0.05, name, size, ha="center", va="bottom", weight="bold")
            ax.plot([x + 0.05, x + wide * len(them) - 0.05], [top + 0.14] * 2, color=INK, lw=0.8)
            for case in them:
                places[case] = x
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
                    cell(write, ax, (places[case], y, wide, tall), rows, case, arm, study.seeds)
                y += tall
        key(write, ax, left, bottom + 0.28)
        planned, begun = sum(case["planned"] for case in study.cases.values()), set(cases)
        if len(study.runs) < planned:
            write(7.5, bottom + 0.35, f"Unfinished: {len(study.runs)} of {planned} runs.\n" + textwrap.fill(
                ", ".join(f"{case}: none yet" for case in study.cases if case not in begun), 70), 8, color=LATE, va="top")
    return fig


def cell(write, ax, place, rows, case, arm, seeds):
    """One share: its number, its interval, its colour, its mark. Empty if the case has no such arm."""
    if (case, arm) not in rows.index:
        return
    (x, y, wide, tall), row = place, rows.loc[(case, arm)]
    shown = np.isfinite(row.share)                                     # else the case has no gain to share, or not yet
    colour = COLOURS(NORM(row.share)) if shown else EMPTY
    ink = "white" if shown and np.dot(colour[:3], (0.3, 0.59, 0.11)) < 0.55 else INK if shown else FAINT
    same = row.share_kind == "interval" and row.share_low <= 1 <= row.share_high
    # Arms that are the same computation, as windows of 32 steps and whole episodes of 11, have the same scores to the bit
    small = "identical" if row.share_low == row.share_high == 1 else span(row.share_low, row.share_high)
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
        size = min(size, 0.94 * wide * 72 / (0.6 * len(text)))         # so that it fits
        write(x + wide / 2, at - 0.02, text, size, ha="center", va="baseline", color=ink, weight=700 if bold and shown else 400)


def key(write, ax, x, y):
    """The scale of colours."""
    for i, share in enumerate(np.linspace(0, 1.6, 161)):
        ax.add_patch(Rectangle((x + 0.02 * i, y), 0.021, 0.14, facecolor=COLOURS(NORM(share)), lw=0))
    for share, text in ((0, "0: no better\nthan no memory"), (1, "1: as good as\nthe reference"), (1.6, "more:\nbetter")):
        write(x + 2 * share, y + 0.3, text, 7.5, ha="left" if not share else "center", color=FAINT)


def look(arm):
    return LOOKS.get(arm, "#d55e00")


def question(study, table, asked):
    """One question: its arms between the reference and no memory, a panel per case; dots are seeds."""
    arms = list(dict.fromkeys([COMMON, *questions(study)[asked], NONE]))
    cases = [case for _, them in columns(study, table) for case in them
             if set(questions(study)[asked]) & set(table[table.case == case].arm)]
    across = min(6, len(cases))
    down, tall = -(-len(cases) // across), 0.95 + 0.27 * len(arms)
    rows = table.set_index(["case", "arm"])
    title = textwrap.fill(study.answers.get(asked, asked), 95)
    text = (f"{asked} " * (title != asked) + f"A dot is a seed's score: the mean of all its evaluations but the one before "
            f"training. The line is the mean of the {study.seeds} seeds, the bar its {INTERVAL}, with fewer than {FEW} seeds "
            "their range.")
    with matplotlib.style.context(STYLE):
        fig = Figure(figsize=(12, 1.0 + down * tall + 0.3 * title.count("\n")), dpi=150, layout="constrained")
        axes = fig.subplots(down, across, squeeze=False)
        for ax in axes.flat[len(cases):]:
            ax.remove()
        for i, (ax, case) in enumerate(zip(axes.flat, cases)):
            name, unit, least, most = task(study.cases[case])
            for y, arm in enumerate(arms):
                mine = study.runs[(study.runs.case == case) & (study.runs.arm == arm)]
                if mine.empty:
                    continue
                row, few = rows.loc[(case, arm)], f"n={len(mine)}" if len(mine) < study.seeds else ""
                ax.plot(mine.score, y + np.linspace(-0.18, 0.18, len(mine)), "o", color=look(arm), ms=3.5, alpha=0.55, mew=0,
                        clip_on=False)
                ax.plot([row.score_low, row.score_high], [y, y], color=look(arm), lw=6, alpha=0.3, solid_capstyle="butt")
                ax.plot([row.score] * 2, [y - 0.33, y + 0.33], color=look(arm), lw=2)
                ax.text(1.02, y, few, transform=ax.get_yaxis_transform(), va="center", size=6.5, color=LATE)
            ax.set_title(f"{study.cases[case]['policy']}: {name}", loc="left", size=8)
            names = [words(study, arm) if arm != COMMON else "the reference" for arm in arms]
            ax.set(ylim=(len(arms) - 0.5, -0.5), yticks=range(len(arms)), yticklabels=[] if i % across else names, xlabel=unit)
            scores = study.runs[study.runs.case.isin(dict(columns(study, table))[name])].score
            room = 0.05 * (scores.max() - scores.min())
            ax.set_xlim(scores.min() - room if least is None else least, scores.max() + room if most is None else most)
            for arm, tick in zip(arms, ax.get_yticklabels()):
                tick.set_color(look(arm))
        fig.suptitle(title, x=0.01, ha="left", weight="bold", size=13)
        fig.supxlabel(textwrap.fill(text, 180), x=0.01, ha="left", color=FAINT, size=8)
        fig.draw_without_rendering()
    return fig


def staleness(study, table):
    """Does Delta-Q predict the loss? A dot is an arm of a case."""
    known = table[table.delta_q_first.notna() & table.share.notna() & (table.arm != COMMON)]
    loss = 1 - known.share
    with matplotlib.style.context([*STYLE, {"font.size": 10}]):
        fig = Figure(figsize=(8, 5.6), dpi=150, layout="constrained")
        ax = fig.subplots()
        for case, mine in known.groupby("case", sort=False):
            policy = study.cases[case]["policy"]
            marker = "osD^vP*"[[name for name, _ in columns(study, table)].index(task(study.cases[case])[0]) % 7]
            ax.plot(mine.delta_q_first, loss[mine.index], marker, color=ALGORITHMS.get(policy, INK), ms=7, alpha=0.75, mew=0,
                    label=case)
        ax.axhline(0, color=INK, lw=0.8)
        rank = spearmanr(known.delta_q_first, loss).statistic if len(known) > 2 else np.nan
        ax.set_xscale("symlog", linthresh=1e-3)
        ax.set(xlabel="Delta-Q at a window's first trained step, mean over runs",
               ylabel="loss: share of memory's gain that is not kept")
        ax.set_title(f"Does a stale start of a window (Delta-Q) predict what is lost?\nRank correlation {number(rank)} "
                     f"(Spearman's, n = {len(known)} arms of {known.case.nunique()} cases)", loc="left", weight="bold", size=12)
        if len(known):
            fig.legend(loc="outside right upper", frameon=False, fontsize=9)
        fig.supxlabel("A dot is an arm of a case. Delta-Q (Kapturowski et al. 2019) is how far the critic's values are off "
                      "because\na window starts from another state than the one unrolled over the episode; 0 is not at all.",
                      x=0.01, ha="left", color=FAINT, size=8.5)
        fig.draw_without_rendering()
    return fig


def draw(study, table):
    """{file's name: figure}: all of a study."""
    return {"answers": answers(study, table), "staleness": staleness(study, table),
            **{re.sub(r"\W+", "_", asked).strip("_"): question(study, table, asked)
               for asked, arms in questions(study).items() if set(arms) & set(table.arm)}}
