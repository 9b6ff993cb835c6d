"""The results of a study's case in two tables, however many runs it has: what sweep.py makes of the files of its finished runs.

    CASE.csv         a row per evaluation    arm, seed, step, return_mean, return_std, length_mean, seconds, and what --staleness
                                             measured at the first update after it
    CASE.runs.csv    a row per run           arm, seed, its file's name, commit, versions, machine, minutes, a column per flag

    pandas.read_csv("results/memory/TD3_cue.csv").groupby(["arm", "seed"]).return_mean.mean()
"""
import contextlib
import json
import os
import re

import pandas as pd

from utils import alone, write_file

STALENESS = ["delta_q_first", "delta_q_last", "delta_hidden_first", "delta_hidden_last"]


def name(case):
    """Of a case's tables, without an ending."""
    return re.sub(r"\W+", "_", case)


def read_text(path):
    """A table as it is written, all its cells text; empty if there is none."""
    return pd.read_csv(path, dtype=str, keep_default_na=False) if os.path.exists(path) else pd.DataFrame()


def collected(path):
    """The names of the runs that the tables CASE.csv and CASE.runs.csv hold. path: of both, without an ending."""
    return set(read_text(path + ".runs.csv").get("run", ()))


def evaluations(run, eval_freq):
    """A run's evaluations, a row each. run: the path of its files, without an ending."""
    episodes = pd.read_csv(run + ".csv").groupby("step")
    table = pd.DataFrame({"return_mean": episodes["return"].mean(), "return_std": episodes["return"].std(ddof=0),
                          "length_mean": episodes["length"].mean(), "seconds": episodes["seconds"].last()})
    table[STALENESS] = float("nan")
    with contextlib.suppress(FileNotFoundError):
        measured = pd.read_csv(run + ".staleness.csv")
        table.update(measured.set_index(measured["step"] // eval_freq * eval_freq)[STALENESS])
    return table.reset_index()


def collect(path, arm, order, run):
    """Move a finished run into the tables of its case. Raises OSError; its own files are then still there.

    Args:
        path: of both tables, without an ending
        arm: the run's arm; order: all arms, in the order that the tables keep
        run: the path of the run's files, without an ending
    """
    with open(run + ".json") as file:
        info = json.load(file)
    config, key = info["config"], {"arm": arm, "seed": info["config"]["seed"]}
    versions = {k: v for k, v in info["versions"].items()}
    row = {**key, "run": os.path.basename(run), "commit": info["commit"], **versions, "minutes": round(info["seconds"] / 60, 2),
           "cpu_minutes": round(info["cpu_seconds"] / 60, 2), "resumed": len(info.get("resumed", [])),
           **{k: v for k, v in config.items() if k not in key}}
    with alone(path, 30):
        for end, new in ((".csv", evaluations(run, config["eval_freq"]).assign(**key)), (".runs.csv", pd.DataFrame([row]))):
            new = new[list(key) + [column for column in new if column not in key]]
            new = new.map(lambda x: f"{x:.6g}" if isinstance(x, float) and x == x else "" if pd.isna(x) else str(x))
            old = read_text(path + end)
            if len(old):                                               # not twice, should it have been killed in between
                old = old[(old["arm"] != arm) | (old["seed"] != str(key["seed"]))]
            table = pd.concat([old, new]).fillna("")
            place = table["arm"].map(order.index) * 1_000_000 + table["seed"].astype(int)
            write_file(path + end, table.iloc[place.argsort(kind="stable")].to_csv(index=False, lineterminator="\n").encode())
    remove(run)


def remove(run):
    """A collected run's own files: they are in the tables now."""
    for end in (".csv", ".json", ".staleness.csv", ".log"):
        with contextlib.suppress(FileNotFoundError):
            os.remove(run + end)
