"""What a checkpoint is made of: the state of agents, buffers and generators, and the buffer's rows, each written once. An
environment is not saved but led back."""
import contextlib
import errno
import itertools
import os
import random
import re
import shutil
import tempfile
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import SPEC, RandomAgent, Toy, make_buffer, make_off_policy
from test_checkpoint import PLAIN, TINIER, Run, at, differences, files_of

import main
import TD3
import utils
from envs import Replayable
from support import system
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


class Thing:
    """Something with one attribute."""
    not_state = set()

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


# ---------------------------------------------------------------------- environments: led back, or found out

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
def test_an_environment_that_cannot_be_led_back_is_said_once(env, tmp_path, monkeypatch):
    """At the first checkpoint, which is not written, nor is any later one; the run is what it is without."""
    small = dict(max_timesteps=400, eval_freq=400, eval_episodes=1, start_timesteps=390)
    why = rf"ValueError: {env} cannot be made: one licence, two copies \([^\n]*\)" if "raises" in env else \
        "observations or rewards differ"
    monkeypatch.setattr(Checkpoints, "write", None)
    lines = []
    for freq in (120, 0):
        Leaky.made = 0
        run = Run(f"--policy TD3 --env {env}", tmp_path / str(freq), checkpoint_freq=freq, **small)
        said = run.play().out
        assert len(re.findall(NO_CHECKPOINTS.format(env, why), said)) == said.count("checkpoints:") == (freq > 0)
        lines.append(run.outcome()["csv"])
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


def test_checkpoints_from_which_another_run_would_follow_are_removed(tmp_path):
    """If an environment is found out only after some have been written."""
    run = Run(PLAIN, tmp_path)
    played = run.play(at(3, lambda run, env, _: env.__dict__.update(checksum=0), Replayable, "repeats"), at(30))
    assert played.code is None and "no checkpoints: an episode of TestSwing-v0" in played.out
    assert Checkpoints(run.path, None).steps() == []


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
    repeats, seen = Replayable.repeats, []
    monkeypatch.setattr(Replayable, "repeats", lambda env, make: seen.append(env) or repeats(env, make))
    Run(f"{PLAIN} --no-lr_decay --num_envs 3", tmp_path, max_timesteps=24, checkpoint_freq=3).play()
    order = list(dict.fromkeys(map(id, seen)))
    assert [order.index(id(env)) for env in seen] == [0, 1, 2, 1, 2, 0, 1, 2, 0]


def test_an_environment_that_leads_elsewhere_is_refused(refused, tmp_path, monkeypatch):
    """Should a checkpoint be there all the same, such as from another machine."""
    run = Run("--policy TD3 --env TestLeaky-lifetime-v0", tmp_path, **TINIER)
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "check_repeats", lambda *_: None)
        run.crash(at(39))
    refused([*run.argv, "--resume"], ["--resume: ", "TestLeaky-lifetime-v0"])
