"""Figures of a study (support/study.py): the answers on one picture, a figure per question."""
import re
import textwrap

import matplotlib.style
import numpy as np
from matplotlib.colors import LinearSegmentedColormap, TwoSlopeNorm, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from support import drawing, staleness_figure, tasks
from support.drawing import FAINT, INK
from support.study import COMMON, NONE, cell, columns, identical, progress, questions, words

COLOURS = LinearSegmentedColormap.from_list("", ["#b3480a", "#ef9f5c", "#fbf7f0", "#8fbbdd", "#1f639f"])
NORM = TwoSlopeNorm(1, 0, 1.6)                                         # a share of 1 is the pale middle
EMPTY, LATE = "#f1f1f1", "#b3480a"
LOOKS = {COMMON: "#0072b2", NONE: "#8a8a8a"}                           # colours after Okabe and Ito


def answers(study, table):
    """The picture that answers all: a row per choice, a column per case, the share of memory's gain that is kept."""
    groups, asked, rows = columns(study, table), questions(study), table.set_index(["case", "arm"])
    cases = [case for _, them in groups for case in them]
    same = bool(identical(table[table.arm != COMMON]).any()) or any("identical" in case for case in study.cases.values())
    planned = sum(case["planned"] for case in study.cases.values())
    late, fewer = len(study.runs) < planned, bool((table.share_n < study.seeds).any())
    left, top, tall, head, gap = 2.85, 1.75, 0.42, 0.36, 0.1            # all in inches
    wide = min(1.1, (12 - left - 0.1 - gap * (len(groups) - 1)) / len(cases))
    bottom = top + 0.62 + sum(head + tall * len(arms) for arms in asked.values())
    with matplotlib.style.context(drawing.STYLE):
        fig = Figure(figsize=(12, bottom + 0.75), dpi=150)
        ax = fig.add_axes((0, 0, 1, 1))
        ax.set(xlim=(0, 12), ylim=(bottom + 0.75, 0))
        ax.axis("off")

        def write(x, y, text, size=10, **look):
            ax.text(x, y, text, **dict(size=size, color=INK, ha="left", va="center", linespacing=1.15) | look)
        write(0.15, 0.28, "Change one thing about the memory: how much of its gain is left?", 17, weight="bold")
        write(0.15, 0.83, textwrap.fill(
            f"The reference: {words(study, COMMON)}. Each row changes one thing about it. A number is the share of what memory "
            "adds to the score (the mean of all evaluations) that is kept: 1 is as good as the reference, 0 no better than no "
            f"memory. Below: its 95% interval over {study.seeds} seeds{', in pale cells over n, or the range' * fewer}. Bold: "
            "told apart from the reference. A ring \u25cb: not told apart, which says little if the interval is wide."
            + ' "identical": this changes nothing there.' * same + " An empty cell: no such choice, or not run."
            " Does an answer depend on the algorithm? Read along its row.", 150), 10, color=FAINT)
        left_of, x = {}, left
        for name, them in groups:
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
                    if said := cell(study, rows, case, arm):
                        draw_cell(write, ax, (left_of[case], y, wide, tall), said)
                y += tall
        key(write, ax, left, bottom + 0.28)
        if late:
            waiting = "; ".join(case for case in study.cases if case not in set(cases))
            write(11.9, 0.28, f"Unfinished:\n{len(study.runs)} of {planned} runs", 9, color=LATE, ha="right")
            write(7.5, bottom + 0.35, textwrap.fill(f"No runs yet: {waiting}" * bool(waiting), 70), 8, color=LATE, va="top")
    return fig


def draw_cell(write, ax, box, said):
    """One share: its number, its interval, its colour. said: a Cell of support/study.py"""
    x, y, wide, tall = box
    shown = np.isfinite(said.share)
    colour = np.array(to_rgb(COLOURS(NORM(said.share)) if shown else EMPTY))
    if said.count:                                                     # fewer seeds: paler
        colour += 0.6 * (1 - colour)
    dark = shown and np.dot(colour[:3], (0.3, 0.59, 0.11)) < 0.55      # how bright an eye sees red, green and blue
    ax.add_patch(Rectangle((x, y), wide, tall, facecolor=colour, edgecolor="white", lw=1.5))
    lines = [line for line in ((said.number, 10.5), (said.below, 7.2), (said.count, 6.2)) if line[0]]
    at = y + tall / 2 - sum(size for _, size in lines) / 2 / 72 * 1.05
    for text, size in lines:
        at += size / 72 * 1.05
        fits = 0.94 * wide * 72 / (0.6 * len(text))
        write(x + wide / 2, at - 0.02, text, min(size, fits), ha="center", va="baseline",
              color="white" if dark else INK if shown else FAINT, weight=700 if said.told and text == said.number else 400)


def key(write, ax, x, y):
    """The scale of colours."""
    for i, share in enumerate(np.linspace(0, 1.6, 161)):
        ax.add_patch(Rectangle((x + 0.02 * i, y), 0.021, 0.14, facecolor=COLOURS(NORM(share)), lw=0))
    for share, text in ((0, "0: no better\nthan no memory"), (1, "1: as good as\nthe reference"), (1.6, "more:\nbetter")):
        write(x + 2 * share, y + 0.3, text, 7.5, ha="left" if not share else "center", color=FAINT)


def question(study, table, asked):
    """One question: its arms between the reference and no memory, a panel per case."""
    arms, panels = list(dict.fromkeys([COMMON, *questions(study)[asked], NONE])), []
    reference = f"reference: {study.reference[asked]}" if asked in study.reference else "reference"
    for name, cases in columns(study, table):
        env = study.cases[cases[0]]["env"]
        _, unit, *ends = tasks.task(env)
        ends = drawing.limits([study.runs[study.runs.case.isin(cases)].score], *ends)
        for case in cases:
            mine = study.runs[study.runs.case == case]
            if mine.arm.isin(questions(study)[asked]).any():
                panels.append((f"{study.cases[case]['policy']}: {name}", unit, ends, tasks.marks(env), [
                    (reference if arm == COMMON else words(study, arm), LOOKS.get(arm, "#d55e00"),
                     mine[mine.arm == arm].score, None) for arm in arms]))
    return drawing.dot_plot(study.answers.get(asked, asked), (
        "the mean of all its evaluations but the one before training.",
        f"The reference: {words(study, COMMON)}. Each row below it changes one thing about it; {words(study, NONE)}: the same "
        "networks without a recurrent core."), panels, min(3, len(panels)))


def draw(study, table):
    """All figures of a study, {file's name: figure}."""
    return {"answers": answers(study, table), "staleness": staleness_figure.draw(study, table),
            **{re.sub(r"\W+", "_", asked).strip("_"): question(study, table, asked)
               for asked, arms in questions(study).items() if set(arms) & set(table.arm)}}
