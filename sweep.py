"""Run a grid of trainings, declared in one TOML file, on the cores of this machine or of a Ray cluster.

    pip install ray                                             (for all but --dry_run)
    python sweep.py studies/memory.toml                         (on this machine)
    python sweep.py studies/memory.toml --address HOST:PORT     (on a Ray cluster, called on one of its nodes)
    python sweep.py studies/memory.toml --dry_run               (print the commands)

The file holds main.py's flags, without the dashes. A list is an axis of the grid, and every combination is run:

    seeds = [0, 1, 2]

    [common]                                                    # for all runs
    env = ["Cue10-v0", "Cue30-v0"]
    algorithm = [{policy = "TD3", lr = 1e-3}, {policy = "PPO"}] # a table in a list sets several flags; its name is free

    [[runs]]                                                    # any number of these; its flags replace those of [common]
    name = "window length"                                      # for messages, may be left out
    seeds = [0, 1]                                              # if not those at the top
    recurrent = true
    seq_len = [1, 8, "full"]

A study for `plot.py --study` has [[cases]], too, each with a name and flags: then every table of [[runs]] is an arm, and each
case runs each arm (studies/memory.toml). A case can name arms that it does not run: `without` those that mean nothing there,
`identical` those that are known to be the arm named "common", to the bit. `plot.py --study` needs the arms "common"
and "no memory", and a `question` for each arm.

All flags are checked before anything starts, and a run that is asked for twice is run once. A run is one process on one core,
`main.py ... --resume`, and its output goes to RUN.log beside its results. If its worker or node dies, the run goes on elsewhere
from its last checkpoint, up to --retries times. If main.py itself gives up (bad input, NaN), the run has failed. Ctrl-C and
SIGTERM let each run write a checkpoint. The same command then goes on with unfinished runs. A sweep does not survive the
death of a cluster's first node, and the same command goes on after that, too. On a cluster, code and results must lie on a file
system that all nodes see at the same path.

No two processes ever write the same run, even if a node that was given up lives on, or two sweeps have runs in common: main.py
locks the run that it works at. Another process waits half a minute for the lock, and then fails. Locks need a file system that
has them (NFS does, and Lustre mounted with flock). On Linux a process gets SIGTERM when its worker dies, so that it does not live
on for long.
"""
from support import console

if __name__ == "__main__":
    console.begin()                                                    # first: the imports that follow take seconds

import argparse
import collections
import contextlib
import functools
import itertools
import logging
import math
import os
import platform
import re
import shlex
import shutil
import socket
import statistics
import subprocess
import sys
import time
import tomllib
from dataclasses import asdict, dataclass

from agent import MemoryFlags
from envs import env_spec, make_env
from flags import as_word, check_actions, check_same, check_saved, defaults_of, env_options, parse, run_name
from support import tables
from support.checkpoint import Checkpoints
from support.results import finished
from support.system import Parser, fail, no_exit

HERE = os.path.dirname(os.path.abspath(__file__))
NOT_HERE = {"seed": "is an axis of all runs: write seeds = [0, 1, 2] at the top", "results_dir": "is a flag of sweep.py's own",
            "device": "cannot be chosen, a run gets one core and no GPU", "threads": "cannot be chosen, a run gets one core",
            **dict.fromkeys(("help", "resume", "overwrite", "test", "explore", "load_model", "record"),
                            "has no place in a sweep, whose runs are trained from the start, and always with --resume")}
MOST = 10_000                                                          # runs of a study, at most
NAMES = ("name", "without", "identical", "seeds", "question", "words") # keys that are no flags; the last two are for plot.py
# Starts main.py so that Linux sends it SIGTERM when its worker dies, even by kill -9 (1 is PR_SET_PDEATHSIG)
LEASH = """import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"""


@dataclass
class Run:
    arms: list                  # the places in the file that ask for it
    path: str                   # its results, without an ending
    words: list                 # the words of its command, after main.py
    config: dict                # all its flags
    state: str = "waiting"      # or running, done, failed
    attempts: int = 0
    began: float = 0.0          # when the last attempt began
    seconds: float = 0.0        # the time that all attempts took
    case: str = ""              # if the study has cases
    arm: str = ""


# ---------------------------------------------------------------------- the file

def read_study(path, results_dir, imports=False):
    """The runs of a study, a list of Run, those with the first seed first. Exits with 2 and one line if anything is wrong.

    imports: also try environments whose ids name a module, which runs the module's code
    """
    try:
        with open(path, "rb") as file:
            study = tomllib.load(file)
    except OSError as error:
        fail(f"{path} cannot be read ({error.strerror}); give a TOML file such as studies/memory.toml")
    except (ValueError, RecursionError) as error:
        fail(f"{path} is not TOML: {str(error)[:200]}")
    seeds, common = study.pop("seeds", None), study.pop("common", {})
    arms, cases = study.pop("runs", None), study.pop("cases", [{}])
    for name in ("answers", "reference"):                              # for plot.py
        study.pop(name, None)
    if study:
        fail(f"{path}: unknown '{next(iter(study))}'; there are seeds, [common], [[cases]] and [[runs]]")
    if not isinstance(seeds, list) or not seeds:
        fail(f"{path}: there are no seeds; add a list of them, such as seeds = [0, 1, 2], before all tables")
    if not isinstance(common, dict) or not is_tables(arms) or not is_tables(cases):
        fail(f"{path}: there must be one or more tables [[runs]], at most one [common], and [[cases]] only as tables")
    names = [arm.get("name") for arm in arms]
    if cases != [{}]:
        for kind, its in (("runs", names), ("cases", [case.get("name") for case in cases])):
            if not all(isinstance(name, str) and name for name in its) or len(set(its)) < len(its):
                fail(f"{path}: where there are [[cases]], each table of [[{kind}]] needs a name of its own; add name = \"...\"")
        lacks = [f"no [[runs]] named '{name}'" for name in (tables.COMMON, tables.NONE) if name not in names] + \
            [f"no question for '{arm['name']}'" for arm in arms if "question" not in arm]
        if lacks and not imports:                                      # with `imports` it is read for a second time
            print(f"warning: {path} has {', '.join(lacks)}, so plot.py --study will not draw it", file=sys.stderr)
        files = [tables.name(case["name"]).casefold() for case in cases]
        for case, file in zip(cases, files):
            if files.count(file) > 1:
                fail(f"{path}, case {case['name']}: another case's tables would be called {file}.csv, too; rename one of them")
            if len(file.encode()) > 100:
                fail(f"{path}, case {case['name'][:40]}...: its tables would have a name of more than 100 characters; shorten it")
    check_once(f"{path}, [common]", common)
    for kind, them in (("cases", cases), ("runs", arms)):
        for number, table in enumerate(them, 1):
            check_once(f"{path}, [[{kind}]] {number}", table)

    plans = []                                                         # case, arm, label, table of flags, seeds
    for case, (number, arm) in itertools.product(cases, enumerate(arms, 1)):
        for key in ("without", "identical"):
            if not isinstance(case.get(key, []), list) or any(name not in names for name in case.get(key, [])):
                fail(f"{path}, case {case.get('name')}: {key} = {case[key]}; it must be a list of names of [[runs]]")
        if arm.get("name") in tables.left_out(case):
            continue
        label = f"[[runs]] {number}" + (f" ({arm['name']})" if "name" in arm else "") + (f", {case['name']}" if case else "")
        shared = {**common, **{k: v for k, v in case.items() if k not in NAMES}}
        if case and not any(arm.get(name) for name in ("recurrent", "recurrent_actor", "recurrent_critic")):
            shared = {k: v for k, v in shared.items() if k not in defaults_of(MemoryFlags)}
        table = {k: v for k, v in shared.items() if k not in arm} | {k: v for k, v in arm.items() if k not in NAMES}
        for name, values in table.items():
            if values == []:
                fail(f"{path}, {label}: {name} = [] has no value, so no run; give it one, or take it out")
        own = tables.seeds_of(arm, case, seeds)
        if not isinstance(own, list) or not own:
            fail(f"{path}, {label}: there are no seeds; add a list of them, such as seeds = [0, 1, 2], or take the entry out")
        if case and count(table) != 1:
            fail(f"{path}, {label}: a list would make {count(table)} runs of one arm and case; give each a table of its own")
        plans.append((case, arm, label, table, own))
    for kind, them, place in (("cases", cases, 0), ("runs", arms, 1)):
        for idle in (table for table in them if not any(plan[place] is table for plan in plans)):
            fail(f"{path}, [[{kind}]] {idle['name']}: without and identical leave nothing of it to run; take it out")
    total = sum(len(own) * count(table) for *_, table, own in plans)
    if total > MOST:
        fail(f"{path}: it asks for {total:,} runs; a study has at most {MOST:,}" if total < 1e18 else
             f"{path}: it asks for 10^{math.log10(total):.0f} runs; a study has at most {MOST:,}")

    runs = {}
    most = max(len(own) for *_, own in plans)
    for case, number, (its, arm, label, table, own) in itertools.product(cases, range(most), plans):
        for flags, seed in itertools.product(combinations(table), own[number:number + 1]) if its is case else ():
            run = check(f"{path}, {label}", flags, seed, results_dir, imports)
            other = runs.setdefault(run.path, run)
            for name, value in run.config.items():
                if value != other.config[name]:
                    fail(f"{path}, {label}: a run with --{name} {value} has the same name as one of {other.arms[0]} with "
                         f"{other.config[name]}, {os.path.basename(run.path)}; make them equal")
            other.arms.append(label)
            run.case, run.arm = case.get("name", ""), arm.get("name", "")
            if case and other is not run:
                fail(f"{path}, {label}: it is the same run as {other.arms[0]}; take one of the two out")
    return list(runs.values())


def is_tables(them):
    """Is it a list of one or more tables?"""
    return isinstance(them, list) and bool(them) and all(isinstance(table, dict) for table in them)


def axes_of(table):
    """The axes of a table's grid, {name: its values}. Each value is a dictionary of the flags that it sets."""
    return {name: [value if isinstance(value, dict) else {name: value}
                   for value in (values if isinstance(values, list) else [values])] for name, values in table.items()}


def check_once(where, table):
    """Exits with 2 and one line if two entries of a table set the same flag, so that one of the two would be dropped in silence.

    One case is allowed: a single value that stands before an axis of tables is a default, which the axis may change.
    """
    setter = {}
    for name, parts in axes_of(table).items():
        for flag in {flag for part in parts for flag in part}:
            if flag in setter and (setter[flag] != flag or isinstance(table[flag], list)):
                fail(f"{where}: both {setter[flag]} and {name} set {flag}; take it out of one of them")
            setter[flag] = name


def count(table):
    """How many runs a table asks for, per seed."""
    return math.prod(map(len, axes_of(table).values()))


def combinations(table):
    """Every choice of one value from each list, as dictionaries of flags."""
    axes = axes_of(table).values()
    return [{name: value for part in chosen for name, value in part.items()} for chosen in itertools.product(*axes)]


def check(where, flags, seed, results_dir, imports=False):
    """A Run, its flags checked as main.py checks them. Exits with 2 and main.py's line if it refuses them."""
    for name in flags:
        if not re.fullmatch(r"[A-Za-z]\w*", name, re.ASCII):           # such as no-resume and results_dir=X
            fail(f"{where}: '{name[:60]}' is not the name of a flag, of letters, digits and _; for --no-X write X = false")
        if name in NOT_HERE:
            fail(f"{where}: {name} {NOT_HERE[name]}; take it out")
    for name, value in [*flags.items(), ("seed", seed)]:
        if not isinstance(value, (bool, int, float, str)) or isinstance(value, int) and not -2 ** 63 <= value < 2 ** 63:
            fail(f"{where}: --{name} cannot be '{value if isinstance(value, list) else type(value).__name__}'")
    words = [as_word(name, value) for name, value in flags.items() if (name, value) != ("recurrent", False)] + [f"--seed={seed}"]
    try:
        with no_exit():
            run, cfg, algorithm, _ = parse(words)
            if imports or ":" not in run.env:
                check_actions(run, cfg, spec_of(run.env, **env_options(run)).discrete)
    except ValueError as error:
        fail(f"{where}: {error}; in {shlex.join(words)}")
    path = os.path.join(results_dir, run_name(run, cfg, algorithm))
    return Run([], path, [*words, f"--results_dir={results_dir}", "--resume"], asdict(run) | asdict(cfg))


@functools.cache
def spec_of(env_id, **options):
    """EnvSpec of an environment. Exits with 2 and one line if it cannot be made."""
    try:
        return env_spec(make_env(env_id, **options))
    except ValueError as error:
        fail(str(error))


# ---------------------------------------------------------------------- where runs are run

def work(words, log, here, modules=""):
    """On a worker: let one run, a process, come to its end. Returns its exit code, negative if a signal killed it.

    A worker that died may have left a process that still writes its checkpoint. main.py --resume waits for that one.

    Args:
        words: those of the command, after python
        log: the file that gets its output
        here: the folder to run it in
        modules: a folder where Python finds modules, too
    """
    with open(log, "ab", 0) as file:                                   # unbuffered: a full disk loses lines, but no close() fails
        path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), modules]))
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
        with contextlib.suppress(OSError):
            file.write(f"--- {time.strftime('%F %T')} on {platform.node()}: {shlex.join(words)}\n".encode())
        # In a session of its own, so that a terminal's Ctrl-C is not a second signal
        process = subprocess.Popen([sys.executable, "-c", LEASH, *words], cwd=here, stdin=subprocess.DEVNULL, stdout=file,
                                   stderr=file, start_new_session=True, env=env)
        try:
            while process.poll() is None:                              # in short sleeps: a cancel arrives between them
                time.sleep(0.2)
        except KeyboardInterrupt:                                      # Ray turns a cancel into this
            process.terminate()
            process.wait()                                             # it finishes its step and writes a checkpoint
        return process.returncode


class Pool:
    """The cores of this machine or of a cluster. Exits with 2 and one line if there is no Ray, or no cluster."""

    def __init__(self, address, cores):
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")          # Ray reports nothing to its makers unasked
        try:
            import ray
        except ImportError:
            fail("sweep.py runs on Ray, which is not installed; pip install ray (--dry_run works without)")
        where = dict(address=address) if address else dict(address="local", num_cpus=cores, include_dashboard=False)
        try:
            if address:                                                # Ray alone would try for minutes
                host, _, port = address.rpartition(":")
                socket.create_connection((host, int(port)), timeout=10).close()
            ray.init(**where, log_to_driver=False, logging_level=logging.CRITICAL)
        except Exception as error:                                     # Ray raises many kinds
            fail((f"--address {address} must be HOST:PORT of a Ray cluster, as ray start prints it, and this machine a node of it"
                  if address else "Ray does not start on this machine") + f" ({' '.join(str(error).split())[:150]})")
        self.ray, self.running = ray, {}
        self.work = ray.remote(num_cpus=1, max_retries=0)(work)        # retries are counted in `go`

    def cores(self):
        return int(self.ray.cluster_resources().get("CPU", 0))

    def start(self, run):
        modules = os.getcwd() if ":" in run.config["env"] else ""      # main.py would look for MODULE:ID beside itself
        self.running[self.work.remote(["main.py", *run.words], run.path + ".log", HERE, modules)] = run

    def wait(self):
        """Wait a second at most for a run to end. Yields those that did: run, exit code (None: it was lost), what happened."""
        if not self.running:
            time.sleep(1)
            return
        for ref in self.ray.wait(list(self.running), timeout=1)[0]:
            try:
                code = self.ray.get(ref)
                why = f"exit code {code}"
            except self.ray.exceptions.RayTaskError as error:          # such as a log that cannot be opened
                code, why = 1, " ".join(str(error.cause).split())
            except self.ray.exceptions.RayError as error:              # the worker or the node died, or it was cancelled
                code, why = None, type(error).__name__
            yield self.running.pop(ref), code, why

    def cancel(self):
        for ref in self.running:
            self.ray.cancel(ref)


# ---------------------------------------------------------------------- the sweep

class Display:
    """What a sweep says: a table on a terminal, or a line per event in a file."""

    def __init__(self, runs):
        self.runs, self.lines = runs, 0                                # lines of the table on the terminal now

    def count(self, cores=0):
        states = collections.Counter(run.state for run in self.runs)
        text = ", ".join(f"{states[state]} {state}" for state in ("done", "running", "failed", "waiting"))
        took = [run.seconds for run in self.runs if run.state == "done" and run.attempts]
        todo = states["running"] + states["waiting"]
        if took and todo and cores:
            mean = statistics.mean(took)
            spent = sum(min(mean, time.monotonic() - run.began) for run in self.runs if run.state == "running")
            text += f", about {(mean * todo - spent) / min(cores, todo) / 60:.0f} min left"
        return text

    def say(self, text):
        if self.lines:
            print(f"\x1b[{self.lines}F\x1b[J", end="")                 # up to the table's first line, and erase it (ANSI codes)
            self.lines = 0
        print(text, flush=True)

    def show(self, cores):
        if sys.stdout.isatty():
            width, height = shutil.get_terminal_size()
            rows = [self.count(cores)] + [
                f"{(time.monotonic() - run.began) / 60:6.1f} min  {last_line(run)[:44]:44}  {os.path.basename(run.path)}"
                for run in self.runs if run.state == "running"]
            rows = [row[:width - 1] for row in rows[:height - 2]]
            self.say("\n".join(rows))
            self.lines = len(rows)


def last_line(run):
    """The last line of a run's log, or ''."""
    try:
        with open(run.path + ".log", "rb") as file:
            file.seek(max(0, os.path.getsize(file.name) - 1000))
            return file.read().decode(errors="replace").rstrip("\n").split("\n")[-1]
    except OSError:
        return ""


def go(runs, pool, retries, display, keep=lambda run: None):
    """Run the waiting runs until each is done or has failed; `keep` gets those done. Returns the signal that stopped it."""
    waiting, running, stopping = collections.deque(run for run in runs if run.state == "waiting"), 0, False
    with console.Stop() as stop:
        while running or waiting and not stopping:
            cores = pool.cores()                                       # nodes come and go
            while waiting and running < cores and not stopping:
                run = waiting.popleft()
                run.state, run.attempts, run.began = "running", run.attempts + 1, time.monotonic()
                pool.start(run)
                running += 1
            display.show(cores)
            for run, code, why in pool.wait():
                running -= 1
                run.seconds += time.monotonic() - run.began
                if code == 0:
                    run.state, what = "done", f"done in {run.seconds / 60:.1f} min"
                    keep(run)
                elif code in (1, 2) or run.attempts > retries and not stop.signal:
                    run.state, what = "failed", f"failed ({why})"
                else:                                                  # lost or stopped, no fault of its own
                    run.state, what = "waiting", f"stopped ({why})" if stop.signal else \
                        f"lost ({why}), retry {run.attempts} of {retries} goes on from its last checkpoint"
                    waiting.appendleft(run)
                display.say(f"{what}: {os.path.basename(run.path)}   [{display.count(cores)}]")
            if stop.signal and not stopping:
                stopping = True
                display.say("stopping: each run finishes its step and writes a checkpoint; once more to stop at once")
                pool.cancel()
    return stop.signal


def main(argv=None):
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("study", help="TOML file")
    parser.add_argument("--results_dir", help="where results are written [results/ and the file's name]")
    parser.add_argument("--address", help="HOST:PORT of a Ray cluster [none: the cores of this machine]")
    parser.add_argument("--cores", type=int, help="how many of this machine's cores [all]")
    parser.add_argument("--retries", type=int, default=5, help="how often a run that was lost is started again [5]")
    parser.add_argument("--dry_run", action="store_true", help="print the commands, run and import nothing")
    args = parser.parse_args(argv)
    for name, low in (("retries", 0), ("cores", 1)):
        if getattr(args, name) is not None and getattr(args, name) < low:
            fail(f"--{name}: '{getattr(args, name)}' is not a whole number of at least {low}")
    if args.cores and args.address:
        fail("--cores is for this machine, and a cluster's nodes have said how many they have; drop one of the two")
    folder = os.path.abspath(args.results_dir or os.path.join(HERE, "results", os.path.splitext(os.path.basename(args.study))[0]))
    # Relative if it is in the repository: a run's JSON holds its command, and should hold no path of this machine
    place = folder.removeprefix(HERE + os.sep)
    runs = read_study(args.study, place)
    modules = sorted({run.config["env"].split(":")[0] for run in runs if ":" in run.config["env"]})
    if modules:                                                        # said before any code of these modules runs
        print(f"{args.study} {'would import' if args.dry_run else 'imports'} {', '.join(modules)} for its environments",
              file=sys.stderr, flush=True)
        if not args.dry_run:
            runs = read_study(args.study, place, imports=True)
    repeated = collections.Counter((arm, run.arms[0]) for run in runs for arm in run.arms[1:])
    for (arm, other), times in repeated.items():
        print(f"{arm}: {times} of its runs are runs of {other} too, and are run once", file=sys.stderr)
    if args.dry_run:
        for run in runs:
            print(shlex.join(["python", "main.py", *run.words]))
        return
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        fail(f"--results_dir {folder} cannot be made: {error.strerror}; choose another")
    order = list(dict.fromkeys(run.arm for run in runs))

    def table(case):
        return os.path.join(folder, tables.name(case))

    def keep(run):
        if run.case:
            try:
                tables.collect(table(run.case), run.arm, order, run.path, check_saved)
            except (OSError, ValueError, SystemExit) as error:         # SystemExit: `alone` has said what is wrong
                why = "" if isinstance(error, SystemExit) else f" ({getattr(error, 'strerror', None) or error})"
                print(f"warning: the tables of {run.case} lack {os.path.basename(run.path)}, which keeps its own files until the "
                      f"same command is run again{why}", file=sys.stderr, flush=True)
    try:
        collected = {case: tables.collected(table(case)) for case in dict.fromkeys(run.case for run in runs if run.case)}
    except ValueError as error:
        fail(str(error))
    for run in runs:
        run.path = os.path.join(HERE, run.path)
        row = collected.get(run.case, {}).get(os.path.basename(run.path))
        try:
            if row:
                if row["arm"] != run.arm:
                    raise ValueError(f"{table(run.case)}.csv has {os.path.basename(run.path)} as the arm '{row['arm']}', and the "
                                     f"study calls it '{run.arm}'; give it the old name, or rename it in both tables")
                check_same(run.path, tables.flags_of(row, run.config), run.config)
                run.state = "done"
                tables.remove(run.path, row)                           # a sweep may have been killed before it did so
            elif info := finished(run.path, lambda saved, run=run: check_same(run.path, saved, run.config)):
                run.state = "done"
                if not info["config"].get("keep_checkpoint"):          # the run may have been killed before it did so
                    Checkpoints(run.path, None).remove()
                keep(run)
        except ValueError as error:
            fail(str(error))
    display, signal = Display(runs), None
    display.say(display.count())
    console.something_to_keep()                                        # Ray's processes end with this one if it ends in order
    try:
        if any(run.state == "waiting" for run in runs):
            here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()      # macOS lacks it
            signal = go(runs, Pool(args.address, args.cores or here), args.retries, display, keep)
    except KeyboardInterrupt:                                          # while Ray starts, or at a second signal
        console.say_interrupted(": go on with the same command")
        sys.exit(130)
    display.say(f"{display.count()}; results are in {folder}")
    failed = [run for run in runs if run.state == "failed"]
    for run in failed:
        print(f"failed: {run.arms[0]}: {last_line(run)}; see {run.path}.log", file=sys.stderr)
    if signal:
        print("interrupted: go on with the same command", file=sys.stderr)
        sys.exit(128 + signal)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
