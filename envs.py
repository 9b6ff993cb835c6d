"""Environments: any Gymnasium id with a one-axis Box or a discrete observation, what the agent sees of it, and vectorising.

Partial observability (they combine, in this order; all noise comes from the environment's own seeded generator):

    --observe positions|velocities   keep only these entries of the observation, see KEEP
    --obs_noise SIGMA                add Gaussian noise
    --sensor_dropout P               each entry is zero with probability P
    --flicker P                      the whole observation is zero with probability P

A memory task ships with the project: Cue10-v0 and its kin, see Cue. POPGym's (popgym-RepeatPreviousEasy-v0 ...) run where
that package is installed.

Observations that are discrete, or several discrete numbers, are seen one-hot, side by side.

Actions: an agent always acts in [-1, 1]^n, scaled here to the environment's own, possibly asymmetric, bounds. For a
discrete environment it acts with a one-hot vector, so that buffer and memory treat both alike.
"""
import contextlib
import ctypes
import difflib
import importlib
import os
import sys
from functools import partial
from typing import NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from checkpoint import Replayable

# Which entries of the observation are positions and which velocities (Ni et al. 2022; contact flags count as positions)
KEEP = {
    "HopperBulletEnv-v0": ([0, 1, 2, 6, 7, 8, 10, 12, 14], [3, 4, 5, 9, 11, 13]),
    "Walker2DBulletEnv-v0": ([0, 1, 2, 6, 7, 8, 10, 12, 14, 16, 18, 20, 21], [3, 4, 5, 9, 11, 13, 15, 17, 19]),
    "HalfCheetahBulletEnv-v0": ([0, 1, 2, 6, 7, 8, 10, 12, 14, 16, 18, 20, 21, 22, 23, 24, 25],
                                [3, 4, 5, 9, 11, 13, 15, 17, 19]),
    "AntBulletEnv-v0": ([0, 1, 2, 6, 7, 8, 10, 12, 14, 16, 18, 20, 22, 24, 25, 26, 27],
                        [3, 4, 5, 9, 11, 13, 15, 17, 19, 21, 23]),
    "Pendulum-v1": ([0, 1], [2]),
    "CartPole-v1": ([0, 2], [1, 3]),
    "InvertedPendulumBulletEnv-v0": ([0, 2, 3], [1, 4]),
    "InvertedPendulumSwingupBulletEnv-v0": ([0, 2, 3], [1, 4]),
    "InvertedDoublePendulumBulletEnv-v0": ([0, 2, 3, 4, 6, 7], [1, 5, 8]),
    "ReacherBulletEnv-v0": ([0, 1, 2, 3, 4, 5, 7], []),
}


# What registers its ids only when it is imported: a part of the id, the module, the package that brings it
REGISTERED_BY = [("Bullet", "pybullet_envs_gymnasium", "pybullet-envs-gymnasium"), ("popgym-", "popgym", "popgym")]
DISCRETE_SPACES = (gym.spaces.Discrete, gym.spaces.MultiDiscrete, gym.spaces.MultiBinary, gym.spaces.Tuple)


class EnvSpec(NamedTuple):
    """What an agent has to know of an environment."""
    state_dim: int
    action_dim: int     # of a Box, or the number of discrete actions
    discrete: bool


class Cue(gym.Env):
    """A task that only memory can solve. Ids: Cue10-v0, Cue30-v0, Cue100-v0 and CueDiscrete10-v0, ..., by their delay.

    Observation: [cue, choose now]. The cue, -1 or 1, is shown at the first step only; `delay` steps later, after delay - 1
    blank ones, "choose now" is, and the action must name it: reward 1, else 0. Without memory the choice cannot depend on
    the cue, so no policy does better than 1/2 on average.

    A continuous action names the cue by its sign, and counts only within +-0.8: were -1 and 1 the best actions, a tanh that
    ran there before the critic had learnt to remember would have no gradient left to come back by.
    """
    LIMIT = 0.8

    def __init__(self, delay=10, discrete=False):
        self.delay, self.discrete = delay, discrete
        self.observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
        self.action_space = gym.spaces.Discrete(2) if discrete else gym.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.cue = 0, 2 * int(self.np_random.integers(2)) - 1
        return np.array([self.cue, 0], np.float32), {}

    def step(self, action):
        right = 2 * action - 1 == self.cue if self.discrete else 0 < action[0] * self.cue < self.LIMIT
        last = self.t == self.delay
        self.t += 1
        return np.array([0, self.t == self.delay], np.float32), float(last and right), last, False, {}


for delay in (10, 30, 100):
    gym.register(f"Cue{delay}-v0", "envs:Cue", kwargs=dict(delay=delay))     # by name: a data set can hold that
    gym.register(f"CueDiscrete{delay}-v0", "envs:Cue", kwargs=dict(delay=delay, discrete=True))


class PartialObservation(gym.ObservationWrapper):
    """Keeps some entries of the observation and disturbs them, see the module docstring. Raises ValueError on bad input."""

    def __init__(self, env, env_id, observe="full", flicker=0.0, obs_noise=0.0, sensor_dropout=0.0):
        super().__init__(env)
        self.keep = np.arange(env.observation_space.shape[0])
        if observe != "full":
            if env_id not in KEEP:
                raise ValueError(f"--observe {observe}: no mask is known for {env_id}, only for {', '.join(KEEP)}; "
                                 "add a line to KEEP in envs.py")
            self.keep = np.array(KEEP[env_id][observe == "velocities"], int)
            if len(self.keep) == 0:
                raise ValueError(f"--observe {observe}: {env_id} has no such entries; use --observe positions or full")
        self.flicker, self.obs_noise, self.sensor_dropout = flicker, obs_noise, sensor_dropout
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (len(self.keep),), np.float32)

    def observation(self, observation):
        return self.disturb(observation, self.unwrapped.np_random)

    def disturb(self, observation, rng):
        """What the agent gets to see of an observation of the environment. rng: where noise is drawn."""
        observation = observation[self.keep].astype(np.float32)
        if self.obs_noise:
            observation = observation + rng.normal(0, self.obs_noise, observation.shape).astype(np.float32)
        if self.sensor_dropout:
            observation = np.where(rng.random(observation.shape) < self.sensor_dropout, np.float32(0), observation)
        if self.flicker and rng.random() < self.flicker:
            observation = np.zeros_like(observation)
        return observation


class ScaleAction(gym.ActionWrapper):
    """Agents act in [-1, 1]; clipped to that, then mapped linearly to the environment's bounds."""

    def __init__(self, env):
        super().__init__(env)
        self.low, self.high = env.action_space.low, env.action_space.high
        self.action_space = gym.spaces.Box(-1, 1, self.low.shape, np.float32)

    def action(self, action):
        return self.low + (np.clip(action, -1, 1) + 1) * 0.5 * (self.high - self.low)

    def inverse(self, action):
        """The agent's action (..., n) that the environment's comes from."""
        return np.clip((action - self.low) / (self.high - self.low) * 2 - 1, -1, 1)


class OneHotAction(gym.ActionWrapper):
    """Agents act with a one-hot vector; the environment gets its index."""

    def __init__(self, env):
        super().__init__(env)
        self.start = env.action_space.start
        self.action_space = gym.spaces.Box(0, 1, (int(env.action_space.n),), np.float32)

    def action(self, action):
        return self.start + int(np.argmax(action))


@contextlib.contextmanager
def quiet():
    """Silence what PyBullet's C code prints when it is loaded and connected to."""
    sys.stdout.flush()
    stdout, stderr, null = os.dup(1), os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    try:
        yield
    finally:
        sys.stdout.flush()
        with contextlib.suppress(Exception):
            ctypes.CDLL(None).fflush(None)
        os.dup2(stdout, 1)
        os.dup2(stderr, 2)
        for descriptor in (stdout, stderr, null):
            os.close(descriptor)


def make_env(env_id, wrap=None, render=False, **observation):
    """One environment, ready for an agent: actions in [-1, 1] or one-hot, observations (state_dim,) float32.

    Args:
        wrap: a wrapper around the environment itself, within those made here: it sees its own actions and observations
        render: be able to give pictures of itself
        observation: observe, flicker, obs_noise, sensor_dropout
    Raises:
        ValueError: one line that says what cannot be used and what can
    """
    try:
        with quiet():
            for part, module, package in REGISTERED_BY:
                if part in env_id:
                    try:
                        importlib.import_module(module)
                    except ModuleNotFoundError:
                        raise ImportError(f"it needs a package; pip install {package}") from None
            env = gym.make(env_id, **{"render_mode": "rgb_array"} if render else {})
            env.reset(seed=0)                                          # connects; on Ant the first one differs from later ones
            if render and not isinstance(env.render(), np.ndarray):    # or it raises what it lacks
                raise TypeError("its pictures are no arrays")
    except Exception as error:                                         # its own code may raise anything
        with quiet(), contextlib.suppress(ImportError):
            import pybullet_envs_gymnasium  # noqa: F401
        if isinstance(error, ImportError) or env_id.split(":")[-1] in gym.registry:
            why = " ".join(str(error).split())
            raise ValueError(f"--video: {env_id} cannot be drawn, which takes the render mode rgb_array: {why}" if render else
                             f"{env_id} cannot be made: {why}") from None
        near = difflib.get_close_matches(env_id, list(gym.registry), 3, 0.4)
        raise ValueError(f"unknown environment '{env_id}'; " + (f"did you mean {' or '.join(near)}?" if near else
                         "give a Gymnasium id such as HopperBulletEnv-v0")) from None
    env = wrap(env) if wrap else env
    if isinstance(env.observation_space, DISCRETE_SPACES):
        env = gym.wrappers.FlattenObservation(env)                     # one-hot
    space, actions = env.observation_space, env.action_space
    if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1:
        raise ValueError(f"{env_id}: its observation is {type(space).__name__}{getattr(space, 'shape', None) or ''}; "
                         "only a Box of one axis, or discrete numbers, can be used")
    if isinstance(actions, gym.spaces.Discrete):
        env = OneHotAction(env)
    elif isinstance(actions, gym.spaces.Box) and len(actions.shape) == 1 and actions.is_bounded():
        env = ScaleAction(env)
    else:
        raise ValueError(f"{env_id}: its actions are {' '.join(str(actions).split())}; "
                         "only Discrete or a bounded Box of one axis can be used")
    return PartialObservation(env, env_id, **observation)


def make_vector_env(env_id, num_envs, wrap=None, **observation):
    """`num_envs` environments stepped one after the other. At an episode's end it resets within the same step, and the
    true last observation is in info["final_obs"]. PyBullet's step is too short for worker processes to pay."""
    with quiet():
        make = partial(make_env, env_id, wrap, **observation)
        return SyncVectorEnv([lambda: Replayable(make())] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP)


def env_spec(env):
    """EnvSpec of an environment that make_env made."""
    return EnvSpec(env.observation_space.shape[0], env.action_space.shape[0],
                   isinstance(env.unwrapped.action_space, gym.spaces.Discrete))
