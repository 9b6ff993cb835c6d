"""Recorded data sets in Minari's format: what --record writes and offline algorithms read.

A data set holds the environment's own observations and actions, not what the agent saw of them or how it scaled them. So other
programs can read it, published data sets can be read here, and one recording serves every --observe. Minari keeps data sets in a
folder of its own (the variable MINARI_DATASETS_PATH names another). Minari is an extra, imported only where it is needed.

Minari's own DataCollector is not used: it needs JAX, and it seeds each episode anew, so that recording would change the run.
"""
import contextlib
import json
import os
import shutil
import warnings
from typing import NamedTuple

import gymnasium as gym
import numpy as np

from support.system import Failed, can_be_made, regular

NUMBERS, WHOLE = "biuf", "biu"                                         # kinds of NumPy's types
EXAMPLE = "such as hopper/td3-v0: letters, digits, - and _, in folders if you like, and a version at the end"


class Episode(NamedTuple):
    """An episode of T steps, as an agent would have seen it."""
    state: np.ndarray           # (T + 1, state_dim)
    action: np.ndarray          # (T, action_dim) in [-1, 1]
    reward: np.ndarray          # (T,)
    terminated: np.ndarray      # (T,) bool
    truncated: np.ndarray       # (T,) bool


class Recorder(gym.Wrapper):
    """Keeps all steps of the environment that it wraps, in the form of Minari's buffers."""

    def __init__(self, env):
        super().__init__(env)
        if isinstance(env.observation_space, gym.spaces.Tuple):
            raise ValueError(f"--record: {env.spec.id} has observations of several parts ({describe(env.observation_space)}); "
                             "only those that are one array or number can be recorded")
        self.episodes = []

    def reset(self, *, seed=None, options=None):
        observation, info = self.env.reset(seed=seed, options=options)
        self.episodes.append(dict(observations=[np.array(observation)], actions=[], rewards=[], terminations=[], truncations=[]))
        return observation, info

    def step(self, action):
        observation, reward, terminated, truncated, info = self.env.step(action)
        step = dict(observations=np.array(observation), actions=np.array(action), rewards=float(reward),
                    terminations=bool(terminated), truncations=bool(truncated))
        for name, value in step.items():
            self.episodes[-1][name].append(value)
        if terminated or truncated:                                    # arrays take a fifth of the RAM
            self.episodes[-1] = {name: np.array(values) for name, values in self.episodes[-1].items()}
        return observation, reward, terminated, truncated, info


# ---------------------------------------------------------------------- names

def find(flag, name):
    """The folder of a data set, which need not exist. Raises ValueError if no data set can have this name."""
    try:
        import h5py  # noqa: F401  (Minari's storage)
        from minari.dataset.minari_dataset import parse_dataset_id
    except ImportError:
        raise ValueError(f'--{flag} needs Minari: pip install "minari[hdf5]"') from None
    try:
        parse_dataset_id(name)
    except (ValueError, TypeError):                                    # of another form; without a version
        raise ValueError(f"--{flag}: '{name}' is no name of a data set; give one {EXAMPLE}") from None
    root = os.environ.get("MINARI_DATASETS_PATH") or os.path.join(os.path.expanduser("~"), ".minari", "datasets")
    return os.path.join(root, name)


def check_free(name):
    """Raises ValueError, with one line, if no data set of that name can be written. Writes nothing."""
    path = find("record", name)
    if os.path.lexists(path):
        raise ValueError(f"--record: there is a data set '{name}' already; choose another name or version, or delete it "
                         f"(minari delete {name})")
    inside = os.path.dirname(path)
    while len(inside) > len(path) - len(name):                         # only the folders that the name itself has
        if os.path.isfile(os.path.join(inside, "data", "metadata.json")):
            raise ValueError(f"--record: {inside} is a data set itself, and '{name}' would lie inside it; choose another name")
        inside = os.path.dirname(inside)
    if not can_be_made(path):
        raise ValueError(f"--record: {path} cannot be written; set MINARI_DATASETS_PATH to another folder")


# ---------------------------------------------------------------------- writing

def save(env, name, policy, command):
    """Write what the Recorder within `env` has recorded, if anything, as a new data set, and say so.

    An episode that is still running counts as truncated. If the name has been taken meanwhile, the next free version is used.
    Raises Failed if it cannot be written.
    """
    import minari
    from minari.data_collector import EpisodeBuffer
    while not isinstance(env, Recorder):
        env = env.env
    episodes = [episode for episode in env.episodes if len(episode["rewards"])]
    if not episodes:
        return
    for episode in episodes:
        episode["truncations"][-1] |= not episode["terminations"][-1]
    returns, steps = [sum(e["rewards"]) for e in episodes], sum(len(e["rewards"]) for e in episodes)
    env = env.env
    said = f"{len(episodes)} episodes, {steps} steps, mean return {np.mean(returns):.1f}"
    try:
        env.spec.to_json()
        source = env
    except (ValueError, TypeError):                                    # it was registered with a class, which JSON cannot hold
        source = None
    written = False
    while not written:
        while os.path.lexists(find("record", name)):
            stem, version = name.rsplit("-v", 1)
            name = f"{stem}-v{int(version) + 1}"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")                        # Minari asks for an author and a link
                minari.create_dataset_from_buffers(
                    name, [EpisodeBuffer(id=i, **episode) for i, episode in enumerate(episodes)], source,
                    observation_space=env.observation_space, action_space=env.action_space, algorithm_name=policy,
                    description=f"{policy} in {env.spec.id}: {said}. Recorded by: {command}")
            written = True
        except (OSError, ValueError, RuntimeError) as error:           # a full disk; HDF5's errors are of several kinds
            if "already exists" in str(error):                         # another run took the name this very moment
                continue
            shutil.rmtree(find("record", name), ignore_errors=True)    # nothing can open half a data set
            raise Failed(f"data set {name} could not be written: {' '.join(str(error).split())}") from None
    print(f"data set {name} written: {said}")


# ---------------------------------------------------------------------- reading

def foreign(folder):
    """What in a data set's files leads out of them, or None. It is called before Minari reads them, since they may be anyone's.

    If a data set does not state its spaces, Minari makes its environment, which can run any function. HDF5 follows links,
    external storage and virtual arrays to any file.
    """
    import h5py
    with open(regular(os.path.join(folder, "metadata.json")), encoding="utf-8") as file:
        stated = json.load(file)
    if not all(isinstance(stated.get(name), str) for name in ("observation_space", "action_space")):
        return "does not state its spaces, and its environment is not made to find them out; give another data set"
    content = os.path.join(folder, "main_data.hdf5")
    if stated["data_format"] != "hdf5" or os.path.getsize(regular(content)) == 0:
        return None

    def leads(name, link):
        return None if isinstance(link, h5py.HardLink) else name

    def lies(name, thing):
        return name if isinstance(thing, h5py.Dataset) and (thing.external or thing.is_virtual) else None
    with h5py.File(content) as file:
        name = file.visititems_links(leads) or file.visititems(lies)
        if name:
            return f"refers to another place at {name}, by a link or external storage; give one that holds all of its numbers"
        if len(file) != stated["total_episodes"]:
            return f"states {stated['total_episodes']} episodes and has {len(file)}; record or download it again"
    return None


def problem(episode, expected):
    """What is wrong with the arrays of an episode, or None. expected: an array's name -> its shape and its kinds of type

    An array of another shape would be read as other numbers. A number too large for float32 would be infinite in the buffer.
    """
    for what, (shape, kinds) in expected.items():
        values = getattr(episode, what)
        if np.shape(values) != shape:
            return f"{what} of shape {np.shape(values)}, not {shape},"
        if values.dtype.kind not in kinds:
            return f"{what} of type {values.dtype}, not {'numbers' if kinds == NUMBERS else 'whole numbers'},"
        with np.errstate(over="ignore"):
            if not np.isfinite(values.astype(np.float32)).all():
                return f"NaN or infinity, as float32, among the {what}"
    if not np.isin([episode.terminations, episode.truncations], (0, 1)).all():
        return "terminations or truncations that are neither 0 nor 1"
    return None


def load(name, env, seed):
    """The episodes of a data set, as an agent in `env` (made by make_env) would have seen them.

    The noise on observations is drawn once, from a generator with this seed. Actions are clipped to the environment's bounds.

    Raises:
        ValueError: one line that says what is wrong with the data set and what would be right
    """
    path = find("dataset", name)
    if not os.path.isdir(os.path.join(path, "data")):
        raise ValueError(f"--dataset: there is no data set '{name}' ({path}); `minari download {name}` fetches a published one, "
                         f"--record {name} with another --policy records one")

    def refuse(what):
        raise ValueError(f"--dataset: '{name}' {what}")

    @contextlib.contextmanager
    def reading():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                yield
            except Exception as error:                                 # a damaged file may raise anything
                refuse(f"cannot be read ({type(error).__name__}: {' '.join(str(error).split())}); record or download it again")
    import minari
    with reading():
        why = foreign(os.path.join(path, "data"))
    if why:
        refuse(why)
    with reading():
        dataset = minari.load_dataset(name)
        source, space, actions, steps = dataset.env_spec, dataset.observation_space, dataset.action_space, dataset.total_steps

    env_id, inner, see = env.unwrapped.spec.id, env.env.env, np.asarray    # inner: without make_env's wrappers
    if isinstance(inner, gym.wrappers.FlattenObservation):
        inner, see = inner.env, inner.observation                      # an agent sees discrete ones one-hot
    if source is not None and source.id != env_id:
        refuse(f"was recorded in {source.id}, not in {env_id}; give --env {source.id}, or MODULE:{source.id} if only "
               "a module knows it, or another data set")
    for what, there, here in (("observations", space, inner.observation_space), ("actions", actions, inner.action_space)):
        if not same_space(there, here):
            refuse(f"has {what} in {describe(there)}, {env_id} has them in {describe(here)}; give the --env it was recorded in")
    if space.shape is None:
        refuse(f"has observations of several parts ({describe(space)}); only those that are one array or number can be read")
    with reading():
        raw = [episode for episode in dataset if len(episode)] if steps else []
        found = sum(map(len, raw))
    if not raw:
        refuse("is empty; record or download another")
    if found != steps:
        refuse(f"states {steps} steps and has {found}; record or download it again")

    rng, episodes, discrete = np.random.default_rng(seed), [], isinstance(actions, gym.spaces.Discrete)
    for episode in raw:
        T, box = len(episode), isinstance(space, gym.spaces.Box)
        why = problem(episode, dict(
            observations=((T + 1, *space.shape), NUMBERS if box else WHOLE), rewards=((T,), NUMBERS),
            actions=((T, *actions.shape), WHOLE if discrete else NUMBERS), terminations=((T,), WHOLE), truncations=((T,), WHOLE)))
        if not (why or box or all(map(space.contains, episode.observations))):
            why = f"observations outside {describe(space)}"
        if not why and discrete and not all(map(actions.contains, episode.actions)):
            why = f"actions outside {describe(actions)}"
        if why:
            refuse(f"has {why} in episode {episode.id} of {T} steps; record or download it again, or make a data set without "
                   "that episode")
        terminated, truncated = episode.terminations.astype(bool), episode.truncations.astype(bool)
        truncated[-1] |= not terminated[-1]                            # the recording ended before the episode did
        state = np.stack([env.disturb(see(observation), rng) for observation in episode.observations])
        action = env.env.inverse(episode.actions).astype(np.float32)
        episodes.append(Episode(state, action, episode.rewards.astype(np.float32), terminated, truncated))
    return episodes


def same_space(one, other):
    """Do two spaces hold the same things, whatever precision they are written in?"""
    if isinstance(one, gym.spaces.Box) and isinstance(other, gym.spaces.Box):
        return one.shape == other.shape and np.allclose(one.low, other.low) and np.allclose(one.high, other.high)
    return one == other


def describe(space):
    return " ".join(str(space).split())


def summary(episodes):
    """How many episodes and steps there are, and their mean return, by name."""
    returns = [float(e.reward.sum()) for e in episodes]
    return {"episodes": len(episodes), "steps": sum(len(e.reward) for e in episodes), "mean return": round(np.mean(returns), 1)}


def rows(episodes):
    """Rows that a buffer needs for them: one per step, and one more per episode."""
    return sum(len(e.reward) + int((e.terminated | e.truncated).sum()) for e in episodes)


def fill(buffer, episodes):
    """Add all steps to a buffer of one stream that stores no hidden states."""
    hidden = np.zeros((1, 0), np.float32)
    for e in episodes:
        for t in range(len(e.reward)):
            now, after = slice(t, t + 1), slice(t + 1, t + 2)          # (1, dim)
            buffer.add(e.state[now], e.action[now], e.reward[now], e.state[after], e.terminated[now], e.truncated[now],
                       hidden, hidden)
