"""sweep.py: the file, what bad input gets, the order of things, one run's process; on Ray, a node that dies and a Ctrl-C."""
import _thread
import contextlib
import csv
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
import types

import pytest
from filelock import FileLock
from test_main import evaluations, tiny

import main
import sweep
from support import tables
from support.system import write_file

ARM = '[[runs]]\npolicy = "PPO"\nenv = "Cue10-v0"\n'


@pytest.fixture
def study(tmp_path):
    """A function that writes a study and returns its path."""
    def write(text):
        (tmp_path / "study.toml").write_text(text)
        return str(tmp_path / "study.toml")
    return write


@pytest.fixture
def commands(study, capsys):
    """A function from a study to what --dry_run prints: a list of commands, and what is on stderr."""
    def commands(text, *flags):
        sweep.main([study(text), "--dry_run", *flags])
        out, err = capsys.readouterr()
        return [shlex.split(line) for line in out.splitlines()], err
    return commands


# ---------------------------------------------------------------------- the file

def test_a_list_is_an_axis_and_a_table_in_it_sets_several_flags(commands):
    lines, err = commands("""
        seeds = [3, 4]
        [common]
        hidden_size = 8
        max_timesteps = 1e4
        case = [{policy = "TD3", env = "Cue10-v0", lr = 1e-3}, {policy = "PPO", env = "CueDiscrete10-v0"}]
        [[runs]]
        recurrent = true
        seq_len = [1, "full"]
        [[runs]]
        recurrent = false
        hidden_size = 16
        lr_decay = [true, false]
        """)
    td3, ppo = ["--policy=TD3", "--env=Cue10-v0", "--lr=0.001"], ["--policy=PPO", "--env=CueDiscrete10-v0"]
    expected = [["--max_timesteps=10000.0", *case, *arm, f"--seed={seed}"]
                for seed in (3, 4)
                for arms in ([["--hidden_size=8", "--recurrent", f"--seq_len={n}"] for n in (1, "full")],
                             [["--hidden_size=16", f"--{no}lr_decay"] for no in ("", "no-")])
                for case in (td3, ppo) for arm in arms]
    for line, words in zip(lines, expected, strict=True):
        assert line[:2] == ["python", "main.py"] and line[-2:] == ["--results_dir=results/study", "--resume"]
        assert sorted(line[2:-2]) == sorted(words) and line[-3] == words[-1]
    assert err == ""


def test_a_flag_of_an_arm_comes_before_a_common_one(commands):
    lines, _ = commands('seeds = [0]\n[common]\nlr = 1\nsmall = {lr = 0.5, hidden_size = 4}\n' + ARM + "lr = 0.1\n")
    assert "--lr=0.1" in lines[0] and "--hidden_size=4" in lines[0]


def test_arms_and_cases_may_have_seeds_of_their_own(commands):
    """An arm's have precedence over its case's, and these over the common ones."""
    case = "[[cases]]\nname = '{}'\npolicy = 'PPO'\nenv = 'Cue10-v0'\nlr = {}\n{}\n"
    lines, _ = commands("seeds = [0, 1, 2]\n" + case.format("some", 1, "seeds = [1, 5]") + case.format("all", 2, "") +
                        "[[runs]]\nname = 'memory'\nrecurrent = true\n[[runs]]\nname = 'none'\nseeds = [2]\n")
    assert [(line[-4] == "--recurrent", line[-3]) for line in lines] == [
        (True, "--seed=1"), (False, "--seed=2"), (True, "--seed=5"),
        (True, "--seed=0"), (False, "--seed=2"), (True, "--seed=1"), (True, "--seed=2")]


def test_what_is_printed_is_what_main_takes_and_nothing_is_written(commands, tmp_path):
    lines, _ = commands("seeds = [0]\n" + ARM, "--results_dir", str(tmp_path / "it's here"))
    (_, _, *words), = lines
    assert main.parse(words)[0].results_dir == str(tmp_path / "it's here")
    assert os.listdir(tmp_path) == ["study.toml"]


def test_a_run_that_is_asked_for_twice_is_run_once(commands):
    text = "seeds = [0, 1]\n" + ARM + "lr = [1e-3, 3e-4]\n" + ARM + 'name = "again"\nlr = [2e-3, 3e-4]\n'
    lines, err = commands(text)
    assert len(lines) == 6 and len({tuple(line) for line in lines}) == 6
    assert err == "[[runs]] 2 (again): 2 of its runs are runs of [[runs]] 1 too, and are run once\n"


BAD = [
    ("seeds = [0", ["is not TOML", "Unclosed array"]),
    ("seeds = [0]\nnodes = 2\n" + ARM, ["unknown 'nodes'", "[[runs]]"]),
    (ARM, ["no seeds", "seeds = [0, 1, 2]"]),
    ("seeds = 3\n" + ARM, ["no seeds"]),
    ("seeds = []\n" + ARM, ["no seeds"]),
    ("seeds = [0]\n" + ARM + ARM + "name = 'few'\nseeds = []\n", ["few", "no seeds"]),
    ("seeds = [-1]\n" + ARM, ["[[runs]] 1: ", "--seed", "'-1'"]),
    ("seeds = [0]", ["[[runs]]"]),
    ("seeds = [0]\nruns = []", ["[[runs]]"]),
    ("seeds = [0]\nruns = [1]", ["[[runs]]"]),
    ("seeds = [0]\ncommon = 1\n" + ARM, ["[common]"]),
    ("seeds = [0]\n" + 6 * ARM + ARM + 'name = "wide"\nhiden_size = 3\n', ["[[runs]] 7 (wide)", "did you mean --hidden_size?"]),
    ("seeds = [0]\n" + ARM + "seq_len = 8\n", ["[[runs]] 1: ", "--seq_len needs a memory", "--policy=PPO"]),
    ("seeds = [0]\n" + ARM + "recurrent = true\nseq_len = [8, [1, 2]]\n", ["--seq_len", "'[1, 2]'"]),
    ("seeds = [0]\n" + ARM + "lr = {value = 1e-3}\n", ["--value"]),
    ("seeds = [0]\n[[runs]]\npolicy = 'PPO'\nenv = 'Cue11-v0'\n", ["unknown environment 'Cue11-v0'", "[[runs]] 1"]),
    ("seeds = [0]\n[[runs]]\npolicy = 'TD3'\nenv = 'CueDiscrete10-v0'\n", ["TD3 needs continuous actions", "--policy PPO or"]),
    ("seeds = [0]\n[[runs]]\npolicy = 'R2D1'\nenv = 'Cue10-v0'\n", ["R2D1 needs discrete actions", "Cue10-v0 has continuous"]),
    ("seeds = [0]\n[[runs]]\npolicy = 'A2C'\nenv = 'CueDiscrete10-v0'\ninit_log_std = 1\n", ["[[runs]] 1", "--init_log_std"]),
    ("seeds = [0]\n" + ARM + "eval_freq = [100, 200]\n", ["--eval_freq 200", "the same name", "[[runs]] 1", "100"]),
    *[("seeds = [0]\n" + ARM + f"{name} = 1\n", [f": {name} ", "take it out"]) for name in sweep.NOT_HERE],
    *[("seeds = [0]\n" + ARM + f'"{name}" = 1\n', [f"'{name}' is not the name of a flag", "X = false"])
      for name in ("no-resume", "results_dir=X", "seed=1", "-resume", "lr ", "")],
    ("seeds = [0]\n" + ARM + 'case = [{"no-resume" = true}]\n', ["'no-resume' is not the name of a flag"]),
    ("seeds = [0]\n" + ARM + ARM + "lr = []\n", ["[[runs]] 2", "lr = []", "no run"]),
    ("seeds = [0]\n" + ARM + "case = [{lr = 1}, {}]\nlr = 2\n", ["[[runs]] 1", "both case and lr set lr"]),
    ("seeds = [0]\n[common]\nlr = [1, 2]\ncase = [{lr = 1}, {}]\n" + ARM, ["[common]", "both lr and case set lr"]),
    ("seeds = [0]\n" + ARM + "recurrent = true\n" + "".join(f"x{i} = {[*range(30)]}\n" for i in range(8)),
     ["656,100,000,000 runs", "at most 10,000"]),
    ("seeds = [0]\n" + ARM + "".join(f"x{i} = {[*range(30)]}\n" for i in range(5_000)), ["10^7386 runs", "at most 10,000"]),
    (f"seeds = {[*range(10_001)]}\n" + ARM, ["10,001 runs"]),
    ("seeds = " + "[" * 5_000 + "]" * 5_000 + "\n" + ARM, ["is not TOML"]),
    ("seeds = [0x" + "f" * 5_000 + "]\n" + ARM, ["[[runs]] 1", "--seed cannot be 'int'"]),
    ("seeds = [0]\n" + ARM + "lr = 0x" + "f" * 5_000 + "\n", ["--lr cannot be 'int'"]),
    ("seeds = [0]\n" + ARM + "lr = 2026-01-01\n", ["--lr cannot be 'date'"]),
    *[("seeds = [0]\n" + ARM + f"case = [{{{name} = 1}}]\n", [f": {name} "]) for name in ("seed", "resume")],
]


@pytest.mark.parametrize("text,says", BAD)
def test_bad_studies(text, says, study, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "Pool", None)
    path = study(text)
    refused([path, "--results_dir", str(tmp_path / "results")], [path, *says], capsys)
    assert os.listdir(tmp_path) == ["study.toml"]


def test_it_says_which_modules_a_study_imports_before_it_does(study, capsys, tmp_path, monkeypatch):
    """To import a module is to run its code; with --dry_run that can be looked at before."""
    (tmp_path / "trap.py").write_text("print('the code has run')")
    monkeypatch.syspath_prepend(tmp_path)
    path = study("seeds = [0, 1]\n[[runs]]\npolicy = 'PPO'\nenv = ['trap:Cue10-v0', 'Cue10-v0']\n")
    sweep.main([path, "--dry_run"])
    out, err = capsys.readouterr()
    assert out.count("--env=trap:Cue10-v0") == 2 and err == f"{path} would import trap for its environments\n"
    sweep.read_study(path, "results")                                  # as plot.py does
    assert "trap" not in sys.modules

    monkeypatch.setitem(sys.modules, "ray", None)                      # so nothing is run
    with pytest.raises(SystemExit):
        sweep.main([path, "--results_dir", str(tmp_path / "results")])
    assert capsys.readouterr().err.startswith(f"{path} imports trap for its environments\n") and "trap" in sys.modules
    del sys.modules["trap"]


@pytest.mark.parametrize("flags,says", [
    (["missing.toml"], ["missing.toml", "No such file", "studies/memory.toml"]),
    ([], ["study"]),
    (["studies/memory.toml", "--cores", "0"], ["--cores", "'0'", "at least 1"]),
    (["studies/memory.toml", "--retries", "-1"], ["--retries", "'-1'", "at least 0"]),
    (["studies/memory.toml", "--cores", "2", "--address", "host:6379"], ["--cores", "drop one"]),
    (["studies/memory.toml", "--dry-run"], ["--dry-run"])])
def test_bad_flags(flags, says, capsys):
    refused(flags, says, capsys)


def refused(flags, says, capsys):
    with pytest.raises(SystemExit) as stop:
        sweep.main(flags)
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and re.fullmatch(r"error: [^\n]+\n", err), err
    assert all(words in err for words in says) and out == "", err


@pytest.mark.parametrize("study", ["studies/memory.toml", "results/history/pilot/pilot.toml"])
def test_a_study_compares_what_is_equal(study):
    runs = sweep.read_study(os.path.join(sweep.HERE, study), "results")
    arms = {(run.config["policy"], run.config["env"]): None for run in runs}
    same = ("replay_ratio", "epochs", "batch_size", "hidden_layers", "hidden_size", "lr", "max_timesteps", "num_envs")
    for case in arms:
        mine = [run.config for run in runs if (run.config["policy"], run.config["env"]) == case]
        assert all(config.get(name) == mine[0].get(name) for name in same for config in mine)


def test_without_ray_it_says_how_to_install_it(study, capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SystemExit) as stop:
        sweep.main([study("seeds = [0]\n" + ARM), "--results_dir", str(tmp_path / "results")])
    assert stop.value.code == 2
    assert re.fullmatch(r"error: [^\n]*pip install ray[^\n]*\n", capsys.readouterr().err)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "here", "127.0.0.1:", "127.0.0.1:99999"])
def test_an_address_where_nobody_answers(address, study, capsys, tmp_path):
    pytest.importorskip("ray")
    with pytest.raises(SystemExit) as stop:
        sweep.main([study("seeds = [0]\n" + ARM), "--results_dir", str(tmp_path / "results"), "--address", address])
    assert stop.value.code == 2
    assert re.fullmatch(rf"error: --address {address} must be HOST:PORT [^\n]*\n", capsys.readouterr().err)


# ---------------------------------------------------------------------- the order of things

class Puppets:
    """In Pool's place: runs end as they are told to, the one that was started first first."""

    def __init__(self, ends=None, cores=2):
        self.ends, self.available = {name: list(end) for name, end in (ends or {}).items()}, cores
        self.running, self.started, self.most, self.cancelled = [], [], 0, 0

    def cores(self):
        return self.available

    def start(self, run):
        assert run not in self.running and run.state == "running"
        self.running.append(run)
        self.started.append(run.path)
        self.most = max(self.most, len(self.running))

    def wait(self):
        for run in self.running[:1]:
            self.running.remove(run)
            code = self.ends[run.path].pop(0) if self.ends.get(run.path) else 0
            yield run, code, f"exit code {code}"

    def cancel(self):
        self.cancelled += 1


def some_runs(names):
    return [sweep.Run("[[runs]] 1", name, [], {}) for name in names]


def sweep_over(names, pool, retries=3):
    runs = some_runs(names)
    return sweep.go(runs, pool, retries, sweep.Display(runs)), {run.path: run for run in runs}


def test_as_many_at_a_time_as_there_are_cores():
    pool = Puppets(cores=3)
    signal, runs = sweep_over("abcdefgh", pool)
    assert signal is None and pool.started == list("abcdefgh") and pool.most == 3
    assert {run.state for run in runs.values()} == {"done"}


def test_what_is_done_is_not_run():
    runs = some_runs("abc")
    runs[1].state = "done"
    pool = Puppets()
    sweep.go(runs, pool, 3, sweep.Display(runs))
    assert pool.started == ["a", "c"]


@pytest.mark.parametrize("code", [1, 2])
def test_a_run_that_gave_up_is_not_tried_again(code):
    pool = Puppets({"b": [code]})
    _, runs = sweep_over("abc", pool)
    assert pool.started == ["a", "b", "c"] and [run.state for run in runs.values()] == ["done", "failed", "done"]


@pytest.mark.parametrize("code", [None, -9, -11, 130, 143])            # lost with its worker, killed, stopped by someone
def test_a_run_that_was_lost_is_tried_again_but_not_for_ever(code, capsys):
    pool = Puppets({"a": [code] * 2, "b": [code] * 9}, cores=1)
    _, runs = sweep_over("abc", pool, retries=3)
    assert pool.started == ["a"] * 3 + ["b"] * 4 + ["c"] and pool.most == 1
    assert [run.state for run in runs.values()] == ["done", "failed", "done"]
    assert f"lost (exit code {code}), retry 3 of 3 goes on from its last checkpoint: b" in capsys.readouterr().out


def test_nodes_come_and_go():
    pool = Puppets(cores=0)
    waited = pool.wait
    steps = iter([2, 0, 3, *[1] * 99])

    def wait():
        yield from waited()
        pool.available = next(steps)
    pool.wait = wait
    _, runs = sweep_over("abcdefg", pool)
    assert pool.started == list("abcdefg") and pool.most == 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_all_runs_and_starts_no_more(number, capsys):
    before = signal.getsignal(number)
    pool = Puppets({"b": [143], "c": [None]})
    waited = pool.wait

    def wait():
        if pool.started == ["a", "b", "c"] and not pool.cancelled:
            os.kill(os.getpid(), number)
        yield from waited()
    pool.wait = wait
    stopped, runs = sweep_over("abcdef", pool, retries=0)
    assert stopped == number and signal.getsignal(number) == before
    assert pool.started == ["a", "b", "c"] and pool.cancelled == 1 and not pool.running
    assert [run.state for run in runs.values()] == ["done"] + ["waiting"] * 5
    assert "each run finishes its step and writes a checkpoint" in capsys.readouterr().out


def finish(path):
    """What a finished run leaves."""
    with open(path + ".csv", "w") as csv, open(path + ".json", "w") as info:
        csv.write("step,episode,return,length,seconds\n")
        json.dump({"finished": True, "config": {"lr_decay": True}}, info)


def test_summary_and_exit_code(study, capsys, monkeypatch, tmp_path):
    """A run that had finished, one that fails, and one that does not: 1, and the log is named."""
    path, folder = study("seeds = [0, 1, 2]\n" + ARM), str(tmp_path / "results")
    name = os.path.join(folder, "Cue10-v0_PPO_ff_seed=")
    os.makedirs(folder)
    finish(name + "0")
    os.mkdir(name + "0.checkpoint")                                    # it was killed before this went
    with open(name + "1.log", "w") as log:
        log.write("step 5\nerror: policy is nan at step 7\n")
    pool = Puppets({name + "1": [1]})
    monkeypatch.setattr(sweep, "Pool", lambda *args: pool)
    with pytest.raises(SystemExit) as stop:
        sweep.main([path, "--results_dir", folder])
    out, err = capsys.readouterr()
    assert stop.value.code == 1 and pool.started == [name + "1", name + "2"]
    assert err == f"failed: [[runs]] 1: error: policy is nan at step 7; see {name}1.log\n"
    first, failed, done, last = out.splitlines()                       # no terminal: lines, and no control characters
    assert first == "1 done, 0 running, 0 failed, 2 waiting"
    assert failed == "failed (exit code 1): Cue10-v0_PPO_ff_seed=1   [1 done, 1 running, 1 failed, 0 waiting]"
    assert done == "done in 0.0 min: Cue10-v0_PPO_ff_seed=2   [2 done, 0 running, 1 failed, 0 waiting]"
    assert last == f"2 done, 0 running, 1 failed, 0 waiting; results are in {folder}"

    finish(name + "1")
    finish(name + "2")
    monkeypatch.setattr(sweep, "Pool", None)                           # nothing is left to run
    with pytest.raises(SystemExit) as stop:
        sweep.main([path, "--results_dir", folder])
    assert stop.value.code == 0 and capsys.readouterr().out.startswith("3 done, 0 running, 0 failed, 0 waiting\n")
    assert not os.path.exists(name + "0.checkpoint")

    with open(name + "0.json", "w") as info:                           # a checkpoint that was to be kept is kept
        json.dump({"finished": True, "config": {"lr_decay": True, "keep_checkpoint": True}}, info)
    os.mkdir(name + "0.checkpoint")
    with pytest.raises(SystemExit) as stop:
        sweep.main([path, "--results_dir", folder])
    assert stop.value.code == 0 and os.path.exists(name + "0.checkpoint")


def test_time_left():
    """Two done in 60 s each, two of four left, on one core: of 120 s the running one has spent 50."""
    runs = some_runs("abcd")
    for run in runs[:2]:
        run.state, run.attempts, run.seconds = "done", 1, 60.0
    runs[2].state, runs[2].began = "running", time.monotonic() - 50
    assert sweep.Display(runs).count(1) == "2 done, 1 running, 0 failed, 1 waiting, about 1 min left"
    runs[0].seconds = runs[1].seconds = 605
    assert sweep.Display(runs).count(9).endswith("about 10 min left")  # two runs, so no more than two of the cores


def test_table_on_a_terminal(capsys, monkeypatch, tmp_path):
    """It is drawn over itself, is no wider and no higher than the terminal, and what happened stays above it."""
    runs = some_runs([str(tmp_path / name) for name in "abc"])
    for run in runs[:2]:
        run.state, run.began = "running", time.monotonic() - 90
        (tmp_path / f"{os.path.basename(run.path)}.log").write_text(f"step 1\nstep 2 of {run.path}, slowly\n")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    for width, height, rows in ((79, 24, 3), (30, 4, 2)):
        monkeypatch.setattr(sweep.shutil, "get_terminal_size", lambda size=(width, height): size)
        display = sweep.Display(runs)
        display.show(2)
        table = capsys.readouterr().out.splitlines()
        assert len(table) == rows and max(map(len, table)) < width and table[0] == display.count()[:width - 1]
        assert table[1].startswith("   1.5 min  step 2 of " + str(tmp_path)[:5])
        display.say("news")
        display.show(2)
        assert capsys.readouterr().out.splitlines() == [f"\x1b[{rows}F\x1b[Jnews", *table]


# ---------------------------------------------------------------------- one run's process

def test_a_run_keeps_its_exit_code_and_log(tmp_path):
    log = str(tmp_path / "log")
    script = "import os, sys; print(os.environ['OMP_NUM_THREADS'], os.getcwd()); sys.exit('bad') if len(sys.argv) > 1 else 0"
    assert sweep.work(["-c", script], log, str(tmp_path)) == 0
    assert sweep.work(["-c", script, "x"], log, str(tmp_path)) == 1
    assert sweep.work(["-c", "import os; os.kill(os.getpid(), 9)"], log, str(tmp_path)) == -9
    lines = open(log).read().splitlines()
    assert [line[:3] == "---" for line in lines] == [True, False, True, False, False, True]
    assert lines[1] == lines[3] == f"1 {tmp_path}" and lines[4] == "bad"


def test_a_module_of_ones_own_is_found_by_the_runs(tmp_path, monkeypatch):
    """--env MODULE:ID is looked for where the user of sweep.py stands, though a run is started elsewhere."""
    (tmp_path / "own_module.py").write_text("print('found')\n")
    log = str(tmp_path / "log")
    assert sweep.work(["-c", "import own_module"], log, "/", str(tmp_path)) == 0
    assert open(log).read().endswith("\nfound\n")
    monkeypatch.chdir(tmp_path)
    pool, calls = object.__new__(sweep.Pool), []
    pool.running, pool.work = {}, types.SimpleNamespace(remote=lambda *given: calls.append(given[-1]) or len(calls))
    for run, env in zip(some_runs("ab"), ("own_module:Own-v0", "Pendulum-v1")):
        run.config = dict(env=env)
        pool.start(run)
    assert calls == [str(tmp_path), ""]


TERM = ("import signal, sys, time; "                                   # one line: it is in the log, too
        "signal.signal(15, lambda *_: (time.sleep(1), print('checkpoint', flush=True), sys.exit(143))); "
        "print('ready', flush=True); time.sleep(60)")


def until(condition, seconds=60):
    deadline = time.time() + seconds
    while not condition():
        assert time.time() < deadline
        time.sleep(0.05)


def test_a_cancel_lets_the_run_end_in_order(tmp_path):
    log = tmp_path / "log"

    def cancel():
        until(lambda: log.exists() and "\nready\n" in log.read_text())
        _thread.interrupt_main()                                       # as Ray does
    signal.signal(signal.SIGINT, signal.default_int_handler)           # a shell's background jobs ignore it
    threading.Thread(target=cancel).start()
    assert sweep.work(["-c", TERM], str(log), ".") == 143
    assert log.read_text().endswith("ready\ncheckpoint\n")


@pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
def test_a_run_does_not_outlive_its_worker_for_long(tmp_path):
    """It is told to stop, and still writes its checkpoint."""
    log = tmp_path / "log"
    worker = subprocess.Popen([sys.executable, "-c", "import sys; sys.path.insert(0, sys.argv[1]); import sweep; "
                               "sweep.work(['-c', sys.argv[2]], sys.argv[3], '.')", sweep.HERE, TERM, str(log)])
    until(lambda: log.exists() and "\nready\n" in log.read_text())
    worker.kill()
    worker.wait()
    until(lambda: log.read_text().endswith("ready\ncheckpoint\n"))


# ---------------------------------------------------------------------- on Ray

@pytest.fixture
def start_sweep():
    """A function that starts sweep.py in a process of its own, which does not outlive the test."""
    pytest.importorskip("ray")
    started = []

    def start(*flags):
        started.append(subprocess.Popen([sys.executable, os.path.join(sweep.HERE, "sweep.py"), *map(str, flags)], text=True,
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE))
        return started[-1]
    yield start
    for process in started:
        if process.poll() is None:
            process.terminate()
            process.communicate(timeout=60)


def toml_of(seeds, *arms):
    """A study of these arms, lists of main.py's flags."""
    tables = ["[[runs]]\n" + "".join(f'{name.removeprefix("--")} = {"true" if value is True else repr(value)}\n'
                                     for name, value in dict(zip(arm[::2], arm[1::2])).items()) for arm in arms]
    return f"seeds = {seeds}\n" + "\n".join(tables)


def results(folder):
    return {name.removesuffix(".csv"): evaluations(os.path.join(folder, name.removesuffix(".csv")))
            for name in os.listdir(folder) if name.endswith(".csv")}


MEMORY = ["--recurrent", True, "--core_size", "4", "--seq_len", "4", "--checkpoint_freq", "50"]
ARMS = [[*tiny("TD3", "Cue10-v0"), *MEMORY], [*tiny("PPO", "Cue10-v0"), *MEMORY]]


def once_more(name, folder, *flags):
    """The same run in one piece, in this process."""
    policy, seed = re.search(r"_(TD3|PPO)_.*seed=(\d+)", name).groups()
    words = [word for word in {"TD3": ARMS[0], "PPO": ARMS[1]}[policy] if word is not True]
    main.main([*words, *flags, "--seed", seed, "--results_dir", str(folder)])


def parent(pid):
    with open(f"/proc/{pid}/stat") as file:
        return int(file.read().rsplit(")", 1)[1].split()[1])


def processes(words):
    """Those of main.py with this in their command."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline") as file:
                command = file.read().split("\0")
            if "main.py" in command and words in " ".join(command) and "-c" not in command:
                found.append((int(pid), command))
        except OSError:
            pass
    return found


def test_a_node_dies(study, start_sweep, tmp_path):
    """Twelve runs on two nodes, one of which is gone in the middle: all finish, none twice, as if nothing had happened."""
    from ray.cluster_utils import Cluster
    path, folder = study(toml_of([0, 1, 2, 3, 4, 5], *ARMS)), tmp_path / "results"
    cluster = Cluster(initialize_head=True, head_node_args=dict(num_cpus=2, include_dashboard=False))
    try:
        node = cluster.add_node(num_cpus=1)
        raylet = node.all_processes["raylet"][0].process.pid
        driver = start_sweep(path, "--address", cluster.address, "--results_dir", folder)
        victims = []

        def freeze():
            """Stop one of its runs that has a checkpoint, and its worker, as all of a node stops that loses power."""
            assert driver.poll() is None
            for pid, command in processes(str(folder)):
                with contextlib.suppress(OSError):                     # it may end just now
                    worker = parent(pid)
                    policy, seed = (word.split("=")[1] for word in command if word.startswith(("--policy=", "--seed=")))
                    saved = f"*_{policy}_*_seed={seed}.checkpoint/*.state"
                    if parent(worker) == raylet and any(folder.glob(saved)):
                        os.kill(pid, signal.SIGSTOP)
                        if any(folder.glob(saved)):
                            os.kill(worker, signal.SIGSTOP)
                            victims[:] = worker, pid
                        else:                                          # it has just finished
                            os.kill(pid, signal.SIGCONT)
            return victims
        until(freeze, 300)
        cluster.remove_node(node, allow_graceful=False)
        for victim in victims:
            os.kill(victim, signal.SIGKILL)
        out, err = driver.communicate(timeout=400)
    finally:
        cluster.shutdown()
    assert driver.returncode == 0, (out, err)
    assert err == "" and out.splitlines()[-1] == f"12 done, 0 running, 0 failed, 0 waiting; results are in {folder}"
    lost, = re.findall(r"^lost \(\w+\), retry 1 of 5 goes on from its last checkpoint: (\S+)", out, re.MULTILINE)

    found = results(folder)
    assert len(found) == 12
    for name, rows in found.items():
        assert [row[:2] for row in rows] == [[step, episode] for step in ("0", "100", "200", "240") for episode in "01"]
        with open(folder / f"{name}.json") as file:
            info = json.load(file)
        assert info["finished"] is True and len(info.get("resumed", [])) == (name == lost)
        assert (folder / f"{name}.log").read_text().count("--- ") == 1 + (name == lost)
    other = next(name for name in found if name != lost)
    for name in (lost, other):
        once_more(name, tmp_path / "again")
    assert results(tmp_path / "again") == {name: found[name] for name in (lost, other)}


def test_stop_and_go_on(study, start_sweep, tmp_path):
    path, folder = study(toml_of([0, 1], [*ARMS[0], "--max_timesteps", "2000"])), tmp_path / "results"
    driver = start_sweep(path, "--cores", 1, "--results_dir", folder)
    until(lambda: any("step 100 " in log.read_text() for log in folder.glob("*.log")), 300)
    driver.send_signal(signal.SIGTERM)
    out, err = driver.communicate(timeout=100)
    assert driver.returncode == 143 and err == "interrupted: go on with the same command\n"
    assert "\nstopping: " in out and out.splitlines()[-1].startswith("0 done, 0 running, 0 failed, 2 waiting")
    log, = folder.glob("*.log")                                        # the other one was not started
    assert log.read_text().endswith("interrupted: go on with the same command and --resume\n")
    assert not processes(str(folder))

    again = start_sweep(path, "--cores", 1, "--results_dir", folder)
    out, err = again.communicate(timeout=300)
    assert again.returncode == 0 and err == "" and "2 done, 0 running, 0 failed, 0 waiting" in out.splitlines()[-1]
    assert "\ngoing on from step " in log.read_text()
    once_more(log.stem, tmp_path / "again", "--max_timesteps", "2000")
    assert results(tmp_path / "again") == {log.stem: results(folder)[log.stem]}


# ---------------------------------------------------------------------- cases, and their tables

CASES = """
    seeds = [3, 4]
    [common]
    policy = "PPO"
    core_size = 4
    eval_freq = 100
    [[cases]]
    name = "the cue"
    env = "Cue10-v0"
    memory_input = "obs"
    [[cases]]
    name = "pole"
    env = "CartPole-v1"
    without = ["short"]
    [[runs]]
    name = "common"
    question = "Q0"
    recurrent = true
    [[runs]]
    name = "short"
    question = "Q1"
    recurrent_actor = true
    seq_len = 8
    [[runs]]
    name = "no memory"
    question = "Q2"
    recurrent = false
    """


@pytest.mark.parametrize("key", ["without", "identical"])
def test_a_case_is_finished_before_the_next_begins(study, key):
    runs = sweep.read_study(study(CASES.replace("without", key)), "results")
    assert [(run.case, run.config["seed"], run.arm) for run in runs] == [
        *(("the cue", seed, arm) for seed in (3, 4) for arm in ("common", "short", "no memory")),
        *(("pole", seed, arm) for seed in (3, 4) for arm in ("common", "no memory"))]


def test_a_cases_flags_of_memory_are_for_the_arms_that_have_one(study):
    read = {(run.case, run.arm): run.config for run in sweep.read_study(study(CASES), "results")}
    assert [read["the cue", arm]["memory_input"] for arm in ("common", "short")] == ["obs", "obs"]
    assert read["the cue", "short"]["core_size"] == 4 and not read["the cue", "no memory"]["recurrent_actor"]
    assert "core_size" not in " ".join(sweep.read_study(study(CASES), "results")[2].words)


@pytest.mark.parametrize("old,new,says", [
    ('name = "pole"', 'name = "the cue"', ["[[cases]]", "a name of its own"]),
    ('name = "short"', "", ["[[runs]]", "a name of its own"]),
    ('name = "pole"', 'name = "the_cue"', ["the cue", "the_cue.csv", "rename"]),
    ('name = "pole"', f'name = "{"x" * 101}"', ["100 characters", "shorten"]),
    ('without = ["short"]', 'without = ["brief"]', ["pole", "without", "brief"]),
    ('without = ["short"]', 'without = 3', ["pole", "without = 3", "list"]),
    ('without = ["short"]', 'identical = ["brief"]', ["pole", "identical", "brief"]),
    ('without = ["short"]', 'identical = "short"', ["pole", "identical = short", "list"]),
    ('without = ["short"]', 'without = ["common", "short", "no memory"]', ["pole", "nothing"]),
    ('memory_input = "obs"', 'without = ["short"]', ["short", "nothing"]),
    ("seq_len = 8", "seq_len = []", ["short", "seq_len = []"]),
    ("seq_len = 8", "seq_len = [8, 16]", ["short", "2 runs of one arm"]),
    ("seq_len = 8", "recurrent_critic = true", ["short", "the same run as", "common"])])
def test_bad_cases(old, new, says, study, capsys, tmp_path):
    path = study(CASES.replace(old, new))
    refused([path, "--results_dir", str(tmp_path)], says, capsys)


def test_a_finished_run_moves_into_the_tables_of_its_case(study, capsys, monkeypatch, tmp_path):
    """Whatever the order in which runs finish, the tables are the same; a run that is in them is never run again."""
    path, folder = study(CASES), tmp_path / "results"
    planned = sweep.read_study(path, str(folder))

    class Quick(Puppets):
        def wait(self):
            for run in self.running[:1]:
                score = 10 * run.config["seed"] + len(run.arm)
                with open(run.path + ".csv", "w") as file:
                    file.write("step,episode,return,length,seconds\n" + "".join(
                        f"{step},{i},{score + step + i},7,{step / 10}\n" for step in (0, 100) for i in (0, 2)))
                with open(run.path + ".json", "w") as file:
                    json.dump(dict(config=run.config, finished=True, seconds=90, cpu_seconds=60,
                                   commit="abc", versions=dict(torch="2", machine="this")), file)
                if run.config["recurrent_critic"]:
                    with open(run.path + ".staleness.csv", "w") as file:
                        file.write("step,delta_q_first,delta_q_last,delta_hidden_first,delta_hidden_last\n104,0.5,0.25,1,\n")
            return super().wait()

    def sweep_all(pool):
        monkeypatch.setattr(sweep, "Pool", lambda *args: pool)
        with pytest.raises(SystemExit) as stop:
            sweep.main([path, "--results_dir", str(folder)])
        assert stop.value.code == 0
        return {name: (folder / name).read_text() for name in sorted(os.listdir(folder))}
    files = sweep_all(Quick())
    assert list(files) == ["pole.csv", "pole.runs.csv", "the_cue.csv", "the_cue.runs.csv"]
    head, *rows = files["the_cue.csv"].splitlines()
    assert head == ("arm,seed,step,return_mean,return_std,length_mean,seconds,"
                    "delta_q_first,delta_q_last,delta_hidden_first,delta_hidden_last")
    assert rows[:4] == ["common,3,0,37,1,7,0,,,,", "common,3,100,137,1,7,10,0.5,0.25,1,",
                        "common,4,0,47,1,7,0,,,,", "common,4,100,147,1,7,10,0.5,0.25,1,"] and len(rows) == 12
    runs = files["pole.runs.csv"].splitlines()
    assert runs[0].startswith("arm,seed,run,evaluations,commit,torch,machine,minutes,cpu_minutes,resumed,policy,env,")
    assert len(runs) == 5
    assert runs[1].startswith(f"common,3,{os.path.basename(planned[6].path)},2,abc,2,this,1.5,1,0,PPO,CartPole-v1,")

    assert sweep_all(None) == files                                    # nothing is left to run

    pool = Quick()                                                     # killed after the tables were written: collected once more
    pool.start(sweep.Run([], planned[6].path, [], planned[6].config, "running", arm="common"))
    list(pool.wait())
    assert sweep_all(None) == files

    pool = Quick()                                                     # run again by hand since: other files, which stay
    pool.start(sweep.Run([], planned[6].path, [], planned[6].config, "running", arm="common"))
    list(pool.wait())
    path_of = planned[6].path
    with open(path_of + ".json") as file:
        info = json.load(file)
    with open(path_of + ".json", "w") as file:
        json.dump(info | dict(seconds=120), file)
    again = sweep_all(None)
    assert again.items() > files.items() and len(again) == len(files) + 3
    for end in (".csv", ".json", ".staleness.csv"):
        os.remove(path_of + end)

    capsys.readouterr()                                                # an arm that is renamed would vanish from the figures
    refused([study(CASES.replace('"short"', '"brief"')), "--results_dir", str(folder)],
            ["as the arm 'short', and the study calls it 'brief'", "old name"], capsys)
    refused([study(CASES.replace("eval_freq = 100", "eval_freq = 100\n    save_model = true")), "--results_dir", str(folder)],
            ["seed=3 has finished, without --save_model", "another --results_dir"], capsys)
                                                                       # a name does not say how often a run was evaluated
    refused([study(CASES.replace("eval_freq = 100", "eval_freq = 50")), "--results_dir", str(folder)],
            ["seed=3 has finished, with --eval_freq=100", "another --results_dir"], capsys)


@pytest.fixture
def collect(tmp_path):
    """A function that makes a finished run of this seed and moves it into the tables of a case; and the tables' path."""
    config = sweep.check("", {"policy": "PPO", "env": "Cue10-v0"}, 0, "").config | dict(eval_freq=100)

    def collect(seed, spoil=lambda run: None):
        run = str(tmp_path / f"run_seed={seed}")
        with open(run + ".csv", "w") as file:
            file.write("step,episode,return,length,seconds\n" + "".join(f"{100 * i},0,{i}.5,7,{i}\n" for i in range(3)))
        with open(run + ".json", "w") as file:
            json.dump(dict(config=config | dict(seed=seed), finished=True, lines={".csv": 4}, seconds=9, cpu_seconds=6), file)
        spoil(run)
        tables.collect(str(tmp_path / "case"), "arm", ["arm"], run, sweep.check_saved)
    return collect, str(tmp_path / "case")


@pytest.mark.parametrize("ending", [".csv", ".runs.csv"])
@pytest.mark.parametrize("damage", [
    lambda text: text[:-5], lambda text: "", lambda text: text.replace(",", "", 1), lambda text: text.replace("arm", '"arm', 1),
    lambda text: text.replace("seed", "arm", 1), lambda text: "\0" + text, lambda text: text.replace("arm,1", "arm,one"),
    lambda text: text + "x,1\n", None, os.mkdir, os.mkfifo])
def test_a_damaged_table_is_one_line_and_no_run_is_lost(collect, ending, damage, tmp_path):
    collect, path = collect
    collect(1)
    before = open(path + ending).read()
    os.remove(path + ending)
    if damage in (os.mkdir, os.mkfifo):
        damage(path + ending)
    elif damage:
        with open(path + ending, "w") as file:
            file.write(damage(before))
    elif ending == ".runs.csv":
        return                                                         # gone: its runs are run again
    for call in (lambda: tables.collected(path), lambda: collect(2)):
        with pytest.raises(ValueError, match="damaged") as error:
            call()
        assert "\n" not in str(error.value) and path in str(error.value)
    assert (tmp_path / "run_seed=2.csv").exists() and (tmp_path / "run_seed=2.json").exists()


def test_a_run_too_short_to_measure_staleness_is_collected(collect, tmp_path):
    collect, path = collect

    def measure_nothing(run):
        with open(run + ".staleness.csv", "w") as file:
            file.write("step,delta_q_first,delta_q_last,delta_hidden_first,delta_hidden_last\n")
    collect(1, measure_nothing)
    rows = open(path + ".csv").read().splitlines()
    assert len(rows) == 4 and rows[1].endswith(",0,,,,") and not (tmp_path / "run_seed=1.staleness.csv").exists()


@pytest.mark.parametrize("old, new, says", [
    ('name = "no memory"', 'name = "none"', "no [[runs]] named 'no memory'"), ('question = "Q1"', "", "no question for 'short'")])
def test_a_study_that_cannot_be_drawn_says_so_before_it_runs(old, new, says, study, capsys):
    sweep.read_study(study(CASES.replace(old, new)), "")
    assert says in capsys.readouterr().err


def test_a_table_that_lacks_lines_is_noticed(collect):
    collect, path = collect
    collect(1)
    collect(2)
    lines = open(path + ".csv").readlines()
    with open(path + ".csv", "w") as file:
        file.writelines(lines[:-1])
    with pytest.raises(ValueError, match="2 of 3 evaluations of arm, seed 2"):
        tables.collected(path)


@pytest.mark.parametrize("end,text", [(".csv", ""), (".csv", "step,episode,return,length,seconds\n0,0,1,7,0\n"), (".json", "{}"),
                                      (".json", "[" * 9_999), (".csv", "\0"), (".csv", None)])
def test_a_damaged_run_is_not_collected(collect, end, text, tmp_path):
    collect, path = collect
    collect(1)
    before = [open(path + ending).read() for ending in (".csv", ".runs.csv")]

    def spoil(run):
        os.remove(run + end)
        if text is not None:
            with open(run + end, "w") as file:
                file.write(text)
    with pytest.raises(ValueError, match="its results are damaged"):
        collect(2, spoil)
    assert [open(path + ending).read() for ending in (".csv", ".runs.csv")] == before
    assert {".csv", ".json"} - {end} <= {file.suffix for file in tmp_path.glob("run_seed=2.*")}


@pytest.mark.parametrize("ending", [".csv", ".runs.csv"])
def test_a_disk_that_is_full_while_a_run_is_collected_loses_nothing(collect, ending, monkeypatch, tmp_path):
    """Whichever table it is full at, the run keeps its files, and is in the tables once when there is room."""
    collect, path = collect
    collect(1)

    def full(name, payload):
        if name == path + ending:
            raise OSError(28, "No space left on device")
        return write_file(name, payload)
    monkeypatch.setattr(tables, "write_file", full)
    with pytest.raises(OSError):
        collect(2)
    assert (tmp_path / "run_seed=2.csv").exists() and tables.collected(path).keys() == {"run_seed=1"}
    monkeypatch.setattr(tables, "write_file", write_file)
    collect(2)
    assert tables.collected(path).keys() == {"run_seed=1", "run_seed=2"} and not list(tmp_path.glob("run*"))
    assert len(open(path + ".csv").readlines()) == 7


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError("x.csv is damaged"), SystemExit(2)])
def test_a_run_that_cannot_be_collected_does_not_stop_the_sweep(study, error, capsys, monkeypatch, tmp_path):
    def collect(*args):
        raise error
    monkeypatch.setattr(tables, "collect", collect)
    monkeypatch.setattr(sweep, "Pool", lambda *args: Puppets())
    with pytest.raises(SystemExit) as stop:
        sweep.main([study(CASES), "--results_dir", str(tmp_path / "results")])
    out, err = capsys.readouterr()
    assert stop.value.code == 0 and "10 done, 0 running" in out and err.count("\n") == 10
    assert all(re.match("warning: the tables of (the cue|pole) lack .*seed=", line) for line in err.splitlines())


def test_a_damaged_table_is_said_before_anything_starts(study, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(sweep, "Pool", None)
    (tmp_path / "pole.runs.csv").write_text("half a line")
    refused([study(CASES), "--results_dir", str(tmp_path)], ["pole.runs.csv is missing or damaged"], capsys)


@pytest.mark.parametrize("info,words", [
    (dict(lines={".csv": 2}), ["seed=1 has finished, but its results are damaged", "2 lines were written", "delete"]),
    (dict(config=dict(lr_decay=True, eval_episodes=3)), ["seed=1 has finished, with --eval_episodes=3", "another --results_dir"]),
    (dict(config={}), ["seed=1 has finished, with --no-lr_decay", "give the same"])])    # it is of before there was this flag
def test_a_finished_run_that_is_damaged_or_another_one_is_said_before_anything_starts(info, words, study, capsys, monkeypatch,
                                                                                       tmp_path):
    monkeypatch.setattr(sweep, "Pool", None)
    path = str(tmp_path / "Cue10-v0_PPO_ff_seed=1")
    finish(path)
    with open(path + ".json") as file:
        whole = json.load(file)
    with open(path + ".json", "w") as file:
        json.dump(whole | info, file)
    before = {file.name: file.read_bytes() for file in tmp_path.glob("*seed=1*")}
    refused([study("seeds = [0, 1]\n" + ARM), "--results_dir", str(tmp_path)], words, capsys)
    assert {file.name: file.read_bytes() for file in tmp_path.glob("*seed=1*")} == before


def test_two_sweeps_take_turns_at_a_table(collect, monkeypatch, tmp_path):
    collect, path = collect
    monkeypatch.setattr(tables, "PATIENCE", 0)
    with FileLock(path + ".lock"), pytest.raises(SystemExit):
        collect(1)
    assert (tmp_path / "run_seed=1.csv").exists() and not os.path.exists(path + ".csv")


def test_a_run_of_main_py_is_collected(tmp_path):
    """All that a table needs is in the run's files, its measurements of staleness included."""
    found = main.run(tiny("TD3", "Cue10-v0", "--recurrent", "--core_size", "4", "--seq_len", "4", "--staleness",
                          "--results_dir", str(tmp_path)))
    with open(found.path + ".json") as info, open(found.path + ".staleness.csv") as staleness:
        assert json.load(info)["lines"][".staleness.csv"] == len(staleness.readlines())
    tables.collect(str(tmp_path / "case"), "arm", ["arm"], found.path, sweep.check_saved)
    with open(tmp_path / "case.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["return_mean"]) for row in rows] == pytest.approx(found.returns, rel=1e-5)
    assert any(row["delta_q_first"] for row in rows)


def test_a_ctrl_c_reaches_the_sweep_alone(tmp_path):
    """Its runs are in sessions of their own, so that a terminal's signal is not a second one for them."""
    assert sweep.work(["-c", "import os, sys; sys.exit(os.getsid(0) != os.getpid())"], str(tmp_path / "log"), ".") == 0
