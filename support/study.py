"""A study of many seeds in numbers: reads its TOML and its committed tables (support/tables.py) alone.

    score   of a run: the mean over its evaluations after step 0; `last`: the mean of its last five
    share   of an arm: (arm - no memory) / (common - no memory), only where common is shown to be above no memory
    versus  the common arm: "better" or "worse" if the interval of the difference excludes 0, else "not told apart"; nothing with
            fewer than five seeds

Shares and differences use the seeds that all compared arms have so far. Intervals: support/statistics.py.
"""
import math
import os
import tomllib
from dataclasses import dataclass

import pandas as pd

from support import statistics, tables, tasks
from support.system import fail
from support.tables import COMMON, NONE
from support.words import bounds, decimals


@dataclass
class Study:
    arms: dict                  # name -> its table [[runs]]
    cases: dict                 # name -> its table [[cases]] over [common], and how many runs are `planned`
    answers: dict               # question -> sentence, of those that are answered
    reference: dict             # question -> the common arm's own choice in it, in words
    seeds: int
    runs: pd.DataFrame          # a row per finished run: case, arm, seed, score, last, delta_q_first ..., cpu_minutes


def read(path, folder):
    """Read a study and its finished runs. Exits with 2 and one line if there are none."""
    where, runs = path, []
    try:
        with open(path, "rb") as file:
            toml = tomllib.load(file)
        arms = {table["name"]: table for table in toml["runs"]}
        cases = {table["name"]: {**toml.get("common", {}), **table} for table in toml["cases"]}
        assert {COMMON, NONE} <= set(arms), f"two of its [[runs]] must have the names '{COMMON}' and '{NONE}'"
        asked = {arm["question"] for arm in arms.values()}
        said = [toml.get(kind, {}) for kind in ("answers", "reference")]
        for question in {**said[0], **said[1]}:
            assert question in asked, f"'{question}' in [answers] or [reference] must be the question of some [[runs]]"
        for name, case in cases.items():
            assert {"policy", "env"} <= case.keys(), f"the case '{name}' needs a policy and an env"
            case["planned"] = sum(len(tables.seeds_of(arm, case, toml["seeds"]))
                                  for arm in arms.values() if arm["name"] not in tables.left_out(case))
            where = os.path.join(folder, tables.name(name))
            if os.path.exists(where + ".runs.csv"):
                runs.append(scores(where).assign(case=name))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
        fail(f"{where} cannot be drawn ({type(error).__name__}: {error}); --study draws studies of sweep.py that have [[cases]], "
             "whose [[runs]] all have a question, from the tables of their cases")
    runs = pd.concat(runs or [pd.DataFrame(columns=["arm"])])
    runs = runs[runs.arm.isin(list(arms))]
    if runs.empty:
        fail(f"no finished run of {path} is in '{folder}'; run sweep.py first, or name its folder: plot.py --study FILE FOLDER")
    return Study(arms, cases, *said, len(toml["seeds"]), runs)


def scores(path):
    """A row per run of a case. path: the case's two tables, without an ending"""
    table, runs = pd.read_csv(path + ".csv"), pd.read_csv(path + ".runs.csv").set_index(["arm", "seed"])
    by_run = table[table.step > 0].groupby(["arm", "seed"], sort=False)
    last = by_run.tail(statistics.LAST).groupby(["arm", "seed"]).return_mean.mean()
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


def task(case):
    """A case's task in words, and what is seen of it if that is not all."""
    seen = case.get("observe", "full")
    return tasks.task(case["env"], f"\n{tasks.what_is_seen(seen)}" if seen != "full" else "")[0]


def words(study, arm):
    return study.arms[arm].get("words", arm)


def identical(row):
    """Has an arm the common arm's score in every seed? row: one of the tidy table, or the whole table"""
    return (row.share_low == 1) & (row.share_high == 1)


@dataclass
class Cell:
    share: float                # NaN: memory gains nothing here, or that is not shown yet
    number: str                 # large
    below: str                  # small: its interval, or what there is to say in place of a share
    count: str                  # smallest: over how many seeds, if fewer than the study's
    told: bool                  # told apart from the common arm


def cell(study, rows, case, arm):
    """What the picture of all answers says of an arm in a case, or None if there is nothing.

    rows: the tidy table, by case and arm
    """
    known = arm in study.cases[case].get("identical", [])              # known to be the common arm, and not run
    at = (case, COMMON if known else arm)
    if at not in rows.index:
        return None
    row = rows.loc[at]
    shown, ring = math.isfinite(row.share), row.share_kind == "interval" and row.share_low <= 1 <= row.share_high
    count = ""
    if row.share_n < study.seeds:
        count = f"range, n={row.share_n:.0f}" if row.share_kind == "range" else f"n={row.share_n:.0f}"
    if arm == NONE:
        number = "0" if shown else "no gain shown"
        below = f"{decimals(row.score)}, {decimals(rows.score.get((case, COMMON), math.nan))}"
    elif known:
        number, below = "", "identical"
    elif not shown:
        number, below = "", "no gain shown" if row.share_n > 1 else "too few seeds"
    else:
        number = ("\u25cb " if ring else "") + decimals(row.share)
        # Arms that are the same computation, as windows of 32 steps and whole episodes of 11, have the same scores to the bit
        below = "identical" if identical(row) else bounds(row.share_low, row.share_high)
    return Cell(row.share, number, below, count, shown and row.share_kind == "interval" and not ring)


def questions(study):
    """{question: its arms}, Q1 first. The common arm belongs to no question."""
    asked = {}
    for name, arm in study.arms.items():
        if name != COMMON:
            asked.setdefault(arm["question"], []).append(name)
    return dict(sorted(asked.items()))


def columns(study, table):
    """The cases that have runs, those of one task side by side, algorithms in one order: [(task in words, [cases])]."""
    named, policies = {}, [case["policy"] for case in study.cases.values()]
    for case in study.cases:
        if case in set(table.case):
            named.setdefault(task(study.cases[case]), []).append(case)
    return [(name, sorted(them, key=lambda case: policies.index(study.cases[case]["policy"]))) for name, them in named.items()]


def progress(study, case):
    """In words, how much of a case is there; empty if all is."""
    there, planned = (study.runs.case == case).sum(), study.cases[case]["planned"]
    return f"{there} of {planned} runs" if there < planned else ""


def report(table):
    """The text that the terminal shows of the tidy table."""
    def cells(name):
        return ["-" if pd.isna(x) else f"{x:.3g}" if pd.isna(low) else f"{x:.3g} ({low:.3g} to {high:.3g})"
                for x, low, high in table[[name, name + "_low", name + "_high"]].to_numpy()]
    shown = pd.DataFrame({"arm": table.arm.str.ljust(40), "n": table.n, "score": cells("score"), "share": cells("share"),
                          "versus": table.versus, "Delta-Q": ["-" if pd.isna(x) else f"{x:.2g}" for x in table.delta_q_first]})
    said = ("n: seeds. score: mean over evaluations but the first. share: of memory's gain that is kept.\n"
            f"In brackets: {statistics.INTERVAL}, with fewer than {statistics.FEW} seeds the range.\n"
            "versus: the common arm. Delta-Q: at a window's first trained step.\n")
    for case, rows in shown.groupby(table.case, sort=False):
        said += f"\n{case}\n{rows.to_string(index=False)}\n"
    told = table.versus[table.versus != ""]
    return said + (f"\n{len(told)} intervals of differences from the common arm, of which {(told == 'not told apart').sum()} "
                   f"include 0. Were no arm different, one in 20 would leave 0 out: some {len(told) / 20:.0f}")
