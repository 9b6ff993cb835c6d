"""support/checkpoint.py: interrupted anywhere, a run goes on to what it would have been, to the bit; damage, signals, full disks.

    RESUME_KILLS=20 pytest tests/test_checkpoint.py -k killed         (more of the random kills)
"""
import contextlib
import errno
import functools
import io
import itertools
import json
import os
import pickle
import random
import re
import shutil
import signal
import sys
import threading
import time
import zlib
from types import SimpleNamespace

import gymnasium as gym
import pytest
import torch
from conftest import record, recorded, spy
from filelock import FileLock

import BCQ
import main
import TD3
import utils
from flags import run_name
from support import checkpoint, models, system
from support import results as output
from support.checkpoint import Checkpoints, pack, random_state, state_of, unpack

KILLS = int(os.environ.get("RESUME_KILLS", 2))
# A pendulum whose episodes are short: their ends come often, and a return differs with the least change of a weight
gym.register("TestSwing-v0", "gymnasium.envs.classic_control:PendulumEnv", max_episode_steps=13)
REPLAY = dict(start_timesteps=20, batch_size=16, replay_ratio=4)
OWN = {
    "TD3": REPLAY, "DDPG": REPLAY, "SAC": REPLAY, "R2D1": REPLAY | dict(n_steps=1, target_freq=3, expl_timesteps=50),
    "PPO": dict(rollout_steps=16, num_envs=2, epochs=2, batch_size=16), "A2C": dict(rollout_steps=8, num_envs=2),
    "REINFORCE": dict(batch_size=20),
    "BCQ": dict(dataset="test/swing-v0", batch_size=16, target_candidates=2, act_candidates=5),
}
MEMORY = "--recurrent --seq_len 4 --hidden_init stored --hidden_refresh --burn_in 3"
PLAIN = "--policy TD3 --env TestSwing-v0"
# Runs of 40 steps, with checkpoints at 8, 16, 24 and 32. Refreshed hidden states are rows that change, so each file of TINY's
# rows holds most of them; those of SPARSELY hold the new ones
TINY = f"{PLAIN} {MEMORY} --start_timesteps 8"
SPARSELY = f"{PLAIN} --recurrent --seq_len 4 --hidden_init stored --start_timesteps 8"
OFFLINE = "--policy BCQ --env TestSwing-v0"
TINIER = dict(max_timesteps=40, eval_freq=20, eval_episodes=1, checkpoint_freq=8)


# ---------------------------------------------------------------------- runs, and what befalls them

class Crash(BaseException):
    """An end that main.py does not see coming: what it leaves in the folder is what kill -9 leaves."""


def at(n, act=None, thing=utils.Buffer, name="add"):
    """A failure: the n-th call of `thing.name`, or simply the n-th step, is a Crash, or comes after act(run, *what it is given).

    Returns a function that lets it befall a run.
    """
    def befall(patch, run):
        original, calls = getattr(thing, name), itertools.count(1)

        def failing(*args, **kwargs):
            if next(calls) == n:
                if act is None:
                    raise Crash
                act(run, *args)
            return original(*args, **kwargs)
        patch.setattr(thing, name, failing)
    return befall


class Run:
    """A run in a folder: 120 steps, evaluated at 0, 40, 80 and 120, with a checkpoint every 7 steps, if nothing else is said."""

    def __init__(self, words, folder, **others):
        words = words.split()
        given = dict(zip(words, [*words[1:], ""]))
        small = dict(max_timesteps=120, eval_freq=40, eval_episodes=2, hidden_size=8, checkpoint_freq=7)
        small |= dict(core_size=4) if "--recurrent" in words else {}
        small |= OWN[given["--policy"]] | others | dict(results_dir=folder)
        self.argv = [*words, *(f"--{name}={value}" for name, value in small.items() if f"--{name}" not in given)]
        run, cfg, self.agent, _ = main.parse(self.argv)
        self.path = os.path.join(run.results_dir, run_name(run, cfg, self.agent))          # of its results
        self.folder = self.path + ".checkpoint"

    def play(self, *more):
        """Run main.py in this process. more: further words of the command line, and failures.

        Returns:
            code: its exit code, None after a Crash; out, err: what it said
            state: a function of all that agent, buffer and generators hold at the end
        """
        things, out, err = [], io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            patch.setattr(checkpoint, "state_of", lambda thing: things.append(thing) or state_of(thing))
            code = self.befallen(patch, *more)
        generators = random_state()

        def state():
            agent, buffer = things[-2:]
            return {"agent": state_of(agent), "buffer": state_of(buffer), "rows": buffer.rows, "hidden": buffer.hidden,
                    "random": generators}
        return SimpleNamespace(code=code, out=out.getvalue(), err=err.getvalue(), state=state)

    def befallen(self, patch, *more):
        for failure in more:
            if callable(failure):
                failure(patch, self)
        try:
            main.main([*self.argv, *(word for word in more if isinstance(word, str))])
            return 0
        except Crash:
            return None
        except SystemExit as stop:
            return stop.code

    def crash(self, *more):
        """Play until a Crash, which must come."""
        assert self.play(*more).code is None

    def fork(self, log, *more):
        """The same in a process of its own, without importing everything again; what it says goes to a file. Returns its id."""
        sys.stdout.flush()
        if pid := os.fork():
            return pid
        code = 99
        try:
            out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(out, 1)
            os.dup2(out, 2)
            sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
            for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
                signal.signal(number, handler)
            code = self.befallen(pytest.MonkeyPatch(), *more)
        finally:
            sys.stdout.flush()
            os._exit(code)

    def outcome(self):
        """What it has written, being finished, without what tells the time or of interruptions."""
        with open(self.path + ".csv") as file:
            written = {"csv": [line.rpartition(",")[0] for line in file]}
        assert len(written["csv"]) > 2
        if os.path.exists(self.path + ".staleness.csv"):
            with open(self.path + ".staleness.csv") as file:
                written["staleness"] = file.read()
        for kind in ("last", "best"):
            if os.path.exists(f"{self.path}.{kind}.pt"):
                model = torch.load(f"{self.path}.{kind}.pt", weights_only=True)
                written[kind] = {"step": model["step"], "agent": model["agent"]}
        assert self.info()["finished"] is True
        name = os.path.basename(self.path)                             # other runs may be there, too
        endings = {other.removeprefix(name) for other in os.listdir(os.path.dirname(self.path)) if other.startswith(name)}
        assert endings <= {".csv", ".json", ".staleness.csv", ".last.pt", ".best.pt"}      # no checkpoint, nothing half written
        return written

    def info(self):
        return json.load(open(self.path + ".json"))

    def newest(self):
        """Its newest checkpoint's dictionary."""
        checkpoints = Checkpoints(self.path, None)
        return unpack(checkpoints.name(checkpoints.steps()[0], "state"))

    def goes_on(self, expected, step=None, *more):
        """Resumed, it says nothing of trouble and ends as expected. step: from which it must go on; 0: from the beginning."""
        played = self.play("--resume", *more)
        assert played.code == 0 and played.err == "", played.err
        assert step is None or (f"going on from step {step}\n" if step else
                                "no checkpoint of this run is there: it starts from the beginning\n") in played.out
        assert differences(expected, self.outcome()) == []
        return played


def wait(pid):
    """Its exit code; minus the signal's number if one has killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def differences(one, other, name=""):
    """Where two nested structures differ, to the bit."""
    if torch.is_tensor(one):
        return [] if torch.is_tensor(other) and one.dtype == other.dtype and torch.equal(one, other) else [name]
    if isinstance(one, dict):
        return [name + " keys"] if one.keys() != other.keys() else \
            [d for key in one for d in differences(one[key], other[key], f"{name}.{key}")]
    if isinstance(one, (list, tuple)):
        return [name + " length"] if len(one) != len(other) else \
            [d for k, (a, b) in enumerate(zip(one, other)) for d in differences(a, b, f"{name}.{k}")]
    return [] if one == other else [f"{name}: {one} is not {other}"]


def files_of(folder):
    """Content of every file below a folder."""
    return {os.path.relpath(path, folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def half_written(folder):
    return has(folder, ".new")


def has(folder, ending):
    """Is there a file of such a name? The folder may go at any moment."""
    try:
        return any(name.endswith(ending) for name in os.listdir(folder))
    except OSError:
        return False


@pytest.fixture(scope="module", autouse=True)
def data_sets(tmp_path_factory):
    """A folder of data sets, with one of the pendulum: 104 steps by random actions, 8 episodes."""
    yield from recorded(tmp_path_factory, "TestSwing-v0", "test/swing-v0", 104)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A function: what a run of these words comes to if nothing befalls it, however often it writes checkpoints."""
    @functools.cache
    def outcome(words):
        run = Run(words, tmp_path_factory.mktemp("whole"), **TINIER)
        run.play()
        return run.outcome()
    return lambda words=TINY: outcome(words.partition(" --checkpoint")[0])


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A run that has crashed at step 38."""
    run = Run(SPARSELY, tmp_path_factory.mktemp("original"), **TINIER)
    run.crash(at(38))
    assert sorted(os.listdir(run.folder)) == FILES
    return run


@pytest.fixture
def run(original, tmp_path):
    """A copy of that run in a folder of its own."""
    shutil.copytree(os.path.dirname(original.path), tmp_path / "copy")
    return Run(SPARSELY, tmp_path / "copy", **TINIER)


FILES = ["000000008.rows", "000000016.rows", "000000024.rows", "000000024.state", "000000032.rows", "000000032.state"]


# ---------------------------------------------------------------------- exact resume

CASES = [
    f"{PLAIN} --flicker 0.2 --lr_decay --average 0.5",
    f"{PLAIN} {MEMORY} --memory_size 50 --stored_precision float16 --staleness",
    f"{PLAIN} {MEMORY} --num_envs 2 --core gru --memory_size 60 --critic_hidden actor",
    f"{PLAIN} --recurrent_critic --seq_len full --hidden_init stored --core_size 4 --checkpoint_freq 3",
    "--policy TD3 --env HopperBulletEnv-v0 --recurrent --seq_len 4 --observe positions --obs_noise 0.1 --num_envs 2",
    f"--policy DDPG --env TestSwing-v0 {MEMORY} --core mingru --obs_noise 0.1 --lr_decay --num_envs 2 --staleness",
    "--policy DDPG --env TestSwing-v0 --sensor_dropout 0.2 --memory_size 40",
    f"--policy SAC --env TestSwing-v0 {MEMORY} --core gru --num_envs 2 --staleness --memory_size 70 --stored_precision float16",
    "--policy SAC --env TestSwing-v0 --lr_decay --start_timesteps 45",
    f"--policy PPO --env TestSwing-v0 {MEMORY} --staleness --flicker 0.1",
    "--policy PPO --env CartPole-v1 --num_envs 3 --entropy_coef 0.01 --no-lr_decay",
    "--policy A2C --env TestSwing-v0 --recurrent --seq_len 4 --burn_in 2 --core gru --staleness",
    "--policy PPO --env TestSwing-v0 --recurrent --seq_len 4 --hidden_init zero --burn_in 6 --num_envs 2",
    "--policy A2C --env CartPole-v1",
    "--policy REINFORCE --env CartPole-v1 --recurrent --staleness --core mingru",
    "--policy REINFORCE --env TestSwing-v0 --no-baseline",
    f"--policy R2D1 --env CartPole-v1 {MEMORY} --num_envs 2 --memory_size 60 --staleness --stored_precision float16",
    "--policy R2D1 --env CartPole-v1 --flicker 0.1 --memory_size 30",
    "--policy R2D1 --env CueDiscrete10-v0 --recurrent --seq_len full --burn_in 0 --core gru",
    "--policy BCQ --env TestSwing-v0 --recurrent --seq_len 4 --burn_in 2 --staleness",
    "--policy BCQ --env TestSwing-v0",
]


@pytest.mark.parametrize("words", CASES)
def test_interrupted_twice_is_the_same_run(words, tmp_path, monkeypatch):
    """Evaluations, staleness, models and, at the end, all that agent, buffer and generators hold."""
    run = Run(words + " --save_model", tmp_path / "1")
    updates = spy(monkeypatch, run.agent, "train")
    state = run.play().state()
    expected, half = run.outcome(), -(-len(updates) // 2)
    assert half > 0

    run = Run(words + " --save_model", tmp_path / "2")
    run.crash(at(half, thing=run.agent, name="train"))
    first = run.newest()["step"]
    run.crash("--resume", at(1, thing=main, name="evaluate"))          # the next one
    second = run.newest()["step"]
    assert 120 > second >= first > 0
    assert differences(state, run.goes_on(expected, second).state()) == []
    assert run.info()["resumed"] == sorted({first, second})


HOPPER = "--policy TD3 --env HopperBulletEnv-v0 --recurrent --seq_len 4 --hidden_init stored --num_envs 2 --flicker 0.1"


@pytest.mark.parametrize("words,episode,calls", [
    (HOPPER, "first", 5), (HOPPER, "later", 44), ("--policy PPO --env AntBulletEnv-v0 --recurrent --seq_len 4", "first", 28),
    ("--policy R2D1 --env CueDiscrete10-v0 --recurrent --seq_len 4", "new", 25),
])
def test_goes_on_in_the_middle_of_an_episode(words, episode, calls, tmp_path):
    """Whose reset had a seed, the run's first ones; whose reset had none; or which has begun and not yet had a step."""
    every = dict(checkpoint_freq=11) if episode == "new" else {}
    run = Run(words, tmp_path / "1", eval_freq=60, **every)
    run.play()
    expected, run = run.outcome(), Run(words, tmp_path / "2", eval_freq=60, **every)
    run.crash(at(calls))
    for env in run.newest()["steps"]["environments"]:
        assert (len(env["actions"]) == 0) == (episode == "new") and (env["seed"] is not None) == (episode == "first")
    run.goes_on(expected)


@pytest.mark.parametrize("seed,episodes", [(1, 8), (0, 6), (0, 9)])
def test_another_data_set_of_the_same_name_is_refused(seed, episodes, refused, tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    record("TestSwing-v0", "test/swing-v0", 8 * 13)
    run = Run(OFFLINE, tmp_path / "1", **TINIER)
    run.crash(at(30, thing=BCQ.BCQ, name="train"))
    shutil.rmtree(tmp_path / "minari")
    record("TestSwing-v0", "test/swing-v0", 13 * episodes, seed)
    refused([*run.argv, "--resume"], ["--resume: ", "test/swing-v0"])


def test_time_is_counted_on(tmp_path, monkeypatch):
    """The seconds of a resumed run are those spent on it, not those in between."""
    run, clock = Run(PLAIN, tmp_path), itertools.count(step=0.01)
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    run.crash(at(70))
    clock = itertools.count(1e6, 0.01)
    run.play("--resume")
    seconds = [float(line.split(",")[-1]) for line in open(run.path + ".csv").readlines()[1:]]
    assert seconds == sorted(seconds) and seconds[-1] < 10


def test_returns_of_training_go_on(tmp_path):
    """What is printed as "in training" is the mean of episodes before the interruption, too."""
    whole, run = Run(PLAIN, tmp_path / "1"), Run(PLAIN, tmp_path / "2")

    def last(played):
        return re.findall(r"in training (-[\d.]+)", played.out)[-1]
    run.crash(at(70))
    assert last(run.play("--resume")) == last(whole.play())


def test_a_run_that_saves_models_goes_on_to_save_them(tmp_path, refused):
    """Else the best one would stay that of the interruption, and look like the run's."""
    run = Run(f"{TINY} --save_model", tmp_path, **TINIER)
    run.crash(at(30))
    words = [word for word in run.argv if word != "--save_model"]
    refused([*words, "--resume"], ["--resume: ", "--save_model"])
    assert run.play("--resume").code == 0


# ---------------------------------------------------------------------- kill -9

@pytest.mark.parametrize("words", [
    f"{PLAIN} {MEMORY} --memory_size 60 --num_envs 2",
    f"--policy PPO --env TestSwing-v0 {MEMORY}",
    f"--policy R2D1 --env CartPole-v1 {MEMORY} --memory_size 60",
])
def test_killed_at_any_instant(words, tmp_path):
    """kill -9 after a random time, from the second on where there is something to go on from, and every second time when a
    file is seen half written."""
    rng, log, start = random.Random(words), tmp_path / "log", time.time()
    run = Run(words, tmp_path / "0", checkpoint_freq=4)
    assert wait(run.fork(log)) == 0, log.read_text()
    duration, expected = time.time() - start, run.outcome()

    def ended(pid):
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    kills = resumed = 0
    for k in itertools.count(1):
        run = Run(words, tmp_path / str(k), checkpoint_freq=4)
        while True:
            process, until = run.fork(log, "--resume"), time.time() + rng.uniform(0.1, 0.9) * duration
            while not ended(process) and (time.time() < until or kills and not has(run.folder, ".state")
                                          or kills % 2 and not half_written(run.folder)):
                time.sleep(0)
            if kills < KILLS:
                os.kill(process, signal.SIGKILL)
            code = wait(process)
            resumed += "going on from step" in log.read_text()
            if code == 0:
                break
            assert code == -signal.SIGKILL and kills < KILLS, log.read_text()
            kills += 1
        assert differences(expected, run.outcome()) == []
        if kills >= KILLS:
            break
    assert resumed or KILLS < 2


@pytest.mark.parametrize("name,least", [("fsync", 18), ("remove", 6)])
def test_killed_at_any_operation_on_a_file(name, least, whole, tmp_path):
    """Before every single one that makes a file whole, which is still half there, or removes one."""
    def halve(run, descriptor=None, *_):
        if name == "fsync":
            os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
        raise Crash

    for n in itertools.count(1):
        run = Run(TINY, tmp_path / str(n), **TINIER)
        code = run.play(at(n, halve, os, name)).code
        run.goes_on(whole())
        if code == 0:
            break
    assert n > least


# ---------------------------------------------------------------------- failures: a full disk, a folder that is gone, a crash

def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def no_room(n):
    """The disk has none for the n-th file."""
    return at(n, full, os, "fsync")


def full_from(step, until=None):
    """The disk is full from before a step until before another."""
    def befall(patch, run):
        before = os.fsync
        at(step, lambda *_: patch.setattr(os, "fsync", full))(patch, run)
        at(until, lambda *_: patch.setattr(os, "fsync", before))(patch, run)
    return befall


def no_results(run, *_):
    shutil.rmtree(os.path.dirname(run.path))


def no_folder(run, *_):
    shutil.rmtree(run.folder)


WARNING = r"(warning: .+ could not be written \(No space left on device\); training goes on\n)"
WRITES = 1 + 2 + 3 * 2 + 4 * 2                                          # can it? begin, evaluations, checkpoints; not: finish
CRASHED, DONE = None, 0
# Each: a run, what befalls it, how it ends, what it says, and the step that it goes on from (0: from its beginning)
FAILURES = [
    *[(TINY, [no_room(n)], DONE, WARNING, None) for n in range(2, WRITES + 1)],
    *[(TINY, [full_from(step, until)], DONE, f"{WARNING}+", None) for step, until in ((1, 40), (1, 9), (10, 30), (17, 23))],
    # What was saved before the disk was full is undamaged
    *[(TINY, [full_from(step), at(39)], CRASHED, f"{WARNING}+", kept) for step, kept in ((1, 0), (10, 8), (17, 16), (30, 24))],
    # Rows that found no room are written with the next checkpoint
    *[(SPARSELY, [no_room(n), at(39)], CRASHED, WARNING, step)
      for n, step in ((6, 32), (7, 32), (8, 32), (9, 32), (12, 32), (13, 32), (14, 24), (15, 24))],
    # Full at its end, a run is not finished
    *[(f"{TINY}{more}", [full_from(35)], 1, rf"(?s){WARNING}*error: the run has come to its end.*{more[3:]}.*--resume.*", 32)
      for more in ("", " --staleness")],
    # Someone deletes the results, or the checkpoints: the next ones are complete
    *[(SPARSELY, [at(19, deleted), at(39)], CRASHED, "", 32) for deleted in (no_results, no_folder)],
    (f"{TINY} --checkpoint_freq 30", [at(29)], CRASHED, "", 0),
    (TINY, [at(2, thing=Checkpoints, name="remove")], CRASHED, "", None),                  # finished, but for that
    # Checkpoints do not disturb a run, be there none or many
    (f"{TINY} --checkpoint_freq 0", [lambda patch, _: patch.setattr(Checkpoints, "write", None)], DONE, "", None),
    *[(f"{TINY} --checkpoint_freq {freq}", [], DONE, "", None) for freq in (1, 3)],
]


@pytest.mark.parametrize("words,failures,code,said,step", FAILURES)
def test_a_failure_changes_no_result(words, failures, code, said, step, whole, tmp_path):
    """The run comes to its end nevertheless, or goes on to it."""
    run = Run(words, tmp_path / "run", **TINIER)
    played = run.play(*failures)
    assert played.code == code and re.fullmatch(said, played.err), played.err
    assert code == DONE or "csv written" not in played.out
    assert not half_written(tmp_path / "run") and not half_written(run.folder)
    if code != DONE:
        run.goes_on(whole(words), step)
    assert differences(whole(words), run.outcome()) == []


def test_no_write_is_missing_above(tmp_path, monkeypatch):
    calls = spy(monkeypatch, os, "fsync")
    Run(TINY, tmp_path, **TINIER).play()
    assert WRITES < len(calls) <= WRITES + 2


@pytest.mark.parametrize("more,step", [("", 19), ("--staleness", 19), ("--staleness", 38), ("--save_model", 19)])
def test_the_results_folder_is_deleted(more, step, tmp_path, whole):
    """By someone, in the middle of a run: training goes on to the end, and the CSV is whole; what was measured before is lost."""
    run = Run(f"{TINY} {more}", tmp_path / "run", **TINIER)
    played = run.play(at(step, no_results))
    assert played.code == 0 and "Traceback" not in played.err and run.outcome()["csv"] == whole()["csv"]
    assert step < 38 or len(run.outcome()["staleness"].splitlines()) == 2


@pytest.fixture
def scored(tmp_path, monkeypatch):
    """A run with models whose best evaluation is at step 40, and a disk that has no room for them at some evaluations."""
    scores, now, write = {0: 5.0, 40: 9.0, 80: 7.0, 120: 2.0}, [], models.write_file
    monkeypatch.setattr(main, "evaluate", lambda agent, *_: now.append(agent.steps) or ([scores[agent.steps]], [1]))
    monkeypatch.setattr(models, "write_file", lambda *args: full() if now[-1] in scored.full else write(*args))
    scored, scored.full = Run(f"{PLAIN} --save_model", tmp_path), ()
    return scored


@pytest.mark.parametrize("no_room,missing", [
    ((), []), ((40,), []), ((0, 40), []), ((40, 80), []), ((0, 40, 80), []),
    ((0, 40, 80, 120), ["last.pt and", "best.pt could"]), ((120,), ["last.pt could"])])
def test_the_best_model_is_of_the_best_evaluation(no_room, missing, scored):
    """It is written as soon as there is room again, although by then another model is evaluated. A run whose models are missing
    at its end has failed: with --resume it goes on once there is room. Neither forgets which was the best."""
    scored.full = no_room
    played = scored.play(*[at(60)] * (not no_room))
    if no_room and not missing:
        assert played.code == 0 and re.fullmatch(f"{WARNING}{{{len(no_room)}}}", played.err)
    elif missing:
        assert played.code == 1 and "csv written" not in played.out
        assert all(words in played.err for words in ("error: the run has come to its end", "--resume", *missing))
    scored.full = ()
    if missing or not no_room:
        played = scored.play("--resume")
    written = scored.outcome()
    assert [line.split(",")[2] for line in written["csv"][1:]] == ["5.000", "9.000", "7.000", "2.000"]
    assert written["best"]["step"] == 40 and written["last"]["step"] == 120 and "best evaluation 9.0" in played.out


def test_a_model_that_someone_deleted(scored):
    """It is in the checkpoint, too, and comes back with a resume."""
    scored.crash(at(100))
    os.remove(scored.path + ".best.pt")
    assert scored.play("--resume").code == 0
    assert scored.outcome()["best"]["step"] == 40


@pytest.mark.parametrize("step,best", [(20, 40), (60, None)])
def test_models_since_a_resume(step, best, scored):
    """The best one is of the best evaluation of all, or there is none: evaluations before it have left no model."""
    scored.argv.remove("--save_model")
    scored.crash(at(step))
    assert scored.play("--resume", "--save_model").code == 0
    assert scored.outcome()["last"]["step"] == 120
    assert scored.outcome()["best"]["step"] == best if best else not os.path.exists(scored.path + ".best.pt")


# ---------------------------------------------------------------------- signals

def send(*numbers):
    return lambda *_: [os.kill(os.getpid(), number) for number in numbers]


INT, TERM, SELDOM = signal.SIGINT, signal.SIGTERM, f"{TINY} --checkpoint_freq 1000"
NOTED = "stopping after this step; once more to stop at once\n"
KEPT = "interrupted: go on with the same command and --resume\n"
NONE_KEPT = "interrupted: evaluations so far are kept, but no checkpoint\n"


@pytest.mark.parametrize("words,failures,code,says,step", [
    # The step is finished and a checkpoint is written, also where none is due for long
    (SELDOM, [at(21, send(INT))], 130, KEPT, 21), (SELDOM, [at(21, send(TERM))], 143, KEPT, 21),
    (OFFLINE, [at(21, send(INT), BCQ.BCQ, "train")], 130, KEPT, 21),
    # A second signal ends it at once
    (TINY, [at(21, send(INT, INT))], 130, "", 16), (TINY, [at(21, send(TERM, TERM))], -TERM, "", 16),
    (TINY, [at(21, send(INT, TERM))], -TERM, "", 16), (TINY, [at(21, send(TERM, INT))], 130, "", 16),
    # Without checkpoints, and on a full disk, none is written
    (f"{TINY} --checkpoint_freq 0", [at(21, send(TERM))], 143, NONE_KEPT, 0),
    (SELDOM, [full_from(5), at(21, send(INT))], 130, NONE_KEPT, 0),
    (TINY, [at(40, send(INT))], 0, "", None),                          # in the last step it changes nothing
])
def test_signal(words, failures, code, says, step, whole, tmp_path):
    run, log = Run(words, tmp_path / "run", **TINIER), tmp_path / "log"
    assert wait(run.fork(log, *failures)) == code
    said = log.read_text()
    assert NOTED in said and said.endswith(says) and "Traceback" not in said
    if step is None:
        assert differences(whole(words), run.outcome()) == []
    else:
        assert has(run.folder, ".state") == (step > 0)
        run.goes_on(whole(words), step)


# ---------------------------------------------------------------------- damage

def flip(path, at=None):
    """A bit, somewhere if nothing is said."""
    content = bytearray(open(path, "rb").read())
    content[random.Random(path[-15:]).randrange(len(content)) if at is None else at] ^= 16
    with open(path, "wb") as file:
        file.write(content)


DAMAGES = {"half": lambda path: os.truncate(path, os.path.getsize(path) // 2), "empty": lambda path: os.truncate(path, 0),
           "a bit": flip, "its checksum": lambda path: flip(path, 0), "gone": os.remove}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file(damage, name, run, whole, refused):
    """Of the newest checkpoint: the one before it is used, in a line that says so. Of both, such as older rows: refused."""
    gone = damage == "gone"
    DAMAGES[damage](os.path.join(run.folder, name))
    if name.endswith(".rows") and name != "000000032.rows":
        refused([*run.argv, "--resume"], ["--resume: ", name, run.folder, "missing" if gone else "damaged"])
    elif name == "000000024.state":
        run.goes_on(whole(SPARSELY), 32)                               # it was not needed
    elif gone and name == "000000032.state":
        run.goes_on(whole(SPARSELY), 24)                               # nothing tells that there was one
    else:
        played = run.play("--resume")
        assert re.fullmatch(rf"warning: \S+{name} is [^\n]+; going on from the checkpoint before it, at step 24\n", played.err)
        assert "going on from step 24" in played.out and differences(whole(SPARSELY), run.outcome()) == []


@pytest.mark.parametrize("name", ["000000032.state", "000000032.rows"])
def test_a_damaged_checkpoint_is_replaced(name, run, whole):
    """Having gone on from the one before, and crashed again, it goes on from a new one."""
    flip(os.path.join(run.folder, name))
    shutil.copy(os.path.join(run.folder, name), os.path.join(run.folder, "000000031.rows.new"))
    run.crash("--resume", at(12))                                      # in step 36
    assert not half_written(run.folder)                                # the next checkpoint has cleaned up
    run.crash("--resume", at(2))                                       # in step 34: it went on from 32
    assert run.info()["resumed"][-1] == 32
    run.goes_on(whole(SPARSELY))


def test_a_damaged_checkpoint_is_forgotten(run):
    """Of the steps after the one that the run has gone on from nothing is left, wherever its next checkpoints lie."""
    flip(os.path.join(run.folder, "000000032.state"))
    run.crash("--resume", "--checkpoint_freq=3", at(7))
    assert Checkpoints(run.path, None).steps() == [30, 27]


def nothing(run):
    pass


def all_but(*endings):
    def change(run):
        for name in FILES:
            if not name.endswith(endings):
                os.remove(os.path.join(run.folder, name))
    return change


def older(run):
    """Checkpoints of an earlier version, without flags that came later."""
    for path in (os.path.join(run.folder, name) for name in FILES if name.endswith(".state")):
        state = unpack(path)
        for key in ("env_kwargs", "keep_checkpoint"):
            del state["config"][key]
        with open(path, "wb") as file:
            file.write(pack(state))


@pytest.mark.parametrize("change,flags,step", [
    (older, [], 32), (lambda run: shutil.rmtree(run.folder), [], 0), (all_but("nothing"), [], 0), (all_but(".rows"), [], 0),
    # Something with the name of a checkpoint, nearly
    (lambda run: shutil.copy(os.path.join(run.folder, FILES[-1]), os.path.join(run.folder, "99999.state")), [], 32),
    (lambda run: os.mkdir(os.path.join(run.folder, "000000099.state")), [], 32),
    # Flags that change no result
    (nothing, ["--checkpoint_freq=3"], 32), (nothing, ["--checkpoint_freq=0"], 32)])
def test_goes_on_all_the_same(change, flags, step, run, whole):
    change(run)
    run.goes_on(whole(SPARSELY), step, *flags)


def test_a_model_of_a_resumed_run(run, whole, capsys):
    """Its second half may save one, which can be tested."""
    run.play("--resume", "--save_model")
    assert run.outcome()["csv"] == whole(SPARSELY)["csv"] and run.outcome()["last"]["step"] == 40
    main.main(["--test", "--load_model", run.path + ".last.pt"])
    assert capsys.readouterr().out.startswith("return ")


def test_files_of_others_in_the_folder(run, whole):
    """They are left alone as long as the run goes on, and no reason to stop."""
    others = ["notes.txt", "000000040.state.bak", "state", "x.rows"]
    for name in others:
        with open(os.path.join(run.folder, name), "w") as file:
            file.write("mine")
    os.mkdir(os.path.join(run.folder, "more"))
    run.crash("--resume", at(8))
    assert {"more", *others} <= set(os.listdir(run.folder))
    run.goes_on(whole(SPARSELY))


def rewritten(kind, change):
    """Both checkpoints are of another program: whole, with the right checksum, but of an older version, say."""
    def damage(run):
        for step in (24, 32):
            path = os.path.join(run.folder, f"{step:09d}.{kind}")
            content = unpack(path)
            change(content)
            system.write_file(path, pack(content))
    return damage


def no_results_yet(run):
    for end in (".csv", ".json"):
        os.remove(run.path + end)


@pytest.mark.parametrize("change,flags,says", [
    *[(rewritten("state", change), "--resume", ["--resume: "]) for change in (
        lambda state: state.clear(), lambda state: state.pop("config"), lambda state: state["agent"].pop("updates"),
        lambda state: state.pop("random"), lambda state: state["agent"]["critic"][1].update(more=torch.zeros(3)))],
    (rewritten("rows", lambda rows: rows.update(rows=rows["rows"][:, :-1])), "--resume", ["--resume: "]),
    # Flags that are not in the run's name, and change its results
    *[(nothing, f"--resume {flag}", ["--resume: ", says]) for flag, says in (
        ("--eval_freq=10", "--eval_freq=20"), ("--eval_episodes=2", "--eval_episodes=1"), ("--staleness", "--no-staleness"),
        ("--threads=2", "--threads=1"))],
    *[(nothing, f"--resume {flag}", ["--resume ", flag.split("=")[0]]) for flag in ("--overwrite", "--record=x/y-v0")],
    # Neither word: the line names both
    (nothing, "", ["--resume", "--overwrite"]), (no_results_yet, "", ["--resume", "--overwrite"]),
])
def test_what_cannot_be_gone_on_with(change, flags, says, run, refused):
    """Is refused, and all stays as it is."""
    change(run)
    refused([*run.argv, *flags.split()], says)
    torch.set_num_threads(1)


class Malicious:
    """Code in a pickle: what loads it naively leaves a file there."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("wrap", [True, False])
def test_no_code_is_executed(wrap, run, tmp_path, refused):
    trap = Malicious(str(tmp_path / "executed"))
    for step in (24, 32):
        content = pickle.dumps(trap, 2)
        if wrap:                                                       # as checkpoints are, checksum and all
            file = io.BytesIO()
            torch.save({"step": step, "files": trap}, file)
            content = file.getvalue()
        with open(os.path.join(run.folder, f"{step:09d}.state"), "wb") as file:
            file.write(zlib.crc32(content).to_bytes(4, "big") + content)
    refused([*run.argv, "--resume"], ["--resume: ", "000000032.state is no checkpoint"])


# ---------------------------------------------------------------------- made longer

EVEN = "--no-lr_decay --horizon_growth 1"                               # nothing is paced by --max_timesteps
LONGER = [
    f"{PLAIN} {MEMORY} {EVEN} --num_envs 2 --staleness", f"--policy DDPG --env TestSwing-v0 {EVEN} --memory_size 100",
    f"--policy SAC --env TestSwing-v0 {EVEN} --recurrent --seq_len 4 --core gru", "--policy PPO --env CartPole-v1 --no-lr_decay",
    "--policy A2C --env TestSwing-v0 --recurrent --seq_len 4 --no-lr_decay", "--policy REINFORCE --env CartPole-v1 --no-lr_decay",
    f"--policy R2D1 --env CartPole-v1 {MEMORY} --num_envs 2", f"{OFFLINE} --recurrent --seq_len 4",
]


@pytest.mark.parametrize("words", LONGER)
def test_a_run_made_longer_is_the_long_run(words, tmp_path, request):
    """To the bit, from its last checkpoint (step 70 is no multiple of eval_freq), and when that is interrupted, too."""
    if "BCQ" in words:
        request.getfixturevalue("data_sets")
    straight, folder = Run(words, tmp_path / "1"), tmp_path / "2"
    whole = straight.play("--save_model")
    short, long = Run(words, folder, max_timesteps=70), Run(words, folder)
    short.play("--save_model", "--keep_checkpoint", "--checkpoint_freq=0")
    kept = files_of(folder)
    for more in [], ["--keep_checkpoint"]:                             # a finished run keeps what it has kept
        assert short.play("--save_model", "--resume", *more).code == 0
        assert files_of(folder) == kept

    with FileLock(short.path + ".lock"):                               # it is still at work
        assert "another process is at work on" in long.play("--save_model", "--resume").err
    crashed = long.play("--save_model", "--resume", at(1, thing=main, name="evaluate"))
    assert crashed.code is None and f"{short.path} is made longer" in crashed.out
    longer = long.play("--save_model", "--resume")
    assert differences(straight.outcome(), long.outcome()) == []
    assert differences(whole.state(), longer.state()) == []
    assert 70 in long.info()["resumed"]
    now = files_of(folder)
    assert all(now[name] == content for name, content in kept.items())


@pytest.mark.parametrize("words,kept,says", [
    (f"{PLAIN} {EVEN}", "--no-keep_checkpoint",
     "cannot be made longer: it kept no checkpoint (a run with --keep_checkpoint keeps one)"),
    ("--policy PPO --env CartPole-v1", "--keep_checkpoint", "cannot be made longer: with --lr_decay every step depends"),
    (f"{PLAIN} --no-lr_decay", "--keep_checkpoint", "cannot be made longer: with --horizon_growth every step depends"),
    (PLAIN, "--keep_checkpoint", "with --lr_decay and --horizon_growth every step depends"),
])
def test_a_run_that_cannot_be_made_longer(words, kept, says, tmp_path, refused):
    """It is said in one line and nothing is touched. A sweep's run, which has a log, is a run of its own."""
    Run(words, tmp_path, max_timesteps=70).play(kept)
    before, long = files_of(tmp_path), Run(words, tmp_path)
    refused([*long.argv, "--resume"], ["--resume: ", says])
    assert files_of(tmp_path) == before
    open(long.path + ".log", "w").close()
    assert "no checkpoint of this run is there: it starts from the beginning" in long.play("--resume").out


def test_a_run_of_its_own_is_resumed_beside_one_that_cannot_be_made_longer(tmp_path):
    """Without a checkpoint yet it starts from the beginning, as ever."""
    words = "--policy PPO --env CartPole-v1"
    Run(words, tmp_path, max_timesteps=70).play()
    run = Run(words, tmp_path)
    run.crash(at(3))
    assert "no checkpoint of this run is there: it starts from the beginning" in run.play("--resume").out


def test_a_long_run_killed_before_its_last_evaluation(tmp_path):
    """The checkpoint of the last step is older than that evaluation, which is made when the run goes on."""
    straight, killed = Run(TINY, tmp_path / "1", max_timesteps=43), Run(TINY, tmp_path / "2", max_timesteps=43)
    straight.play()
    killed.crash("--keep_checkpoint", at(3, thing=main, name="evaluate"))
    assert killed.newest()["step"] == 43
    killed.play("--keep_checkpoint", "--resume")
    rows, expected = ([line.split(",")[:-1] for line in open(run.path + ".csv")] for run in (killed, straight))
    assert rows == expected and rows[-1][0] == "43"


# ---------------------------------------------------------------------- runs that are finished, begun anew, or another process's

def test_a_finished_run_is_left_alone(tmp_path, refused):
    run = Run(f"{TINY} --staleness --save_model", tmp_path, **TINIER)
    run.play()
    before = files_of(tmp_path)
    assert len(before) == 5 and run.outcome()                          # the folder of checkpoints is gone
    for more in [], ["--threads=2"]:                                   # the machine may be another one
        played = run.play("--resume", *more)
        assert f"{run.path}.csv is there already: this run has finished" in played.out and played.err == ""
    torch.set_num_threads(1)
    refused([*run.argv, "--resume", "--keep_checkpoint"], ["has finished, without --keep_checkpoint", "--overwrite"])
    refused([*run.argv, "--resume", "--test", "--load_model", run.path + ".last.pt"], ["--resume ", "--test"])
    refused([*run.argv, "--resume", "--eval_episodes", "7"], ["--resume: ", run.path, "has finished, with --eval_episodes="])
    assert files_of(tmp_path) == before
    with open(run.path + ".csv", "a") as file:                         # as an editor may do
        file.write("\n")
    refused([*run.argv, "--resume"], ["--resume: ", run.path, "has finished, but its results are damaged", "--overwrite"])
    assert files_of(tmp_path).keys() == before.keys()


def test_a_finished_run_of_other_defaults_is_no_run_of_these(tmp_path, refused):
    """Names hold what differs from the defaults, so a run of before lr_decay was TD3's default has the name of one with it."""
    run = Run(TINY, tmp_path, **TINIER)
    run.play()
    with open(run.path + ".json") as file:
        info = json.load(file)
    for name in ("lr_decay", "horizon_growth", "average"):
        del info["config"][name]
    with open(run.path + ".json", "w") as file:
        json.dump(info, file)
    before = files_of(tmp_path)
    refused([*run.argv, "--resume"], ["has finished, with --no-lr_decay"])
    refused([*run.argv, "--resume", "--save_model"], ["has finished, with --no-lr_decay"])
    long = Run(TINY, tmp_path, **TINIER | dict(max_timesteps=50))      # nor is it one to be made longer
    assert "no checkpoint of this run is there: it starts from the beginning" in long.play("--resume").out
    assert files_of(tmp_path).items() > before.items()


def test_a_checkpoint_of_other_defaults(tmp_path, refused, monkeypatch):
    """The same flags will not do, since they are those of a run of another name."""
    load = Checkpoints.load

    def of_before(checkpoints):
        saved = load(checkpoints)
        del saved["config"]["horizon_growth"], saved["config"]["average"]
        saved["config"]["lr_decay"] = False
        return saved
    run = Run(TINY, tmp_path, **TINIER)
    run.crash(at(30))
    before = files_of(tmp_path)
    monkeypatch.setattr(Checkpoints, "load", of_before)
    refused([*run.argv, "--resume"], ["started with --no-lr_decay, by a version with other flags", "another --results_dir"])
    assert files_of(tmp_path) == before


def test_overwriting_is_a_new_run(run, whole):
    run.crash("--overwrite", at(1))
    assert not os.path.exists(run.folder)                              # of the old one
    run.crash("--overwrite", at(12))
    assert sorted(os.listdir(run.folder)) == ["000000008.rows", "000000008.state"]
    run.goes_on(whole(SPARSELY), 8)


def test_overwriting_leaves_nothing_of_the_old_run(tmp_path, whole):
    """Not even what the new one does not write."""
    run = Run(TINY, tmp_path, **TINIER)
    run.play("--save_model", "--staleness")
    run.play("--overwrite")
    assert differences(whole(), run.outcome()) == []


def test_no_two_processes_at_one_run(tmp_path, monkeypatch):
    """The second one is told so, and the first one's results are what they would be alone."""
    both, alone, log = Run(PLAIN, tmp_path / "both"), Run(PLAIN, tmp_path / "alone"), tmp_path / "log"
    monkeypatch.setattr(main, "PATIENCE", 1)

    def another(run, *_):
        for again in ("--resume", "--overwrite"):
            code = wait(run.fork(log, again))
            said.append((code, log.read_text().splitlines()[-1].partition(" on ")[0]))
    said = []
    both.play(at(70, another))
    assert said == 2 * [(2, "error: another process is at work")]
    alone.play()
    assert differences(alone.outcome(), both.outcome()) == []          # there is no lock left, either


def test_a_run_waits_for_one_that_is_just_ending(tmp_path):
    run = Run(PLAIN, tmp_path)
    lock = FileLock(run.path + ".lock", thread_local=False)
    lock.acquire()
    ending, start = threading.Timer(1, lock.release), time.monotonic()
    ending.start()
    run.play("--resume")
    ending.join()
    assert time.monotonic() - start > 1 and output.finished(run.path, dict)


@pytest.mark.parametrize("error,code,says", [
    (OSError(errno.ENOLCK, "No locks available"), 0, "warning: "), (PermissionError(), 2, "error: ")])
def test_a_lock_that_cannot_be_had_is_left_alone(error, code, says, tmp_path, monkeypatch):
    """Of a file system without locks it is said; another user's is refused. Neither file is removed."""
    run = Run(TINY, tmp_path, **TINIER)
    (tmp_path / (run.path + ".lock")).touch()
    monkeypatch.setattr(system.FileLock, "acquire", lambda *_, **__: (_ for _ in ()).throw(error))
    played = run.play()
    assert played.code == code and played.err.startswith(says) and played.err.count("\n") == 1
    assert os.path.exists(run.path + ".lock")


def test_the_lock_of_a_dead_process_holds_nobody_up(tmp_path):
    run = Run(PLAIN, tmp_path)
    (tmp_path / (run.path + ".lock")).touch()
    assert run.play().code == 0 and not os.path.exists(run.path + ".lock")


# ---------------------------------------------------------------------- agents with something of their own

@pytest.mark.parametrize("name,start,later,says", [
    ("notes", "text", {"a": (1, None)}, None), ("hidden", 0, 5, None), ("rows", [], [1], None),
    ("notes", {1}, {1}, "no checkpoints: TD3.notes: checkpoint.py does not know how to save a set; the run goes on without, "
     "and cannot be resumed"),
    ("notes", None, {1},
     "no more checkpoints: TD3.notes: checkpoint.py does not know how to save a set; the run goes on without"),
    ("notes", None, torch.nn.Linear(2, 2),
     "no more checkpoints: TD3.notes was not there at the start, so nothing can be loaded into it; the run goes on without"),
])
def test_an_attribute_of_ones_own(name, start, later, says, tmp_path, monkeypatch):
    """It comes back, whatever its name, or it is said, at step 0 if it is there, and the run goes on without checkpoints."""
    create, train = TD3.TD3.__init__, TD3.TD3.train

    def created(agent, *args):
        create(agent, *args)
        setattr(agent, name, start)

    def trained(agent, buffer):
        if agent.updates == 5:
            setattr(agent, name, later)
        return train(agent, buffer)
    monkeypatch.setattr(TD3.TD3, "__init__", created)
    monkeypatch.setattr(TD3.TD3, "train", trained)
    run = Run(PLAIN, tmp_path)
    if says is None:
        run.crash(at(60))
        assert run.play("--resume").state()["agent"][name] == state_of(SimpleNamespace(value=later, not_state=()))["value"]
        return
    out = run.play().out.splitlines()
    assert out.count(says) == 1 and sum("checkpoints" in line for line in out) == 1 and output.finished(run.path, dict)
    assert "more" in says or out.index(says) < next(k for k, line in enumerate(out) if line.startswith("step 0"))


def test_flags_that_an_agent_changes(tmp_path, monkeypatch):
    """They are not part of a checkpoint."""
    train = TD3.TD3.train
    monkeypatch.setattr(TD3.TD3, "train", lambda agent, buffer: setattr(agent.cfg, "tau", 0.5) or train(agent, buffer))
    assert "checkpoints: the flags are not what they were at the start" in Run(PLAIN, tmp_path).play().out
