"""Figures of what saved policies do with their memory: the files of --memory_steps and --lookback (support/lookback.py)."""
import glob
import io
import json
import os

import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from support import drawing
from support.statistics import FEW, INTERVAL, interval
from support.system import fail, regular
from support.tasks import heading, marks, task, what_is_seen
from support.words import ALGORITHMS, middle, wrap

FIGURES = {                                                            # kind: title, axes, explanation
    "lookback": (
        "How far back does a policy look?", "steps back", "the action moves by",
        "One row of the history is replaced by another episode's. The line says how far the action then moves, in units of its "
        "own spread; with discrete actions, how often it is another one. It is the mean over episodes, the band its "),
    "memory_steps": (
        "How many steps of its memory does a policy need?", "steps that the memory is made of", "return",
        "At every step the memory is unrolled from zero over the last steps alone. The line is the mean over episodes, the band "
        "its ")}


def read(path):
    """Read a file of lookback.write: its dictionary, and a pandas table. Raises ValueError, with one line, if it is damaged."""
    try:
        with open(regular(path), encoding="utf-8") as file:
            about, rows = json.loads(file.readline()[2:]), file.read()
        table, config = pd.read_csv(io.StringIO(rows)), about["config"]
        step, _, value = table.columns
        if not all(isinstance(config[name], str) for name in ("policy", "env", "observe")):
            raise ValueError("a flag is no text")
        if path.endswith(".lookback.csv"):
            table[step] = table[step].astype(int)
        if not rows.endswith("\n") or not len(table) or table.groupby(step).size().nunique() > 1:
            raise ValueError("rows are missing")
        if not (table[value].abs() < 1e30).all():
            raise ValueError(f"a {value} is missing, or not finite")
        return about, table
    except Exception as error:                                         # a damaged file may raise anything
        raise ValueError(f"{path} is damaged ({' '.join(str(error).split())[:150]}); make it again, or delete it") from None


def files(folder, *kinds):
    """A folder's files of some kinds, or of all."""
    return sorted(path for kind in kinds or FIGURES for path in glob.glob(f"{glob.escape(folder)}/*.{kind}.csv"))


def draw(folder, own=()):
    """The figures of a folder's files, {"lookback": figure, "memory_steps": figure}: a panel per task, a line per policy. The
    reader's own, of the folders in `own`, have panels after them, with names. Exits with 2 and one line if a file is damaged."""
    drawn = {}
    for kind, (title, x_label, y_label, text) in FIGURES.items():
        panels = {}
        try:
            for at in dict.fromkeys((folder, *own)):
                for path in files(at, kind):
                    about, table = read(path)
                    name = os.path.basename(path).removesuffix(f".{kind}.csv") if at in own and at != folder else ""
                    config, steps = about["config"], table.iloc[:, 0].drop_duplicates()
                    key = (config["env"], what_is_seen(config["observe"]), tuple(steps), name)
                    panels.setdefault(key, []).append((config["policy"], table))
        except ValueError as error:
            fail(str(error))
        if panels:
            across = min(3, len(panels))
            down = -(-len(panels) // across)
            with matplotlib.style.context(drawing.STYLE):
                fig = Figure(figsize=(9, 1.2 + 2.5 * down), dpi=150, layout="constrained")
                for ax, (key, lines) in zip(fig.subplots(down, across, squeeze=False).flat, panels.items()):
                    panel(ax, kind, *key, lines)
                    ax.set_xlabel(x_label)
                    ax.set_ylabel(ax.get_ylabel() or y_label)
                drawn[kind] = drawing.finish(fig, title, text + f"{INTERVAL}, with fewer than {FEW} their range.")
    return drawn


def panel(ax, kind, env, seen, steps, name, lines):
    """One task: a line per policy, with its band. seen: as what_is_seen says"""
    x, values = np.arange(len(steps)) if kind == "memory_steps" else np.array(steps, int), []
    for policy, table in lines:
        each = np.stack([table[table.iloc[:, 0] == step][table.columns[-1]] for step in steps], 1)      # (episodes, steps)
        low, high, _ = interval(each)
        colour = ALGORITHMS.get(policy, drawing.INK)
        ax.fill_between(x, low, high, alpha=0.2, lw=0, color=colour)
        ax.plot(x, each.mean(0), marker="o" if len(x) < 20 else "", ms=4, color=colour, label=policy)
        values += [low, high, each.mean(0)]
    if kind == "memory_steps":
        ax.set_xticks(x, steps)
        ax.set_ylabel(drawing.mark(ax.axhline, task(env)[1], marks(env), "\n"))
    if len(lines) > 1:
        ax.legend(loc="upper left", frameon=False, fontsize=8, ncols=2, handlelength=1.2, columnspacing=0.8)
    words = f"{lines[0][0]}: " * (len(lines) == 1) + heading(env, seen)
    ax.set_title(wrap(words + f"\nyours: {middle(name, 50)}" * bool(name), 27), loc="left", weight="bold", size=10)
    bottom, top = min(0, np.nanmin(values)), max(1e-6, np.nanmax(values))         # of one episode there is no band
    ax.set_ylim(bottom - 0.05 * (top - bottom) * (bottom < 0), top + 0.05 * (top - bottom))
