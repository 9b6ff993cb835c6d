"""Data sets: recorded, read back and trained from; what bad or hostile ones get."""
import glob
import json
import os
import re
import shutil
import subprocess
import sys

import gymnasium as gym
import h5py
import minari
import numpy as np
import pytest
import test_memory
import torch
from conftest import buffers, record

import envs
import main
import TD3
from support import data

HERE = os.path.dirname(os.path.abspath(main.__file__))


class Mixed(gym.Env):
    """Random observations, all in one array; some episodes terminate, the others run into the time limit. Counts all steps
    ever taken."""
    steps = 0

    def __init__(self):
        self.seen = np.zeros(4, np.float32)
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (4,), np.float32)
        self.action_space = gym.spaces.Box(np.array([-1, 10], np.float32), np.array([3, 20], np.float32))

    def observe(self):
        self.seen[:] = self.np_random.normal(size=4)
        return self.seen

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        return self.observe(), {}

    def step(self, action):
        assert self.action_space.contains(action)
        Mixed.steps += 1
        return self.observe(), self.np_random.normal() + float(action[0]), self.np_random.random() < 0.1, False, {}


gym.register("TestMixed-v0", "test_data:Mixed", max_episode_steps=8, disable_env_checker=True)    # it would warn of the one array
ONLINE = ["--policy", "TD3", "--env", "TestMixed-v0", "--start_timesteps", "40", "--batch_size", "8", "--replay_ratio", "1",
          "--max_timesteps", "150", "--eval_freq", "100", "--eval_episodes", "2", "--hidden_size", "8"]
OFFLINE = ["--policy", "BCQ", "--env", "TestMixed-v0", "--batch_size", "8", "--max_timesteps", "30", "--eval_freq", "20",
           "--eval_episodes", "2", "--hidden_size", "8"]


@pytest.fixture(autouse=True)
def world(tmp_path, monkeypatch):
    """An empty Minari folder (not even made), and a mask for the environment above. A function that runs a command line."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.setitem(envs.KEEP, "TestMixed-v0", ([0, 2], [1, 3]))
    return lambda *argv, results="results": main.main([*argv, "--results_dir", str(tmp_path / results)])


@pytest.mark.parametrize("observe", ["full", "positions"])
def test_what_is_loaded_is_what_was_lived_through(world, observe, monkeypatch):
    """The buffer of an offline run holds the rows of the online run that recorded the data set: observations, rewards, flags
    and where episodes begin exactly, actions up to the rounding of their scaling. The last episode is cut off."""
    made = buffers(monkeypatch)
    world(*ONLINE, "--record", "mixed/td3-v0", "--observe", observe)
    world(*OFFLINE, "--dataset", "mixed/td3-v0", "--observe", observe)
    (lived, loaded), A = made, slice(-4, -2)
    n = len(lived.rows[:lived.head[0] + 1])
    assert len(loaded.rows) == n == loaded.head[0] + 1 and len(loaded) == len(lived) == 150
    assert lived.running[0] and not loaded.running[0]
    a, b = lived.rows[:n], loaded.rows
    assert torch.allclose(a[:, A], b[:, A], atol=1e-6) and (a[:, A].abs() > 0.9).any()
    a[:, A] = b[:, A] = 0
    assert torch.equal(a, b)
    episodes = lived.newest[0] + 1
    assert np.array_equal(lived.first[0, :episodes], loaded.first[0, :episodes]) and loaded.newest[0] + 1 == episodes
    ends = lived.rows[lived.last[0, :episodes - 1], -1]
    assert 2 < ends.sum() < len(ends) - 2                              # terminated and truncated ones
    assert minari.load_dataset("mixed/td3-v0")[-1].truncations[-1]


def test_a_data_set_holds_what_the_environment_said(world, monkeypatch):
    """Minari opens it: all observations, whatever the agent saw, the environment's own actions, both kinds of end."""
    made = buffers(monkeypatch)
    world(*ONLINE, "--record", "mixed/td3-v0", "--observe", "positions", "--flicker", "0.5")
    dataset = minari.load_dataset("mixed/td3-v0")
    assert dataset.total_steps == 150 and dataset.env_spec.id == "TestMixed-v0"
    env = dataset.recover_environment()
    assert env.spec.max_episode_steps == 8 and env.observation_space == dataset.observation_space
    assert env.action_space == dataset.action_space
    episodes, returns, t = list(dataset), [], 0
    for k, episode in enumerate(episodes):
        T = len(episode)
        assert episode.observations.shape == (T + 1, 4) and episode.observations.dtype == np.float32
        assert all(env.action_space.contains(a) for a in episode.actions)
        assert not (episode.terminations[:-1] | episode.truncations[:-1]).any()
        assert episode.truncations[-1] == (T == 8 or k == len(episodes) - 1 and not episode.terminations[-1])
        assert episode.terminations[-1] or episode.truncations[-1]
        rows = made[0].rows[t:t + T + 1]                               # flickers: zero, or what the environment said
        seen = rows[:, 0] != 0
        assert np.array_equal(rows[seen, :2], episode.observations[seen][:, [0, 2]])
        assert np.allclose(rows[1:, -2], episode.rewards)
        t += T + 1
        returns.append(episode.rewards.sum())
    assert (made[0].rows[:t, 0] == 0).any()
    said = dataset.storage.metadata
    assert said["algorithm_name"] == "TD3" and "--record mixed/td3-v0" in said["description"]
    assert f"{len(episodes)} episodes, 150 steps, mean return {np.mean(returns):.1f}." in said["description"]


def test_recording_does_not_change_the_run(world, tmp_path):
    results = []
    for name, flags in (("1", []), ("2", ["--record", "mixed/td3-v0"])):
        world(*ONLINE, *flags, results=name)
        path, = glob.glob(str(tmp_path / name / "*.csv"))
        results.append((os.path.basename(path), [line.split(",")[:4] for line in open(path)]))
    assert results[0] == results[1]


@pytest.mark.parametrize("env_id", ["Pendulum-v1", "CartPole-v1", "InvertedPendulumBulletEnv-v0", "Cue10-v0"])
def test_environments_are_recovered(env_id):
    env = record(env_id, "toys/random-v3", 50)
    dataset = minari.load_dataset("toys/random-v3")
    again = dataset.recover_environment()
    assert again.spec.id == env_id and again.action_space == env.env.env.action_space == dataset.action_space
    again.reset(seed=0)
    episode = dataset[0]
    _, reward, *_ = again.step(episode.actions[0])
    assert again.observation_space.contains(episode.observations[1]) and np.isfinite(reward)
    assert dataset.total_steps == 50 and "toys/random-v3" in minari.list_local_datasets()


class Symbols(Mixed):
    """What it observes is a number of 0 to 4, or two such."""

    def __init__(self, parts=1):
        super().__init__()
        number = gym.spaces.Discrete(5)
        self.observation_space = number if parts == 1 else gym.spaces.Tuple([number] * parts)

    def observe(self):
        return self.observation_space.sample()


NUMBERS = "TestNumbers-v0"
gym.register(NUMBERS, "test_data:Symbols", max_episode_steps=8)
gym.register("TestNumberPairs-v0", "test_data:Symbols", max_episode_steps=8, kwargs=dict(parts=2))


def test_discrete_actions_are_kept_raw_and_taken_one_hot():
    """An environment's own number, and the agent's vector for it, there and back. What is no such number is refused."""
    class Env(gym.Env):
        observation_space, action_space = gym.spaces.Box(-1, 1, (1,)), gym.spaces.Discrete(3, start=-1)
    env = envs.OneHotAction(Env())
    action = env.inverse(np.array([-1, 1, 0], np.int8))
    assert action.tolist() == [[1, 0, 0], [0, 0, 1], [0, 1, 0]] and [env.action(one) for one in action] == [-1, 1, 0]

    env = record("CartPole-v1", "x-v0", 60)
    raw = [episode.actions for episode in minari.load_dataset("x-v0")]
    for actions, episode in zip(raw, data.load("x-v0", env, 0)):
        assert np.array_equal(episode.action, np.eye(2, dtype=np.float32)[actions])
    for value, says in ((7, "actions outside Discrete"), (-1, "actions outside Discrete"), (0.5, "actions of type float64")):
        array("actions", lambda x, value=value: np.array([*x[:-1], value]))()
        with pytest.raises(ValueError, match=f"{says}.* in episode 1"):
            data.load("x-v0", env, 0)


def test_discrete_observations_are_kept_raw_and_seen_one_hot(world):
    env = record(NUMBERS, "symbols/random-v0", 60)
    raw = [episode.observations for episode in minari.load_dataset("symbols/random-v0")]
    assert {int(x) for x in np.concatenate(raw)} == set(range(5))
    for observations, episode in zip(raw, data.load("symbols/random-v0", env, 0)):
        assert np.array_equal(episode.state, np.eye(5, dtype=np.float32)[observations])
    world(*OFFLINE, "--env", NUMBERS, "--dataset", "symbols/random-v0")


class Bounded(Mixed):
    """Its last two actions are a whole number and one that has no choice; or all are whole numbers."""

    def __init__(self, dtype=np.float32):
        super().__init__()
        self.action_space = gym.spaces.Box(np.array([-3, 0, 7], dtype), np.array([3, 255, 7], dtype), dtype=dtype)


gym.register("TestNoChoice-v1", "test_data:Bounded", max_episode_steps=8)
gym.register("TestWhole-v1", "test_data:Bounded", max_episode_steps=8, kwargs=dict(dtype="int64"))


@pytest.mark.parametrize("env_id", ["TestNoChoice-v1", "TestWhole-v1"])
def test_an_own_recording_of_any_actions_is_learnt_from(env_id, world, tmp_path):
    """Equal bounds in a dimension, and whole numbers: what was recorded are the environment's actions, what is read are the
    agent's, all of them finite."""
    env = record(env_id, "toys/random-v0", 60)
    recorded = [episode.actions for episode in minari.load_dataset("toys/random-v0")]
    for actions, episode in zip(recorded, data.load("toys/random-v0", env, 0)):
        assert actions.dtype == env.unwrapped.action_space.dtype and (actions[:, 2] == 7).all()
        assert np.isfinite(episode.action).all() and (abs(episode.action) <= 1).all() and (episode.action[:, 2] == 0).all()
        np.testing.assert_allclose(env.env.action(episode.action), actions, rtol=1e-5, atol=1e-5)
    world(*OFFLINE, "--env", env_id, "--dataset", "toys/random-v0")


def test_an_episode_without_an_end_is_truncated():
    """In a data set from elsewhere, also in its middle."""
    env = record("TestMixed-v0", "x-v0", 60)
    for what in ("terminations", "truncations"):
        array(what, last(False))()
    episodes = data.load("x-v0", env, 0)
    assert not episodes[1].terminated.any() and episodes[1].truncated.tolist() == [False] * (len(episodes[1].reward) - 1) + [True]


def test_noise_on_a_data_set_is_seeded():
    record("Pendulum-v1", "x-v0", 300)
    env = envs.make_env("Pendulum-v1", obs_noise=0.1, flicker=0.2)
    one, same, other = [np.concatenate([e.state for e in data.load("x-v0", env, seed)]) for seed in (0, 0, 1)]
    plain = np.concatenate([e.state for e in data.load("x-v0", envs.make_env("Pendulum-v1"), 0)])
    assert np.array_equal(one, same) and not np.array_equal(one, other)
    dark = ~one.any(1)
    assert 0.1 < dark.mean() < 0.3 and (one - plain)[~dark].std() == pytest.approx(0.1, abs=0.02)


@pytest.mark.parametrize("explore", [False, True])
def test_a_saved_policy_is_recorded(world, explore, tmp_path, capsys):
    """--test --record: as many episodes as --eval_episodes. With --explore its actions are noisy, but never those of the
    random start."""
    world(*ONLINE, "--save_model", "--start_timesteps", "120", "--expl_noise", "0.05", "--record", "mixed/td3-v0")
    model, = glob.glob(str(tmp_path / "results" / "*.best.pt"))
    before = sorted(os.listdir(tmp_path / "results"))
    capsys.readouterr()
    world("--test", "--load_model", model, "--eval_episodes", "20", "--record", "mixed/saved-v0", *["--explore"] * explore)
    out, err = capsys.readouterr()
    assert err == "" and re.search(r"over 20 episodes", out) and "data set mixed/saved-v0 written: 20 episodes" in out
    assert sorted(os.listdir(tmp_path / "results")) == before
    env = envs.make_env("TestMixed-v0")
    episodes = data.load("mixed/saved-v0", env, 0)
    run, cfg, algorithm, checkpoint = main.parse(["--test", "--load_model", model])
    agent = algorithm(main.env_spec(env), cfg)
    agent.load_state_dict(checkpoint["agent"])
    away = np.concatenate([e.action - agent.act(np.pad(e.state[:-1], ((0, 0), (0, 3))), np.zeros((len(e.action), 0)), False)[0]
                           for e in episodes])
    assert len(episodes) == 20 and np.abs(away).max() < (0.3 if explore else 1e-5)
    assert not explore or away.std() == pytest.approx(0.05, abs=0.02)
    world("--test", "--load_model", model)                             # is not recorded because its training was
    assert list(minari.list_local_datasets()) == ["mixed/saved-v0", "mixed/td3-v0"]


def test_training_never_steps_the_environment(world, tmp_path, monkeypatch, capsys):
    """All steps but the one that make_env tries are those of the evaluations; what was trained from is in the JSON."""
    world(*ONLINE, "--record", "mixed/td3-v0")
    Mixed.steps, made = 0, buffers(monkeypatch)
    monkeypatch.setattr(main, "make_vector_env", None)
    capsys.readouterr()
    world(*OFFLINE, "--dataset", "mixed/td3-v0", "--recurrent", "--core_size", "4", "--seq_len", "4", results="offline")
    path, = glob.glob(str(tmp_path / "offline" / "*.csv"))
    assert os.path.basename(path).startswith("TestMixed-v0_BCQ_lstm_") and "dataset=mixed-td3-v0" in path
    rows = [line.strip().split(",") for line in open(path)][1:]
    assert [int(row[0]) for row in rows] == [0, 0, 20, 20, 30, 30]
    assert Mixed.steps == 1 + sum(int(row[3]) for row in rows) and len(made[0]) == 150
    info = json.load(open(path.replace(".csv", ".json")))
    description = minari.load_dataset("mixed/td3-v0").storage.metadata["description"]
    assert info["data"]["steps"] == 150 and info["finished"] and info["config"]["dataset"] == "mixed/td3-v0"
    assert f"{info['data']['episodes']} episodes, 150 steps, mean return {info['data']['mean return']}." in description
    assert "update 20 of 30: return" in capsys.readouterr().out


def test_an_interrupted_run_keeps_what_it_recorded(world, monkeypatch):
    train = TD3.TD3.train

    def interrupt(self, buffer):
        if self.steps == 100:
            raise KeyboardInterrupt
        return train(self, buffer)
    monkeypatch.setattr(TD3.TD3, "train", interrupt)
    with pytest.raises(SystemExit) as stop:
        world(*ONLINE, "--record", "mixed/td3-v0", "--replay_ratio", "8")
    assert stop.value.code == 130 and minari.load_dataset("mixed/td3-v0").total_steps == 100


def test_a_name_that_is_taken_meanwhile(world, monkeypatch, capsys):
    """By another run that records: nothing is lost, the data set gets the next free version."""
    record("TestMixed-v0", "mixed/td3-v0", 20)
    record("TestMixed-v0", "mixed/td3-v1", 20)
    monkeypatch.setattr(data, "check_free", lambda name: None)
    world(*ONLINE, "--record", "mixed/td3-v0")
    assert "data set mixed/td3-v2 written" in capsys.readouterr().out
    assert minari.load_dataset("mixed/td3-v0").total_steps == 20 < minari.load_dataset("mixed/td3-v2").total_steps


def test_a_data_set_that_cannot_be_written(world, monkeypatch, capsys, tmp_path):
    """One line, exit code 1, the run's results are there, and no half of a data set."""
    def full(name, *args, **kwargs):
        os.makedirs(tmp_path / "minari" / name / "data")
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(minari, "create_dataset_from_buffers", full)
    with pytest.raises(SystemExit) as stop:
        world(*ONLINE, "--record", "mixed/td3-v0")
    out, err = capsys.readouterr()
    assert stop.value.code == 1 and err.count("\n") == 1 and "mixed/td3-v0 could not be written: [Errno 28] No space" in err
    assert "no checkpoints: --record" in out and glob.glob(str(tmp_path / "results" / "*.csv"))
    assert not (tmp_path / "minari" / "mixed" / "td3-v0").exists()


# ---------------------------------------------------------------------- bad input

BAD_FLAGS = [
    ("--policy BCQ", ["BCQ trains from a recorded data set", "--dataset NAME"]),
    ("--policy BCQ --dataset no/such-v0", ["no data set 'no/such-v0'", "minari download no/such-v0", "--record no/such-v0"]),
    ("--policy BCQ --dataset ../x-v0", ["'../x-v0' is no name", "such as hopper/td3-v0"]),
    ("--policy BCQ --dataset noversion", ["'noversion' is no name", "version"]),
    ("--policy BCQ --dataset x-v0 --env CartPole-v1", ["BCQ needs continuous actions", "discrete ones", "--policy PPO"]),
    ("--policy TD3 --dataset x-v0", ["--dataset is a flag of BCQ", "TD3 does not use it"]),
    ("--policy TD3 --record td3", ["--record: 'td3' is no name", "such as hopper/td3-v0"]),
    ("--policy TD3 --record x-v0 --num_envs 2", ["--record", "2 environments", "--num_envs 1"]),
    ("--policy PPO --record x-v0 --num_envs 8", ["--record", "8 environments", "--num_envs 1"]),
    ("--policy BCQ --dataset x-v0 --record y-v0", ["--record: BCQ trains without stepping", "--test"]),
    ("--policy TD3 --explore", ["--explore is for --test"]),
    ("--policy BCQ --num_envs 2", ["--num_envs is a flag of TD3", "BCQ does not use it"]),
    *[(f"--policy BCQ --dataset x-v0 --recurrent {flag}", [flag, "no use to BCQ", "no hidden states", "--burn_in"])
      for flag in ("--hidden_init stored", "--hidden_refresh", "--stored_precision float16", "--critic_hidden zero")],
]


@pytest.mark.parametrize("argv, says", BAD_FLAGS)
def test_bad_flags(argv, says, refused):
    refused(["--env", "Pendulum-v1", *argv.split()], says)


def test_bad_flags_of_a_test(world, refused, tmp_path):
    world(*ONLINE, "--record", "mixed/td3-v0")
    world(*OFFLINE, "--dataset", "mixed/td3-v0", "--save_model", results="offline")
    model, = glob.glob(str(tmp_path / "offline" / "*.best.pt"))
    for flags, says in (("--explore", ["BCQ has no exploration"]), ("--dataset mixed/td3-v0", ["--test trains nothing"]),
                        ("--record mixed/td3-v0", ["'mixed/td3-v0' already", "another name or version"])):
        refused(["--test", "--load_model", model, *flags.split()], says)
    world("--test", "--load_model", model)                             # needs no data set any more


def test_what_cannot_be_recorded(refused, tmp_path, monkeypatch):
    refused([*ONLINE, "--env", "TestNumberPairs-v0", "--record", "pairs/td3-v0"],
            ["--record: TestNumberPairs-v0 has observations of several parts"])
    record("TestMixed-v0", "mixed/random-v0", 20)
    refused([*ONLINE, "--record", "mixed/random-v0"], ["data set 'mixed/random-v0' already", "another name or version"])
    for name in ("mixed/random-v0/more-v0", "mixed/random-v0/data/more-v0"):
        refused([*ONLINE, "--record", name], ["is a data set itself", "choose another name"])
    record("TestMixed-v0", "data/random-v0", 20)                       # a folder of that name is none
    data.check_free("other/random-v0")
    (tmp_path / "data").mkdir(exist_ok=True)                           # nor is one above Minari's, which need not be there
    with monkeypatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "new" / "minari"))
        data.check_free("other/random-v0")
    (tmp_path / "minari" / "file").write_text("mine")
    refused([*ONLINE, "--record", "file/random-v0"], ["cannot be written", "MINARI_DATASETS_PATH"])


# ---------------------------------------------------------------------- bad and hostile data sets

def path_of(name):
    """A file of the data set x-v0, to be damaged."""
    return os.path.join(os.environ["MINARI_DATASETS_PATH"], "x-v0", "data", name)


def hdf5(edit):
    """A damage: `edit` is given the numbers, HDF5 as Minari has it, open to be written."""
    def damage():
        with h5py.File(path_of("main_data.hdf5"), "a") as file:
            edit(file)
    return damage


def array(what, make):
    """A damage: an array of the second episode becomes what `make` makes of it."""
    def edit(file):
        values = make(file["episode_1"][what][()])
        del file["episode_1"][what]
        file["episode_1"][what] = values
    return hdf5(edit)


def metadata(edit):
    """A damage: `edit` is given what the data set says of itself."""
    def damage():
        info = json.load(open(path_of("metadata.json")))
        edit(info)
        json.dump(info, open(path_of("metadata.json"), "w"))
    return damage


def last(value):
    return lambda x: np.concatenate([x[:-1], np.full_like(x[-1:], value)])


def other_space(what, says_env):
    def edit(info):
        space = json.loads(info[what])
        space["high"][1] = 70.5
        info[what] = json.dumps(space)
        if not says_env:
            del info["env_spec"]
    return metadata(edit)


def no_episodes(size):
    """Its file may be empty, too, as a collector leaves it that never stepped."""
    shutil.rmtree(os.path.dirname(os.path.dirname(path_of(""))))
    minari.create_dataset_from_buffers("x-v0", [], envs.make_env("TestMixed-v0").env.env)
    if size is not None:
        os.truncate(path_of("main_data.hdf5"), size)


def pipe(name):
    """To open one is to wait for ever."""
    def damage():
        os.remove(path_of(name))
        os.mkfifo(path_of(name))
    return damage


AGAIN = "record or download it again"
WRONG = {
    "another rank": lambda x: x[..., None], "shorter": lambda x: x[:-1], "longer": lambda x: np.concatenate([x, x[:1]]),
    "a single number": lambda x: x.flat[0], "text": lambda x: x.astype("S9"), "complex": lambda x: x.astype(complex),
    "beyond float32": lambda x: np.full(x.shape, 1e39), "neither 0 nor 1": lambda x: np.full(x.shape, 2),
}
BAD = [                                                                # damage, what is said, the environment
    *[(array(what, last(value)), ["'x-v0' has NaN or infinity", what, "episode 1", "without that episode"], "TestMixed-v0")
      for what, value in (("observations", np.nan), ("actions", np.inf), ("rewards", np.nan))],
    (lambda: None, ["recorded in TestMixed-v0, not in Pendulum-v1", "--env TestMixed-v0", "MODULE:TestMixed-v0"], "Pendulum-v1"),
    *[(other_space(what + "_space", says_env), [f"'x-v0' has {what}s in Box(", "TestMixed-v0 has them in Box", "70.5"],
       "TestMixed-v0") for what in ("observation", "action") for says_env in (True, False)],
    *[(lambda size=size: no_episodes(size), ["'x-v0' is empty", "another"], "TestMixed-v0") for size in (None, 0)],
    (hdf5(lambda file: file["episode_1"].pop("rewards")), ["'x-v0' cannot be read", "KeyError"], "TestMixed-v0"),
    (lambda: os.truncate(path_of("main_data.hdf5"), 100), ["'x-v0' cannot be read", AGAIN], "TestMixed-v0"),
    (lambda: os.remove(path_of("metadata.json")), ["'x-v0' cannot be read"], "TestMixed-v0"),
    *[(pipe(name), ["cannot be read", f"{name} is no file"], "TestMixed-v0") for name in ("metadata.json", "main_data.hdf5")],
    (array("observations", WRONG["shorter"]), ["observations of shape", "in episode 1 of", "steps"], "TestMixed-v0"),
    # Arrays of another kind than declared; Minari may notice first, and names no place. 2 is a good number, but no flag
    *[(array(what, make), ["'x-v0'", AGAIN] + [what, "in episode 1"] * (what != "rewards" and wrong != "a single number"),
       "TestMixed-v0") for what in ("observations", "actions", "rewards", "terminations", "truncations")
      for wrong, make in WRONG.items() if wrong != "neither 0 nor 1" or what in ("terminations", "truncations")],
    # A 7 of a Discrete(5) has no place in a one-hot vector, and a -1 would be taken for the last
    *[(array("observations", lambda x, value=value: np.array([*x[:-1], value])), ["observations", says, "in episode 1"], NUMBERS)
      for value, says in ((7, "outside Discrete"), (-1, "outside Discrete"), (0.5, "of type float64"))],
    *[(metadata(lambda info, name=name, number=number: info.update({f"total_{name}": number})),
       [f"states {number} {name} and has"], "TestMixed-v0") for name in ("episodes", "steps") for number in (1, 10 ** 12)],
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("damage, says, env", BAD)
def test_a_bad_data_set(damage, says, env, refused):
    """Nothing is read as if it were right, and nothing ends in a traceback."""
    record(NUMBERS if env == NUMBERS else "TestMixed-v0", "x-v0", 60)
    damage()
    refused([*OFFLINE, "--env", env, "--dataset", "x-v0"], says)


def place(kind, file, folder):
    """Let the rewards of the second episode lie elsewhere, with the same numbers, so that only the place is wrong."""
    rewards, group = file["episode_1"]["rewards"][()], file["episode_1"]
    del group["rewards"]
    with h5py.File(folder / "other.hdf5", "w") as other:
        other["rewards"] = rewards
    rewards.tofile(folder / "other.bin")
    file["episode_0"]["kept"] = rewards
    if kind == "virtual array":
        layout = h5py.VirtualLayout(rewards.shape, rewards.dtype)
        layout[:] = h5py.VirtualSource(str(folder / "other.hdf5"), "rewards", rewards.shape)
        group.create_virtual_dataset("rewards", layout)
    elif kind == "external storage":
        group.create_dataset("rewards", rewards.shape, rewards.dtype, external=[(str(folder / "other.bin"), 0, rewards.nbytes)])
    else:
        group["rewards"] = h5py.SoftLink("/episode_0/kept") if kind == "soft link" else \
            h5py.ExternalLink(str(folder / "other.hdf5"), "rewards")


@pytest.mark.parametrize("kind", ["soft link", "external link", "external storage", "virtual array"])
def test_a_data_set_holds_its_own_numbers(kind, refused, tmp_path):
    """Else it could hand on any file of the machine."""
    record("TestMixed-v0", "x-v0", 60)
    hdf5(lambda file: place(kind, file, tmp_path))()
    assert len(minari.load_dataset("x-v0")[1].rewards) > 0             # Minari follows it
    refused([*OFFLINE, "--dataset", "x-v0"], ["refers to another place at episode_1/rewards"])


def test_a_data_set_runs_no_code(refused, monkeypatch):
    """Minari makes the environment, by any function that the data set names, if it does not state its spaces."""
    record("TestMixed-v0", "x-v0", 60)
    called = []
    monkeypatch.setattr(test_memory, "trap", lambda **_: called.append(1), raising=False)

    def edit(info):
        spec = json.loads(info["env_spec"]) | {"entry_point": "test_memory:trap", "id": "TestTrap-v0"}
        info["env_spec"] = json.dumps(spec)
    metadata(edit)()
    refused([*OFFLINE, "--dataset", "x-v0"], ["recorded in TestTrap-v0"])
    metadata(lambda info: info.pop("action_space"))()
    refused([*OFFLINE, "--dataset", "x-v0"], ["does not state its spaces"])
    assert not called
    with pytest.raises(TypeError):                                     # it returned no environment
        minari.load_dataset("x-v0")
    assert called                                                      # the trap is a real one


@pytest.mark.parametrize("package", ["minari", "h5py"])
@pytest.mark.parametrize("argv", [[*ONLINE, "--record", "x-v0"], [*OFFLINE, "--dataset", "x-v0"]])
def test_without_minari(package, argv, refused, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    refused(argv, ["needs Minari", 'pip install "minari[hdf5]"'])


def test_from_a_shell(tmp_path):
    """In a process of its own: no traceback and nothing written; Minari is only imported where it is needed."""
    environment = {**os.environ, "MINARI_DATASETS_PATH": str(tmp_path / "minari")}
    script = ("import sys, main\n"
              "for argv in sys.argv[1:]:\n"
              "    try: main.main(argv.split())\n"
              "    except SystemExit as stop: print(stop.code, 'minari' in sys.modules)\n")
    results = f"--results_dir {tmp_path / 'results'}"
    lines = [f"--policy TD3 --env Pendulum-v1 --max_timesteps 5 --eval_episodes 1 --explore {results}",
             f"--policy BCQ --env Pendulum-v1 --dataset no/such-v0 {results}"]
    done = subprocess.run([sys.executable, "-c", script, *lines], capture_output=True, text=True, cwd=HERE, env=environment)
    assert done.stdout.split("\n") == ["2 False", "2 True", ""] and done.stderr.count("\n") == 2, done.stderr
    assert all(line.startswith("error: ") for line in done.stderr.splitlines()) and os.listdir(tmp_path) == []
