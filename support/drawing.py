"""Figures of plot.py: the overview of dots, and curves with a panel per algorithm. Colour is memory, wherever it is drawn."""
import functools
import re
import textwrap
from dataclasses import dataclass

import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from support.statistics import FEW, INTERVAL, LAST, interval
from support.tasks import FULL, PUBLISHED, SOURCES, heading, marks, task
from support.words import middle, number, wrap

MOST = 4                                                               # lines in a panel
INK, FAINT = "#1a1a1a", "#5f5f5f"
COLOURS = {"none": "#6b6b6b", "LSTM": "#0072b2", "GRU": "#d55e00", "minGRU": "#009e73"}    # after Okabe and Ito
STYLE = ["default", {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
                     "grid.color": "#e8e8e8", "axes.axisbelow": True, "text.parse_math": False}]   # a $ in a name is a $
SPREAD = f"{INTERVAL}, with fewer than {FEW} seeds their range"
short = EngFormatter(sep="")                                           # 200k, 1.5M


@dataclass(eq=False)
class Line:
    """Runs that differ in nothing but the seed."""
    env: str
    seen: str                   # in words, what the agent sees
    file: str                   # name of the task's figure, without an ending
    policy: str
    memory: str                 # in words
    colour: str
    config: dict                # all its flags
    flags: dict                 # those that differ from the defaults
    own: bool                   # are the runs the reader's own, not committed ones?
    offline: bool               # are its steps updates?
    runs: list                  # each has: config, table (a row per evaluation, indexed by step), finished
    label: str = ""             # memory, and the flags in which the lines of an algorithm differ
    without: "Line | None" = None     # the line without memory that it is compared with

    def table(self, column="return_mean"):
        """One column of all runs, (steps, seeds), at the steps that all seeds have."""
        return pd.concat({run.config["seed"]: run.table[column].dropna() for run in self.runs}, axis=1).dropna().sort_index()

    @functools.cached_property
    def last(self):
        """Each seed's mean of its last evaluations."""
        return self.table().tail(LAST).mean()

    @property
    def heading(self):
        return heading(self.env, self.seen)


def grouped(lines, key):
    """{key: lines}, in the order of the lines."""
    groups = {}
    for line in lines:
        groups.setdefault(key(line), []).append(line)
    return groups


def tally(lines):
    """How many lines have all seeds above all seeds of their line without memory, "3 of 5"; else an empty text"""
    pairs = [line for line in lines if line.without]
    better = sum(line.last.min() > line.without.last.max() for line in pairs)
    return f"{better} of {len(pairs)}" if pairs else ""


def verdict(lines):
    """What memory does to all of these lines, as a sentence, or an empty text."""
    seen = grouped(lines, lambda line: line.heading.endswith(FULL))
    counts = [f"{tally(seen[kind])} times where {where}" for kind, where in
              ((False, "something is hidden"), (True, "all is seen")) if tally(seen.get(kind, []))]
    return "Every seed with memory ends above every seed without: " + ", ".join(counts) if counts else ""


def limits(values, least, most):
    """The ends of an axis: `least` and `most` if all values lie between them, else a little beyond the values."""
    values = np.concatenate([np.ravel(x) for x in values])
    room = 0.05 * (np.ptp(values) or 1)
    low = values.min() - room if least is None or values.min() < least else least
    high = values.max() + room if most is None or values.max() > most else most
    return low - 0.01 * (high - low), high + 0.01 * (high - low)       # room for the whole of a dot at an end


def mark(line, unit, them, between):
    """Draw a task's marks, each a dashed line of an axis. Returns the words beside this axis."""
    for value, _ in them:
        line(value, color=FAINT, lw=0.9, ls=(0, (4, 3)), zorder=1.5)
    return between.join([unit, *(f"(dashed: {word}, {value:g})" for value, word in them)])


def finish(fig, title, text):
    fig.suptitle(wrap(title, 88), x=0.01, ha="left", weight="bold", size=12)
    fig.supxlabel(textwrap.fill(text, 130), x=0.01, ha="left", color=FAINT, size=9)
    for ax in fig.axes:
        ax.has_data() or ax.remove()                                   # a grid of panels may have one too many
    fig.draw_without_rendering()                                       # within the style, which ticks take when first drawn
    return fig


def dot_plot(title, text, panels, across=1):
    """A dot per seed. text: what a dot is, and what else is to be said. panels: (title, unit, ends of the axis, marks, rows).
    A row is label, colour, a value per seed, a published value or None. None instead of a row is a gap."""
    tall = [sum(1 if row else 0.5 for row in rows) for *_, rows in panels[::across]]
    with matplotlib.style.context(STYLE):
        high = (1.3 if across == 1 else 1.75) + sum((0.75 if across == 1 else 1.2) + 0.185 * rows for rows in tall)
        fig = Figure(figsize=(9, high), dpi=150, layout="constrained")
        axes = fig.subplots(len(tall), across, squeeze=False, height_ratios=tall)
        for i, (ax, (name, unit, ends, them, rows)) in enumerate(zip(axes.flat, panels)):
            y, ticks = 0, []
            for row in rows:
                if row:
                    label, colour, values, published = row
                    ticks.append((y, middle(label, 55) if i % across == 0 else "", colour))
                    if len(values):
                        low, high, _ = interval(values)
                        ax.plot([low, high], [y, y], color=colour, lw=7, alpha=0.25, solid_capstyle="butt")
                        ax.plot(values, y + np.linspace(-0.15, 0.15, len(values)), "o", color=colour, ms=4, alpha=0.7, mew=0,
                                clip_on=False, zorder=3)
                        ax.plot([np.mean(values)] * 2, [y - 0.38, y + 0.38], color=colour, lw=2.2, zorder=3)
                        ax.text(1.015, y, f"{number(np.mean(values))} ({len(values)})", color=colour, va="center",
                                transform=ax.get_yaxis_transform())
                    elif not published:
                        ax.text(0.02, y, "not run", color=FAINT, va="center", transform=ax.get_yaxis_transform())
                    if published:
                        ax.plot(published, y, "D", mfc="white", mec=INK, mew=1.1, ms=5.5, zorder=4, clip_on=False)
                y += 1 if row else 0.5
            ax.set_title(wrap(name, min(60, 84 // across)), loc="left", weight="bold", size=10)
            heights, labels, colours = zip(*ticks)
            ax.set(xlim=ends, ylim=(heights[-1] + 0.7, -0.7), yticks=heights, yticklabels=labels,
                   xlabel=mark(ax.axvline, unit, them, " " if across == 1 else "\n"))
            ax.grid(axis="y", visible=False)
            ax.tick_params(axis="y", length=0)
            for tick, colour in zip(ax.get_yticklabels(), colours):
                tick.set_color(colour)
        return finish(fig, title, f"A dot is a seed: {text[0]} The upright line is their mean, which stands at the right with "
                      f"their number; the bar is its {SPREAD}. {text[1]}")


def overview(lines):
    """A panel per task, a row per algorithm and memory."""
    panels, published = [], dict(PUBLISHED)
    for words, them in grouped(lines, lambda line: line.heading).items():
        rows = []
        for policy, mine in grouped(them, lambda line: line.policy).items():
            if (mine[0].file, policy, False) in published and mine[0].memory != "none":    # without a run here
                rows.append((f"{policy}, no memory", COLOURS["none"], [], published.pop((mine[0].file, policy, False))))
            rows += [(f"{policy}, {line.label}", line.colour, line.last,
                      published.pop((line.file, policy, line.memory != "none"), None)) for line in mine] + [None]
        _, unit, *ends = task(them[0].env)
        values = [x for row in rows if row for x in (row[2], [row[3]] if row[3] else [])]
        panels.append((": ".join(filter(None, [words, tally(them)])), unit, limits(values, *ends), marks(them[0].env), rows[:-1]))
    return dot_plot(verdict(lines) or "Return at the end of training",
                    (f"the mean of its last {LAST} evaluations.", SOURCES * (published != PUBLISHED)), panels)


def curves(lines, column="return_mean"):
    """The curves of a task: a panel per algorithm, of at most MOST lines. column: return_mean, or a Delta-Q they all have"""
    panels = [mine[i:i + MOST] for mine in grouped(lines, lambda line: line.policy).values() for i in range(0, len(mine), MOST)]
    across = min(2, len(panels))
    ends = [[textwrap.fill(re.sub(r"=(?=\S{18})", "= ", line.label) +              # a long value begins a new row
                           f", {len(line.runs)}\u00a0seed{'s' * (len(line.runs) > 1)}", 22) for line in mine]
            for mine in panels]                                        # what stands beside the end of each line
    down, tall = -(-len(panels) // across), max(3.3 - across * 0.8, *(0.16 * "\n".join(them).count("\n") + 0.4 for them in ends))
    (_, unit, *most), title = task(lines[0].env), "\n".join(filter(None, [lines[0].heading, verdict(lines)]))
    text = (f"A line is the mean over seeds, the band its {SPREAD}; thin lines are seeds. Numbers are "
            f"means of the last {LAST} evaluations, which is how a seed ends. Nothing is smoothed.")
    if column != "return_mean":
        unit, most, title = "Delta-Q", (0, None), f"{lines[0].heading}: Delta-Q, {column[8:]} trained step of a window"
    if any(not run.finished for line in lines for run in line.runs):
        text += " \u00d7 is where an unfinished run stands."
    with matplotlib.style.context(STYLE):
        fig = Figure(figsize=(9, 1.4 + (tall + 0.7) * down), dpi=150, layout="constrained")
        axes = fig.subplots(down, across, squeeze=False, sharey=True)
        axes[0, 0].set_ylim(limits([line.table(column) for line in lines], *most))
        for i, (ax, mine, texts) in enumerate(zip(axes.flat, panels, ends)):
            panel(ax, mine, column, texts, tall)
            words = mark(ax.axhline, unit, marks(lines[0].env) if column == "return_mean" else [], "\n")
            ax.set(xlabel="updates" if mine[0].offline else "steps in the environment", ylabel="" if i % across else words)
        return finish(fig, title, text)


def panel(ax, lines, column, texts, tall):
    """The lines of an algorithm, each with its text beside its end, one above the other where these would overlap."""
    labels, (low, high) = [], ax.get_ylim()
    for line, text in zip(lines, texts):
        table, dashes = line.table(column), ["-", "--", ":", "-."][[label[2] for label in labels].count(line.colour)]
        look = dict(color=line.colour, ls=dashes)
        ax.plot(table.index, table.mean(axis=1), lw=2, zorder=3, marker="." * (len(table) == 1), **look)
        ax.fill_between(table.index, *interval(table.T)[:2], color=line.colour, alpha=0.13, lw=0, zorder=1)
        for run in line.runs:
            seed = run.table[column].dropna().sort_index()
            ax.plot(seed.index, seed, lw=0.6, alpha=0.45 * (len(line.runs) > 1), zorder=2, **look)
            ax.plot(seed.index[-1:], seed.iloc[-1:], "" if run.finished else "x", color=line.colour, ms=8, mew=2, zorder=4)
        end = line.last.mean() if column == "return_mean" else table.mean(axis=1).iloc[-1]      # in the order of the numbers
        labels.append(((end - low) / (high - low), text, line.colour, dashes))
    ends = [f"{line.label} {number(line.last.mean())}" for line in lines]
    title = f"{lines[0].policy}: {', '.join(ends)}" if column == "return_mean" else lines[0].policy
    ax.set_title(title if len(title) < 45 else lines[0].policy, loc="left", weight="bold", size=10)
    # If there are runs of the reader's own, a panel ends where the longest of them does
    longest = max(run.table.index.max() for line in [line for line in lines if line.own] or lines for run in line.runs)
    ax.set_xlim(-0.01 * longest, 1.01 * longest or 1)
    ax.xaxis.set_major_formatter(short)
    ax.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10], integer=True, min_n_ticks=1))
    ax.tick_params(labelleft=True)
    labels.sort(key=lambda label: label[0])                            # texts that overlap are pushed up, then down from the top
    high, floor, top = [(0.16 * label[1].count("\n") + 0.19) / tall for label in labels], 0, 1.05
    for i, label in enumerate(labels):
        labels[i] = max(label[0], floor + high[i] / 2), *label[1:]
        floor = labels[i][0] + high[i] / 2
    for i, label in reversed([*enumerate(labels)]):
        labels[i] = min(label[0], top - high[i] / 2), *label[1:]
        top = labels[i][0] - high[i] / 2
    for y, text, colour, dashes in labels:
        ax.plot([1.02, 1.09], [y, y], color=colour, ls=dashes, lw=2, transform=ax.transAxes, clip_on=False)
        ax.text(1.11, y, text, color=colour, transform=ax.transAxes, va="center", linespacing=1.05)
