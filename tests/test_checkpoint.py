"""support/checkpoint.py: interrupted anywhere, a run goes on to what it would have been, to the bit; damage, signals, full disks.

    RESUME_KILLS=20 pytest tests/test_checkpoint.py -k killed         (more of the random kills)
"""
import contextlib
import errno
import importlib
import itertools
import json
import os
import pickle
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import SPEC, RandomAgent, Toy, make_buffer, make_off_policy, record
from filelock import FileLock

import main
import TD3
import utils
from envs import Replayable
from flags import run_name
from support import checkpoint, system
from support import models as export
from support import results as output
from support.checkpoint import (
    CannotResume,
    Checkpoints,
    checked_state_of,
    pack,
    random_state,
    set_random_state,
    set_state,
    state_of,
    unpack,
)

KILLS = int(os.environ.get("RESUME_KILLS", 2))
# A pendulum whose episodes are short: their ends come often, and a return differs with the least change of a weight
gym.register("TestSwing-v0", "gymnasium.envs.classic_control:PendulumEnv", max_episode_steps=13)


class Crash(BaseException):
    """An end that main.py does not see coming: what it leaves in the folder is what kill -9 leaves."""


def flags(words, folder, **others):
    """Command line of a tiny run: 120 steps, evaluated at 0, 40, 80 and 120, with a checkpoint every 7 steps."""
    words = words.split()
    given = dict(zip(words, [*words[1:], ""]))
    small = {"max_timesteps": 120, "eval_freq": 40, "eval_episodes": 2, "hidden_size": 8, "checkpoint_freq": 7}
    if "--recurrent" in words:
        small["core_size"] = 4
    small.update(OWN[given["--policy"]])
    small.update(others, results_dir=folder)
    return [*words, *(f"--{name}={value}" for name, value in small.items() if f"--{name}" not in given)]


REPLAY = dict(start_timesteps=20, batch_size=16, replay_ratio=4)
OWN = {
    "TD3": REPLAY, "DDPG": REPLAY, "SAC": REPLAY, "R2D1": REPLAY | dict(n_steps=1, target_freq=3, expl_timesteps=50),
    "PPO": dict(rollout_steps=16, num_envs=2, epochs=2, batch_size=16), "A2C": dict(rollout_steps=8, num_envs=2),
    "REINFORCE": dict(batch_size=20),
    "BCQ": dict(dataset="test/swing-v0", batch_size=16, target_candidates=2, act_candidates=5),
}


def path_of(argv):
    run, cfg, algorithm, _ = main.parse(argv)
    return os.path.join(run.results_dir, run_name(run, cfg, algorithm))


def crash_in(patch, thing, name, n, act=None):
    """From now on the n-th call of `thing.name` is a Crash, or follows `act`, called with the same. Returns all calls so far."""
    original, calls = getattr(thing, name), []

    def crashing(*args, **kwargs):
        calls.append(args)
        if len(calls) == n:
            if act is None:
                raise Crash
            act(*args)
        return original(*args, **kwargs)
    patch.setattr(thing, name, crashing)
    return calls


def play(argv, *crash):
    """Run main.py in this process; crash: (thing, name, n, act), see crash_in.

    Returns:
        crashed, bool; state, a function of all that agent, buffer and generators hold at the end; calls: as crash_in's
    """
    things, calls = [], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "state_of", lambda thing: things.append(thing) or state_of(thing))
        if crash:
            calls = crash_in(patch, *crash)
        try:
            main.main(argv)
            crashed = False
        except Crash:
            crashed = True

    def state():
        agent, buffer = things[-2:]
        return {"agent": state_of(agent), "buffer": state_of(buffer), "rows": buffer.rows, "hidden": buffer.hidden,
                "random": at_end}
    at_end = random_state()
    return SimpleNamespace(crashed=crashed, state=state, calls=calls)


def outcome(path):
    """What a finished run has written, without what tells the time or of interruptions."""
    with open(path + ".csv") as file:
        written = {"csv": [line.rpartition(",")[0] for line in file]}
    assert len(written["csv"]) > 2
    if os.path.exists(path + ".staleness.csv"):
        with open(path + ".staleness.csv") as file:
            written["staleness"] = file.read()
    for kind in ("last", "best"):
        if os.path.exists(f"{path}.{kind}.pt"):
            model = torch.load(f"{path}.{kind}.pt", weights_only=True)
            written[kind] = {"step": model["step"], "agent": model["agent"]}
    assert json.load(open(path + ".json"))["finished"] is True
    name = os.path.basename(path)
    endings = {other.removeprefix(name) for other in os.listdir(os.path.dirname(path)) if other.startswith(name)}
    assert endings <= {".csv", ".json", ".staleness.csv", ".last.pt", ".best.pt"}      # no checkpoint, nothing half written
    return written


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
    content = {}
    for at, _, names in os.walk(folder):
        for name in names:
            with open(os.path.join(at, name), "rb") as file:
                content[os.path.relpath(os.path.join(at, name), folder)] = file.read()
    return content


def newest(path):
    """The newest checkpoint's dictionary."""
    step = Checkpoints(path, None).steps()[0]
    return unpack(Checkpoints(path, None).name(step, "state"))


def stop_of(argv, capsys):
    """Run a command line that must end with an exit code: (code, stderr)."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main.main(argv)
    return stop.value.code, capsys.readouterr().err


# ---------------------------------------------------------------------- exact resume

MEMORY = "--recurrent --seq_len 4 --hidden_init stored --hidden_refresh --burn_in 3"
CASES = [
    "--policy TD3 --env TestSwing-v0 --flicker 0.2 --lr_decay",
    f"--policy TD3 --env TestSwing-v0 {MEMORY} --memory_size 50 --stored_precision float16 --staleness",
    f"--policy TD3 --env TestSwing-v0 {MEMORY} --num_envs 2 --core gru --memory_size 60 --critic_hidden actor",
    "--policy TD3 --env TestSwing-v0 --recurrent_critic --seq_len full --hidden_init stored --core_size 4 --checkpoint_freq 3",
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


@pytest.fixture(scope="module")
def data_sets(tmp_path_factory):
    """A folder of data sets, with one of the pendulum: 104 steps by random actions, 8 episodes."""
    pytest.importorskip("minari")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(tmp_path_factory.mktemp("minari")))
        record("TestSwing-v0", "test/swing-v0", 8, 13)
        yield


def agent_class(argv):
    policy = argv[argv.index("--policy") + 1]
    return getattr(importlib.import_module(policy), policy)


@pytest.mark.parametrize("words", CASES)
def test_interrupted_twice_is_the_same_run(words, tmp_path, request):
    """Evaluations, staleness, models and, at the end, all that agent, buffer and generators hold."""
    if "BCQ" in words:
        request.getfixturevalue("data_sets")
    argv = [*flags(words, tmp_path / "1"), "--save_model"]
    agent = agent_class(argv)
    whole = play(argv, agent, "train", 0)
    updates = len(whole.calls)
    assert updates >= 2
    expected, state = outcome(path_of(argv)), whole.state()

    argv = [*flags(words, tmp_path / "2"), "--save_model"]
    assert play(argv, agent, "train", -(-updates // 2)).crashed
    first = newest(path_of(argv))["step"]
    assert play([*argv, "--resume"], main, "evaluate", 1).crashed      # the next one
    second = newest(path_of(argv))["step"]
    assert 120 > second >= first > 0
    again = play([*argv, "--resume"])
    assert differences(state, again.state()) == []
    assert differences(expected, outcome(path_of(argv))) == []
    assert json.load(open(path_of(argv) + ".json"))["resumed"] == sorted({first, second})


HOPPER = "--policy TD3 --env HopperBulletEnv-v0 --recurrent --seq_len 4 --hidden_init stored --num_envs 2 --flicker 0.1"


@pytest.mark.parametrize("words,episode,calls", [
    (HOPPER, "first", 5), (HOPPER, "later", 44), ("--policy PPO --env AntBulletEnv-v0 --recurrent --seq_len 4", "first", 28),
    ("--policy R2D1 --env CueDiscrete10-v0 --recurrent --seq_len 4", "new", 25),
])
def test_goes_on_in_the_middle_of_an_episode(words, episode, calls, tmp_path):
    """Whose reset had a seed, the run's first ones; whose reset had none; or which has begun and not yet had a step."""
    every = dict(checkpoint_freq=11) if episode == "new" else {}
    argv = flags(words, tmp_path / "1", eval_freq=60, **every)
    play(argv)
    expected = outcome(path_of(argv))

    argv = flags(words, tmp_path / "2", eval_freq=60, **every)
    assert play(argv, utils.Buffer, "add", calls).crashed
    saved = newest(path_of(argv))["steps"]["environments"]
    if episode == "new":
        assert all(len(env["actions"]) == 0 for env in saved)
    else:
        assert all(len(env["actions"]) > 0 for env in saved)
    assert all((env["seed"] is not None) == (episode == "first") for env in saved)
    play([*argv, "--resume"])
    assert differences(expected, outcome(path_of(argv))) == []


@pytest.mark.parametrize("env_id", ["HopperBulletEnv-v0", "AntBulletEnv-v0", "ReacherBulletEnv-v0", "CartPole-v1", "Cue10-v0"])
def test_an_episode_is_led_back_and_its_generator_too(env_id):
    """What follows, later episodes included, is what would have followed."""
    def make():
        envs = main.make_vector_env(env_id, 2, obs_noise=0.1, flicker=0.1)
        envs.reset(seed=5)
        return envs

    def steps(envs, n):
        action, steps = np.zeros(envs.action_space.shape, np.float32), []
        for _ in range(n):
            action[:] = rng.uniform(-1, 1, action.shape)               # in place: what was done before must not change by it
            steps.append([x.tolist() for x in envs.step(action)[:4]])
        return steps
    rng = np.random.default_rng(0)
    envs = make()
    for n in (0, 30, 90):
        steps(envs, n)
        saved = [env.save() for env in envs.envs]
        there = rng.bit_generator.state
        expected = steps(envs, 60)
        other = make()
        for env, its in zip(other.envs, saved):
            env.restore(its)
        rng.bit_generator.state = there
        assert steps(other, 60) == expected


class Leaky(gym.Env):
    """Nine steps, random observations, and something that a generator's state at a reset does not lead back to, by `kind`."""
    observation_space, action_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32), gym.spaces.Box(-1, 1, (1,), np.float32)
    made = 0

    def __init__(self, kind):
        self.kind, self.resets, self.lifetime, self.own = kind, 0, 0, random.Random(0)
        Leaky.made += 1
        if kind == "raises" and Leaky.made > 2:
            raise RuntimeError("one licence,\ntwo copies")

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.resets, self.t = self.resets + 1, 0
        if self.kind == "global":
            return np.random.normal(size=2).astype(np.float32), {}
        if self.kind == "own":
            return np.array([self.own.random(), 0], np.float32), {}
        return np.array([self.resets * (self.kind == "resets"), self.np_random.random()], np.float32), {}

    def step(self, action):
        self.t, self.lifetime = self.t + 1, self.lifetime + 1
        seen = self.np_random.random()
        if self.kind == "seldom":                                      # a rare event changes later episodes, each in ten
            self.resets += seen < 0.01
            if self.t == 1 and seen < 0.1:
                seen = self.resets
        if self.kind == "draws":                                       # and shows nothing of it
            self.np_random.random(self.resets)
            seen = 0
        reward = self.lifetime if self.kind == "lifetime" else float(action[0])
        return np.array([self.t, seen], np.float32), reward, self.t == 9 + (self.kind == "length") * self.resets, False, {}


LEAKY = ["resets", "own", "global", "lifetime", "length", "draws", "seldom", "raises"]
for kind in LEAKY:
    gym.register(f"TestLeaky-{kind}-v0", Leaky, kwargs=dict(kind=kind))
gym.register("TestNormalized-v0", "gymnasium.envs.classic_control:PendulumEnv", max_episode_steps=13, additional_wrappers=(
    gym.wrappers.NormalizeReward.wrapper_spec(gamma=0.99, epsilon=1e-8),))
NO_CHECKPOINTS = r"no checkpoints: an episode of {} does not repeat itself when it is played again \({}\); the run goes on " \
    r"without, and cannot be resumed\n"


@pytest.mark.parametrize("env", [*(f"TestLeaky-{kind}-v0" for kind in LEAKY), "TestNormalized-v0"])
def test_an_environment_that_cannot_be_led_back_is_said_once(env, tmp_path, capsys):
    """At the first checkpoint, which is not written, nor is any later one; the run is what it is without."""
    small = dict(max_timesteps=400, eval_freq=400, eval_episodes=1, start_timesteps=400)
    lines, why = [], "observations or rewards differ"
    if "raises" in env:
        why = rf"ValueError: {env} cannot be made: one licence, two copies \([^\n]*\)"
    for freq in (120, 0):
        Leaky.made = 0
        argv = flags(f"--policy TD3 --env {env}", tmp_path / str(freq), checkpoint_freq=freq, **small)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Checkpoints, "write", None)
            main.main(argv)
        said = capsys.readouterr().out
        assert len(re.findall(NO_CHECKPOINTS.format(env, why), said)) == said.count("checkpoints:") == (freq > 0)
        lines.append(outcome(path_of(argv))["csv"])
    assert lines[0] == lines[1]


@pytest.mark.parametrize("env,steps,same", [
    ("HumanoidFlagrunHarderBulletEnv-v0", 1000, False), ("HopperBulletEnv-v0", 150, True)])
def test_a_robot_that_keeps_something_of_earlier_episodes_is_found_out(env, steps, same):
    """Though most of its episodes show nothing of it."""
    import pybullet_envs_gymnasium  # noqa: F401  (registers them)
    envs, rng = main.make_vector_env(env, 1), np.random.default_rng(0)
    envs.reset(seed=0)
    for _ in range(steps):
        envs.step(rng.uniform(-1, 1, envs.action_space.shape))
    with contextlib.nullcontext() if same else pytest.raises(CannotResume):
        Checkpoints("", None).check_repeats(envs, env)


def test_checkpoints_from_which_another_run_would_follow_are_removed(tmp_path, capsys, monkeypatch):
    """If an environment is found out only after some have been written."""
    argv = flags("--policy TD3 --env TestSwing-v0", tmp_path)
    crash_in(monkeypatch, Replayable, "repeats", 3, lambda env, _: env.__dict__.update(checksum=0))
    assert play(argv, utils.Buffer, "add", 30).crashed
    assert "no checkpoints: an episode of TestSwing-v0" in capsys.readouterr().out
    assert Checkpoints(path_of(argv), None).steps() == []


def test_a_long_episode_is_played_no_more_than_once(monkeypatch):
    """Looked at again and again, it costs the steps that are new."""
    envs = main.make_vector_env("Pendulum-v1", 1)
    envs.reset(seed=0)
    env, steps = envs.envs[0], []
    original = gym.envs.classic_control.PendulumEnv.step
    monkeypatch.setattr(gym.envs.classic_control.PendulumEnv, "step", lambda *args: steps.append(1) or original(*args))
    for k in range(1, 450):
        envs.step(np.full((1, 1), 0.1, np.float32))
        if k % 7 == 0:
            assert env.repeats(envs.env_fns[0])
    assert len(steps) <= 449 + 3 * 200


def test_environments_are_looked_at_in_turn(tmp_path, monkeypatch):
    """All before the first checkpoint, then one before each."""
    argv = flags("--policy TD3 --env TestSwing-v0 --num_envs 3", tmp_path, max_timesteps=24, checkpoint_freq=3)
    calls, order = crash_in(monkeypatch, Replayable, "repeats", 0), []
    main.main(argv)
    for env, _ in calls:
        order += [env] if env not in order else []
    assert [order.index(env) for env, _ in calls] == [0, 1, 2, 1, 2, 0, 1, 2, 0]


def test_an_environment_that_leads_elsewhere_is_refused(tmp_path, capsys, monkeypatch):
    """Should a checkpoint be there all the same, such as from another machine."""
    argv = flags("--policy TD3 --env TestLeaky-lifetime-v0", tmp_path, **TINIER)
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "check_repeats", lambda *_: None)
        assert play(argv, utils.Buffer, "add", 39).crashed
    before = files_of(tmp_path)
    code, error = stop_of([*argv, "--resume"], capsys)
    assert code == 2 and re.fullmatch(r"error: --resume: [^\n]+\n", error) and "TestLeaky-lifetime-v0" in error
    assert files_of(tmp_path) == before


@pytest.mark.parametrize("seed,episodes", [(1, 8), (0, 6), (0, 9)])
def test_another_data_set_of_the_same_name_is_refused(seed, episodes, data_sets, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    record("TestSwing-v0", "test/swing-v0", 8, 13)
    argv = flags("--policy BCQ --env TestSwing-v0", tmp_path / "1", **TINIER)
    assert play(argv, agent_class(argv), "train", 30).crashed
    shutil.rmtree(tmp_path / "minari")
    record("TestSwing-v0", "test/swing-v0", episodes, 13, seed)
    code, error = stop_of([*argv, "--resume"], capsys)
    assert code == 2 and re.fullmatch(r"error: --resume: [^\n]+\n", error) and "test/swing-v0" in error


def test_the_best_model_stays_the_best(tmp_path, monkeypatch, capsys):
    """A resumed run does not take its first evaluation for the best."""
    scores = {0: 5.0, 40: 9.0, 80: 1.0, 120: 2.0}
    monkeypatch.setattr(main, "evaluate", lambda agent, *_: ([scores[agent.steps]], [1]))
    argv = [*flags("--policy TD3 --env TestSwing-v0", tmp_path), "--save_model"]
    assert play(argv, utils.Buffer, "add", 60).crashed
    play([*argv, "--resume"])
    assert [line.split(",")[2] for line in outcome(path_of(argv))["csv"][1:]] == ["5.000", "9.000", "1.000", "2.000"]
    assert outcome(path_of(argv))["best"]["step"] == 40 and outcome(path_of(argv))["last"]["step"] == 120
    assert "best evaluation 9.0" in capsys.readouterr().out


def test_time_is_counted_on(tmp_path, monkeypatch):
    """The seconds of a resumed run are those spent on it, not those in between."""
    argv = flags("--policy TD3 --env TestSwing-v0", tmp_path)
    clock = itertools.count(step=0.01)
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    assert play(argv, utils.Buffer, "add", 70).crashed
    clock = itertools.count(1e6, 0.01)
    play([*argv, "--resume"])
    seconds = [float(line.split(",")[-1]) for line in open(path_of(argv) + ".csv").readlines()[1:]]
    assert seconds == sorted(seconds) and seconds[-1] < 10


# ---------------------------------------------------------------------- kill -9

def fork(argv, log, prepare=None):
    """main.py in a process of its own, without importing everything again; its output goes to a file. Returns its id."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 99
    try:
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
        for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
            signal.signal(number, handler)
        if prepare:
            prepare()
        main.main(argv)
        code = 0
    except SystemExit as stop:
        code = stop.code
    finally:
        sys.stdout.flush()
        os._exit(code)


def wait(pid):
    """Its exit code; minus the signal's number if one has killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def ended(pid):
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def has(folder, ending):
    """Is there a file of such a name? The folder may go at any moment."""
    try:
        return any(name.endswith(ending) for name in os.listdir(folder))
    except OSError:
        return False


def half_written(folder):
    return has(folder, ".new")


@pytest.mark.parametrize("words", [
    f"--policy TD3 --env TestSwing-v0 {MEMORY} --memory_size 60 --num_envs 2",
    f"--policy PPO --env TestSwing-v0 {MEMORY}",
    f"--policy R2D1 --env CartPole-v1 {MEMORY} --memory_size 60",
])
def test_killed_at_any_instant(words, tmp_path):
    """kill -9 after a random time, from the second on where there is something to go on from, and every second time when a
    file is seen half written."""
    rng, log = random.Random(words), tmp_path / "log"
    argv = flags(words, tmp_path / "0", checkpoint_freq=4)
    start = time.time()
    assert wait(fork(argv, log)) == 0, log.read_text()
    duration = time.time() - start
    expected = outcome(path_of(argv))

    kills = resumed = 0
    for k in itertools.count(1):
        argv = flags(words, tmp_path / str(k), checkpoint_freq=4)
        folder = path_of(argv) + ".checkpoint"
        while True:
            process, until = fork([*argv, "--resume"], log), time.time() + rng.uniform(0.1, 0.9) * duration
            while not ended(process) and (time.time() < until or kills and not has(folder, ".state")
                                          or kills % 2 and not half_written(folder)):
                time.sleep(0)
            if kills < KILLS:
                os.kill(process, signal.SIGKILL)
            code = wait(process)
            resumed += "going on from step" in log.read_text()
            if code == 0:
                break
            assert code == -signal.SIGKILL and kills < KILLS, log.read_text()
            kills += 1
        assert differences(expected, outcome(path_of(argv))) == []
        if kills >= KILLS:
            break
    assert resumed or KILLS < 2


TINY = f"--policy TD3 --env TestSwing-v0 {MEMORY} --start_timesteps 8"
TINIER = dict(max_timesteps=40, eval_freq=20, eval_episodes=1, checkpoint_freq=8)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """What TINY comes to."""
    argv = flags(TINY, tmp_path_factory.mktemp("tiny"), **TINIER)
    play(argv)
    return outcome(path_of(argv))


@pytest.mark.parametrize("name,least", [("fsync", 18), ("remove", 6)])
def test_killed_at_any_operation_on_a_file(name, least, tiny, tmp_path):
    """Before every single one that makes a file whole, which is still half there, or removes one."""
    def halve(descriptor=None, *_):
        if name == "fsync":
            os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
        raise Crash

    for n in itertools.count(1):
        argv = flags(TINY, tmp_path / str(n), **TINIER)
        crashed = play(argv, os, name, n, halve).crashed
        play([*argv, "--resume"])
        assert differences(tiny, outcome(path_of(argv))) == [], n
        if not crashed:
            break
    assert n > least


# ---------------------------------------------------------------------- damage

SPARSELY = "--policy TD3 --env TestSwing-v0 --recurrent --seq_len 4 --hidden_init stored --start_timesteps 8"


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """A run that has crashed at step 38, in a folder to be copied; `expected` from it, and its checkpoints."""
    argv = flags(SPARSELY, tmp_path_factory.mktemp("whole"), **TINIER)
    play(argv)
    expected = outcome(path_of(argv))
    folder = tmp_path_factory.mktemp("interrupted")
    argv = flags(SPARSELY, folder, **TINIER)
    assert play(argv, utils.Buffer, "add", 38).crashed
    files = sorted(os.listdir(path_of(argv) + ".checkpoint"))
    assert files == ["000000008.rows", "000000016.rows", "000000024.rows", "000000024.state",
                     "000000032.rows", "000000032.state"]
    return SimpleNamespace(folder=folder, expected=expected, files=files)


@pytest.fixture
def copy(interrupted, tmp_path):
    """A function that copies that run anew: its command line, with --resume, and its folder of checkpoints."""
    number = itertools.count()

    def copy():
        folder = tmp_path / str(next(number))
        shutil.copytree(interrupted.folder, folder)
        argv = [*flags(SPARSELY, folder, **TINIER), "--resume"]
        return argv, path_of(argv) + ".checkpoint"
    return copy


def truncate(path):
    os.truncate(path, os.path.getsize(path) // 2)


def empty(path):
    os.truncate(path, 0)


def flip(path):
    with open(path, "r+b") as file:
        at = random.Random(path[-15:]).randrange(os.path.getsize(path))
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 16]))


def flip_checksum(path):
    with open(path, "r+b") as file:
        byte = file.read(1)[0]
        file.seek(0)
        file.write(bytes([byte ^ 1]))


@pytest.mark.parametrize("damage", [truncate, empty, flip, flip_checksum, os.remove])
def test_a_damaged_file(damage, interrupted, copy, capsys):
    """Of the newest checkpoint: the one before it is used, in a line that says so. Of both, such as older rows: refused, in one
    line."""
    for name in interrupted.files:
        argv, folder = copy()
        damage(os.path.join(folder, name))
        before = files_of(argv[-2].split("=")[1])
        capsys.readouterr()
        if name.endswith(".rows") and not name.startswith("000000032"):
            code, error = stop_of(argv, capsys)
            assert code == 2 and re.fullmatch(r"error: --resume: [^\n]+\n", error) and name in error and folder in error
            assert ("missing" in error) == (damage is os.remove)
            assert files_of(argv[-2].split("=")[1]) == before
            continue
        play(argv)
        out, error = capsys.readouterr()
        assert differences(interrupted.expected, outcome(path_of(argv))) == [], name
        if damage is os.remove and name.endswith(".state"):            # nothing tells that there was one
            assert error == ""
        elif name == "000000024.state":
            assert error == "" and "going on from step 32" in out      # it was not needed
        else:
            assert re.fullmatch(rf"warning: \S+{name} is [^\n]+; going on from the checkpoint before it, at step 24\n", error)
            assert "going on from step 24" in out


def test_a_damaged_checkpoint_is_replaced(interrupted, copy):
    """Having gone on from the one before, and crashed again, it goes on from a new one."""
    for name in ("000000032.state", "000000032.rows"):
        argv, folder = copy()
        flip(os.path.join(folder, name))
        shutil.copy(os.path.join(folder, name), os.path.join(folder, "000000031.rows.new"))
        assert play(argv, utils.Buffer, "add", 12).crashed              # in step 36
        assert not half_written(folder)                                # the next checkpoint has cleaned up
        assert play(argv, utils.Buffer, "add", 2).crashed               # in step 34: it went on from 32
        assert json.load(open(path_of(argv) + ".json"))["resumed"][-1] == 32
        play(argv)
        assert differences(interrupted.expected, outcome(path_of(argv))) == []


def test_a_damaged_checkpoint_is_forgotten(copy):
    """Of the steps after the one that the run has gone on from nothing is left, wherever its next checkpoints lie."""
    argv, folder = copy()
    flip(os.path.join(folder, "000000032.state"))
    assert play([*argv, "--checkpoint_freq=3"], utils.Buffer, "add", 7).crashed
    assert Checkpoints(path_of(argv), None).steps() == [30, 27]


def test_nothing_to_go_on_from(interrupted, copy, capsys):
    """No folder, an empty one, one without a single state: the run starts from the beginning."""
    for kept in (None, [], [name for name in interrupted.files if name.endswith(".rows")]):
        argv, folder = copy()
        for name in interrupted.files:
            if kept is None or name not in kept:
                os.remove(os.path.join(folder, name))
        if kept is None:
            os.rmdir(folder)
        capsys.readouterr()
        play(argv)
        out, error = capsys.readouterr()
        assert "no checkpoint of this run is there: it starts from the beginning" in out and error == ""
        assert differences(interrupted.expected, outcome(path_of(argv))) == []


def test_files_of_others_in_the_folder(interrupted, copy, capsys):
    """They are left alone as long as the run goes on, and no reason to stop."""
    argv, folder = copy()
    for name in ("notes.txt", "000000040.state.bak", "state", "x.rows"):
        with open(os.path.join(folder, name), "w") as file:
            file.write("mine")
    os.mkdir(os.path.join(folder, "more"))
    assert play(argv, utils.Buffer, "add", 8).crashed
    assert {"notes.txt", "000000040.state.bak", "state", "x.rows", "more"} <= set(os.listdir(folder))
    capsys.readouterr()
    play(argv)
    assert capsys.readouterr().err == ""
    assert differences(interrupted.expected, outcome(path_of(argv))) == []


@pytest.mark.parametrize("name", ["99999.state", "000000099.state/"])
def test_a_file_with_the_name_of_a_checkpoint(name, interrupted, copy, capsys):
    argv, folder = copy()
    if name.endswith("/"):
        os.mkdir(os.path.join(folder, name))
    else:
        shutil.copy(os.path.join(folder, "000000032.state"), os.path.join(folder, name))
    capsys.readouterr()
    play(argv)
    assert capsys.readouterr().err == ""
    assert differences(interrupted.expected, outcome(path_of(argv))) == []


def less(rows):
    rows["rows"] = rows["rows"][:, :-1]


@pytest.mark.parametrize("kind,change", [
    ("state", lambda state: state.clear()), ("state", lambda state: state.pop("config")),
    ("state", lambda state: state["agent"].pop("updates")), ("state", lambda state: state.pop("random")),
    ("state", lambda state: state["agent"]["critic"][1].update(more=torch.zeros(3))), ("rows", less)])
def test_checkpoints_of_another_program_are_refused(kind, change, copy, capsys):
    """Whole, with the right checksum, but of an older version, say."""
    argv, folder = copy()
    for step in (24, 32):
        path = os.path.join(folder, f"{step:09d}.{kind}")
        content = unpack(path)
        change(content)
        system.write_file(path, pack(content))
    code, error = stop_of(argv, capsys)
    assert code == 2 and re.fullmatch(r"error: --resume: [^\n]+\n", error)


class Malicious:
    """Code in a pickle: what loads it naively leaves a file there."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("wrap", [True, False])
def test_no_code_is_executed(wrap, copy, tmp_path, capsys):
    argv, folder = copy()
    trap = Malicious(str(tmp_path / "executed"))
    for step in (24, 32):
        content = pickle.dumps(trap, 2)
        if wrap:                                                       # as checkpoints are, checksum and all
            path = tmp_path / "file"
            torch.save({"step": step, "files": trap}, path)
            content = path.read_bytes()
        with open(os.path.join(folder, f"{step:09d}.state"), "wb") as file:
            file.write(zlib.crc32(content).to_bytes(4, "big") + content)
    code, error = stop_of(argv, capsys)
    assert code == 2 and re.fullmatch(r"error: --resume: [^\n]+\n", error) and "000000032.state is no checkpoint" in error
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("change,says", [
    (["--eval_freq=10"], "--eval_freq 20"), (["--eval_episodes=2"], "--eval_episodes 1"), (["--staleness"], "--staleness False"),
    (["--threads=2"], "--threads 1"),
])
def test_other_flags_are_refused(change, says, copy, capsys):
    """Those that are not in the run's name, and change its results. The checkpoints stay as they are."""
    argv, folder = copy()
    before = files_of(folder)
    code, error = stop_of([*argv, *change], capsys)
    assert code == 2 and re.fullmatch(r"error: --resume: [^\n]+\n", error) and says in error
    assert files_of(folder) == before
    torch.set_num_threads(1)


@pytest.mark.parametrize("change", [["--checkpoint_freq=3"], ["--checkpoint_freq=0"], ["--save_model"]])
def test_flags_that_may_change(change, interrupted, copy):
    argv, folder = copy()
    play([*argv, *change])
    result = outcome(path_of(argv))
    assert ("last" in result) == ("--save_model" in change)
    assert differences(interrupted.expected["csv"], result["csv"]) == []


# ---------------------------------------------------------------------- runs that cannot be gone on with

@pytest.mark.parametrize("again", ["--resume", "--overwrite"])
def test_no_two_processes_at_one_run(again, tmp_path, monkeypatch):
    """The second one is told so, and the first one's results are what they would be alone."""
    argv = flags("--policy TD3 --env TestSwing-v0", tmp_path / "both")
    code = "import sys, main, test_checkpoint; main.PATIENCE = 1; main.main(sys.argv[1:])"
    second, said = [sys.executable, "-c", code, *argv, *again.split()], []
    path = [os.path.dirname(__file__), os.path.dirname(main.__file__)]
    crash_in(monkeypatch, utils.Buffer, "add", 70, lambda *_: said.append(subprocess.run(
        second, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(path)})))
    main.main(argv)
    monkeypatch.undo()
    assert said[0].returncode == 2
    assert re.fullmatch(r"error: another process is at work on [^\n]+\n", said[0].stderr)
    alone = flags("--policy TD3 --env TestSwing-v0", tmp_path / "alone")
    main.main(alone)
    assert differences(outcome(path_of(alone))["csv"], outcome(path_of(argv))["csv"]) == []
    assert not [name for name in os.listdir(tmp_path / "both") if name.endswith(".lock")]


def test_a_run_waits_for_one_that_is_just_ending(tmp_path):
    argv = flags("--policy TD3 --env TestSwing-v0 --resume", tmp_path)
    lock = FileLock(path_of(argv) + ".lock", thread_local=False)
    lock.acquire()
    ending = threading.Timer(1, lock.release)
    ending.start()
    start = time.monotonic()
    main.main(argv)
    ending.join()
    assert time.monotonic() - start > 1 and output.finished(path_of(argv))


def test_a_lock_that_cannot_be_had_is_left_alone(tmp_path, capsys, monkeypatch):
    """Of a file system without locks it is said; another user's is refused. Neither file is removed."""
    for error, code, says in ((OSError(errno.ENOLCK, "No locks available"), 0, "warning: "), (PermissionError(), 2, "error: ")):
        path = str(tmp_path / says.strip(": "))
        with open(path + ".lock", "w"):
            pass

        def broken(*args, error=error, **kwargs):
            raise error
        monkeypatch.setattr(system.FileLock, "acquire", broken)
        try:
            with system.alone(path, 0):
                pass
            stopped = 0
        except SystemExit as stop:
            stopped = stop.code
        monkeypatch.undo()
        said = capsys.readouterr().err
        assert stopped == code and said.startswith(says) and said.count("\n") == 1
        assert os.path.exists(path + ".lock")


def test_the_lock_of_a_dead_process_holds_nobody_up(tmp_path):
    argv = flags("--policy TD3 --env TestSwing-v0", tmp_path)
    with open(path_of(argv) + ".lock", "w"):
        pass
    main.main(argv)
    assert not os.path.exists(path_of(argv) + ".lock")


def test_the_model_of_a_resumed_run_can_be_tested(tmp_path, capsys):
    argv = flags("--policy TD3 --env TestSwing-v0 --save_model --resume", tmp_path)
    main.main(argv)
    capsys.readouterr()
    main.main(["--test", "--load_model", path_of(argv) + ".last.pt"])
    assert capsys.readouterr().out.startswith("return ")


# ---------------------------------------------------------------------- signals

def send(*numbers, n):
    """Prepares a child: signals to itself in the n-th step."""
    def prepare():
        crash_in(pytest.MonkeyPatch(), utils.Buffer, "add", n,
                 lambda *_: [os.kill(os.getpid(), number) for number in numbers])
    return prepare


@pytest.mark.parametrize("number,code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_finishes_the_step_and_writes_a_checkpoint(number, code, tiny, tmp_path):
    """Also where no checkpoint is due for long."""
    argv, log = flags(TINY, tmp_path, **TINIER | dict(checkpoint_freq=1000)), tmp_path / "log"
    assert wait(fork(argv, log, send(number, n=21))) == code
    assert log.read_text().endswith("stopping after this step; once more to stop at once\n"
                                    "interrupted: go on with the same command and --resume\n")
    log.unlink()
    assert newest(path_of(argv))["step"] == 21
    play([*argv, "--resume"])
    assert differences(tiny, outcome(path_of(argv))) == []


@pytest.mark.parametrize("first,second,code", [
    (signal.SIGINT, signal.SIGINT, 130), (signal.SIGTERM, signal.SIGTERM, -signal.SIGTERM),
    (signal.SIGINT, signal.SIGTERM, -signal.SIGTERM), (signal.SIGTERM, signal.SIGINT, 130)])
def test_a_second_signal_ends_at_once(first, second, code, tiny, tmp_path):
    argv, log = flags(TINY, tmp_path, **TINIER), tmp_path / "log"
    assert wait(fork(argv, log, send(first, second, n=21))) == code
    assert "Traceback" not in log.read_text() and "stopping after this step" in log.read_text()
    log.unlink()
    assert newest(path_of(argv))["step"] == 16
    play([*argv, "--resume"])
    assert differences(tiny, outcome(path_of(argv))) == []


def test_signal_without_checkpoints(tiny, tmp_path):
    """It says that there is none, and writes none."""
    argv, log = flags(TINY, tmp_path, **TINIER | dict(checkpoint_freq=0)), tmp_path / "log"
    assert wait(fork(argv, log, send(signal.SIGTERM, n=21))) == 143
    assert log.read_text().endswith("interrupted: evaluations so far are kept, but no checkpoint\n")
    log.unlink()
    assert not os.path.exists(path_of(argv) + ".checkpoint")
    play([*argv, "--resume"])
    assert differences(tiny, outcome(path_of(argv))) == []


def test_signal_in_the_last_step_changes_nothing(tiny, tmp_path):
    argv, log = flags(TINY, tmp_path, **TINIER), tmp_path / "log"
    assert wait(fork(argv, log, send(signal.SIGINT, n=40))) == 0
    log.unlink()
    assert differences(tiny, outcome(path_of(argv))) == []


def test_signal_between_updates_from_a_data_set(data_sets, tmp_path):
    words = "--policy BCQ --env TestSwing-v0"
    argv = flags(words, tmp_path / "1", **TINIER)
    play(argv)
    expected = outcome(path_of(argv))
    argv, log = flags(words, tmp_path / "2", **TINIER), tmp_path / "log"
    assert wait(fork(argv, log, lambda: crash_in(pytest.MonkeyPatch(), agent_class(argv), "train", 21,
                                                lambda *_: os.kill(os.getpid(), signal.SIGINT)))) == 130
    assert newest(path_of(argv))["step"] == 21
    play([*argv, "--resume"])
    assert differences(expected, outcome(path_of(argv))) == []


def test_signal_on_a_full_disk(tmp_path):
    argv, log = flags(TINY, tmp_path, **TINIER | dict(checkpoint_freq=1000)), tmp_path / "log"

    def prepare():
        fill_up(pytest.MonkeyPatch(), 5)
        send(signal.SIGINT, n=21)()
    assert wait(fork(argv, log, prepare)) == 130
    assert log.read_text().endswith("interrupted: evaluations so far are kept, but no checkpoint\n")


# ---------------------------------------------------------------------- a full disk, a folder that is gone

def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


WARNING = r"(warning: .+ could not be written \(No space left on device\); training goes on\n)"
WRITES = 1 + 2 + 3 * 2 + 4 * 2                                          # can it? begin, evaluations, checkpoints; not: finish


@pytest.mark.parametrize("n", range(2, WRITES + 1))
def test_a_full_disk_stops_no_run(n, tiny, tmp_path, capsys):
    """Whichever file it is for; the first says whether the folder can be written at all."""
    argv = flags(TINY, tmp_path, **TINIER)
    assert len(play(argv, os, "fsync", n, full).calls) <= WRITES + 2
    assert re.fullmatch(WARNING, capsys.readouterr().err)
    assert differences(tiny, outcome(path_of(argv))) == []


@pytest.mark.parametrize("n,step", [(6, 32), (7, 32), (8, 32), (9, 32), (12, 32), (13, 32), (14, 24), (15, 24)])
def test_the_next_checkpoint_makes_up_for_one_that_failed(n, step, interrupted, tmp_path, capsys):
    """Rows that found no room are written with it."""
    argv = flags(SPARSELY, tmp_path, **TINIER)
    with pytest.MonkeyPatch.context() as patch:
        crash_in(patch, os, "fsync", n, full)
        assert play(argv, utils.Buffer, "add", 39).crashed
    assert re.fullmatch(WARNING, capsys.readouterr().err)
    play([*argv, "--resume"])
    out, error = capsys.readouterr()
    assert f"going on from step {step}\n" in out and error == ""
    assert differences(interrupted.expected, outcome(path_of(argv))) == []


def fill_up(patch, step, until=None):
    """A disk that is full from before a step until before another."""
    before = os.fsync
    def fill(*_):
        patch.setattr(os, "fsync", full)
    def free(*_):
        patch.setattr(os, "fsync", before)
    crash_in(patch, utils.Buffer, "add", step, fill)
    crash_in(patch, utils.Buffer, "add", until, free)


@pytest.mark.parametrize("step,until", [(1, 40), (1, 9), (10, 30), (17, 23)])
def test_a_disk_that_is_full_for_long(step, until, tiny, tmp_path, capsys):
    argv = flags(f"{TINY}", tmp_path, **TINIER)
    with pytest.MonkeyPatch.context() as patch:
        fill_up(patch, step, until)
        play(argv)
    assert re.fullmatch(f"{WARNING}+", capsys.readouterr().err)
    assert differences(tiny, outcome(path_of(argv))) == []


@pytest.mark.parametrize("step,kept", [(1, None), (10, 8), (17, 16), (30, 24)])
def test_what_was_saved_before_the_disk_was_full(step, kept, tiny, tmp_path, capsys):
    """Is undamaged: after a crash while it is full the run goes on from there."""
    argv = flags(TINY, tmp_path, **TINIER)
    with pytest.MonkeyPatch.context() as patch:
        fill_up(patch, step)
        assert play(argv, utils.Buffer, "add", 39).crashed
    assert re.fullmatch(f"{WARNING}+", capsys.readouterr().err)
    assert not half_written(tmp_path) and not half_written(path_of(argv) + ".checkpoint")
    assert kept is None or newest(path_of(argv))["step"] == kept
    play([*argv, "--resume"])
    assert capsys.readouterr().err == ""
    assert differences(tiny, outcome(path_of(argv))) == []


@pytest.mark.parametrize("words", [TINY, f"{TINY} --staleness", f"{TINY} --save_model"])
def test_the_results_folder_is_deleted(words, tmp_path, capsys):
    """By someone, in the middle of a run: training goes on to the end, and the CSV is whole."""
    argv = flags(words, tmp_path / "1", **TINIER)
    play(argv)
    expected = outcome(path_of(argv))
    argv = flags(words, tmp_path / "2", **TINIER)
    with pytest.MonkeyPatch.context() as patch:
        crash_in(patch, utils.Buffer, "add", 19, lambda *_: shutil.rmtree(tmp_path / "2"))
        play(argv)
    result = outcome(path_of(argv))
    assert result["csv"] == expected["csv"] and "Traceback" not in capsys.readouterr().err


@pytest.fixture
def scored(tmp_path, monkeypatch):
    """A run with models whose best evaluation is at step 40, and a disk that has no room for them at some evaluations."""
    scores = {0: 5.0, 40: 9.0, 80: 7.0, 120: 2.0}
    now, write = [], export.write_file
    monkeypatch.setattr(main, "evaluate", lambda agent, *_: now.append(agent.steps) or ([scores[agent.steps]], [1]))
    monkeypatch.setattr(export, "write_file", lambda *args: full() if now[-1] in scored.full else write(*args))

    def scored(*words):
        scored.argv = [*flags("--policy TD3 --env TestSwing-v0", tmp_path), "--save_model", *words]
        return scored.argv
    scored.full = ()
    return scored


@pytest.mark.parametrize("no_room", [(40,), (0, 40), (40, 80), (0, 40, 80)])
def test_the_best_model_is_of_the_best_evaluation_after_a_full_disk(no_room, scored, capsys):
    """It is written as soon as there is room again, although by then another model is evaluated."""
    scored.full = no_room
    play(scored())
    assert re.fullmatch(f"{WARNING}{{{len(no_room)}}}", capsys.readouterr().err)
    written = outcome(path_of(scored.argv))
    assert written["best"]["step"] == 40 and written["last"]["step"] == 120


@pytest.mark.parametrize("no_room, missing", [((0, 40, 80, 120), ["last.pt and", "best.pt could"]), ((120,), ["last.pt could"])])
def test_a_model_that_is_missing_at_the_end(no_room, missing, scored, capsys):
    """The run has failed. With --resume it goes on once there is room, and the best model has not been forgotten."""
    scored.full = no_room
    with pytest.raises(SystemExit) as stop:
        play(scored())
    out, error = capsys.readouterr()
    assert stop.value.code == 1 and "csv written" not in out
    assert "error: the run has come to its end" in error and "--resume" in error and all(words in error for words in missing)
    scored.full = ()
    play(scored("--resume"))
    written = outcome(path_of(scored.argv))
    assert written["best"]["step"] == 40 and written["last"]["step"] == 120


def test_a_model_that_someone_deleted(scored, capsys):
    """It is in the checkpoint, too, and comes back with a resume."""
    assert play(scored(), utils.Buffer, "add", 100).crashed
    os.remove(path_of(scored.argv) + ".best.pt")
    play(scored("--resume"))
    assert outcome(path_of(scored.argv))["best"]["step"] == 40


def test_the_disk_is_full_when_the_run_ends(tiny, tmp_path, capsys):
    """Then the run is not finished: once there is room it can go on from its last checkpoint."""
    argv = flags(TINY, tmp_path, **TINIER)
    with pytest.MonkeyPatch.context() as patch:
        fill_up(patch, 35)
        with pytest.raises(SystemExit) as stop:
            play(argv)
    out, error = capsys.readouterr()
    assert stop.value.code == 1 and "csv written" not in out and "--resume" in error
    play([*argv, "--resume"])
    assert differences(tiny, outcome(path_of(argv))) == []


@pytest.mark.parametrize("what", ["results", "checkpoints"])
def test_checkpoints_after_the_folder_was_deleted(what, interrupted, tmp_path, capsys):
    """Are complete."""
    argv = flags(SPARSELY, tmp_path / "1", **TINIER)
    with pytest.MonkeyPatch.context() as patch:
        crash_in(patch, utils.Buffer, "add", 19,
                 lambda *_: shutil.rmtree(tmp_path / "1" if what == "results" else path_of(argv) + ".checkpoint"))
        assert play(argv, utils.Buffer, "add", 39).crashed
    play([*argv, "--resume"])
    out, error = capsys.readouterr()
    assert differences(interrupted.expected, outcome(path_of(argv))) == []
    assert error == "" and "going on from step 32" in out


def test_staleness_after_the_folder_was_deleted(tmp_path):
    argv = flags(f"{TINY} --staleness", tmp_path / "1", **TINIER)
    with pytest.MonkeyPatch.context() as patch:
        crash_in(patch, utils.Buffer, "add", 38, lambda *_: shutil.rmtree(tmp_path / "1"))
        play(argv)
    assert len(outcome(path_of(argv))["staleness"].splitlines()) == 2


# ---------------------------------------------------------------------- --resume and its neighbours

def test_a_finished_run_is_left_alone(tmp_path, capsys):
    argv = [*flags(f"{TINY} --staleness", tmp_path, **TINIER), "--save_model"]
    play(argv)
    before = files_of(tmp_path)
    assert len(before) == 5 and outcome(path_of(argv))                 # the folder of checkpoints is gone
    capsys.readouterr()
    main.main([*argv, "--resume"])
    out, error = capsys.readouterr()
    assert f"{path_of(argv)}.csv is there already: this run has finished" in out and error == ""
    assert files_of(tmp_path) == before


def test_killed_between_its_end_and_the_removal_of_its_checkpoints(tiny, tmp_path):
    argv = flags(TINY, tmp_path, **TINIER)
    assert play(argv, Checkpoints, "remove", 2).crashed
    play([*argv, "--resume"])
    assert differences(tiny, outcome(path_of(argv))) == []


LONGER = [
    f"--policy TD3 --env TestSwing-v0 {MEMORY} --num_envs 2 --staleness",
    "--policy DDPG --env TestSwing-v0 --memory_size 100",
    "--policy SAC --env TestSwing-v0 --recurrent --seq_len 4 --core gru",
    "--policy PPO --env CartPole-v1 --no-lr_decay",
    "--policy A2C --env TestSwing-v0 --recurrent --seq_len 4 --no-lr_decay",
    "--policy REINFORCE --env CartPole-v1 --no-lr_decay",
    f"--policy R2D1 --env CartPole-v1 {MEMORY} --num_envs 2",
    "--policy BCQ --env TestSwing-v0 --recurrent --seq_len 4",
]


@pytest.mark.parametrize("words", LONGER)
def test_a_run_made_longer_is_the_long_run(words, tmp_path, request, capsys):
    """To the bit, from its last checkpoint (step 70 is no multiple of eval_freq), and when that is interrupted, too."""
    if "BCQ" in words:
        request.getfixturevalue("data_sets")
    argv = [*flags(words, tmp_path / "1"), "--save_model"]
    whole = play(argv)
    short = [*flags(words, tmp_path / "2", max_timesteps=70), "--save_model"]
    play([*short, "--keep_checkpoint", "--checkpoint_freq=0"])
    kept = files_of(tmp_path / "2")
    for again in short, [*short, "--keep_checkpoint"]:                 # a finished run keeps what it has kept
        play([*again, "--resume"])
        assert files_of(tmp_path / "2") == kept

    long = [*flags(words, tmp_path / "2"), "--save_model", "--resume"]
    assert play(long, main, "evaluate", 1).crashed
    longer = play(long)
    assert f"{path_of(short)} is made longer" in capsys.readouterr().out
    assert differences(outcome(path_of(argv)), outcome(path_of(long))) == []
    assert differences(whole.state(), longer.state()) == []
    assert 70 in json.load(open(path_of(long) + ".json"))["resumed"]
    now = files_of(tmp_path / "2")
    assert all(now[name] == content for name, content in kept.items())


@pytest.mark.parametrize("words,kept,says", [
    ("--policy TD3 --env TestSwing-v0", "--no-keep_checkpoint", "it has kept no checkpoint, as with --keep_checkpoint it would"),
    ("--policy PPO --env CartPole-v1", "--keep_checkpoint", "--lr_decay"),
])
def test_a_run_that_cannot_be_made_longer(words, kept, says, tmp_path, capsys):
    """It is said in one line and nothing is touched. A sweep's run, which has a log, is a run of its own."""
    play([*flags(words, tmp_path, max_timesteps=70), kept])
    before, argv = files_of(tmp_path), [*flags(words, tmp_path), "--resume"]
    code, error = stop_of(argv, capsys)
    assert code == 2 and re.fullmatch(r"error: --resume: [^\n]+ cannot be made longer: [^\n]+\n", error) and says in error
    assert files_of(tmp_path) == before
    open(path_of(argv) + ".log", "w").close()
    play(argv)
    assert "no checkpoint of this run is there: it starts from the beginning" in capsys.readouterr().out


def test_a_run_of_its_own_is_resumed_beside_one_that_cannot_be_made_longer(tmp_path, capsys):
    """Without a checkpoint yet it starts from the beginning, as ever."""
    words = "--policy PPO --env CartPole-v1"
    play(flags(words, tmp_path, max_timesteps=70))
    argv = flags(words, tmp_path)
    assert play(argv, utils.Buffer, "add", 3).crashed
    play([*argv, "--resume"])
    assert "no checkpoint of this run is there: it starts from the beginning" in capsys.readouterr().out


def test_a_checkpoint_that_knows_nothing_of_training_episodes(interrupted, copy):
    """As earlier versions wrote them, without flags that came later, too."""
    argv, folder = copy()
    for name in (name for name in os.listdir(folder) if name.endswith(".state")):
        state = unpack(os.path.join(folder, name))
        for part, names in ("steps", ("total", "returns")), ("config", ("env_kwargs", "keep_checkpoint")):
            for key in names:
                del state[part][key]
        with open(os.path.join(folder, name), "wb") as file:
            file.write(pack(state))
    play(argv)
    assert differences(interrupted.expected["csv"], outcome(path_of(argv))["csv"]) == []


def test_a_long_run_killed_before_its_last_evaluation(tmp_path, monkeypatch):
    """The checkpoint of the last step is older than that evaluation, which is made when the run goes on."""
    argv = flags(TINY, tmp_path / "1", max_timesteps=43)
    play(argv)
    again = [*flags(TINY, tmp_path / "2", max_timesteps=43), "--keep_checkpoint"]
    assert play(again, main, "evaluate", 3).crashed and newest(path_of(again))["step"] == 43
    main.main([*again, "--resume"])
    rows, expected = ([line.split(",")[:-1] for line in open(path_of(words) + ".csv")] for words in (again, argv))
    assert rows == expected and rows[-1][0] == "43"


@pytest.mark.parametrize("word,says", [("--overwrite", "--overwrite"), ("--record=x/y-v0", "--record"), ("--test", "--test")])
def test_resume_with_what_contradicts_it(word, says, tmp_path, capsys):
    argv = [*flags(TINY, tmp_path / "1", **TINIER), "--save_model"]
    play(argv)
    load = ["--load_model", path_of(argv) + ".last.pt"] if word == "--test" else []
    before = files_of(tmp_path)
    code, error = stop_of([*argv, *load, "--resume", word], capsys)
    assert code == 2 and re.fullmatch(r"error: --resume [^\n]+\n", error) and says in error
    assert files_of(tmp_path) == before


def test_an_unfinished_run_needs_a_word(copy, capsys):
    """Neither --resume nor --overwrite: refused, with a line that names both. --overwrite removes the old checkpoints."""
    argv, folder = copy()
    argv.remove("--resume")
    for remaining in ("all", "checkpoints"):
        before = files_of(os.path.dirname(folder))
        code, error = stop_of(argv, capsys)
        assert code == 2 and re.fullmatch(r"error: [^\n]+\n", error) and "--resume" in error and "--overwrite" in error
        assert files_of(os.path.dirname(folder)) == before
        if remaining == "all":
            for end in (".csv", ".json"):
                os.remove(folder.removesuffix(".checkpoint") + end)
    with pytest.raises(Crash), pytest.MonkeyPatch.context() as patch:
        crash_in(patch, utils.Buffer, "add", 1)
        main.main([*argv, "--overwrite"])
    assert not os.path.exists(folder)


def test_overwriting_is_a_new_run(interrupted, copy):
    argv, folder = copy()
    argv.remove("--resume")
    assert play([*argv, "--overwrite"], utils.Buffer, "add", 12).crashed
    assert sorted(os.listdir(folder)) == ["000000008.rows", "000000008.state"]
    play([*argv, "--resume"])
    assert differences(interrupted.expected, outcome(path_of(argv))) == []


def test_overwriting_leaves_nothing_of_the_old_run(tmp_path, tiny):
    """Not even what the new one does not write."""
    argv = flags(TINY, tmp_path, **TINIER)
    play([*argv, "--save_model", "--staleness"])
    play([*argv, "--overwrite"])
    assert differences(tiny, outcome(path_of(argv))) == []


def test_no_checkpoints(tmp_path, monkeypatch, tiny):
    argv = flags(TINY, tmp_path, **TINIER | dict(checkpoint_freq=0))
    monkeypatch.setattr(Checkpoints, "write", None)
    play(argv)
    assert differences(tiny, outcome(path_of(argv))) == []


def test_checkpoints_do_not_disturb_the_run(tmp_path, tiny):
    for freq in (1, 3):
        argv = flags(TINY, tmp_path / str(freq), **TINIER | dict(checkpoint_freq=freq))
        play(argv)
        assert differences(tiny, outcome(path_of(argv))) == []


def test_interrupted_before_its_first_checkpoint(tmp_path, tiny, capsys):
    argv = flags(TINY, tmp_path, **TINIER | dict(checkpoint_freq=30))
    assert play(argv, utils.Buffer, "add", 29).crashed
    play([*argv, "--resume"])
    assert "it starts from the beginning" in capsys.readouterr().out
    assert differences(tiny, outcome(path_of(argv))) == []


# ---------------------------------------------------------------------- what is saved, and what it costs

class Thing:
    not_state = set()
    """Something with one attribute."""

    def __init__(self, value):
        self.value = value


class Unreadable(torch.nn.Linear):
    """Has a state that only executing code could bring back."""

    def get_extra_state(self):
        return random.Random(0)

    def set_extra_state(self, state):
        pass


@pytest.mark.parametrize("value", [
    {1}, torch.Generator(), random.Random(0), object(), 1j, b"", np.array(["text"]), np.array([None]), SPEC, Unreadable(2, 2),
    SimpleNamespace(), type("Callable", (), {"__call__": print})(), itertools.count()])
@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: [1, x], lambda x: (x,), lambda x: {"a": {"b": x}}])
def test_an_unknown_kind_of_attribute_is_refused(value, wrap):
    with pytest.raises(CannotResume, match=r"Thing\.value(: checkpoint\.py does not know how to save a \w+| could not be read)"):
        checked_state_of(Thing(wrap(value)))


@pytest.mark.parametrize("value", [
    np.random.default_rng(0), torch.nn.Linear(2, 2), torch.nn.Parameter(torch.zeros(2)), torch.zeros(2, requires_grad=True)])
def test_what_is_changed_in_place_is_no_part_of_a_list(value):
    """It would be made anew, and who else knows it would keep the old one: an optimizer its weights, say."""
    with pytest.raises(CannotResume, match=r"Thing\.value: checkpoint\.py does not know how to save a \w+"):
        state_of(Thing([value]))


@pytest.mark.parametrize("make", [
    lambda k: torch.nn.Linear(2, 2), lambda k: np.random.default_rng(k), lambda k: np.full(3, k), lambda k: np.float64(k + 0.1),
    lambda k: torch.nn.Parameter(torch.full((2,), float(k))), lambda k: [None, torch.full((2,), k), 1.5], lambda k: k,
    lambda k: k + 0.1, lambda k: bool(k), lambda k: torch.full((2,), k), lambda k: filled_tree(k), lambda k: "text" * k,
    lambda k: [None, 1, "two", (3.0, True)][k], lambda k: {"a": k, 1: (k, "b"), None: {}, 0.5: [np.arange(k + 1)]},
    lambda k: ("array", k), lambda k: ("tuple", ("in place", [k])), lambda k: [np.arange(3), np.float32(k)],
    lambda k: torch.full((2,), float(k), requires_grad=True), lambda k: np.zeros(k + 1, bool)])
def test_a_known_kind_comes_back(make, tmp_path):
    torch.manual_seed(0)
    one, other = Thing(make(0)), Thing(make(1))
    (tmp_path / "file").write_bytes(pack(checked_state_of(one)))
    set_state(other, unpack(tmp_path / "file"))
    assert differences(state_of(one), state_of(other)) == []
    assert type(one.value) is type(other.value) or isinstance(one.value, np.generic)


def test_a_tensor_that_an_optimizer_knows_stays_the_same():
    thing, other = (Thing(torch.full((1,), k, requires_grad=True)) for k in (1.0, 2.0))
    optimizer = torch.optim.SGD([thing.value], lr=1.0)
    set_state(thing, state_of(other))
    thing.value.sum().backward()
    optimizer.step()
    assert thing.value.item() == 1.0


def test_an_attribute_that_comes_later_comes_back():
    now, later = Thing(None), Thing(np.arange(3))
    later.more = {"a": (1, 2)}
    set_state(now, state_of(later))
    assert now.value.tolist() == [0, 1, 2] and now.more == {"a": (1, 2)}


@pytest.mark.parametrize("name,start,later,says", [
    ("notes", "text", {"a": (1, None)}, None), ("hidden", 0, 5, None), ("rows", [], [1], None),
    ("notes", {1}, {1}, "no checkpoints: TD3.notes: checkpoint.py does not know how to save a set; the run goes on without, "
     "and cannot be resumed"),
    ("notes", None, {1},
     "no more checkpoints: TD3.notes: checkpoint.py does not know how to save a set; the run goes on without"),
    ("notes", None, torch.nn.Linear(2, 2),
     "no more checkpoints: TD3.notes was not there at the start, so nothing can be loaded into it; the run goes on without"),
])
def test_an_attribute_of_ones_own(name, start, later, says, tmp_path, capsys, monkeypatch):
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
    argv = flags("--policy TD3 --env TestSwing-v0", tmp_path)
    if says is None:
        assert play(argv, utils.Buffer, "add", 60).crashed
        again = play([*argv, "--resume"])
        assert again.state()["agent"][name] == state_of(Thing(later))["value"]
        return
    main.main(argv)
    out = capsys.readouterr().out.splitlines()
    assert out.count(says) == 1 and sum("checkpoints" in line for line in out) == 1 and output.finished(path_of(argv))
    assert "more" in says or out.index(says) < next(k for k, line in enumerate(out) if line.startswith("step 0"))


def test_flags_that_an_agent_changes(tmp_path, capsys, monkeypatch):
    """They are not part of a checkpoint."""
    train = TD3.TD3.train
    monkeypatch.setattr(TD3.TD3, "train", lambda agent, buffer: setattr(agent.cfg, "tau", 0.5) or train(agent, buffer))
    main.main(flags("--policy TD3 --env TestSwing-v0", tmp_path))
    assert "checkpoints: the flags are not what they were at the start" in capsys.readouterr().out


def filled_tree(k):
    tree = utils.SumTree(5)
    tree[np.arange(5)] = np.arange(5) * k + 1.0
    return tree


def test_a_view_is_saved_without_what_it_is_a_view_of():
    assert len(pack(state_of(Thing([torch.zeros(100_000)[:2]])))) < 10_000


def rows_in(checkpoints):
    """Rows in each file of the folder, by its step."""
    return {int(name[:-5]): len(unpack(os.path.join(checkpoints.folder, name))["index"])
            for name in os.listdir(checkpoints.folder) if name.endswith(".rows")}


def test_a_checkpoint_costs_what_is_new(tmp_path):
    """Of a large buffer the rows added since the last one, and no more."""
    agent = RandomAgent()
    buffer = utils.Buffer(4000, SPEC.state_dim, SPEC.action_dim, agent.hidden_dim, num_envs=2)
    game, checkpoints = Toy(agent, buffer, [[1000], [1000]], only="truncated"), Checkpoints(str(tmp_path / "run"), buffer)
    game.play(900)
    checkpoints.write(1, {})
    game.play(7)
    checkpoints.write(2, {})
    checkpoints.write(3, {})
    # In the second: 7 new rows in each of two streams, and the row before, whose hidden state the next step writes again
    assert {**rows_in(checkpoints), 3: 0} == {1: 2 * 901, 2: 2 * 8, 3: 0}
    assert os.path.getsize(checkpoints.name(2, "rows")) < os.path.getsize(checkpoints.name(1, "rows")) / 20
    assert unpack(checkpoints.name(3, "state"))["files"] == [1, 2]


@pytest.mark.parametrize("refresh", [True, False])
def test_files_do_not_add_up(refresh, tmp_path):
    """Overwritten by the ring, or by refreshed hidden states, rows take no more room than a few buffers; nothing is lost."""
    agent, buffer, game = make_off_policy(TD3, steps=5, size=200, recurrent_actor=True, recurrent_critic=True, seq_len=4,
                                          hidden_init="stored")
    checkpoints, most, before = Checkpoints(str(tmp_path / "run"), buffer), 0, None
    for k in range(1, 60):
        game.play(5)
        if refresh:
            for _ in range(k % 4):
                batch = buffer.sample(20, 4)
                buffer.write_hidden(batch, torch.rand(*batch.index.shape, buffer.hidden_dim))
        checkpoints.write(k, {"buffer": state_of(buffer)})
        most = max(most, sum(rows_in(checkpoints).values()))
        assert checkpoints.steps() == [k, k - 1][:k]
        if k % 10 < 2:
            for step in (k, k - 1)[:k]:                                # both can be gone on from
                other = make_buffer(agent, 200)
                again = Checkpoints(str(tmp_path / "run"), other)
                if step < k:
                    shutil.copytree(again.folder, tmp_path / f"{k}.checkpoint")
                    again.folder = str(tmp_path / f"{k}.checkpoint")
                    os.remove(again.name(k, "state"))
                set_state(other, again.load()["buffer"])
                rows, hidden = (buffer.rows, buffer.hidden) if step == k else before
                assert torch.equal(other.rows, rows) and torch.equal(other.hidden, hidden)
                assert step < k or differences(state_of(other), state_of(buffer)) == []
        if k % 10 == 0:                                                # so does a run that has been interrupted here
            checkpoints = Checkpoints(str(tmp_path / "run"), buffer)
            checkpoints.load()
        before = buffer.rows.clone(), buffer.hidden.clone()
    assert buffer.tail.min() > 0 and most <= 3 * len(buffer.rows)


def test_a_file_is_whole_or_not_there(tmp_path, monkeypatch):
    """write_file that fails leaves what was there, and nothing else."""
    path = str(tmp_path / "file")
    system.write_file(path, b"old")
    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
            with pytest.raises(OSError, match="full"):
                system.write_file(path, b"new")
        assert files_of(tmp_path) == {"file": b"old"}
    system.write_file(path, b"new")
    assert files_of(tmp_path) == {"file": b"new"}



def test_all_generators_come_back():
    """Also those that nothing here draws from: an environment might."""
    def draw():
        return random.random(), np.random.random(), np.random.standard_normal(), torch.rand(()).item()
    np.random.standard_normal()                                        # it keeps a second one for the next call
    state = pack(random_state())
    first = draw()
    assert draw() != first
    with tempfile.NamedTemporaryFile() as file:
        file.write(state)
        file.flush()
        set_random_state(unpack(file.name))
    assert draw() == first
