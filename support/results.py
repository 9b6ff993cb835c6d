"""What a run writes: RUN.csv with a line per evaluation episode, RUN.json with all flags, versions and the commit."""
import contextlib
import csv
import importlib.metadata
import io
import json
import math
import os
import platform
import shutil
import subprocess
import time

from support.system import Listener, events_folder, fail, keep_going, regular, write_file


def read_info(path, check):
    """A run's JSON as a dictionary. Raises an exception of some kind if it is missing or damaged: a file may hold anything.

    path: the run's results, without an ending; check: raises ValueError for flags that no run can have had (flags.check_saved)
    """
    with open(regular(path + ".json"), encoding="utf-8") as file:
        info = json.load(file)
    check(info["config"])
    return info


def read_rows(path, end, info):
    """The rows of a run's CSV as dictionaries of text. Raises an exception of some kind if it is missing, damaged or cut.

    Args:
        path: the run's results, without an ending
        end: the ending of the CSV's name, .csv or .staleness.csv
        info: the run's JSON; if the run has finished, it says how many lines there are (older ones do not)
    """
    with open(regular(path + end), encoding="utf-8", newline="") as file:
        text = file.read()
    written = info.get("lines", {}).get(end)
    if written is not None and text.count("\n") != written:
        raise ValueError(f"{written} lines were written, and there are {text.count(chr(10))} whole ones")
    return list(csv.DictReader(io.StringIO(text, newline="")))


def finished(path, check):
    """A run's JSON, if the run has come to its end, else None. Raises ValueError, with one line, if it has, and its results are
    damaged or another run's.

    path: the run's results, without an ending; check: raises ValueError for flags that are not this run's (flags.check_same)
    """
    try:
        with open(regular(path + ".json"), encoding="utf-8") as file:
            info = json.load(file)
        if info["finished"] is not True:
            return None
    except Exception:                                                  # a damaged file may raise anything
        return None
    try:
        for end in {".csv": None, **info.get("lines", {})}:
            read_rows(path, end, info)
        config = {**info["config"]}
    except Exception as error:
        why = " ".join(str(error).split())[:150]
        raise ValueError(f"{path} has finished, but its results are damaged ({why}); put a copy in their place, or delete "
                         f"{path}.json, and it is run again") from None
    check(config)
    return info


def mean_returns(path):
    """The evaluations of a run, step -> mean return. path: the run's results, without an ending"""
    returns = {}
    for row in read_rows(path, ".csv", {}):
        returns.setdefault(int(row["step"]), []).append(float(row["return"]))
    return {step: sum(of_step) / len(of_step) for step, of_step in returns.items()}


class Results(Listener):
    """The CSV of one run and its JSON, written as the run goes, so that an interrupted one keeps what it had."""

    key = "results"

    def __init__(self, run, name, config, command):
        self.path = os.path.join(run.results_dir, name)
        for old in (self.path + end for end in (".csv", ".json", ".staleness.csv", ".last.pt", ".best.pt", ".checkpoint")):
            if os.path.exists(old) and not (run.overwrite or run.resume):
                fail(f"{old} exists; add --resume to go on with that run, --overwrite to replace it, or choose another "
                     "--results_dir or --seed")
        try:
            os.makedirs(run.results_dir, exist_ok=True)
            write_file(self.path + ".new", b"")                        # can it be written?
            os.remove(self.path + ".new")
        except OSError as error:
            fail(f"--results_dir {run.results_dir} cannot be written: {error.strerror}; choose another")
        self.lines, self.best = ["step,episode,return,length,seconds"], -math.inf     # best: the best mean return
        self.info = dict(config=config, command=command, commit=commit(), finished=False,
                         versions={**versions(), "machine": processor()})

    def begin(self, step, saved):
        """Replace the files of an earlier run of this name, or go on with those that a checkpoint holds."""
        self.start, self.cpu_start = time.monotonic(), time.process_time()
        if saved:
            self.lines, self.best = saved["lines"], saved["best"]
            self.start, self.cpu_start = self.start - saved["seconds"], self.cpu_start - saved["cpu_seconds"]
            self.info["resumed"] = [*saved["resumed"], step]
        else:
            for end in (".staleness.csv", ".last.pt", ".best.pt"):     # this run may write none of these
                with contextlib.suppress(OSError):
                    os.remove(self.path + end)
            shutil.rmtree(events_folder(self.path), ignore_errors=True)
        self.write()

    def write(self):
        """Write both files anew, each in one piece, so that there is never half a file."""
        self.written = False
        with keep_going("the results"):
            os.makedirs(os.path.dirname(self.path) or ".", exist_ok=True)
            write_file(self.path + ".csv", "".join(f"{line}\n" for line in self.lines).encode())
            write_file(self.path + ".json", json.dumps(self.info, indent=1).encode())
            self.written = True

    def evaluated(self, step, returns, lengths):
        seconds = time.monotonic() - self.start
        self.best = max(self.best, sum(returns) / len(returns))
        self.lines += [f"{step},{episode},{ret:.3f},{length},{seconds:.1f}"
                       for episode, (ret, length) in enumerate(zip(returns, lengths))]
        self.write()

    def finish(self, staleness=None):
        """Returns whether all could be written. The JSON then counts the lines of the CSVs, so that a cut one shows."""
        self.info["lines"] = {".csv": len(self.lines)} | ({".staleness.csv": len(staleness.lines)} if staleness else {})
        self.info.update(finished=True, seconds=round(time.monotonic() - self.start, 1),
                         cpu_seconds=round(time.process_time() - self.cpu_start, 1))
        self.write()
        return self.written

    def save(self):
        return {"lines": self.lines, "best": self.best, "seconds": time.monotonic() - self.start,
                "cpu_seconds": time.process_time() - self.cpu_start, "resumed": self.info.get("resumed", [])}


def commit():
    """The commit this code is at, with '+' if its Python files differ from it; '' outside its repository."""
    def git(*words):
        here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        return subprocess.run(["git", *words], cwd=here, capture_output=True, text=True).stdout.strip()
    try:
        if not git("ls-files", "main.py"):                             # it is installed within another repository
            return ""
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no", "--", "*.py") else "")
    except OSError:
        return ""


def versions():
    """The versions of Python and of those packages that are installed."""
    found = {"python": platform.python_version()}
    for package in ("torch", "numpy", "gymnasium", "pybullet", "pybullet-envs-gymnasium", "popgym"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def processor():
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
