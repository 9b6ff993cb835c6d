"""The results of a study's case in two tables, however many runs it has: what sweep.py makes of the files of its finished runs.

    CASE.csv         a row per evaluation    arm, seed, step, return_mean, return_std, length_mean, seconds, and what --staleness
                                             measured at the first update after it
    CASE.runs.csv    a row per run           arm, seed, its file's name, number of its evaluations, commit, versions, machine,
                                             minutes, and a column per flag

    pandas.read_csv("results/memory/TD3_cue.csv").groupby(["arm", "seed"]).return_mean.mean()
"""
import collections
import contextlib
import csv
import io
import json
import os
import re

import numpy as np
import pandas as pd

from support.results import read_info, read_rows
from support.system import PATIENCE, alone, regular, write_file

COMMON, NONE = "common", "no memory"                                   # the two arms that plot.py --study needs
STALENESS = ["delta_q_first", "delta_q_last", "delta_hidden_first", "delta_hidden_last"]


def name(case):
    """The name of a case's tables, without an ending."""
    return re.sub(r"\W+", "_", case)


def seeds_of(arm, case, seeds):
    """The seeds of an arm in a case, two tables of a study: the arm's own, or else the case's, or else the study's `seeds`."""
    return arm.get("seeds", case.get("seeds", seeds))


def left_out(case):
    """The arms that a case, a table of a study, does not run: it has no such choice, or they are the common arm to the bit."""
    return [*case.get("without", []), *case.get("identical", [])]


def read_text(path):
    """A table whose cells are all text; empty if there is none. Raises ValueError, with one line, if it is damaged."""
    if not os.path.lexists(path):
        return pd.DataFrame()
    try:
        with open(regular(path), encoding="utf-8", newline="") as file:
            text = file.read()
        head, *rows = csv.reader(io.StringIO(text, newline=""), strict=True)
        if not text.endswith("\n") or any(len(row) != len(head) for row in rows) or len({*head}) < len(head):
            raise ValueError("a line is not whole")
        table = pd.DataFrame(rows, columns=head)
        table[["arm", "seed"]].astype({"seed": int})
    except Exception as error:                                         # a damaged file may raise anything
        raise damaged(path, getattr(error, "strerror", None) or error) from None
    return table


def damaged(path, why):
    return ValueError(f"{path} is missing or damaged ({' '.join(str(why).split())[:150]}); put a copy in its place, or delete "
                      "both tables of the case, and its runs are run again")


def collected(path):
    """The runs that the tables CASE.csv and CASE.runs.csv hold, {name: its row of the second, all text}. path: both tables,
    without an ending. Raises ValueError, with one line, if a table is damaged, or lacks rows of a run."""
    runs, rows = read_text(path + ".runs.csv"), read_text(path + ".csv")
    if not len(runs):
        return {}
    there = collections.Counter(zip(rows["arm"], rows["seed"]) if len(rows) else ())
    for arm, seed, written in zip(runs["arm"], runs["seed"], runs.get("evaluations", [""] * len(runs))):
        if there[arm, seed] == 0 or written not in ("", str(there[arm, seed])):    # older tables do not say how many
            raise damaged(path + ".csv", f"{there[arm, seed]} of {written} evaluations of {arm}, seed {seed}, are there")
    return {row["run"]: row for row in runs.to_dict("records")}


def text_of(value):
    """A value as a table has it."""
    return f"{value:.6g}" if isinstance(value, float) and value == value else "" if pd.isna(value) else str(value)


def flags_of(row, config):
    """The flags in a row of CASE.runs.csv, as far as `config`, a dictionary of flags, has them, too. A flag that is written like
    the one of `config` is this one."""
    return {name: value if text_of(value) == row[name] else {"True": True, "False": False}.get(row[name], row[name])
            for name, value in config.items() if row.get(name)}


def times(info):
    """What a run took, from its JSON, as its row of CASE.runs.csv has it."""
    return {"minutes": round(info["seconds"] / 60, 2), "cpu_minutes": round(info["cpu_seconds"] / 60, 2)}


def evaluations(run, info):
    """A run's evaluations, a row each. run: the path of its files, without an ending; info: its JSON."""
    def table(end, columns):
        rows = read_rows(run, end, info)
        if not rows and end == ".csv":                                 # a short run may have measured nothing of --staleness
            raise ValueError(f"{end} has no row")
        return pd.DataFrame(rows, columns=None if rows else columns)[columns].replace("nan", "").apply(pd.to_numeric)
    episodes = table(".csv", ["step", "return", "length", "seconds"])
    steps = episodes["step"].astype(float)
    if not (episodes.abs() < 1e30).all(axis=None) or not (steps.between(0, 2 ** 32) & (steps % 1 == 0)).all():
        raise ValueError("a number is missing, or cannot be one of a run")
    episodes = episodes.groupby("step")
    result = pd.DataFrame({"return_mean": episodes["return"].mean(), "return_std": episodes["return"].std(ddof=0),
                           "length_mean": episodes["length"].mean(), "seconds": episodes["seconds"].last()})
    result[STALENESS] = float("nan")
    if os.path.lexists(run + ".staleness.csv") or ".staleness.csv" in info.get("lines", {}):
        measured = table(".staleness.csv", ["step", *STALENESS])
        before = np.searchsorted(result.index, measured["step"], "right") - 1  # the evaluation before each measurement
        result.update(measured.groupby(result.index[before])[STALENESS].last())
    return result.reset_index()


def collect(path, arm, order, run, check):
    """Move a finished run into the tables of its case. Raises OSError, or ValueError, with one line, if a file is damaged. The
    run's own files are then still there.

    Args:
        path: both tables, without an ending
        arm: the run's arm; order: all arms, in the order that the tables keep
        run: the path of the run's files, without an ending
        check: raises ValueError for flags that no run can have had (flags.check_saved)
    """
    try:
        info = read_info(run, check)
        rows, config, key = evaluations(run, info), info["config"], {"arm": arm, "seed": info["config"]["seed"]}
        row = {**key, "run": os.path.basename(run), "evaluations": len(rows), "commit": info.get("commit", ""),
               **info.get("versions", {}), **times(info), "resumed": len(info.get("resumed", [])),
               **{k: v for k, v in config.items() if k not in key}}
    except Exception as error:                                         # a damaged file may raise anything
        raise ValueError(f"its results are damaged: {' '.join(str(error).split())[:150]}") from None
    with alone(path, PATIENCE):
        collected(path)                                                # raises before a damaged table is written again
        for end, new in ((".csv", rows.assign(**key)), (".runs.csv", pd.DataFrame([row]))):
            new = new[list(key) + [column for column in new if column not in key]]
            new = new.map(text_of)
            old = read_text(path + end)
            if len(old):                                               # an interrupted `collect` may have left these rows
                old = old[(old["arm"] != arm) | (old["seed"] != str(key["seed"]))]
            table = pd.concat([old, new]).fillna("")
            place = table["arm"].map({name: i for i, name in enumerate(order)}).fillna(len(order))   # others last
            place = np.lexsort((table["seed"].astype(int), place))
            write_file(path + end, table.iloc[place].to_csv(index=False, lineterminator="\n").encode())
    remove(run, row)


def remove(run, row):
    """Remove the own files of a run that is in the tables. Files of another run with these flags stay: one by hand, for instance.

    run: the path of its files, without an ending; row: its row of CASE.runs.csv
    """
    try:
        with open(regular(run + ".json"), encoding="utf-8") as file:
            minutes = times(json.load(file))
    except (OSError, ValueError, KeyError, TypeError):
        return
    if any(text_of(value) != text_of(row.get(name)) for name, value in minutes.items()):
        return
    for end in (".csv", ".staleness.csv", ".log", ".json"):            # the JSON last: this may be interrupted
        with contextlib.suppress(OSError):
            os.remove(run + end)
