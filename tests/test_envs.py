"""Environments: masks, action scaling, disturbed observations, episode ends in the vector environment, clear errors."""
import os
import re
import subprocess
import sys
import textwrap

import gymnasium as gym
import numpy as np
import pytest

import envs
from envs import KEEP, Faulty, OneHotAction, PartialObservation, ScaleAction, env_spec, keywords, make_env, make_vector_env

# The design's table, by hand: observation size, positions, velocities
TABLE = {
    "HopperBulletEnv-v0": (15, "0 1 2 6 7 8 10 12 14", "3 4 5 9 11 13"),
    "Walker2DBulletEnv-v0": (22, "0 1 2 6 7 8 10 12 14 16 18 20 21", "3 4 5 9 11 13 15 17 19"),
    "HalfCheetahBulletEnv-v0": (26, "0 1 2 6 7 8 10 12 14 16 18 20 21 22 23 24 25", "3 4 5 9 11 13 15 17 19"),
    "AntBulletEnv-v0": (28, "0 1 2 6 7 8 10 12 14 16 18 20 22 24 25 26 27", "3 4 5 9 11 13 15 17 19 21 23"),
    "Pendulum-v1": (3, "0 1", "2"),
    "CartPole-v1": (4, "0 2", "1 3"),
    "InvertedPendulumBulletEnv-v0": (5, "0 2 3", "1 4"),
    "InvertedPendulumSwingupBulletEnv-v0": (5, "0 2 3", "1 4"),
    "InvertedDoublePendulumBulletEnv-v0": (9, "0 2 3 4 6 7", "1 5 8"),
    "ReacherBulletEnv-v0": (9, "0 1 2 3 4 5 7", ""),
}
SIZE = 4


class Counter(gym.Env):
    """Its observation is the number of steps since its reset, in every entry, plus 100 times the number of resets.

    Ends after `length` steps, by termination if told so.
    """

    def __init__(self, length=5, terminates=False, observation_space=None, action_space=None):
        any_numbers = gym.spaces.Box(-np.inf, np.inf, (SIZE,), np.float32)
        self.observation_space = any_numbers if observation_space is None else observation_space
        self.action_space = action_space or gym.spaces.Box(-1, 1, (1,), np.float32)
        self.length, self.terminates, self.resets, self.actions = length, terminates, 0, []

    def observe(self):
        return np.full(SIZE, 100 * self.resets + self.t, np.float32)

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.resets = 0, self.resets + 1
        return self.observe(), {}

    def step(self, action):
        self.t += 1
        self.actions.append(action)
        done = self.t >= self.length
        return self.observe(), float(self.t), done and self.terminates, done and not self.terminates, {}


class Uneven(Counter):
    """Its episodes are of one to six steps, and end by termination or by truncation. Its observation is a number of the episode's
    own, and the number of steps since the reset."""

    mark = 0.0

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.mark, self.terminates = self.np_random.random(), self.np_random.random() < 0.5
        self.length = self.np_random.integers(1, 7)
        return self.observe(), {}

    def observe(self):
        return np.array([self.mark, self.t, 0, 0], np.float32)


class Noisy(Counter):
    """Prints from Python and cannot be made without an argument."""

    def __init__(self, secret=None):
        print("chatter")
        if secret is None:
            raise RuntimeError("two\nlines")
        super().__init__()


class Symbols(Counter):
    """Observes symbols instead of numbers."""

    def observe(self):
        if isinstance(self.observation_space, gym.spaces.Discrete):
            return 3 + self.t % 5
        symbols = self.t % 4, self.t % 3
        return symbols if isinstance(self.observation_space, gym.spaces.Tuple) else np.array(symbols)


class Odd(Counter):
    """In one of its episodes and from one of its steps on it returns something else than it should.

    Args:
        episode, at: the first of both is 1, and its reset is step 0
        other: what it returns instead of "observation", "reward" or "info", by name
        **spaces: as Counter's
    """

    def __init__(self, episode=1, at=0, other=(), **spaces):
        super().__init__(**spaces)
        self.episode, self.at, self.other = episode, at, dict(other)

    def returned(self, name, right):
        return self.other.get(name, right) if self.resets >= self.episode and self.t >= self.at else right

    def reset(self, seed=None, options=None):
        observation, info = super().reset(seed)
        return self.returned("observation", observation), self.returned("info", info)

    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        if "error" in self.other and self.returned("error", None):
            raise self.other["error"]
        return self.returned("observation", observation), self.returned("reward", reward), terminated, truncated, \
            self.returned("info", info)


def register_odd(monkeypatch, **kwargs):
    """TestOdd-v0, until the test ends."""
    limit = kwargs.pop("max_episode_steps", None)
    monkeypatch.setitem(gym.registry, "TestOdd-v0", gym.envs.registration.EnvSpec(
        "TestOdd-v0", Odd, max_episode_steps=limit, kwargs=kwargs))


def box(low, high, shape=None, dtype=np.float32):
    return gym.spaces.Box(np.array(low, dtype), np.array(high, dtype), shape, dtype)


TOYS = {
    "TestCounter-v0": {},
    "TestTerminates-v0": dict(terminates=True),
    "TestImage-v0": dict(observation_space=gym.spaces.Box(0, 255, (8, 8, 3), np.uint8)),
    "TestDict-v0": dict(observation_space=gym.spaces.Dict(x=gym.spaces.Box(-1, 1, (2,)))),
    "TestMultiDiscrete-v0": dict(action_space=gym.spaces.MultiDiscrete([3] * 100)),
    "TestUnbounded-v0": dict(action_space=gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)),
    "TestActionMatrix-v0": dict(action_space=gym.spaces.Box(-1, 1, (2, 2), np.float32)),
    "TestAsymmetric-v0": dict(action_space=box([-1, 0, 10], [3, 1, 20])),
    "TestWhole-v0": dict(action_space=box([-3, 0], [3, 255], dtype=np.int64)),
    "TestByte-v0": dict(action_space=box([-128], [127], dtype=np.int8)),
    "TestNoChoice-v0": dict(action_space=box([-1, 2, 0], [1, 2, 5])),
    "TestFar-v0": dict(action_space=box([-3e38], [3e38])),
    "TestFarther-v0": dict(action_space=box([-1.7e308], [1.7e308], dtype=np.float64)),
    "TestFarWhole-v0": dict(action_space=box([-2 ** 63], [2 ** 63 - 1], dtype=np.int64)),
    "TestNoAction-v0": dict(action_space=box([], [])),
    "TestEmpty-v0": dict(observation_space=box([], [])),
    "TestEmptyTuple-v0": dict(observation_space=gym.spaces.Tuple([])),
    "TestTupleWithDict-v0": dict(observation_space=gym.spaces.Tuple([gym.spaces.Dict(x=gym.spaces.Discrete(2))])),
    "TestEndless-v0": dict(length=10 ** 9),
    "TestDiscreteStart-v0": dict(action_space=gym.spaces.Discrete(3, start=1)),
}
for env_id, kwargs in TOYS.items():
    gym.register(env_id, Counter, kwargs=kwargs, disable_env_checker=True)
gym.register("TestUneven-v0", Uneven, disable_env_checker=True)
gym.register("TestNoisy-v0", Noisy, disable_env_checker=True)
gym.register("TestSymbol-v0", Symbols, kwargs=dict(observation_space=gym.spaces.Discrete(5, start=3)))
gym.register("TestSymbols-v0", Symbols, kwargs=dict(observation_space=gym.spaces.MultiDiscrete([4, 3])))
gym.register("TestPair-v0", Symbols,
             kwargs=dict(observation_space=gym.spaces.Tuple([gym.spaces.Discrete(4), gym.spaces.Discrete(3)])))
gym.register("TestLimited-v0", Counter, max_episode_steps=7, kwargs=dict(length=100))


# ---------------------------------------------------------------------- masks

def indices(text):
    return [int(word) for word in text.split()]


def test_masks_are_the_designs_table():
    assert {env_id: KEEP[env_id] for env_id in TABLE} == \
        {env_id: (indices(positions), indices(velocities)) for env_id, (_, positions, velocities) in TABLE.items()}


@pytest.mark.parametrize("env_id", sorted(KEEP.keys() - TABLE.keys()))
def test_masks_of_mujoco_are_its_documentations_tables(env_id):
    """Whose last table of a number, an observation and its kind says of every entry whether it is a velocity."""
    module = gym.spec(env_id).entry_point.split(":")[0].rsplit(".", 1)[1]
    with open(os.path.join(os.path.dirname(gym.__file__), "envs", "mujoco", module + ".py")) as file:
        table = re.split(r"\| Num +\| Observation +\|", file.read())[1]
    rows = re.findall(r"^ +\| (\d+) +\| ([^|]+) \|.+\(.+\) +\|$", table.split("\n\n")[0], re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(len(rows)))
    moves = ["velocity" in what for _, what in rows]
    assert KEEP[env_id] == tuple([i for i, it in enumerate(moves) if it == which] for which in (False, True))


@pytest.mark.parametrize("text,kept", [("0-2", [0, 1, 2]), ("3,0-1", [3, 0, 1]), ("2", [2]), ("1-1,0", [1, 0])])
def test_indices_of_the_observation(text, kept):
    (full, _), (seen, _) = (make_env("CartPole-v1", observe=observe).reset(seed=3) for observe in ("full", text))
    np.testing.assert_array_equal(seen, full[kept])


@pytest.mark.parametrize("text", ["4", "0-4", "2-1", "0,1,0", "0-2,1"])
def test_indices_that_the_observation_has_not(text):
    with pytest.raises(ValueError, match=f"--observe {text}: the observation has the entries 0 to 3; give each once"):
        make_env("CartPole-v1", observe=text)


# ---------------------------------------------------------------------- arguments of the environment's own

def test_arguments_reach_the_environment():
    """As Python's values where they are, with true and false in small letters, too; else as text."""
    assert keywords("a=1 b=0.5 c=False d=true e=4x4 f=(0.2,1) g=None h=a=b") == \
        dict(a=1, b=0.5, c=False, d=True, e="4x4", f=(0.2, 1), g=None, h="a=b")
    assert make_env("Pendulum-v1", env_kwargs="g=3.5").unwrapped.g == 3.5
    assert make_vector_env("Pendulum-v1", 2, env_kwargs="g=3.5").envs[1].unwrapped.g == 3.5


@pytest.mark.parametrize("text,says", [
    ("g", "'g': give each argument once, as key=value"), ("g=", "key=value"), ("=3", "key=value"), ("g=1 g=2", "'g=2': give"),
    ("max_episode_steps=3", "there is --max_episode_steps"), ("nothing=3", "Pendulum-v1 cannot be made: .*nothing")])
def test_arguments_that_make_no_sense(text, says):
    with pytest.raises(ValueError, match=says):
        make_env("Pendulum-v1", env_kwargs=text)


def test_arguments_that_change_the_observation_have_no_mask(monkeypatch):
    monkeypatch.setitem(KEEP, "TestEntries-v0", ([0], [1]))
    gym.register("TestEntries-v0", lambda size=4: Counter(observation_space=box([-9] * size, [9] * size)))
    assert env_spec(make_env("TestEntries-v0", env_kwargs="size=4", observe="positions")).state_dim == 1
    with pytest.raises(ValueError, match="with --env_kwargs size=3 TestEntries-v0 has another observation; give indices"):
        make_env("TestEntries-v0", env_kwargs="size=3", observe="positions")


@pytest.mark.parametrize("env_id", TABLE)
def test_mask_fits_its_environment(env_id):
    size, *masks = TABLE[env_id]
    env = make_env(env_id)
    full, _ = env.reset(seed=3)
    assert env_spec(env).state_dim == len(full) == size
    kept = indices(masks[0]) + indices(masks[1])
    assert len(kept) == len(set(kept)) and set(kept) <= set(range(size))
    for observe, mask in zip(("positions", "velocities"), masks):
        if not mask:
            with pytest.raises(ValueError, match=f"--observe {observe}: {env_id} has no such entries"):
                make_env(env_id, observe=observe)
            continue
        env = make_env(env_id, observe=observe)
        state, _ = env.reset(seed=3)
        assert env_spec(env).state_dim == len(state) == env.observation_space.shape[0]
        assert state.dtype == np.float32 and env.observation_space.dtype == np.float32
        np.testing.assert_array_equal(state, full[indices(mask)])


@pytest.mark.parametrize("env_id", ["Pendulum-v1", "CartPole-v1"])
def test_velocities_are_the_velocities(env_id):
    """Where an environment's state is known: what lies in a mask is what its name says, and the rest lies in the other."""
    env = make_env(env_id)
    env.reset(seed=0)
    observation, *_ = env.step(np.eye(env_spec(env).action_dim)[0])
    inner = env.unwrapped.state
    position, velocity = (inner[:1], inner[1:]) if env_id == "Pendulum-v1" else (inner[::2], inner[1::2])
    if env_id == "Pendulum-v1":
        position = [np.cos(position[0]), np.sin(position[0])]
    np.testing.assert_allclose(observation[KEEP[env_id][0]], position, rtol=1e-5)
    np.testing.assert_allclose(observation[KEEP[env_id][1]], velocity, rtol=1e-5)


def test_hopper_velocities_change_like_velocities():
    """Entries 8 to 13 are joints, angle and speed in turn, and the last is the foot's contact."""
    env = make_env("HopperBulletEnv-v0")
    env.reset(seed=1)
    rng = np.random.default_rng(0)
    states = np.array([env.step(rng.uniform(-1, 1, 3))[0] for _ in range(14)])
    for position, velocity in ((8, 9), (10, 11), (12, 13)):
        assert np.corrcoef(np.diff(states[:, position]), states[1:, velocity])[0, 1] > 0.8
    assert set(states[:, 14]) == {0, 1}


# ---------------------------------------------------------------------- actions

def test_scale_action_maps_asymmetric_bounds():
    env = make_env("TestAsymmetric-v0")
    assert env_spec(env) == (SIZE, 3, False)
    assert np.all(env.action_space.low == -1) and np.all(env.action_space.high == 1)
    env.reset(seed=0)
    for action, expected in [([-1, -1, -1], [-1, 0, 10]), ([1, 1, 1], [3, 1, 20]), ([0, 0, 0], [1, 0.5, 15]),
                             ([0.5, -0.5, 0], [2, 0.25, 15]), ([-9, 9, 5], [-1, 1, 20])]:
        env.step(np.array(action, np.float32))
        np.testing.assert_allclose(env.unwrapped.actions[-1], expected, rtol=1e-6)
        assert env.unwrapped.action_space.contains(np.asarray(env.unwrapped.actions[-1], np.float32))


def test_scale_action_leaves_symmetric_actions_alone():
    env = ScaleAction(Counter())
    for action in np.linspace(-1, 1, 9, dtype=np.float32):
        np.testing.assert_allclose(env.action(action[None]), action, atol=1e-7)


@pytest.mark.parametrize("env_id,dtype,low,high", [("TestWhole-v0", np.int64, [-3, 0], [3, 255]),
                                                   ("TestByte-v0", np.int8, [-128], [127])])
def test_actions_of_whole_numbers_are_rounded(env_id, dtype, low, high):
    env = make_env(env_id)
    for action in np.linspace(-1.2, 1.2, 25):
        env.step(np.full(len(low), action, np.float32))
        acted = env.unwrapped.actions[-1]
        assert acted.dtype == dtype and env.unwrapped.action_space.contains(acted)
        exact = np.array(low) + (np.clip(action, -1, 1) + 1) / 2 * (np.array(high) - low)
        assert np.all(abs(acted - exact) <= 0.5001)
        np.testing.assert_allclose(env.env.action(env.env.inverse(acted)), acted)


def test_an_action_without_a_choice_has_an_inverse():
    """Equal bounds in one dimension: what an offline agent reads is a number, and leads back to the only action there is."""
    scale = make_env("TestNoChoice-v0").env
    action = np.array([[-1, 2, 0], [0.5, 2, 5]], np.float32)
    inverse = scale.inverse(action)
    np.testing.assert_allclose(inverse, [[-1, 0, -1], [0.5, 0, 1]])
    np.testing.assert_allclose(scale.action(inverse), action)
    np.testing.assert_allclose(scale.inverse(np.array([[9, 9, 9], [-9, 9, -9]])), [[1, 0, 1], [-1, 0, -1]])   # beyond bounds


@pytest.mark.parametrize("env_id,start,n", [("TestDiscreteStart-v0", 1, 3), ("CartPole-v1", 0, 2)])
def test_one_hot_action(env_id, start, n):
    env = make_env(env_id)
    assert env_spec(env)[1:] == (n, True)
    wrapper = next(w for w in layers(env) if isinstance(w, OneHotAction))
    for k in range(n):
        assert wrapper.action(np.eye(n, dtype=np.float32)[k]) == start + k
        env.reset(seed=0)
        env.step(np.eye(n, dtype=np.float32)[k])
    if start:
        assert env.unwrapped.actions[1:] == [1, 2, 3]                  # the first was the one that make_env tries


def layers(env):
    while env is not env.unwrapped:
        yield env
        env = env.env


# ---------------------------------------------------------------------- disturbed observations

def observations(steps=4000, seed=0, **disturbance):
    """(steps, SIZE) of what an agent sees of a world that is all ones."""
    env = Counter()
    env.observe = lambda: np.ones(SIZE, np.float32)
    env = PartialObservation(env, "TestCounter-v0", **disturbance)
    states = [env.reset(seed=seed)[0]] + [env.step(np.zeros(1))[0] for _ in range(steps - 1)]
    assert all(state.dtype == np.float32 and state.shape == (SIZE,) for state in states)
    return np.array(states)


def test_undisturbed_observation_is_untouched():
    np.testing.assert_array_equal(observations(20), np.ones((20, SIZE)))


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_flicker_blanks_whole_observations(p):
    seen = observations(flicker=p)
    blank = np.all(seen == 0, 1)
    assert np.all(seen[~blank] == 1)
    assert abs(blank.mean() - p) < 4 * (p * (1 - p) / len(seen)) ** 0.5
    both = np.mean(blank[1:] & blank[:-1])                             # independent from step to step
    assert abs(both - p * p) < 5 * (p * p * (1 - p * p) / len(seen)) ** 0.5


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_sensor_dropout_blanks_single_entries(p):
    seen = observations(sensor_dropout=p)
    assert set(np.unique(seen)) == {0, 1}
    assert np.all(abs((seen == 0).mean(0) - p) < 4 * (p * (1 - p) / len(seen)) ** 0.5)
    assert abs(np.mean(np.all(seen == 0, 1)) - p ** SIZE) < 0.02       # entries are independent of one another
    assert abs(np.corrcoef((seen == 0).T)[0, 1]) < 0.06


def test_obs_noise_is_gaussian():
    noise = observations(obs_noise=0.3) - 1
    assert np.all(abs(noise.mean(0)) < 4 * 0.3 / len(noise) ** 0.5)
    assert np.all(abs(noise.std(0) - 0.3) < 0.02)
    assert abs(np.mean(noise ** 4) / 0.3 ** 4 - 3) < 0.3               # a Gaussian's fourth moment
    assert abs(np.corrcoef(noise.T)[0, 1]) < 0.06


def test_disturbances_combine():
    seen = observations(obs_noise=0.3, sensor_dropout=0.2, flicker=0.25)
    blank = np.all(seen == 0, 1)
    p = 0.25 + 0.75 * 0.2 ** SIZE
    assert abs(blank.mean() - p) < 4 * (p * (1 - p) / len(seen)) ** 0.5
    rest = seen[~blank]
    assert abs((rest == 0).mean() - 0.2) < 0.02
    assert abs(rest[rest != 0].std() - 0.3) < 0.02                     # what is not dropped still carries noise


def test_disturbance_of_1_hides_everything():
    assert not observations(50, flicker=1.0).any()
    assert not observations(50, sensor_dropout=1.0).any()


@pytest.mark.parametrize("disturbance", [dict(flicker=0.5), dict(obs_noise=1.0), dict(sensor_dropout=0.5)])
def test_disturbances_follow_the_environments_seed(disturbance):
    np.random.seed(1)
    first = observations(100, seed=7, **disturbance)
    np.random.seed(2)                                                  # no global generator has a say
    np.testing.assert_array_equal(first, observations(100, seed=7, **disturbance))
    assert np.any(first != observations(100, seed=8, **disturbance))


def test_mask_and_disturbances_work_together():
    env = make_env("Pendulum-v1", observe="positions", obs_noise=0.1, sensor_dropout=0.5)
    states = [env.reset(seed=0)[0]] + [env.step(np.zeros(1))[0] for _ in range(100)]
    assert env_spec(env).state_dim == 2 and all(state.shape == (2,) for state in states)
    assert 0.3 < np.mean(np.array(states) == 0) < 0.7


@pytest.mark.parametrize("env_id", ["HopperBulletEnv-v0", "Walker2DBulletEnv-v0", "HumanoidBulletEnv-v0"])
def test_no_contact_outlives_its_episode(env_id):
    """Else a foot that lands where one stood in the episode before gets a share of its impulse."""
    env, touched = make_env(env_id), 0
    for episode in range(3):
        env.reset(seed=episode)
        assert not env.unwrapped._p.getContactPoints()
        for _ in range(30):
            env.step(np.ones(env.action_space.shape, np.float32))
        touched += len(env.unwrapped._p.getContactPoints())
    assert touched


@pytest.mark.parametrize("env_id", ["HopperBulletEnv-v0", "AntBulletEnv-v0", "Pendulum-v1"])
def test_same_seed_same_episode(env_id):
    """Whatever was played before: a seeded reset starts the same episode, in this environment and in a new one."""
    def episode(env):
        states = [env.reset(seed=5)[0]]
        rng = np.random.default_rng(0)
        for _ in range(12):
            state, reward, *_ = env.step(rng.uniform(-1, 1, env_spec(env).action_dim).astype(np.float32))
            states += [state, np.float32(reward)]
        return np.concatenate([np.atleast_1d(x) for x in states])
    env = make_env(env_id, flicker=0.2)
    first = episode(env)
    np.testing.assert_array_equal(first, episode(env))
    np.testing.assert_array_equal(first, episode(make_env(env_id, flicker=0.2)))


# ---------------------------------------------------------------------- episode ends

@pytest.mark.parametrize("env_id,terminates", [("TestCounter-v0", False), ("TestTerminates-v0", True)])
def test_final_observation_is_the_true_last_one(env_id, terminates):
    """make_env has reset it once, so resets count from 2; an episode of 5 steps ends with observation 5, then 0 of the next."""
    vector = make_vector_env(env_id, 2)
    state, _ = vector.reset(seed=0)
    assert np.all(state == 200)
    for resets in (2, 3, 4):
        for t in range(1, 6):
            state, reward, terminated, truncated, info = vector.step(np.zeros((2, 1), np.float32))
            assert np.all(reward == t)
            assert np.all(terminated == (terminates and t == 5)) and np.all(truncated == (not terminates and t == 5))
        assert np.all(np.stack(info["final_obs"]) == 100 * resets + 5)
        assert np.all(state == 100 * (resets + 1))


def test_final_observation_is_masked_and_noisy_like_any_other():
    vector = make_vector_env("Pendulum-v1", 1, observe="positions")
    vector.reset(seed=0)
    for _ in range(200):
        _, _, _, truncated, info = vector.step(np.zeros((1, 1), np.float32))
    assert truncated[0] and info["final_obs"][0].shape == (2,)
    assert np.hypot(*info["final_obs"][0]) == pytest.approx(1, abs=1e-5)
    vector = make_vector_env("TestCounter-v0", 1, sensor_dropout=1.0)
    vector.reset(seed=0)
    for _ in range(5):
        info = vector.step(np.zeros((1, 1), np.float32))[4]
    assert not np.any(info["final_obs"][0])


def test_time_limit_truncates_and_never_terminates():
    vector = make_vector_env("TestLimited-v0", 1)
    vector.reset(seed=0)
    ends = [vector.step(np.zeros((1, 1), np.float32))[2:4] for _ in range(21)]
    assert [bool(truncated[0]) for _, truncated in ends] == [t % 7 == 6 for t in range(21)]
    assert not any(terminated[0] for terminated, _ in ends)


def test_environments_of_a_vector_differ():
    state, _ = make_vector_env("Pendulum-v1", 3).reset(seed=0)
    assert len(np.unique(state, axis=0)) == 3


def test_hopper_has_1000_steps_and_its_own_reward():
    """Played beside PyBullet's environment as it is registered: the same rewards, whatever the agent gets to see."""
    env = make_env("HopperBulletEnv-v0", observe="positions", flicker=0.5, obs_noise=0.1)
    plain = gym.make("HopperBulletEnv-v0")
    assert env.spec.max_episode_steps == 1000
    env.reset(seed=4)
    plain.reset(seed=0)
    plain.reset(seed=4)
    rng, steps, ended = np.random.default_rng(0), 0, False
    while not ended:
        action = rng.integers(-4, 5, 3).astype(np.float32) / 4         # scaling rounds none of these
        _, *seen = env.step(action)
        _, *expected = plain.step(action)
        assert seen[:3] == expected[:3]                                # reward, terminated, truncated
        steps, ended = steps + 1, seen[1]
    assert steps > 5


def test_hopper_is_truncated_after_1000_steps(monkeypatch):
    env = make_env("HopperBulletEnv-v0")
    monkeypatch.setattr(type(env.unwrapped.robot), "alive_bonus", lambda self, z, pitch: 1)    # it may lie on the ground
    env.reset(seed=0)
    for t in range(1, 1001):
        _, _, terminated, truncated, _ = env.step(np.zeros(3, np.float32))
        assert not terminated and truncated == (t == 1000)


@pytest.mark.parametrize("env_id,limit,length", [("TestEndless-v0", 7, 7), ("TestLimited-v0", 3, 3), ("TestLimited-v0", 9, 9),
                                                 ("TestLimited-v0", 0, 7), ("TestCounter-v0", 9, 5)])
def test_max_episode_steps_is_in_place_of_the_environments_limit(env_id, limit, length):
    vector = make_vector_env(env_id, 1, max_episode_steps=limit)
    vector.reset(seed=0)
    ends = [vector.step(np.zeros((1, 1), np.float32))[2:4] for _ in range(2 * length)]
    assert [bool(truncated[0]) for _, truncated in ends] == 2 * ([False] * (length - 1) + [True])
    assert not any(terminated[0] for terminated, _ in ends)


@pytest.mark.parametrize("delay", [10, 30, 100])
def test_the_cue_ends_before_its_limit(delay):
    env = make_env(f"Cue{delay}-v0")
    env.reset(seed=0)
    ends = [env.step(np.zeros(1))[2:4] for _ in range(delay + 1)]
    assert ends == [(False, False)] * delay + [(True, False)] and env.spec.max_episode_steps > delay + 1


# ---------------------------------------------------------------------- what environments return

PAIR = gym.spaces.Tuple([gym.spaces.Discrete(3), gym.spaces.Box(-1, 1, (2,))])
ARRAY = [0.5] * SIZE


@pytest.mark.parametrize("other,spaces", [
    (dict(observation=ARRAY), {}), (dict(observation=tuple(ARRAY)), {}), (dict(observation=np.full(SIZE, 0.5)), {}),
    (dict(observation=np.full(SIZE, 0.5, np.float16)), {}), (dict(reward=np.ones(1)), {}), (dict(reward=[1.0]), {}),
    (dict(reward=np.float32(1)), {}), (dict(reward=1), {}), (dict(reward=True), {}), (dict(info=None), {}),
    (dict(observation=[1, np.zeros(2)]), dict(observation_space=PAIR)),
    (dict(observation=[1, 0]), dict(observation_space=gym.spaces.MultiDiscrete([3, 2]))),
    (dict(observation=np.array([200, 7], np.uint8)), dict(observation_space=gym.spaces.Box(0, 255, (2,), np.uint8)))])
def test_what_can_be_understood_is(other, spaces, monkeypatch):
    register_odd(monkeypatch, other={"reward": 1.0, **other}, **spaces)
    vector = make_vector_env("TestOdd-v0", 2)
    state, _ = vector.reset(seed=0)
    for _ in range(6):                                                 # over an episode's end
        state, reward, *_ = vector.step(np.zeros((2, 1), np.float32))
        assert state.dtype == np.float32 and state.ndim == 2 and np.all(reward == 1)


@pytest.mark.parametrize("other,spaces,says", [
    (dict(reward=np.nan), {}, "its reward is nan, not a finite number"),
    (dict(reward=-np.inf), {}, "its reward is -inf"),
    (dict(reward=1e39), {}, "its reward is 1e+39"),                    # in float32 that is infinity
    (dict(reward=None), {}, "its reward is None"),
    (dict(reward=[1.0, 2.0]), {}, "its reward is [1.0, 2.0]"),
    (dict(reward="a\nb"), {}, "its reward is a b"),
    (dict(observation=[0, np.nan, 0, 0]), {}, "nan 0. 0.], which is not finite"),
    (dict(observation=[0, 0, 0, np.inf]), {}, "inf], which is not finite"),
    (dict(observation=[0, 0, 0, 1e39]), {}, "which is not finite"),
    (dict(observation=np.zeros(SIZE + 1)), {}, f"has the shape ({SIZE + 1},), and its space has ({SIZE},)"),
    (dict(observation=np.zeros((1, SIZE))), {}, f"has the shape (1, {SIZE})"),
    (dict(observation=0.0), {}, "has the shape ()"),
    (dict(observation=[0, [1, 2], 3, 4]), {}, "not an array of numbers"),
    (dict(observation=dict(x=1)), {}, "not an array of numbers"),
    (dict(observation=None), {}, "its observation is None, not an array of numbers"),
    (dict(observation=-1), dict(observation_space=gym.spaces.Discrete(3)), "is -1, which is not in Discrete(3)"),
    (dict(observation=[1, 2]), dict(observation_space=gym.spaces.MultiDiscrete([3, 2])), "which is not in MultiDiscrete([3 2])"),
    (dict(observation=(1,)), dict(observation_space=PAIR), "not a tuple of 2 parts"),
    (dict(observation=(1, [0, np.nan])), dict(observation_space=PAIR), "which is not finite"),
    (dict(error=ZeroDivisionError("by\nzero")), {}, "it raised ZeroDivisionError: by zero (test_envs.py, line"),
])
def test_what_cannot_be_used_is_said(other, spaces, says, monkeypatch):
    """Found when the environment is made, or else at the step where it happens, in the second environment of two."""
    register_odd(monkeypatch, other=other, **spaces)
    with pytest.raises(ValueError) as error:
        make_env("TestOdd-v0")
    assert says in str(error.value) and "\n" not in str(error.value)
    if not spaces:                                                     # Counter's own observation
        register_odd(monkeypatch, other=other, episode=3, at=2)
        vector = make_vector_env("TestOdd-v0", 2)
        vector.reset(seed=0)
        vector.envs[1].reset(seed=0)                                   # its third episode
        vector.step(np.zeros((2, 1), np.float32))
        with pytest.raises(Faulty) as error:
            vector.step(np.zeros((2, 1), np.float32))
        assert str(error.value).startswith("TestOdd-v0: ") and says in str(error.value)
        assert str(error.value).endswith(", at step 2 of an episode") and "\n" not in str(error.value)


# ---------------------------------------------------------------------- discrete observations

@pytest.mark.parametrize("env_id,sizes", [("TestSymbol-v0", [5]), ("TestSymbols-v0", [4, 3]), ("TestPair-v0", [4, 3])])
def test_discrete_observations_are_seen_one_hot(env_id, sizes):
    env = make_env(env_id)
    assert env_spec(env).state_dim == sum(sizes)
    state, _ = env.reset()
    for t in range(5):
        expected = np.concatenate([np.eye(size)[t % size] for size in sizes])
        np.testing.assert_array_equal(state, expected)
        assert state.dtype == np.float32
        state, *_ = env.step(np.zeros(1))


@pytest.mark.parametrize("env_id,state_dim,discrete", [
    ("popgym-RepeatFirstEasy-v0", 4, True), ("popgym-AutoencodeEasy-v0", 6, True),
    ("popgym-PositionOnlyCartPoleEasy-v0", 2, True), ("popgym-PositionOnlyPendulumEasy-v0", 2, False)])
def test_popgym(env_id, state_dim, discrete):
    pytest.importorskip("popgym")
    env = make_env(env_id)
    spec = env_spec(env)
    assert (spec.state_dim, spec.discrete) == (state_dim, discrete)
    state, _ = env.reset(seed=0)
    state, *_ = env.step(np.eye(spec.action_dim)[0])
    assert state.shape == (state_dim,) and state.dtype == np.float32


def test_package_that_registers_an_environment_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "popgym", None)
    with pytest.raises(ValueError, match="^popgym-RepeatFirstEasy-v0 cannot be made: .*pip install popgym$"):
        make_env("popgym-RepeatFirstEasy-v0")


# ---------------------------------------------------------------------- clear errors

@pytest.mark.parametrize("env_id,words", [
    ("HoperBulletEnv-v0", ["unknown environment 'HoperBulletEnv-v0'", "did you mean HopperBulletEnv-v0"]),
    ("HopperBullet-v0", ["HopperBulletEnv-v0"]),
    ("hopperbulletenv-v0", ["HopperBulletEnv-v0"]),
    ("AntBulletEnv-v1", ["AntBulletEnv-v0"]),
    ("Pendulun-v1", ["did you mean Pendulum-v1"]),
    ("CartPole-v7", ["CartPole-v1"]),
    ("", ["give a Gymnasium id such as HopperBulletEnv-v0"]),
    ("zzzzzzzz", ["give a Gymnasium id such as HopperBulletEnv-v0"]),
    ("no such id", ["unknown environment"]),
    ("nosuchmodule:Foo-v0", ["cannot be made", "nosuchmodule"]),
    ("TestNoisy-v0", ["TestNoisy-v0 cannot be made: two lines"]),
    ("TestImage-v0", ["observation is Box(0, 255, (8, 8, 3), uint8)", "only a Box of one axis"]),
    ("TestDict-v0", ["observation is Dict", "only a Box of one axis"]),
    ("TestMultiDiscrete-v0", ["its actions are MultiDiscrete", "only Discrete or a bounded Box of one axis"]),
    ("TestUnbounded-v0", ["its actions are Box(-inf, inf, (2,), float32)", "only Discrete or a bounded Box"]),
    ("TestFar-v0", ["its actions are Box(-3e+38, 3e+38, (1,), float32)", "not too wide for its numbers"]),
    ("TestFarther-v0", ["not too wide for its numbers"]),
    ("TestFarWhole-v0", ["not too wide for its numbers"]),
    ("TestNoAction-v0", ["its actions are Box([], [], (0,), float32)", "not empty"]),
    ("TestEmpty-v0", ["its observation is Box([], [], (0,), float32)", "not empty"]),
    ("TestEmptyTuple-v0", ["its observation is Tuple()"]),
    ("TestTupleWithDict-v0", ["its observation is Tuple(Dict('x': Discrete(2)))", "only a Box of one axis"]),
    ("TestActionMatrix-v0", ["its actions are Box(-1.0, 1.0, (2, 2), float32)", "only Discrete or a bounded Box"]),
])
def test_unusable_environment(env_id, words):
    with pytest.raises(ValueError) as error:
        make_env(env_id)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("env_id", ["LunarLander-v3", "Hopper-v2"])
def test_environment_whose_packages_are_missing(env_id, monkeypatch):
    """The reason is the missing package; the id is right, so none is suggested."""
    def make(env_id, **_):
        raise gym.error.DependencyNotInstalled("Box2D is not installed")
    monkeypatch.setattr(envs.gym, "make", make)
    with pytest.raises(ValueError, match=f"^{env_id} cannot be made: Box2D is not installed"):
        make_env(env_id)


@pytest.mark.parametrize("observe", ["positions", "velocities"])
def test_no_mask_is_known(observe):
    with pytest.raises(ValueError, match=f"--observe {observe}: no mask is known for TestCounter-v0, only for Hopper"):
        make_env("TestCounter-v0", observe=observe)


def test_pybullet_prints_nothing_and_others_what_they_like():
    """What PyBullet's C code says is no one's business. Afterwards stdout and stderr are what they were."""
    code = ("import sys, gymnasium; sys.path.insert(0, 'tests'); import test_envs, envs\n"
            "gymnasium.register('Loud-v0', lambda: test_envs.Noisy(1))\n"
            "envs.make_env('Loud-v0'); envs.make_vector_env('HopperBulletEnv-v0', 2)\n"
            "print('out'); print('err', file=sys.stderr)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=envs.__file__.rpartition("/")[0])
    assert (done.stdout, done.stderr) == ("chatter\nout\n", "err\n")


# ---------------------------------------------------------------------- modules of one's own

OWN = """
    import gymnasium as gym
    import numpy as np

    class Own(gym.Env):
        observation_space = gym.spaces.Box(-1, 1, (2,))
        action_space = gym.spaces.Box(-1, 1, (1,))

        def reset(self, seed=None, options=None):
            print("my own words")
            super().reset(seed=seed)
            return np.zeros(2), {}

        def step(self, action):
            return np.zeros(2), 0.0, True, False, {}

    class Broken(Own):
        def reset(self, seed=None, options=None):
            np.linalg.inv(np.zeros((2, 2)))                            # line 19

    gym.register("Own-v0", Own, max_episode_steps=5)
    gym.register("BrokenOwn-v0", "own_module:Broken", max_episode_steps=5)
"""


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """A folder to stand in with a module `own_module`, which registers Own-v0 and BrokenOwn-v0."""
    (tmp_path / "own_module.py").write_text(textwrap.dedent(OWN))
    (tmp_path / "wrong_module.py").write_text("import gymnasium\n\nnumber = 1 / 0\n")
    (tmp_path / "poor_module.py").write_text("import no_such_package\n")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in ("own_module", "wrong_module", "poor_module"):
        sys.modules.pop(name, None)
    for name in ("Own-v0", "BrokenOwn-v0"):
        gym.registry.pop(name, None)


def test_a_module_is_found_in_the_current_folder(own_module, capsys):
    assert env_spec(make_env("own_module:Own-v0")) == (2, 1, False)
    assert capsys.readouterr().out == "my own words\n"


@pytest.mark.parametrize("env_id,says", [
    ("own_module:Own-v1", "unknown environment 'own_module:Own-v1'; did you mean own_module:Own-v0"),
    ("own_module:BrokenOwn-v0", r"it raised LinAlgError: .+ \(own_module.py, line 19, in reset\), when it was reset"),
    ("wrong_module:Own-v0", r"cannot be made: division by zero \(wrong_module.py, line 3, in <module>\)"),
    ("poor_module:Own-v0", r"cannot be made: No module named .no_such_package. \(poor_module.py, line 1, in <module>\)"),
    ("nosuchmodule:Own-v0", r"cannot be made: there is no module 'nosuchmodule', neither in .+ nor installed"),
    ("nosuchmodule.sub:Own-v0", r"there is no module 'nosuchmodule.sub', neither in"),
])
def test_errors_in_ones_own_module(env_id, says, own_module):
    with pytest.raises(ValueError, match=says) as error:
        make_env(env_id)
    assert "\n" not in str(error.value)


def test_a_mask_is_known_with_the_module_too():
    env = make_env("pybullet_envs_gymnasium:HopperBulletEnv-v0", observe="positions")
    assert env_spec(env).state_dim == 9
