"""Figures of what saved policies do with their memory: the files of --memory_steps and --lookback (support/lookback.py)."""
import glob
import json
import os

import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from support import drawing
from support.statistics import INTERVAL, interval
from support.system import fail, regular
from support.tasks import task
from support.words import middle, wrap

FIGURES = {                                                            # kind: title, axes, explanation
    "lookback": (
        "How far back does a policy look?", "steps back", "how far the action moves",
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
            about = json.loads(file.readline()[2:])
        return about, pd.read_csv(path, comment="#")
    except Exception as error:                                         # a damaged file may raise anything
        raise ValueError(f"{path} is damaged ({' '.join(str(error).split())[:150]}); make it again, or delete it") from None


def files(folder, *kinds):
    """A folder's files of some kinds, or of all."""
    return sorted(path for kind in kinds or FIGURES for path in glob.glob(f"{glob.escape(folder)}/*.{kind}.csv"))


def draw(folder, own=()):
    """The figures of a folder's files, {"lookback": figure, "memory_steps": figure}, with a panel per policy. The
    reader's own, of the folders in `own`, stand after them and have names. Exits with 2 and one line if a file is damaged."""
    drawn = {}
    for kind, (title, x_label, y_label, text) in FIGURES.items():
        try:
            found = [(*read(path), os.path.basename(path).removesuffix(f".{kind}.csv") if at in own else "")
                     for at in (folder, *own) for path in files(at, kind)]
        except ValueError as error:
            fail(str(error))
        if not found:
            continue
        across = min(3, len(found))
        down = -(-len(found) // across)
        with matplotlib.style.context(drawing.STYLE):
            fig = Figure(figsize=(9, 1.2 + 2.3 * down), dpi=150, layout="constrained")
            axes = fig.subplots(down, across, squeeze=False).flat
            for ax, (about, table, name) in zip(axes, found):
                steps, value = table.iloc[:, 0].drop_duplicates(), table.columns[-1]
                each = np.stack([table[table.iloc[:, 0] == step][value] for step in steps], 1)  # (episodes, steps)
                low, high, _ = interval(each)
                x = np.arange(len(steps)) if kind == "memory_steps" else steps.astype(int)
                ax.fill_between(x, low, high, alpha=0.25, lw=0, color=drawing.COLOURS["LSTM"])
                ax.plot(x, each.mean(0), marker="o" if len(x) < 20 else "", color=drawing.COLOURS["LSTM"])
                if kind == "memory_steps":
                    ax.set_xticks(x, steps)
                config = about["config"]
                seen = {"full": ""}.get(config["observe"], f", {config['observe']} only")
                words = f"{config['policy']}: {task(config['env'], seen)[0]}"
                whose = f"\nyours: {middle(name, 50)}" if name else ""
                ax.set_title(wrap(" ".join(words.split()) + whose, 30), loc="left", weight="bold", size=10)
                ax.set(xlabel=x_label, ylabel=y_label)
                bottom, top = min(0, low.min()), max(1e-6, high.max())
                ax.set_ylim(bottom - 0.05 * (top - bottom) * (bottom < 0), top + 0.05 * (top - bottom))
            drawn[kind] = drawing.finish(fig, title, text + INTERVAL + ".")
    return drawn
