"""Environments: any Gymnasium id with a one-axis Box or a discrete observation, what the agent sees of it, and vectorising.

Flags that hide something. They combine, and apply in this order:

    --observe positions|velocities   keep only these entries of the observation, see KEEP
    --observe 0-4,7                  or those with these indices
    --obs_noise SIGMA                add Gaussian noise
    --sensor_dropout P               each entry is zero with probability P
    --flicker P                      the whole observation is zero with probability P

While acting, all their noise comes from the environment's own seeded generator.

A memory task ships with the project: Cue10-v0 and its kin, see Cue. POPGym's (popgym-RepeatPreviousEasy-v0 ...) run where
that package is installed.

Discrete numbers are seen one-hot, the parts of a tuple side by side.

Actions: an agent always acts in [-1, 1]^n. Its actions are scaled here to the environment's own bounds, which may be asymmetric,
and rounded if the environment takes whole numbers. In a discrete environment an agent acts with a one-hot vector, so that buffer
and core treat both alike.

An id may name the module that registers it, MODULE:ID. The module is looked for in the current folder, too. What an
environment returns is checked at every step (Checked): a run ends with one line at the first thing that cannot be used.
"""
import ast
import collections
import contextlib
import ctypes
import difflib
import importlib
import os
import sys
import sysconfig
import traceback
import warnings
import zlib
from functools import partial
from typing import NamedTuple

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

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
    # MuJoCo's, those of joints and torso, by Gymnasium's documentation. The ant and the humanoid also observe inertia, bodies'
    # velocities and forces, which are in neither
    "InvertedPendulum-v5": ([0, 1], [2, 3]),
    **{env_id: ([*range(split)], [*range(split, end)]) for env_id, split, end in (
        ("Hopper-v5", 5, 11), ("Walker2d-v5", 8, 17), ("HalfCheetah-v5", 8, 17), ("Ant-v5", 13, 27), ("Humanoid-v5", 22, 45))},
}
NOT_ITS_OWN = ("id", "max_episode_steps", "disable_env_checker", "render_mode")     # arguments of gym.make


# Ids that are registered only when a module is imported: a part of the id, the modules, the packages to install
REGISTERED_BY = [("Bullet", ("pybullet", "pybullet_envs_gymnasium"), "pybullet pybullet-envs-gymnasium"),
                 ("popgym-", ("popgym",), "popgym")]
DISCRETE_SPACES = (gym.spaces.Discrete, gym.spaces.MultiDiscrete, gym.spaces.MultiBinary)
LARGEST = np.finfo(np.float32).max                                     # what an agent reads is kept as float32
NOT_THEIRS = os.path.dirname(gym.__file__), os.path.dirname(importlib.__file__)    # code that is never an environment's own
INSTALLED = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})


class EnvSpec(NamedTuple):
    """What an agent has to know of an environment."""
    state_dim: int
    action_dim: int     # a Box's dimension, or the number of discrete actions
    discrete: bool


class Cue(gym.Env):
    """A task that only memory can solve. Ids: Cue10-v0, Cue30-v0, Cue100-v0 and CueDiscrete10-v0, ..., by their delay.

    Observation: [cue, choose now]. The cue, -1 or 1, is shown at the first step only. After delay - 1 blank steps "choose now"
    is 1, and the action must name the cue: the reward is 1 if it does, else 0. Without memory the choice cannot depend on the
    cue, so no policy does better than 1/2 on average.

    A continuous action names the cue by its sign, and counts only within +-0.8. If -1 and 1 were the best actions, a tanh could
    saturate there before the critic has learnt to remember, and would have no gradient left to come back.
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


# The entry point is text, which a data set can hold. An episode ends by itself, before the limit
for delay in (10, 30, 100):
    for name, discrete in (("Cue", False), ("CueDiscrete", True)):
        gym.register(f"{name}{delay}-v0", "envs:Cue", max_episode_steps=delay + 2, kwargs=dict(delay=delay, discrete=discrete))


class Faulty(Exception):
    """An environment has raised an error, or has returned what no agent can use. Its text is one line."""


def where(error):
    """The last line of the environment's own code that an error came through, ' (file, line, function)', or ''."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [i for i, frame in enumerate(frames) if frame.filename == __file__]
    beyond = [frame for frame in frames[ours[-1] + 1:] if not frame.filename.startswith(("<", *NOT_THEIRS))]
    own = [frame for frame in beyond if not frame.filename.startswith(INSTALLED)] or beyond
    return f" ({os.path.basename(own[-1].filename)}, line {own[-1].lineno}, in {own[-1].name})" if own else ""


def one_line(thing):
    """Its text, in one line that is not too long."""
    text = " ".join(str(thing).split())
    return text if len(text) <= 200 else text[:200] + " ..."


def objection(space, value):
    """What is wrong with an observation, or None. It may leave the bounds of a Box, but not be NaN or infinite."""
    if isinstance(space, gym.spaces.Tuple):
        if not isinstance(value, (tuple, list)) or len(value) != len(space):
            return f"is {one_line(value)}, not a tuple of {len(space)} parts"
        return next(filter(None, map(objection, space, value)), None)
    if not isinstance(space, gym.spaces.Box):
        return None if space.contains(value) else f"is {one_line(value)}, which is not in {one_line(space)}"
    try:
        array = np.asarray(value)
    except ValueError:                                                 # lists of different lengths
        array = np.array(None)
    if array.dtype.kind not in "biuf":
        return f"is {one_line(value)}, not an array of numbers"
    if array.shape != space.shape:
        return f"has the shape {array.shape}, and its space has {space.shape}"
    return None if (np.abs(array) <= LARGEST).all() else f"is {one_line(array)}, which is not finite"


class Checked(gym.Wrapper):
    """Wraps the environment itself, and raises Faulty at the first step where it fails.

    A reward in an array or a list is taken out, and a list as an observation becomes an array. The environment's own `info` is
    dropped: nothing here reads it, and a vector environment can fail at it.
    """

    spec = property(lambda self: self.env.spec)                        # a data set names the environment without this wrapper

    def reset(self, *, seed=None, options=None):
        self.t = 0
        try:
            observation, _ = self.env.reset(seed=seed, options=options)
        except Exception as error:
            raise self.failed(error) from error
        return self.checked(observation), {}

    def step(self, action):
        self.t += 1
        try:
            observation, reward, terminated, truncated, _ = self.env.step(action)
            terminated, truncated = bool(terminated), bool(truncated)
        except Exception as error:
            raise self.failed(error) from error
        try:
            number = np.asarray(reward, float).item()
        except (ValueError, TypeError):                                # several numbers, or none
            number = np.nan
        if not abs(number) <= float(LARGEST):                          # so that NaN fails, too
            raise self.fault(f"its reward is {one_line(reward)}, not a finite number")
        return self.checked(observation), number, terminated, truncated, {}

    def checked(self, observation):
        wrong = objection(self.observation_space, observation)
        if wrong:
            raise self.fault(f"its observation {wrong}")
        return np.asarray(observation) if isinstance(self.observation_space, gym.spaces.Box) else observation

    def failed(self, error):
        return self.fault(f"it raised {type(error).__name__}: {one_line(error)}{where(error)}")

    def fault(self, what):
        when = f"at step {self.t} of an episode" if self.t else "when it was reset"
        return Faulty(f"{self.unwrapped.spec.id}: {what}, {when}")


def entries(text, size):
    """The indices that a text such as 0-4,7 names, of an observation of that size. Raises ValueError if it has none of them."""
    parts = [[int(number) for number in part.split("-")] for part in text.split(",")]
    wrong = [part for part in parts if not part[0] <= part[-1] < size]
    kept = [i for part in parts if not wrong for i in range(part[0], part[-1] + 1)]
    if wrong or len(set(kept)) < len(kept):
        raise ValueError(f"--observe {text}: the observation has the entries 0 to {size - 1}; give each once, ranges upwards")
    return np.array(kept)


def keywords(text):
    """The arguments that --env_kwargs "key=value key=value" names. Raises ValueError on a word that is none."""
    arguments = {}
    for word in text.split():
        name, _, value = word.partition("=")
        if not name.isidentifier() or not value or name in arguments:
            raise ValueError(f"--env_kwargs '{word}': give each argument once, as key=value, such as frame_skip=2")
        if name in NOT_ITS_OWN:
            raise ValueError(f"--env_kwargs '{word}': this is no argument of an environment's own; there is --max_episode_steps")
        try:
            arguments[name] = ast.literal_eval({"true": "True", "false": "False"}.get(value, value))
        except (ValueError, SyntaxError, MemoryError, RecursionError):  # a text
            arguments[name] = value
    return arguments


class PartialObservation(gym.ObservationWrapper):
    """Keeps some entries of the observation and disturbs them, see the module docstring. Raises ValueError on bad input."""

    def __init__(self, env, env_id, observe="full", flicker=0.0, obs_noise=0.0, sensor_dropout=0.0):
        super().__init__(env)
        self.keep = np.arange(env.observation_space.shape[0])
        if observe not in ("full", "positions", "velocities"):
            self.keep = entries(observe, len(self.keep))
        elif observe != "full":
            env_id = env_id.rpartition(":")[2]                         # without its module
            if env_id not in KEEP:
                raise ValueError(f"--observe {observe}: no mask is known for {env_id}, only for {', '.join(KEEP)}; give indices "
                                 "such as 0-4,7, or add a line to KEEP in envs.py")
            self.keep = np.array(KEEP[env_id][observe == "velocities"], int)
            if len(self.keep) == 0:
                raise ValueError(f"--observe {observe}: {env_id} has no such entries; use --observe positions or full")
        self.flicker, self.obs_noise, self.sensor_dropout = flicker, obs_noise, sensor_dropout
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (len(self.keep),), np.float32)

    def observation(self, observation):
        return self.disturb(observation, self.unwrapped.np_random)

    def disturb(self, observation, rng):
        """What the agent sees of the environment's observation. rng: the generator of the noise"""
        observation = observation[self.keep].astype(np.float32)
        if self.obs_noise:
            observation = observation + rng.normal(0, self.obs_noise, observation.shape).astype(np.float32)
        if self.sensor_dropout:
            observation = np.where(rng.random(observation.shape) < self.sensor_dropout, np.float32(0), observation)
        if self.flicker and rng.random() < self.flicker:
            observation = np.zeros_like(observation)
        return observation


class ScaleAction(gym.ActionWrapper):
    """Agents act in [-1, 1]; clipped to that, then mapped linearly to the environment's bounds. Whole numbers are rounded."""

    def __init__(self, env):
        super().__init__(env)
        space = env.action_space
        self.dtype, self.whole = space.dtype, not np.issubdtype(space.dtype, np.floating)
        self.low, self.high = (bound.astype(float) if self.whole else bound for bound in (space.low, space.high))
        self.action_space = gym.spaces.Box(-1, 1, self.low.shape, np.float32)

    @staticmethod
    def fits(space):
        """Can actions be scaled to a space? Not if it is empty, unbounded, or so wide that there are no numbers for it."""
        if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1 or not space.shape[0]:
            return False
        with np.errstate(over="ignore", invalid="ignore"):             # inf - -inf and the like
            width = space.high.astype(float) - space.low.astype(float)
        return bool((width <= (np.finfo(space.dtype).max if np.issubdtype(space.dtype, np.floating) else 2 ** 53)).all())

    def action(self, action):
        action = self.low + (np.clip(action, -1, 1) + 1) * 0.5 * (self.high - self.low)
        return np.rint(action).astype(self.dtype) if self.whole else action

    def inverse(self, action):
        """The agent's action (..., n) for one of the environment's; 0 where both bounds are equal."""
        choice = self.high > self.low
        width = np.where(choice, self.high - self.low, 1)
        return np.where(choice, np.clip((action - self.low) / width * 2 - 1, -1, 1), 0)


class OneHotAction(gym.ActionWrapper):
    """Agents act with a one-hot vector; the environment gets its index."""

    def __init__(self, env):
        super().__init__(env)
        self.start = env.action_space.start
        self.action_space = gym.spaces.Box(0, 1, (int(env.action_space.n),), np.float32)

    def action(self, action):
        return self.start + int(np.argmax(action))

    def inverse(self, action):
        """The agent's actions (T, n), one-hot, for the environment's (T,)."""
        return np.eye(self.action_space.shape[0])[np.asarray(action, int) - self.start]


class NoOldContacts(gym.Wrapper):
    """PyBullet keeps the contacts of the last episode over a reset. A foot that lands within millimetres of an old contact gets a
    share of that contact's impulse. So about one episode in a hundred depended, in its last digits, on the episode before, and
    could not be played again. Here robots are lifted to where they touch nothing before they are put back."""

    spec = property(lambda self: self.env.spec)                        # as in Checked

    def reset(self, **how):
        if getattr(self.unwrapped, "physicsClientId", -1) >= 0:        # not before the first reset
            physics = self.unwrapped._p
            for body in range(physics.getNumBodies()):
                if physics.getNumJoints(body):                         # a robot; the ground has none
                    (x, y, z), turned = physics.getBasePositionAndOrientation(body)
                    physics.resetBasePositionAndOrientation(body, (x, y, z + 100), turned)
            physics.performCollisionDetection()
        return self.env.reset(**how)


class Replayable(gym.Wrapper):
    """Remembers how the running episode came about, so that another environment of its kind can be brought to the same point."""

    def __init__(self, env):
        super().__init__(env)
        self.began, self.actions, self.checksum, self.copy = {}, [], 0, None
        self.finished = collections.deque(maxlen=30)                   # episodes, as `save` describes them

    def reset(self, *, seed=None, options=None):
        if self.actions:
            self.finished.append(self.save())
        self.began = {"seed": seed, "generator": self.generator()}
        if self.copy:
            with contextlib.suppress(Exception):
                self.copy.close()
        self.actions, self.copy = [], None
        observation, info = self.env.reset(seed=seed, options=options)
        self.checksum = zlib.crc32(np.asarray(observation).tobytes())
        return observation, info

    def step(self, action):
        self.actions.append(np.array(action))
        observation, reward, terminated, truncated, info = self.env.step(action)
        numbers = np.append(np.asarray(reward, float), [terminated, truncated])
        self.checksum = zlib.crc32(np.asarray(observation).tobytes() + numbers.tobytes(), self.checksum)
        return observation, reward, terminated, truncated, info

    def generator(self):
        """The state of the environment's random number generator; None if it is not NumPy's."""
        bits = getattr(self.unwrapped.np_random, "bit_generator", None)
        return bits and bits.state

    def all_seen(self):
        """A checksum of the episode's observations, rewards and ends, and of the generator that later ones will be drawn from."""
        return zlib.crc32(repr(self.generator()).encode(), self.checksum)

    def save(self):
        return {**self.began, "actions": torch.from_numpy(np.array(self.actions)), "all_seen": self.all_seen()}

    def begin(self, began):
        """Begin an episode as another began. The generator is changed in place, since PyBullet's robot shares it."""
        if began["generator"]:
            self.unwrapped.np_random.bit_generator.state = began["generator"]
        self.reset(seed=began["seed"])

    def restore(self, saved):
        """Play the episode again. Returns whether it was the same to the bit."""
        self.begin(saved)
        for action in saved["actions"]:
            self.step(action.numpy())
        return self.all_seen() == saved["all_seen"]

    def repeats(self, make):
        """Is the running episode the same to the bit in a new environment, made by `make`? The new one is kept until the episode
        ends, so that each step is played again only once."""
        if self.copy is None:
            self.copy = make()
            self.copy.begin(self.began)
        for action in self.actions[len(self.copy.actions):]:
            self.copy.step(action)
        return self.copy.all_seen() == self.all_seen()

    def finished_repeat(self, make, steps):
        """Are finished episodes the same when they are played again, the newest first? It plays at most `steps` steps."""
        with contextlib.closing(make()) as other:
            for episode in reversed(self.finished):
                steps -= len(episode["actions"])
                if steps < 0:
                    break
                if not other.restore(episode):
                    return False
        return True


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


def register(env_id):
    """Import the module that registers an id: the one before its colon, or of REGISTERED_BY. Raises ImportError, with one line,
    if there is no such module, and whatever the module's own code raises."""
    module, _, name = env_id.rpartition(":")
    if module:
        if os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())                               # last: it hides nothing that is installed
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name not in (module, module.split(".")[0]):       # the module itself imports one that is missing
                raise
            raise ImportError(f"there is no module '{module}', neither in {os.getcwd()} nor installed") from None
    for part, modules, packages in [] if module else REGISTERED_BY:
        if part in name:
            try:
                with quiet():
                    for known in modules:
                        importlib.import_module(known)
            except ModuleNotFoundError:
                raise ImportError(f"it is not installed; pip install {packages}") from None


def for_agent(env, env_id, observation):
    """Wrappers that let an agent act and see. Raises ValueError, with one line, if there are none for an environment's spaces."""
    def usable(space):
        if isinstance(space, gym.spaces.Tuple):
            return len(space) > 0 and all(map(usable, space))
        return isinstance(space, (gym.spaces.Box, *DISCRETE_SPACES))
    space, actions = env.observation_space, env.action_space
    if not isinstance(space, gym.spaces.Box) and usable(space):
        env = gym.wrappers.FlattenObservation(env)                     # discrete numbers one-hot, a tuple's parts side by side
        space = env.observation_space
    if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1 or not space.shape[0]:
        raise ValueError(f"{env_id}: its observation is {one_line(space)}; only a Box of one axis, not empty, discrete numbers, "
                         "or a tuple of these can be used")
    if isinstance(actions, gym.spaces.Discrete):
        env = OneHotAction(env)
    elif ScaleAction.fits(actions):
        env = ScaleAction(env)
    else:
        raise ValueError(f"{env_id}: its actions are {one_line(actions)}; only Discrete or a bounded Box of one axis, not empty "
                         "and not too wide for its numbers, can be used")
    return PartialObservation(env, env_id, **observation)


def make_env(env_id, wrap=None, render=False, max_episode_steps=0, env_kwargs="", **observation):
    """One environment, ready for an agent: actions in [-1, 1] or one-hot, observations (state_dim,) float32.

    It has been reset and has taken a step, so that an environment that cannot be used is refused here.

    Args:
        wrap: a wrapper around the environment itself, within those made here: it sees the environment's own actions
        render: be able to give pictures of itself
        max_episode_steps: where an episode is truncated; 0: at the environment's own limit
        env_kwargs: the environment's own arguments, see `keywords`
        observation: observe, flicker, obs_noise, sensor_dropout
    Raises:
        ValueError: one line that says what cannot be used and what can
    """
    module, colon, name = env_id.rpartition(":")
    cannot = f"--video: {env_id} cannot be drawn, which takes the render mode rgb_array" if render else f"{env_id} cannot be made"
    arguments = keywords(env_kwargs)
    try:
        register(env_id)
        bullet = "pybullet" in str(getattr(gym.registry.get(name), "entry_point", ""))
        hushed = quiet if bullet else contextlib.nullcontext
        with hushed(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="gymnasium.envs.registration")    # what it warns of is said below
            env = gym.make(env_id, max_episode_steps=max_episode_steps or None, disable_env_checker=True,
                           **arguments, **{"render_mode": "rgb_array"} if render else {})
            env = Checked(NoOldContacts(env) if bullet else env)
            # KEEP's indices are right for the environment as it usually is
            usual = gym.make(env_id, disable_env_checker=True) if arguments and name in KEEP else env
    except Exception as error:                                         # an environment's code may raise anything
        if not isinstance(error, gym.error.Error) or name in gym.registry:
            raise ValueError(f"{cannot}: {one_line(error)}{where(error)}") from None
        with quiet(), contextlib.suppress(ImportError):
            import pybullet_envs_gymnasium  # noqa: F401               # registers ids, which may then be suggested
        near = [module + colon + other for other in difflib.get_close_matches(name, list(gym.registry), 3, 0.4)]
        raise ValueError(f"unknown environment '{env_id}'; " + (f"did you mean {' or '.join(near)}?" if near else
                         "give a Gymnasium id such as HopperBulletEnv-v0")) from None
    if usual.observation_space != env.observation_space and observation.get("observe") in ("positions", "velocities"):
        raise ValueError(f"--observe {observation['observe']}: with --env_kwargs {env_kwargs} {env_id} has another observation; "
                         "give indices such as 0-4,7")
    made = for_agent(env, env_id, observation)
    try:
        with hushed():
            made.reset(seed=0)                                         # connects; Ant's first reset is unlike later ones
            if render and not isinstance(env.render(), np.ndarray):    # or `render` raises what it lacks
                raise TypeError("its pictures are no arrays")
            made.step(np.zeros(made.action_space.shape, np.float32))
    except Faulty as fault:
        raise ValueError(str(fault)) from None
    except Exception as error:
        raise ValueError(f"{cannot}: {one_line(error)}{where(error)}") from None
    return for_agent(wrap(env), env_id, observation) if wrap else made     # anew: what wraps it shall not have seen this step


def make_vector_env(env_id, num_envs, wrap=None, **options):
    """`num_envs` environments stepped one after the other. At an episode's end an environment resets within the same step, and
    the true last observation is in info["final_obs"]. PyBullet's step is too short for worker processes to pay."""
    make = partial(make_env, env_id, wrap, **options)
    return SyncVectorEnv([lambda: Replayable(make())] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP)


def env_spec(env):
    """EnvSpec of an environment that make_env made."""
    return EnvSpec(env.observation_space.shape[0], env.action_space.shape[0],
                   isinstance(env.unwrapped.action_space, gym.spaces.Discrete))
