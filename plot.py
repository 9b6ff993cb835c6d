"""Draw results. The same results give the same files, to the byte. Runs are read and chosen here, support/drawing.py draws.

    python plot.py                                     the committed runs, into plots/
    python plot.py --env 'Hopper*' --policy PPO        some of them; --where seq_len=8 for any other flag
    python plot.py --all                               history, too: one-layer runs, settings that were tried
    python plot.py results/history/pilot               the runs of a folder, or single ones
    python plot.py --study studies/memory.toml         a study, from results/memory into plots/memory (support/study.py)

Without PATHS it draws the runs of results/reference, and your own, which lie in results/ itself. If there are any of your own,
or if you chose some, figures go to plots/own/, which git ignores. Your runs then stand beside the reference on the same tasks.

    overview.png             a row per algorithm and memory, a dot per seed, published values beside them
    ENV_OBSERVATION.png      curves of a task, a panel per algorithm; runs that differ in seed or BOOKKEEPING are one line
    ENV_OBSERVATION_delta_q_first.png, _last.png       of runs with --staleness
    lookback.png, memory_steps.png    what the policies in results/policies, and your own, do with their memory
    summary.csv              a row per run, a column per flag; `last` is the mean of its last five evaluations
"""
from support import console

if __name__ == "__main__":
    console.begin()                                                    # first: the imports that follow take seconds

import argparse
import collections
import fnmatch
import glob
import math
import os
import re
import sys
from dataclasses import fields

import pandas as pd

from agent import MemoryFlags
from flags import BEFORE, HANDLING, NOT_LEARNING, POLICIES, RunFlags, check_saved, defaults_of, load_policy
from support import drawing, lookback_figures, study, study_figures, tables
from support.results import read_info
from support.statistics import LAST, interval
from support.system import Parser, fail
from support.tasks import FULL, TASKS, what_is_seen
from support.words import middle, number, text

REFERENCE, HISTORY, OWN = os.path.join("results", "reference"), os.path.join("results", "history"), "results"
OWN_PLOTS, MADE = os.path.join("plots", "own"), "made by plot.py"      # what the figures there say of themselves
NO_RUN = (".staleness.csv", ".lookback.csv", ".memory_steps.csv")
BOOKKEEPING = {"seed"} | NOT_LEARNING
NOISE = ["flicker", "obs_noise", "sensor_dropout", "env_kwargs"]
NAMED = ["env", "observe", *NOISE, "policy", "recurrent_actor", "recurrent_critic", "core"]    # each stands elsewhere in a figure
MEMORY = {f.name for f in fields(MemoryFlags)}
CORES = {"lstm": "LSTM", "gru": "GRU", "mingru": "minGRU"}
WHOSE = {(True, True): "", (True, False): " actor only", (False, True): " critic only"}
Run = collections.namedtuple("Run", "path own config table finished")  # table: a row per evaluation (support/tables.py)


# ---------------------------------------------------------------------- reading

def defaults(config):
    """The defaults of an algorithm's flags, as in flags.py."""
    flags = load_policy(config["policy"]).HyperParameters
    recurrent = config["recurrent_actor"] or config["recurrent_critic"]
    return defaults_of(flags) | (flags.recurrent_defaults if recurrent else {}) | \
        {k: v for k, v in defaults_of(RunFlags).items() if k not in BOOKKEEPING | {*NAMED}}   # load_model, max_episode_steps


def line_key(config):
    """What all seeds of a line have in common."""
    return tuple(sorted((k, v) for k, v in config.items() if k not in BOOKKEEPING))


def read_run(path, own=False):
    """Read PATH.json and the CSV files beside it. Raises ValueError, with one line, if they are missing, damaged or strange."""
    try:
        info = read_info(path, check_saved)
        default = defaults(info["config"])                             # an older run may lack a flag that came later
        config = default | {k: v for k, v in BEFORE.items() if k in default} | info["config"]
        config["seed"] = int(config["seed"])
        # A model's path is known by its last two parts. Each seed has its own model
        config["load_model"] = re.sub(r"_seed=\d+", "", "/".join(re.split(r"[/\\]+", config["load_model"].rstrip("/\\"))[-2:]))
        hash(line_key(config) + tuple(config[k] for k in {*NAMED} - {"env_kwargs"}))    # raises if one is missing
        table = tables.evaluations(path, info).set_index("step")
        if 0 not in table.index:                                       # every run begins with it, so seeds share a step
            raise ValueError("no evaluation at step 0")
    except Exception as error:                                         # a damaged file may raise anything
        reason = f"no {error}" if isinstance(error, KeyError) else getattr(error, "strerror", None) or error
        raise ValueError(f"{path}.csv or .json is missing or damaged ({' '.join(str(reason).split())[:300]})") from None
    return Run(path, own, config, table, info.get("finished") is True)


def read_runs(sources, needed=True):
    """All runs of `sources`, {folder or run: is it the reader's own?}. Warns of runs that cannot be read or repeat another; exits
    with 2 if no run is left and one is `needed`."""
    runs, problems, seen = {}, [], set()
    for source, own in sources.items():
        folder = os.path.isdir(source) or source in (REFERENCE, OWN)
        files = [file for end in ("csv", "json") for file in glob.glob(f"{glob.escape(source)}/*.{end}")] if folder else [source]
        paths = {re.sub(r"\.(csv|json)$", "", file) for file in files
                 if not file.endswith((*NO_RUN, os.sep + "summary.csv"))} - seen
        tables_of = {path for path in paths if path.endswith((".runs", ".toml")) or path + ".runs" in paths}
        if tables_of:
            problems.append(f"{source} has what belongs to a study, which plot.py --study FILE.toml draws")
        seen |= paths                                                  # `results/mine/*` names a run by its CSV and by its JSON
        for path in sorted(paths - tables_of):
            try:
                run = read_run(path, own)
                if runs.setdefault((own, line_key(run.config), run.config["seed"]), run) is not run:
                    raise ValueError(f"{path}.csv repeats the flags and the seed of another file")
            except ValueError as error:
                problems.append(str(error))
    if needed and not runs:
        fail(f"no results in {' or '.join(sources)}; {'; '.join(problems[:1]) or 'run main.py first, or give other PATHS'}"
             + (f"; {len(problems) - 1} more like it" if problems[1:] else ""))
    for problem in problems:
        print(f"warning: {problem}; left out", file=sys.stderr)
    return list(runs.values())


# ---------------------------------------------------------------------- choosing

def choose(runs, wanted):
    """The runs whose flags are as wanted: [(flag, value)]. * in a value is anything; values of one flag are alternatives."""
    for flag in dict.fromkeys(flag for flag, _ in wanted):
        there = {text(run.config.get(flag, "no such flag")): None for run in runs}
        values = [text(value) for name, value in wanted if name == flag]
        fits = {x for x in there for value in values if fnmatch.fnmatchcase(x.lower(), value.lower())}
        if not fits:
            fail(f"no run that is left has {flag}={' or '.join(values)}; there is {', '.join(sorted(there))[:200]}")
        runs = [run for run in runs if text(run.config.get(flag, "no such flag")) in fits]
    return runs


def task_of(config):
    """The environment; what the agent sees, in words; a file's name made of both."""
    noise = [middle(f"{k}={text(config[k])}", 44) for k in NOISE if config.get(k)]
    return (config["env"], ", ".join([what_is_seen(config["observe"]), *noise]),
            re.sub(r'[<>:"/\\|?*]', "-", "_".join([config["env"], config["observe"], *noise])))


def make_lines(runs):
    """The lines in the order of the figures, each with its label and the line without memory that it is compared with."""
    lines, seeds = [], sorted(runs, key=lambda run: run.config["seed"])
    for (own, key), its in drawing.grouped(seeds, lambda run: (run.own, line_key(run.config))).items():
        config, remembers = dict(key), (bool(dict(key)["recurrent_actor"]), bool(dict(key)["recurrent_critic"]))
        memory = CORES.get(config["core"], config["core"]) + WHOSE[remembers] if any(remembers) else "none"
        default = defaults(config)                                     # flags in the order of --help
        flags = {k: config[k] for k in default | config if k not in NAMED and config[k] != default.get(k, "?")}
        lines.append(drawing.Line(*task_of(config), config["policy"], memory, drawing.COLOURS.get(memory.split()[0], drawing.INK),
                                  config, flags, own, load_policy(config["policy"]).offline, its))
    # Tasks as in TASKS, partly observed ones first; no memory before LSTM, lines of few flags first, numbers before words
    lines.sort(key=lambda line: (
        [bool(re.fullmatch(pattern, line.env)) for pattern, *_ in TASKS].index(True), line.env,
        line.seen == FULL, line.file, POLICIES.index(line.policy), line.own,
        [*drawing.COLOURS.values(), line.colour].index(line.colour), line.memory, len(line.flags),
        [(k, isinstance(v, str), -math.inf if v is None else v) for k, v in line.flags.items()]))
    for mine in drawing.grouped(lines, lambda line: (line.file, line.policy)).values():
        for line in mine:
            # A flag is named if another line has another value of it; a flag about memory, if another line with memory has
            named = {k: v for k, v in line.flags.items()
                     if any(other.config.get(k) != v for other in mine if k not in MEMORY or other.memory != "none")}
            named = [f"{drawing.short(v)} steps" if k == "max_timesteps" else middle(f"{k}={text(v)}", 44)
                     for k, v in named.items()]
            line.label = middle(", ".join([line.memory.replace("none", "no memory"), *named, *["yours"] * line.own]), 132)
            line.without = next((other for other in mine if line.memory != "none" == other.memory and line.own == other.own and
                                 min(len(line.runs), len(other.runs)) > 1 and all(
                                     line.config.get(k) == other.config.get(k)
                                     for k in {*line.flags, *other.flags} - MEMORY)), None)
    return lines


def summary(lines):
    """The tidy table: a row per run, a column per flag."""
    return pd.DataFrame([dict(
        folder=os.path.basename(os.path.dirname(run.path)), run=os.path.basename(run.path), memory=line.memory,
        finished=run.finished, steps=line.table().index[-1], last=line.last[run.config["seed"]],
        minutes=run.table.seconds.iloc[-1] / 60, **{k: v for k, v in run.config.items() if k not in HANDLING})
        for line in lines for run in line.runs])


def report(lines):
    """What the terminal shows: a row per line."""
    said = f"mean: over seeds, of the last {LAST} evaluations; in brackets its\n{drawing.SPREAD}; *: unfinished"
    for (env, seen), mine in drawing.grouped(lines, lambda line: (line.env, line.seen)).items():
        said += f"\n\n{middle(f'{env}, {seen}', 46):46} seeds  steps      mean"
        for line in mine:
            (low, high, kind), star = interval(line.last), "*" * any(not run.finished for run in line.runs)
            said += (f"\n  {line.policy:10}{middle(line.label, 34):34}{f'{len(line.runs)}{star}':>5}"
                     f"{drawing.short(line.table().index[-1]):>7}{number(line.last.mean()):>10}")
            said += f" ({number(low)} to {number(high)}{', range' * (kind == 'range')})" if kind else ""
    return said.replace("\u2212", "-")


def main(argv=None):
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", metavar="PATH", help="folders of runs, or single runs; of a study, its folder")
    parser.add_argument("--all", action="store_true", help=f"draw {HISTORY}, too")
    for flag, shows in dict(env="X: an environment", policy="X: an algorithm", where="KEY=VALUE: runs with such a flag").items():
        parser.add_argument(f"--{flag}", action="append", default=[], metavar=shows.split(":")[0],
                            help=f"draw only {shows.split(': ')[1]}; may be given again; * is anything")
    parser.add_argument("--plots_dir", help="where figures and summary.csv go [plots, plots/own, or plots/ and a study's name]")
    parser.add_argument("--study", help="TOML file of sweep.py, with [[cases]]: draw its answers [none]")
    args = parser.parse_args(argv)
    wanted = [("env", env) for env in args.env] + [("policy", name) for name in args.policy] + \
        [word.partition("=")[::2] for word in args.where]
    if args.study and (wanted or args.all or args.paths[1:]):
        fail("--study draws all of one study; give nothing beside it but its folder and --plots_dir")
    if args.study:
        name = os.path.splitext(os.path.basename(args.study))[0]
        read = study.read(args.study, args.paths[0] if args.paths else os.path.join("results", name))
        runs, default = read.runs, os.path.join("plots", name)
    else:
        sources = dict.fromkeys(args.paths, False) or {REFERENCE: False, **({HISTORY: False} if args.all else {}), OWN: True}
        looked = [path for path in args.paths or [OWN] if not wanted and lookback_figures.files(path)]
        runs = choose(read_runs(sources, needed=not looked), wanted)
        own = set() if args.all else {task_of(run.config) for run in runs if run.own}
        default = OWN_PLOTS if own or looked or args.paths or args.all or wanted else "plots"
    plots_dir = args.plots_dir or default
    try:
        os.makedirs(plots_dir, exist_ok=True)
        if len(runs):
            print(f"{len(runs)} runs are read; drawing takes up to a minute\n", flush=True)
        if args.study:
            table = study.summarise(read)
            drawn = study_figures.draw(read, table)
        else:
            lines = make_lines([run for run in runs if not own or task_of(run.config) in own])
            table, drawn = summary(lines), {"overview": drawing.overview(lines)} if lines else {}
            if looked or default == "plots":
                drawn |= lookback_figures.draw(os.path.join("results", "policies"), looked)
            for file, mine in drawing.grouped(lines, lambda line: line.file).items():
                for column in ("return_mean", "delta_q_first", "delta_q_last"):
                    measured = [line for line in mine if len(line.table(column))]
                    if measured:
                        drawn[file + f"_{column}" * (column != "return_mean")] = drawing.curves(measured, column)
        into_own = plots_dir == OWN_PLOTS
        if into_own:                                                       # an earlier call's figures go, their runs may be gone
            for path in filter(os.path.isfile, [*glob.glob(f"{OWN_PLOTS}/*.png"), f"{OWN_PLOTS}/summary.csv"]):
                with open(path, "rb") as file:
                    made = MADE.encode() in file.read(500) or path.endswith(".csv")
                if made:
                    os.remove(path)
        for file, fig in drawn.items():
            fig.savefig(os.path.join(plots_dir, file + ".png"), dpi="figure", metadata={"Software": MADE if into_own else None})
        if len(table):                                                 # a folder may hold measurements of --lookback alone
            table.to_csv(os.path.join(plots_dir, "summary.csv"), index=False, lineterminator="\n", float_format="%.6g")
    except OSError as error:
        fail(f"--plots_dir '{plots_dir}' cannot be written ({error.strerror}); choose another")
    if len(table):
        print(study.report(table) if args.study else report(lines))
    print(f"\n{len(drawn)} figures{' and summary.csv' * bool(len(table))} are in {plots_dir}")


if __name__ == "__main__":
    main()
