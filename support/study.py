"""A study of many seeds in numbers: reads its TOML and its committed tables (support/tables.py) alone.

    score   of a run: the mean over its evaluations but the one at step 0; `last`: the mean of its last five
    share   of an arm: (arm - no memory) / (common - no memory), only where common is shown to be above no memory
    versus  the common arm: "better" or "worse" if the interval of the difference excludes 0, else "not told apart"; nothing with
            fewer than five seeds

Shares and differences are of the seeds that all the arms compared have by now. Intervals: support/statistics.py.
"""
import os
import tomllib
from dataclasses import dataclass

import pandas as pd

from support import statistics, tables
from support.system import fail

COMMON, NONE, LAST = "common", "no memory", 5


@dataclass
class Study:
    arms: dict                  # name -> its table [[runs]]
    cases: dict                 # name -> its table [[cases]], and how many runs are `planned`
    answers: dict               # question -> sentence, of those that are answered
    seeds: int
    runs: pd.DataFrame          # a row per finished run: case, arm, seed, score, last, delta_q_first ..., cpu_minutes


def read(path, folder):
    """The study and its finished runs. Exits with 2 and one line if there are none."""
    where, runs = path, []
    try:
        with open(path, "rb") as file:
            toml = tomllib.load(file)
        arms, cases = [{table["name"]: table for table in toml[kind]} for kind in ("runs", "cases")]
        assert {COMMON, NONE} <= set(arms), f"two of its [[runs]] must have the names '{COMMON}' and '{NONE}'"
        asked = {arm["question"] for arm in arms.values()}
        for question in toml.get("answers", {}):
            assert question in asked, f"'{question}' in [answers] must be the question of some [[runs]]"
        for name, case in cases.items():
            case["planned"] = len(toml["seeds"]) * sum(arm not in case.get("without", []) for arm in arms)
            where = os.path.join(folder, tables.name(name))
            if os.path.exists(where + ".runs.csv"):
                runs.append(scores(where).assign(case=name))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
        fail(f"{where} cannot be drawn ({type(error).__name__}: {error}); --study draws studies of sweep.py that have [[cases]], "
             "whose [[runs]] all have a question, from the tables of their cases")
    runs = pd.concat(runs or [pd.DataFrame(columns=["arm"])])
    runs = runs[runs.arm.isin(list(arms))]
    if runs.empty:
        fail(f"no finished run of {path} is in '{folder}'; run sweep.py first, or give another --results_dir")
    return Study(arms, cases, toml.get("answers", {}), len(toml["seeds"]), runs)


def scores(path):
    """A row per run of a case. path: of its two tables, without an ending."""
    table, runs = pd.read_csv(path + ".csv"), pd.read_csv(path + ".runs.csv").set_index(["arm", "seed"])
    by_run = table[table.step > 0].groupby(["arm", "seed"], sort=False)
    last = by_run.tail(LAST).groupby(["arm", "seed"]).return_mean.mean()
    measured = by_run[tables.STALENESS].mean()
    return measured.assign(score=by_run.return_mean.mean(), last=last, cpu_minutes=runs.cpu_minutes).reset_index()


def summarise(study):
    """The tidy table: a row per case and arm, with its question, numbers and intervals."""
    rows = []
    for case, runs in study.runs.groupby("case", sort=False):
        wide = runs.pivot(index="seed", columns="arm", values="score").reindex(columns=list(study.arms))
        for name, arm in study.arms.items():
            mine = runs[runs.arm == name]
            if mine.empty:
                continue
            row = dict(case=case, question=arm["question"], arm=name, n=len(mine))
            for number in ("score", "last"):
                low, high, row["kind"] = statistics.interval(mine[number])
                row |= {number: mine[number].mean(), number + "_low": float(low), number + "_high": float(high)}
            three = wide[[COMMON, NONE]].assign(arm=wide[name]).dropna()
            share = statistics.share(three["arm"], three[COMMON], three[NONE])
            low, high, kind = statistics.interval((wide[name] - wide[COMMON]).dropna())
            versus = "worse" if high < 0 else "better" if low > 0 else "not told apart"
            row |= dict(zip(("share", "share_low", "share_high", "share_kind"), share), share_n=len(three),
                        versus=versus if kind == "interval" and name != COMMON else "")
            rows.append(row | mine[[*tables.STALENESS, "cpu_minutes"]].mean().to_dict())
    return pd.DataFrame(rows)
