"""main.py, flags.py and the files of a run: flags, what bad input gets, results, evaluation, saved models, the whole loop."""
import csv
import fcntl
import importlib
import itertools
import json
import math
import os
import pickle
import pty
import random
import re
import signal
import struct
import subprocess
import sys
import termios
import time
import typing
from dataclasses import fields

import gymnasium as gym
import numpy as np
import pytest
import test_envs  # noqa: F401  (registers toy environments)
import torch
from conftest import buffers, recorded, spy

import main
from agent import MemoryFlags
from flags import BEFORE, ELSEWHERE, NOT_LEARNING, POLICIES, RunFlags, defaults_of, env_options, parse, run_name
from support import models
from support import results as output
from utils import Buffer

HERE = os.path.dirname(os.path.abspath(main.__file__))
SMALL = {
    "TD3": ["--start_timesteps", "50", "--batch_size", "16", "--replay_ratio", "4"],
    "DDPG": ["--start_timesteps", "50", "--batch_size", "16", "--replay_ratio", "4"],
    "SAC": ["--start_timesteps", "50", "--batch_size", "16", "--replay_ratio", "4"],
    "A2C": ["--rollout_steps", "16", "--num_envs", "2"],
    "REINFORCE": ["--batch_size", "32"],
    "R2D1": ["--start_timesteps", "50", "--batch_size", "16", "--replay_ratio", "4", "--n_steps", "1"],
    "BCQ": ["--dataset", "test/pendulum-v0", "--batch_size", "16", "--target_candidates", "2", "--act_candidates", "5"],
    "PPO": ["--rollout_steps", "32", "--num_envs", "2", "--epochs", "2", "--batch_size", "16"],
}
SHORT = {"REINFORCE": "CartPole-v1", "R2D1": "CartPole-v1"}             # learns at an episode's end; has discrete actions
RECURRENT = ["--recurrent", "--core_size", "4", "--seq_len", "4"]


def tiny(policy, env_id="Pendulum-v1", *flags):
    """Flags of a run that takes a second."""
    return ["--policy", policy, "--env", env_id, "--max_timesteps", "240", "--eval_freq", "100", "--eval_episodes", "2",
            "--hidden_size", "8", *SMALL[policy], *flags]


def run(folder, argv):
    """Run main.py in this process; returns the path of its results, without ending."""
    main.main([*argv, "--results_dir", str(folder)])
    name, = (name for name in os.listdir(folder) if name.endswith(".csv"))
    return os.path.join(folder, name.removesuffix(".csv"))


def evaluations(path):
    """The CSV's rows without the time they took: (step, episode, return, length) as text."""
    with open(path + ".csv") as file:
        head, *rows = csv.reader(file)
    assert head == ["step", "episode", "return", "length", "seconds"]
    return [row[:-1] for row in rows]


def weights(path):
    """All numbers of a saved agent, by name."""
    agent = torch.load(path, weights_only=True)["agent"]
    return {f"{network}.{name}": tensor for network in ("actor", "critic") if network in agent
            for name, tensor in agent[network].items()}


def same_weights(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module", autouse=True)
def data_sets(tmp_path_factory):
    """A folder of data sets, with one of Pendulum for offline algorithms: 400 steps by random actions, 2 episodes."""
    yield from recorded(tmp_path_factory, "Pendulum-v1", "test/pendulum-v0", 400)


# ---------------------------------------------------------------------- flags

def all_flags(policy):
    """(name, kind, default, low, high) of all of a policy's flags; kind is int, float, bool, str or a tuple of words."""
    for cls in (RunFlags, importlib.import_module(policy).HyperParameters):
        hints = typing.get_type_hints(cls)
        for f in fields(cls):
            kinds = typing.get_args(hints[f.name]) or (hints[f.name],)
            yield f.name, next((k for k in (int, float, bool, str) if k in kinds), kinds), f.default, \
                f.metadata["low"], f.metadata["high"]


INTEGERS = [(p, f[0], f[3]) for p in POLICIES for f in all_flags(p) if f[1] is int]
FLOATS = [(p, f[0], f[3], f[4]) for p in POLICIES for f in all_flags(p) if f[1] is float]


def test_no_size_was_forgotten():
    names = {name for _, name, _ in INTEGERS}
    assert names >= set("num_envs eval_freq eval_episodes max_timesteps batch_size memory_size hidden_size core_size seq_len "
                        "rollout_steps epochs policy_freq start_timesteps burn_in seed threads hidden_layers".split())


@pytest.mark.parametrize("policy,name,low", INTEGERS)
def test_bad_whole_numbers(policy, name, low, refused):
    low = 1 if low is None else low
    for value in [str(low - 1), "-1", "-1e3", "1.5", "nan", "inf", "-inf", "abc", "", "1e400", "1e300"]:
        refused([*tiny(policy), f"--{name}", value], [f"--{name}", f"'{value}'", f"a whole number of at least {low}"])


@pytest.mark.parametrize("policy,name,low,high", FLOATS)
def test_bad_numbers(policy, name, low, high, refused):
    low = 0 if low is None else low
    for value in [str(low - 0.5), f"{min(low, 0) - 1e3:g}", "nan", "inf", "-inf", "abc", "", "1e400"] + ["1.01"] * (high == 1):
        refused([*tiny(policy), f"--{name}", value], [f"--{name}", f"'{value}'", f"a number of at least {low}"] +
                ["at most 1"] * (high == 1))


@pytest.mark.parametrize("policy,name", [(p, name) for p, name, *_ in FLOATS
                                         if name in ("lr", "core_lr", "tau", "replay_ratio", "max_grad_norm")])
def test_numbers_that_learn_nothing(policy, name, refused):
    refused(["--policy", policy, "--recurrent", f"--{name}", "0"], [f"--{name} 0 learns nothing", "positive"])


def test_numbers_may_be_written_with_an_exponent():
    run, cfg, *_ = parse("--max_timesteps 1e4 --memory_size 5e4 --seed 2e0 --lr 1e-3 --recurrent --seq_len 8e0".split())
    assert (cfg.max_timesteps, cfg.memory_size, run.seed, cfg.lr, cfg.seq_len) == (10_000, 50_000, 2, 1e-3, 8)
    assert all(type(n) is int for n in (cfg.max_timesteps, cfg.memory_size, run.seed, cfg.seq_len))
    assert parse("--recurrent --seq_len full".split())[1].seq_len == "full"
    assert parse("--policy PPO --init_log_std -1e0".split())[1].init_log_std == -1


@pytest.mark.parametrize("policy", POLICIES)
def test_defaults_are_the_algorithms_own(policy):
    algorithm = vars(importlib.import_module(policy))[policy]
    run, cfg, loaded, checkpoint = parse(["--policy", policy])
    assert loaded is algorithm and checkpoint is None and run.policy == policy
    flags = algorithm.HyperParameters
    assert vars(cfg) == defaults_of(flags)
    _, cfg, *_ = parse(["--policy", policy, "--recurrent"])
    expected = dict(recurrent_actor=True, recurrent_critic=True, **flags.recurrent_defaults)
    assert vars(cfg) == {**defaults_of(flags), **expected}
    assert not set(flags.recurrent_defaults) - set(vars(cfg))


def test_given_flags_win_over_recurrent_defaults():
    _, cfg, *_ = parse("--recurrent --seq_len 5 --hidden_layers 3 --no-recurrent_critic".split())
    assert (cfg.seq_len, cfg.hidden_layers, cfg.recurrent_actor, cfg.recurrent_critic) == (5, 3, True, False)
    _, cfg, algorithm, _ = parse(["--recurrent_critic"])
    seq_len = algorithm.HyperParameters.recurrent_defaults["seq_len"]
    assert (cfg.recurrent_actor, cfg.recurrent_critic, cfg.seq_len) == (False, True, seq_len)


def test_of_a_flag_given_twice_the_last_counts():
    run, cfg, algorithm, _ = parse("--seed 1 --policy TD3 --lr 1 --policy DDPG --lr 2 --seed=3".split())
    assert (run.seed, run.policy, algorithm.__name__, cfg.lr) == (3, "DDPG", "DDPG", 2)


NOT_LISTED = {                                                         # since the policy refuses them
    "PPO": {"stored_precision"}, "A2C": {"stored_precision", "hidden_refresh"},
    "REINFORCE": {"stored_precision", "hidden_refresh"},
    "R2D1": {"recurrent_actor", "recurrent_critic", "critic_hidden"},
    "BCQ": {"hidden_init", "hidden_refresh", "stored_precision", "critic_hidden", "explore"}}


@pytest.fixture
def help_of(capsys):
    """A function: what --help prints, {group: {flag: its text}}, the lines before, and how many there are in all."""
    def help_of(*argv):
        with pytest.raises(SystemExit) as stop:
            main.main([*argv, "--help"])
        out, _ = capsys.readouterr()
        assert stop.value.code == 0
        head, *groups = out.split("\n\n")
        listed = {}
        for title, _, text in (group.partition("\n") for group in groups):
            flags = [flag.split() for flag in re.split(r"^  --", text, flags=re.MULTILINE)[1:]]
            listed[title] = {name: " ".join(words) for name, *words in flags}
        return listed, head, len(out.splitlines())
    return help_of


@pytest.mark.parametrize("policy", POLICIES)
def test_help_is_short_and_lists_what_the_policy_takes(policy, help_of):
    groups, head, lines = help_of("--policy", policy)
    assert list(groups) == ["task", "memory", "learning", "evaluation", "files", "logging"] and lines < 100
    assert head.splitlines()[0] == importlib.import_module(policy).__doc__.splitlines()[0] and "usage" not in head
    listed = [name for flags in groups.values() for name in flags]
    assert len(listed) == len(set(listed))
    assert {*listed} == {"recurrent", *(f[0] for f in all_flags(policy))} - NOT_LISTED.get(policy, set())
    assert next(iter(groups["memory"])) == "recurrent" and "lr" in groups["learning"]


def test_help_shows_the_values_that_this_run_would_have(trained, help_of):
    groups, _, lines = help_of("--policy", "R2D1", "--recurrent", "--lr", "0.5")
    assert groups["memory"]["seq_len"].endswith("[32; without --recurrent: 1]") and lines < 100
    assert groups["learning"]["lr"].endswith("[0.5]")
    assert help_of("--policy", "R2D1")[0]["learning"]["n_steps"].endswith("[1; with --recurrent: 5]")
    assert help_of("--load_model", trained + ".best.pt")[0]["memory"]["core_size"].endswith("[4]")


# ---------------------------------------------------------------------- bad input: flags

@pytest.mark.parametrize("argv,says", [
    ("--policy TD4", ["unknown policy 'TD4'", "did you mean TD3?", *POLICIES]),
    ("--policy ppo", ["unknown policy 'ppo'", "did you mean PPO?"]),
    ("--policy Rainbow", ["unknown policy 'Rainbow'", *POLICIES]),
    ("--policy", ["--policy", "expected one argument"]),
    ("--env HoperBulletEnv-v0", ["unknown environment 'HoperBulletEnv-v0'", "did you mean HopperBulletEnv-v0"]),
    ("--env Pendulun-v1", ["unknown environment 'Pendulun-v1'", "did you mean Pendulum-v1"]),
    ("--env zzzzzzzz", ["unknown environment 'zzzzzzzz'", "such as HopperBulletEnv-v0"]),
    ("--env nosuchmodule:Foo-v0", ["nosuchmodule:Foo-v0 cannot be made"]),
    ("--policy DDPG --policy_freq 2", ["--policy_freq is a flag of TD3", "DDPG does not use it"]),
    ("--policy TD3 --epochs 3", ["--epochs is a flag of PPO", "TD3 does not use it"]),
    ("--epochs=3", ["--epochs is a flag of PPO", "TD3 does not use it"]),
    ("--policy BCQ --no-baseline", ["--no-baseline is a flag of REINFORCE", "BCQ does not use it"]),
    ("--policy PPO --replay_ratio 2", ["--replay_ratio is a flag of TD3 and DDPG and SAC", "PPO does not use it"]),
    ("--max_time 5", ["unknown argument '--max_time'", "did you mean --max_timesteps?"]),     # no abbreviations
    ("--evaluation_frequency 5", ["unknown argument '--evaluation_frequency'"]),
    ("--learning_rate 1e-3", ["did you mean --lr?"]),
    ("--learning-rate 1e-3", ["did you mean --lr?"]),
    ("--gamma=0.9", ["did you mean --discount?"]),
    ("--algo PPO", ["did you mean --policy?"]),
    ("--lstm_size 64", ["did you mean --core_size?"]),
    ("--policy PPO --n_epochs 3", ["did you mean --epochs?"]),
    ("--total_timesteps 1e6", ["did you mean --max_timesteps?"]),
    ("--seed 0,1,2", ["'0,1,2' is not a whole number of at least 0", "one value", "sweep.py"]),
    ("--lr 1e-3,3e-4", ["one value", "sweep.py"]),
    ("--seed 0 1 2", ["unknown argument '1'", "one value", "sweep.py"]),
    ("--env nosuchmodule:Foo-v0", ["there is no module 'nosuchmodule'"]),
    ("--recurrent True", ["--recurrent takes no value", "leave it out"]),
    ("--lr_decay false", ["--lr_decay takes no value", "--no-lr_decay for no"]),
    ("--qqq", ["unknown argument '--qqq'", "--help lists all flags"]),
    ("-seed 3", ["unknown argument '-seed'", "did you mean --seed?"]),
    ("core gru", ["unknown argument 'core'", "did you mean --core?"]),
    ("--no_recurrent_actor", ["unknown argument '--no_recurrent_actor'", "did you mean --no-recurrent_actor?"]),
    ("HopperBulletEnv-v0", ["unknown argument 'HopperBulletEnv-v0'"]),
    ("--save_model=yes", ["--save_model takes no value", "write --save_model for yes"]),
    ("--recurrent --core rnn", ["--core", "invalid choice: 'rnn'", "lstm", "gru"]),
    ("--observe half", ["--observe 'half'", "full, positions or velocities, nor indices such as 0-4,7"]),
    ("--observe 0-", ["--observe '0-'", "indices such as 0-4,7"]),
    ("--env Pendulum-v1 --observe 1,3", ["--observe 1,3: the observation has the entries 0 to 2"]),
    ("--env Pendulum-v1 --env_kwargs g=1 x", ["--env_kwargs 'x': give each argument once, as key=value"]),
    ("--recurrent --seq_len all", ["--seq_len", "'all'", "whole number of at least 1", "or 'full'"]),
    ("--recurrent --seq_len full --burn_in 8", ["--burn_in 8 with --seq_len full", "add --burn_in 0"]),
    ("--policy A2C --recurrent --burn_in 8", ["--burn_in 8 with --seq_len full", "--seq_len with a number"]),
    ("--recurrent_actor --critic_hidden zero --hidden_init stored", ["--critic_hidden zero needs a recurrent critic"]),
    ("--recurrent_critic --critic_hidden actor --hidden_init stored", ["--critic_hidden actor needs a recurrent actor"]),
    ("--recurrent --critic_hidden actor --hidden_init zero", ["--critic_hidden actor needs --hidden_init stored"]),
    ("--recurrent --stored_precision float16", ["--stored_precision needs --hidden_init stored"]),
    ("--policy PPO --recurrent --stored_precision float16", ["--stored_precision float16 is of no use to PPO", "rollout"]),
    ("--policy A2C --recurrent --hidden_refresh", ["--hidden_refresh is of no use to A2C", "forgotten"]),
    ("--policy A2C --recurrent --seq_len 16 --burn_in 2", ["--burn_in with --seq_len 16", "rollout of 16 steps", "smaller"]),
    ("--policy PPO --recurrent --seq_len 300", ["--seq_len 300 is more than a rollout of --rollout_steps 256"]),
    ("--policy A2C --recurrent --seq_len 17", ["--seq_len 17 is more than a rollout of --rollout_steps 16"]),
    ("--policy PPO --rollout_steps 31", ["--batch_size 256 is more than a rollout of 8 x 31 steps", "smaller --batch_size"]),
    ("--policy PPO --max_timesteps 2040", ["--max_timesteps 2040 trains nothing", "after 2048 steps", "smaller --rollout_steps"]),
    *[(f"--policy {policy}", ["trains nothing", "where --lr_decay has reached 0"])
      for policy in ("PPO --max_timesteps 2048", "A2C --max_timesteps 64 --num_envs 4", "TD3 --max_timesteps 5001")],
    ("--policy A2C --max_timesteps 30 --num_envs 3", ["--max_timesteps 30 trains nothing", "after 48 steps"]),
    ("--policy REINFORCE --batch_size 9 --max_timesteps 8", ["--max_timesteps 8 trains nothing", "smaller --batch_size"]),
    *[(f"--policy {policy} --start_timesteps 50 --max_timesteps 50", ["--max_timesteps 50 trains nothing", "--start_timesteps"])
      for policy in ("TD3", "DDPG", "SAC", "R2D1")],
    ("--hidden_size 9 --hidden_layers 0", ["--hidden_size is of no use with --hidden_layers 0"]),
    ("--policy A2C --env CartPole-v1 --init_log_std 1", ["--init_log_std is of a Gaussian policy", "CartPole-v1 has discrete"]),
    ("--record=", ["--record ''", "such as hopper/td3-v0"]),
    ("--record a-v0 --checkpoint_freq 100", ["--checkpoint_freq is of no use with --record"]),
    ("--policy REINFORCE --no-baseline --recurrent_critic", ["--recurrent_critic needs the baseline"]),
    ("--policy REINFORCE --batch_size 3e5", ["--batch_size 300000 is more than --memory_size 100000"]),
    ("--policy REINFORCE --recurrent --hidden_init stored --hidden_refresh",
     ["--hidden_refresh is of no use to REINFORCE", "forgotten"]),
    ("--recurrent --hidden_refresh --hidden_init zero", ["--hidden_refresh needs --hidden_init stored"]),
    ("--device gpu", ["--device 'gpu' is unknown", "cpu, cuda, and cuda:0"]),
    ("--buffer_on_device", ["--buffer_on_device needs --device cuda"]),
    ("--device cuda:", ["--device 'cuda:' is unknown"]),
    ("--device cuda:01", ["--device 'cuda:01' is unknown"]),
    ("--env CartPole-v1", ["TD3 needs continuous actions", "CartPole-v1 has discrete ones", "--policy PPO"]),
    ("--policy DDPG --env CartPole-v1", ["DDPG needs continuous actions", "--policy PPO or A2C or REINFORCE or R2D1"]),
    ("--env TestImage-v0", ["TestImage-v0", "(8, 8, 3)", "only a Box of one axis"]),
    ("--env TestDict-v0", ["TestDict-v0", "its observation is Dict", "only a Box of one axis"]),
    ("--policy PPO --env TestMultiDiscrete-v0", ["its actions are MultiDiscrete", "only Discrete or a bounded Box"]),
    ("--env TestUnbounded-v0", ["its actions are Box(-inf, inf", "bounded"]),
    ("--env MountainCarContinuous-v0 --observe positions", ["no mask is known for MountainCarContinuous-v0",
                                                            "HopperBulletEnv-v0", "KEEP in envs.py"]),
    ("--env ReacherBulletEnv-v0 --observe velocities", ["ReacherBulletEnv-v0 has no such entries", "--observe positions"]),
    ("--test", ["--test needs --load_model FILE"]),
    ("--load_model nowhere.pt", ["--load_model", "no model file at 'nowhere.pt'", "--save_model writes"]),
])
def test_bad_input(argv, says, refused):
    refused(argv.split(), says)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("words", ["--seq_len 4", "--hidden_init stored", "--burn_in 3", "--hidden_refresh", "--core gru",
                                   "--core_size 4", "--critic_hidden zero", "--memory_input obs", "--core_lr 1e-3",
                                   "--stored_precision float16"])
def test_memory_flags_without_a_memory(policy, words, refused):
    name = words.split()[0]
    for extra in [], ["--no-recurrent_actor"], ["--recurrent", "--no-recurrent_actor", "--no-recurrent_critic"]:
        refused(["--policy", policy, *extra, *words.split()], [f"{name} needs a memory", "--recurrent"])


def test_every_memory_flag_is_held_by_the_test_above():
    assert {f.name for f in fields(MemoryFlags)} == {"recurrent_actor", "recurrent_critic", "seq_len", "hidden_init", "burn_in",
                                                     "hidden_refresh", "core", "core_size", "critic_hidden", "memory_input",
                                                     "core_lr", "stored_precision"}


def test_cuda_without_a_device(refused, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    refused(["--device", "cuda"], ["--device cuda", "no CUDA device is available", "--device cpu"])


def test_one_of_several_devices(refused, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [parse(["--device", device])[0].device for device in ("cuda", "cuda:0", "cuda:1")] == ["cuda", "cuda:0", "cuda:1"]
    refused(["--device", "cuda:2"], ["--device cuda:2", "the last CUDA device of this machine is cuda:1"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    refused(["--device", "cuda:0"], ["--device cuda:0", "no CUDA device is available"])


def test_other_programs_names_of_flags_are_no_flags_here():
    """Each is a hint to one flag that some algorithm has."""
    names = {f[0] for policy in POLICIES for f in all_flags(policy)} | {"recurrent"}
    words = [word for words in ELSEWHERE.values() for word in words.split()]
    assert set(ELSEWHERE) <= names and len(words) == len(set(words)) and not set(words) & names


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("can't allocate memory")])
def test_what_does_not_fit_in_memory(error, refused, monkeypatch):
    def no_memory(*_):
        raise error
    with monkeypatch.context() as patch:
        patch.setattr(Buffer, "__init__", no_memory)
        refused(tiny("TD3"), ["buffer", "does not fit in memory", "a smaller --memory_size or --core_size"])
        refused(tiny("PPO"), ["buffer", "does not fit in memory", "a smaller --rollout_steps or --core_size"])
    monkeypatch.setattr(importlib.import_module("TD3"), "Actor", no_memory)
    refused(tiny("TD3"), ["networks do not fit in memory", "smaller --hidden_size"])


@pytest.mark.parametrize("words", ["--rollout_steps 32", "--recurrent --rollout_steps 32", "--recurrent --seq_len full",
                                   "--test --recurrent --seq_len 300", "--test --batch_size 9999"])
def test_sizes_that_a_rollout_holds(words, monkeypatch):
    """As many steps as it has; and a test has no rollout."""
    monkeypatch.setattr(models, "load_model", lambda path: dict(config={"policy": "PPO"}, step=1, agent={}))
    monkeypatch.setattr("flags.check_size", lambda *_: None)
    parse([*(["--load_model", "x"] if "--test" in words else ["--policy", "PPO"]), *words.split()])


@pytest.mark.parametrize("words", [
    "--policy PPO --max_timesteps 2041 --no-lr_decay",                 # eight environments step together
    "--policy PPO --max_timesteps 2049", "--start_timesteps 50 --batch_size 8 --replay_ratio 4 --max_timesteps 53",
    "--start_timesteps 50 --batch_size 8 --replay_ratio 4 --max_timesteps 52 --no-lr_decay",
    "--policy REINFORCE --batch_size 9 --max_timesteps 10", "--policy BCQ --dataset a/b-v0 --max_timesteps 1",
    "--max_timesteps 9 --record random/hopper-v0"])                    # random actions are what is recorded
def test_the_shortest_runs_that_are_of_use(words):
    assert parse(words.split())[1].max_timesteps < 3000


def test_an_algorithm_of_ones_own_needs_no_lr_decay():
    cls = importlib.import_module("TD3").HyperParameters
    config = {**defaults_of(RunFlags), **defaults_of(cls)}
    del config["lr_decay"]
    cls.check(config, {})
    with pytest.raises(ValueError, match=r"after 5001 steps; choose"):
        cls.check(config | dict(max_timesteps=5000), {})


def test_random_command_lines(capsys):
    """Whatever the command line: it is understood, or refused in one line with exit code 2; never a traceback."""
    rng = random.Random(0)
    names = sorted({f[0] for p in POLICIES for f in all_flags(p)} | {"recurrent", "help_me", "-", ""})
    values = ["0", "1", "2", "-1", "1e3", "-1e3", "nan", "inf", "1e300", "1e-320", "1e400", "abc", "", " ", "full", "0.5", "None",
              "lstm", "TD3", "PPO", "td3", "zero", "stored", "actor", "--lr", "-", "--", "1_000", "0x10", "{}", "%s", "é", "１２"]
    understood = 0
    for _ in range(600):
        argv = rng.choice([[], ["--policy", rng.choice(POLICIES)]]) + rng.choice([[], ["--recurrent"]])
        for _ in range(rng.randint(0, 3)):
            name = rng.choice(["--", "--", "--", "--no-", "-", ""]) + rng.choice(names)
            if name not in ("-h", "--help"):
                argv += rng.choice([[name], [name + "=" + rng.choice(values)], [name, rng.choice(values)]])
        try:
            parse(argv)
            understood += 1
            assert capsys.readouterr().err == ""
        except SystemExit as stop:
            assert stop.code == 2, argv
            assert re.fullmatch(r"error: [^\n]+\n", capsys.readouterr().err), argv
    assert 100 < understood < 500


# ---------------------------------------------------------------------- bad input: model files

class Malicious:
    """Unpickling it creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The results of a tiny recurrent TD3 run with --save_model."""
    return run(tmp_path_factory.mktemp("trained"), tiny("TD3", "Pendulum-v1", "--save_model", *RECURRENT))


def test_a_model_from_a_gpu_is_tested_without_one(trained, refused, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    model = torch.load(trained + ".best.pt", weights_only=True)
    model["config"] |= dict(device="cuda", buffer_on_device=True)
    torch.save(model, tmp_path / "model.pt")
    test = ["--test", "--load_model", str(tmp_path / "model.pt"), "--eval_episodes", "1"]
    refused(test, ["--device cuda", "use --device cpu"])
    main.main([*test, "--device", "cpu"])
    assert "return" in capsys.readouterr().out


def test_training_on_from_a_model_of_before_some_flags_is_as_it_was_then(trained, tmp_path):
    """They have other defaults today."""
    model = torch.load(trained + ".last.pt", weights_only=True)
    for name in BEFORE:
        del model["config"][name]
    torch.save(model, tmp_path / "model.pt")
    _, cfg, *_ = parse(["--load_model", str(tmp_path / "model.pt"), "--average", "0.5"])
    assert vars(cfg).items() >= (BEFORE | {"average": 0.5}).items()


@pytest.mark.parametrize("test", [["--test"], []])
def test_model_files_that_are_none(test, trained, refused, tmp_path):
    model = trained + ".best.pt"
    with open(model, "rb") as file:
        whole = file.read()
    checkpoint = torch.load(model, weights_only=True)
    files = {"empty": b"", "truncated": whole[:len(whole) // 2], "one byte less": whole[:-1], "text": b"step,return\n1,2\n",
             "zip": b"PK\x03\x04" + bytes(100), "pickle": pickle.dumps({"config": {}, "step": 0, "agent": {}}, protocol=4),
             "malicious": pickle.dumps(Malicious(str(tmp_path / "executed"))),
             "malicious2": pickle.dumps({"config": Malicious(str(tmp_path / "executed")), "step": 0, "agent": {}}, protocol=2)}
    things = {"tensor": torch.zeros(3), "list": [1, 2], "dict": {"actor": {}}, "weights": checkpoint["agent"],
              "malicious3": {**checkpoint, "config": Malicious(str(tmp_path / "executed"))}}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    for name, thing in things.items():
        torch.save(thing, tmp_path / name)
    (tmp_path / "folder").mkdir()
    for name in [*things, *files, "folder", "missing"]:
        if name != "pickle":
            error = refused([*test, "--load_model", str(tmp_path / name)], ["--load_model", f"/{name}'", "--save_model"])
            assert ("no model file" in error) == (name in ("folder", "missing"))
    refused([*test, "--load_model", str(tmp_path / "pickle"), "--env", "Pendulum-v1"])
    assert not (tmp_path / "executed").exists()

    pickle.loads(files["malicious"])                                   # the trap is a real one
    assert (tmp_path / "executed").exists()


def test_no_model_and_no_horizon(refused):
    refused(["--load_model", ""], ["--load_model ''", "leave it out"])
    refused(["--policy", "TD3", "--discount", "1", "--horizon_growth", "3"], ["--horizon_growth", "--discount 1", "no end"])
    assert parse(["--policy", "TD3", "--discount", "1"])[1].discount == 1


@pytest.mark.parametrize("change,says", [
    (dict(config=[1]), ["is not a model of this project"]),
    (dict(config={}), ["unknown policy 'None'"]),
    (dict(agent={}), ["holds another architecture"]),
    (dict(agent=[1]), ["holds another architecture"]),
    (dict(agent=None), ["holds another architecture"]),
    (dict(agent={"actor": 1, "critic": 2}), ["holds another architecture"]),
])
def test_model_files_with_wrong_contents(change, says, trained, refused, tmp_path):
    torch.save({**torch.load(trained + ".best.pt", weights_only=True), **change}, tmp_path / "model.pt")
    refused(["--test", "--load_model", str(tmp_path / "model.pt")], says)


@pytest.mark.parametrize("name,value,says", [
    ("policy", "TD5", ["unknown policy 'TD5'"]), ("policy", [1], ["unknown policy '[1]'"]), ("env", 7, ["had env 7"]),
    ("hidden_size", -3, ["had hidden_size -3"]), ("hidden_size", "abc", ["'abc'"]), ("hidden_size", 9, ["another architecture"]),
    ("core", "rnn", ["core 'rnn'"]), ("lr", True, ["lr True"]), ("recurrent_actor", "x", ["recurrent_actor 'x'"]),
    ("seed", {}, ["seed {}"]), ("eval_episodes", 0, ["eval_episodes 0"]), ("average", 5, ["--load_model: ", "had average 5"])])
def test_model_files_with_wrong_flags(name, value, says, trained, refused, tmp_path):
    checkpoint = torch.load(trained + ".best.pt", weights_only=True)
    checkpoint["config"][name] = value
    torch.save(checkpoint, tmp_path / "model.pt")
    refused(["--test", "--load_model", str(tmp_path / "model.pt")], says)


@pytest.mark.parametrize("name,value", [
    ("hidden_layers", 10 ** 6), ("hidden_size", 10 ** 6), ("core_size", 10 ** 6), ("core_size", 2 ** 31 - 1),
    ("eval_episodes", 2 * 10 ** 9), ("hidden_layers", 2 ** 31 - 1)])
def test_a_model_that_asks_for_more_than_it_holds(name, value, trained, refused, tmp_path, monkeypatch):
    """It is refused with the number before anything is made of that size."""
    monkeypatch.setattr(importlib.import_module("TD3").TD3, "__init__", None)
    model = torch.load(trained + ".best.pt", weights_only=True)
    for core in ("lstm", "gru", "mingru"):
        model["config"] |= {name: value, "core": core}
        torch.save(model, tmp_path / "model.pt")
        refused(["--test", "--load_model", str(tmp_path / "model.pt")], ["--load_model", str(value)])
    if name != "eval_episodes":
        refused([*tiny("TD3"), *RECURRENT, "--load_model", trained + ".best.pt", f"--{name}={value}"], [str(value)])


def test_a_bcq_model_that_asks_for_more_than_it_holds(refused, tmp_path):
    path = run(tmp_path / "run", tiny("BCQ", "Pendulum-v1", "--save_model")) + ".best.pt"
    model = torch.load(path, weights_only=True)
    model["config"]["act_candidates"] = 10 ** 9
    torch.save(model, path)
    refused(["--test", "--load_model", path], ["--act_candidates 1000000000"])


@pytest.fixture
def trap(tmp_path, monkeypatch):
    """A module `trap` that can be imported; whether its code has run."""
    (tmp_path / "trap.py").write_text("import sys; sys.trapped = True")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "trapped", False, raising=False)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delitem(sys.modules, "trap", raising=False)
    yield lambda: sys.trapped
    sys.modules.pop("trap", None)


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("env", ["trap:Pendulum-v1", "trap:", ["trap:Pendulum-v1"], {"trap:x": 1}])
def test_a_model_names_no_module_to_import(kind, env, trained, refused, tmp_path, trap):
    """Only the command line may, and the refusal says how."""
    model = torch.load(trained + ".best.pt", weights_only=True)
    model["config"]["env"], path = env, str(tmp_path / "model")
    if kind == "file":
        torch.save(model, path)
    else:
        pytest.importorskip("safetensors")
        models.save(path, model, dict(env=env, **env_options(parse([])[0])), [0], [1], dict(versions={}, commit=""))
    error = refused(["--test", "--load_model", path], ["the module", "trap", f"add --env {env}"])
    assert "--load_model" in error and not trap()
    main.main(["--test", "--load_model", path, "--eval_episodes", "1", "--env", "Pendulum-v1"])
    assert not trap()
    main.main(["--test", "--load_model", path, "--eval_episodes", "1", "--env", "trap:Pendulum-v1"])
    assert trap()                                                      # it is a real one


ARCHITECTURE = ["another architecture", "flags it was trained with"]


@pytest.mark.parametrize("argv, says", [
    *[(argv, ARCHITECTURE) for argv in ("--hidden_size 9", "--core_size 5", "--core gru", "--no-recurrent_critic",
                                        "--hidden_layers 3")],
    ("--env InvertedPendulumBulletEnv-v0", ["was trained with --env Pendulum-v1", "leave out --env"]),
    ("--observe positions", ["was trained with --observe full", "leave out --observe"])])
def test_model_of_another_architecture(argv, says, trained, refused):
    model = ["--load_model", trained + ".best.pt"]
    refused(["--test", *model, *argv.split()], says)
    refused([*model, *argv.split()], says)


@pytest.mark.parametrize("policy", ["DDPG", "PPO"])
def test_model_of_another_policy(policy, trained, refused):
    refused(["--test", "--load_model", trained + ".best.pt", "--policy", policy], [f"--policy {policy}", "is a model of TD3"])
    refused([*tiny(policy), *RECURRENT, "--load_model", trained + ".best.pt"], ["is a model of TD3; leave --policy out"])


@pytest.mark.parametrize("argv,says", [
    ("--core gru", ["--core=gru:", "of --core=lstm"]), ("--core_size 5", ["--core_size=5:", "of --core_size=4"]),
    ("--no-recurrent_critic", ["--no-recurrent_critic:", "of --recurrent_critic"]),
    ("--memory_input obs", ["--memory_input=obs:", "of --memory_input=obs_action"])])
def test_a_memory_that_contradicts_the_weights(argv, says, trained, refused):
    """One line names the flag, whether the model is tested or trained on."""
    for test in [], ["--test"]:
        refused([*test, "--load_model", trained + ".best.pt", *argv.split()], says)


def test_training_on_from_a_model_takes_its_flags(trained, tmp_path, capsys):
    """All that were not given; what goes on and what starts anew is said."""
    path = run(tmp_path, ["--load_model", trained + ".last.pt", "--max_timesteps", "60", "--burn_in", "2"])
    before, after = (json.load(open(name + ".json"))["config"] for name in (trained, path))
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"max_timesteps", "burn_in", "load_model", "results_dir", "save_model"}
    out = " ".join(capsys.readouterr().out.split())
    assert f"{trained}.last.pt, of step 240: training goes on from its weights, with its flags where none are given" in out
    assert "optimizers, buffer, count of steps and exploration start anew" in out
    last = [row[2:] for row in evaluations(trained)][-2:]
    assert [row[2:] for row in evaluations(path)][:2] == last          # the weights are those of the model


# ---------------------------------------------------------------------- bad input: results

@pytest.mark.parametrize("below", ["", "/results", "/a/b"])
def test_results_folder_that_cannot_be_written(below, refused, tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    refused([*tiny("TD3"), "--results_dir", f"{file}{below}"], [f"--results_dir {file}{below} cannot be written"])
    assert file.read_text() == "mine"


def test_existing_results_are_kept_unless_told_otherwise(refused, tmp_path):
    folder = tmp_path / "results"
    path = run(folder, tiny("PPO"))
    with open(path + ".csv", "a") as file:
        file.write("mine\n")
    contents = {name: (folder / name).read_bytes() for name in os.listdir(folder)}
    refused(tiny("PPO"), [f"{path}.csv exists", "--overwrite", "--results_dir", "--seed"])
    assert contents == {name: (folder / name).read_bytes() for name in os.listdir(folder)}

    for end in (".csv", ".json"):
        os.remove(path + end)
    for end in (".json", ".last.pt", ".best.pt"):                      # any part of an earlier run counts
        open(path + end, "w").close()
        refused(tiny("PPO"), [f"{path}{end} exists"])
        os.remove(path + end)

    run(folder, tiny("PPO"))
    run(folder, tiny("PPO", "Pendulum-v1", "--overwrite"))
    assert b"mine" not in (folder / (os.path.basename(path) + ".csv")).read_bytes()


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("save", [["--save_model"], []])
def test_losses_that_are_not_finite_stop_the_run(policy, loss, save, tmp_path, capsys, monkeypatch):
    """After the evaluation at step 100, so that there is a last good model."""
    cls = getattr(importlib.import_module(policy), policy)
    train = cls.train

    updates = []

    def diverge(self, buffer):
        losses = train(self, buffer)
        updates.append(losses)
        if getattr(self, "steps", len(updates)) > 110:                 # offline, a step is an update
            losses["actor_loss"] = torch.tensor(loss)
        return losses
    monkeypatch.setattr(cls, "train", diverge)
    with pytest.raises(SystemExit) as stop:
        main.main([*tiny(policy, SHORT.get(policy, "Pendulum-v1")), *save, "--results_dir", str(tmp_path)])
    error = capsys.readouterr().err
    assert stop.value.code == 1 and re.fullmatch(r"error: [^\n]+\n", error)
    assert f"actor_loss is {loss}" in error
    step = int(re.search(r"at step (\d+)", error)[1])
    assert 110 < step < 200
    flags = re.search(r"all flags are in (\S+\.json)", error)[1]
    info = json.load(open(flags))
    assert info["config"]["policy"] == policy and info["finished"] is False
    assert {row[0] for row in evaluations(flags[:-len(".json")])} == {"0", "100"}
    if save:
        model = re.search(r"the last good model is (\S+\.pt)", error)[1]
        assert torch.load(model, weights_only=True)["step"] == 100 and f"{model}, of step 100;" in error
        assert all(w.isfinite().all() for w in weights(model).values())
    else:
        assert "no model was saved" in error and not [name for name in os.listdir(tmp_path) if name.endswith(".pt")]


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_not_saved(number, tmp_path, capsys, monkeypatch):
    """Although the losses are, until the next evaluation: the model before it stays, and is named."""
    def spoil(self, buffer):
        if self.steps == 199:
            next(self.critic.parameters()).detach().view(-1)[3] = number
        return {"critic_loss": torch.zeros(())}
    monkeypatch.setattr(importlib.import_module("TD3").TD3, "train", spoil)
    monkeypatch.setattr(importlib.import_module("TD3").TD3, "ready", lambda self, buffer: self.steps > 100 and next(turn))
    turn = itertools.cycle([True, False])
    with pytest.raises(SystemExit) as stop:
        main.main([*tiny("TD3"), "--save_model", "--results_dir", str(tmp_path)])
    error = capsys.readouterr().err
    assert stop.value.code == 1 and re.fullmatch(rf"error: the largest weight is {number} at step 200; [^\n]+\n", error)
    model = re.search(r"the last good model is (\S+\.last\.pt), of step 100;", error)[1]
    assert torch.load(model, weights_only=True)["step"] == 100 and all(w.isfinite().all() for w in weights(model).values())
    assert {row[0] for row in evaluations(model.removesuffix(".last.pt"))} == {"0", "100"}


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_model_with_weights_that_are_not_finite_is_refused(number, trained, refused, tmp_path):
    model = torch.load(trained + ".best.pt", weights_only=True)
    next(iter(model["agent"]["critic"].values())).view(-1)[3] = number
    torch.save(model, tmp_path / "model.pt")
    for argv in (["--test"], [*tiny("TD3"), *RECURRENT]):
        refused([*argv, "--load_model", str(tmp_path / "model.pt")], ["--load_model", "numbers that are not finite"])


@pytest.mark.parametrize("policy", POLICIES)
def test_divergence_is_noticed(policy, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main.main([*tiny(policy, SHORT.get(policy, "Pendulum-v1")), "--lr", "1e30", "--results_dir", str(tmp_path)])
    assert stop.value.code == 1
    assert re.search(r"_loss is -?(nan|inf)|the largest weight is (nan|inf|[\d.]+e\+\d)", capsys.readouterr().err)


# ---------------------------------------------------------------------- environments that fail or do not end

@pytest.mark.parametrize("policy,eval_freq,step", [("TD3", 10, 20), ("TD3", 100, 27), ("PPO", 100, 54), ("REINFORCE", 100, 27)])
@pytest.mark.parametrize("other,says", [(dict(reward=math.nan), "its reward is nan"), (dict(observation=[math.inf] * 4), "inf"),
                                        (dict(error=KeyError("arm")), "it raised KeyError: 'arm' (test_envs.py, line")])
def test_an_environment_that_fails_ends_the_run(policy, eval_freq, step, other, says, tmp_path, capsys, monkeypatch):
    """In the third step of its seventh episode (make_env's is the first, an evaluation has two, each has five steps): with an
    evaluation every 10 steps in one of these, else in training. What was evaluated before is kept."""
    test_envs.register_odd(monkeypatch, episode=7, at=3, other=other)
    argv = [*tiny(policy, "TestOdd-v0"), "--num_envs", "2"] if policy == "PPO" else tiny(policy, "TestOdd-v0")
    with pytest.raises(SystemExit) as stop:
        main.main([*argv, "--eval_freq", str(eval_freq), "--results_dir", str(tmp_path)])
    error = capsys.readouterr().err
    assert stop.value.code == 1 and re.fullmatch(r"error: [^\n]+\n", error)
    assert error.startswith("error: TestOdd-v0: ") and says in error and "--lr" not in error
    assert f"at step 3 of an episode, after step {step} of the run; results so far are in " in error
    path = re.search(r"are in (\S+)\.csv", error)[1]
    assert [int(row[0]) for row in evaluations(path)] == [s for s in range(0, step, eval_freq) for _ in range(2)]
    assert json.load(open(path + ".json"))["finished"] is False


def test_an_environment_that_fails_in_a_test(tmp_path, refused, capsys, monkeypatch):
    test_envs.register_odd(monkeypatch, episode=99)
    path = run(tmp_path / "1", [*tiny("TD3", "TestOdd-v0"), "--max_timesteps", "20", "--start_timesteps", "0", "--save_model"])
    test_envs.register_odd(monkeypatch, episode=2, at=4, other=dict(reward=math.inf))
    with pytest.raises(SystemExit) as stop:
        main.main(["--test", "--load_model", path + ".last.pt"])
    assert stop.value.code == 1
    assert capsys.readouterr().err == "error: TestOdd-v0: its reward is inf, not a finite number, at step 4 of an episode\n"
    test_envs.register_odd(monkeypatch, at=1, other=dict(reward=math.inf))
    refused(["--test", "--load_model", path + ".last.pt"], ["TestOdd-v0: its reward is inf", "at step 1 of an episode"])


def test_an_agent_that_has_diverged_is_not_the_environments_fault(tmp_path, capsys, monkeypatch):
    """This environment returns its action, which is NaN since the weights are."""
    def observe(self):
        return np.full(4, self.actions[-1] if self.actions else 0, np.float32)
    monkeypatch.setattr(test_envs.Counter, "observe", observe)
    cls = importlib.import_module("TD3").TD3
    train = cls.train

    def diverge(self, buffer):
        losses = train(self, buffer)
        if self.steps > 110:
            torch.nn.utils.vector_to_parameters(torch.full((10 ** 6,), math.nan), self.actor.parameters())
        return losses
    monkeypatch.setattr(cls, "train", diverge)
    with pytest.raises(SystemExit) as stop:
        main.main([*tiny("TD3", "TestCounter-v0"), "--results_dir", str(tmp_path)])
    error = capsys.readouterr().err
    assert stop.value.code == 1 and "the largest weight is nan" in error and "TestCounter-v0:" not in error


def test_an_environment_without_a_time_limit(tmp_path, capsys):
    """It is said at the start; --max_episode_steps truncates training and evaluation, and is part of a run's name."""
    note = "note: TestEndless-v0 has no time limit"
    argv = [*tiny("TD3", "TestEndless-v0"), "--max_episode_steps", "7", "--save_model"]
    path = run(tmp_path, argv)
    assert {row[3] for row in evaluations(path)} == {"7"} and "max_episode_steps=7" in path
    main.main(["--test", "--load_model", path + ".last.pt"])           # as it was trained
    out = capsys.readouterr().out
    assert "mean length 7" in out and note not in out
    main.main([*tiny("TD3", "TestCounter-v0"), "--results_dir", str(tmp_path / "2")])
    assert capsys.readouterr().out.startswith("note: TestCounter-v0 has no time limit") and "Cue10-v0" not in out
    for env_id in ("Cue10-v0", "Pendulum-v1"):
        main.main([*tiny("TD3", env_id), "--results_dir", str(tmp_path / env_id)])
        assert "note:" not in capsys.readouterr().out


def test_without_pybullet(tmp_path, refused, monkeypatch):
    """What needs it says what to install, and what does not runs. The versions of what is there are listed."""
    version = output.importlib.metadata.version

    def installed(package):
        if "pybullet" in package:
            raise output.importlib.metadata.PackageNotFoundError(package)
        return version(package)
    monkeypatch.setattr(output.importlib.metadata, "version", installed)
    for module in ("pybullet_envs_gymnasium", "pybullet"):             # without the first alone, and without both
        monkeypatch.setitem(sys.modules, module, None)
        refused(tiny("TD3", "HopperBulletEnv-v0"), ["HopperBulletEnv-v0 cannot be made: it is not installed; pip install "
                                                          "pybullet pybullet-envs-gymnasium"])
    path = run(tmp_path / "runs", [*tiny("TD3", "Cue10-v0"), "--max_timesteps", "60"])
    versions = json.load(open(path + ".json"))["versions"]
    assert {"torch", "numpy", "gymnasium", "python", "machine"} <= set(versions) and not any("pybullet" in k for k in versions)
    refused(tiny("TD3", "Cue11-v0"), ["unknown environment 'Cue11-v0'; did you mean Cue10-v0"])


# ---------------------------------------------------------------------- whole runs

RUNS = [("TD3", "Pendulum-v1"), ("DDPG", "Pendulum-v1"), ("SAC", "Pendulum-v1"), ("PPO", "Pendulum-v1"), ("PPO", "CartPole-v1"),
        ("A2C", "Pendulum-v1"), ("A2C", "CartPole-v1"), ("REINFORCE", "Pendulum-v1"), ("REINFORCE", "CartPole-v1"),
        ("R2D1", "CartPole-v1"), ("BCQ", "Pendulum-v1")]


@pytest.mark.parametrize("policy,env_id", RUNS)
@pytest.mark.parametrize("flags", [[], RECURRENT, [*RECURRENT, "--num_envs", "3", "--core", "gru", "--hidden_init", "stored"]])
def test_runs(policy, env_id, flags, tmp_path, capsys):
    if policy in ("REINFORCE", "BCQ"):                                 # one environment only, none at all
        flags = [flag for flag in flags if flag not in ("--num_envs", "3")]
    if policy == "BCQ":                                                # a data set holds no hidden states
        flags = [flag for flag in flags if flag not in ("--hidden_init", "stored")]
    path = run(tmp_path, tiny(policy, env_id, *flags))
    rows = evaluations(path)
    num_envs = 3 if "--num_envs" in flags else 2 if policy == "PPO" else 1
    # Evaluated before the first step, whenever a multiple of eval_freq is reached or passed, and after the last step
    steps = [0] + [math.ceil(n / num_envs) * num_envs for n in (100, 200, 240)]
    assert [(int(step), int(episode)) for step, episode, *_ in rows] == [(s, e) for s in steps for e in range(2)]
    lengths = {int(length) for *_, length in rows}
    assert lengths == {200} if env_id == "Pendulum-v1" else all(0 < n <= 500 for n in lengths)
    out, err = capsys.readouterr()
    assert err == "" and out.splitlines()[0].startswith("buffer: ") and f"{path}.csv written" in out
    assert sorted(os.listdir(tmp_path)) == [os.path.basename(path) + end for end in (".csv", ".json")]


def name_of(argv):
    run, cfg, algorithm, _ = parse(argv)
    return run_name(run, cfg, algorithm)


def test_which_flags_are_part_of_a_name():
    """All that change what is learned; every flag is changed once."""
    assert NOT_LEARNING == set(
        "eval_freq eval_episodes device buffer_on_device threads results_dir staleness tensorboard wandb log_freq overwrite test "
        "checkpoint_freq keep_checkpoint resume save_model explore video export memory_steps lookback record".split())
    run, cfg, algorithm, _ = parse(["--recurrent"])
    name = run_name(run, cfg, algorithm)
    for part in (run, cfg):
        for field in fields(part):
            old = getattr(part, field.name)
            new = "gru" if field.name == "core" else not old if isinstance(old, bool) else "x" if isinstance(old, str) else 77
            setattr(part, field.name, new)
            changed = run_name(run, cfg, algorithm) != name
            assert field.name == "policy" or changed == (field.name not in NOT_LEARNING), field.name
            setattr(part, field.name, old)


def test_a_commit_says_whether_its_code_was_changed(tmp_path, monkeypatch):
    def git(*words):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a", "-C", str(tmp_path), *words], check=True)
    monkeypatch.setattr(output, "__file__", str(tmp_path / "support" / "results.py"))
    git("init", "-q")
    (tmp_path / "main.py").write_text("1")
    assert output.commit() == ""
    git("add", "main.py")
    git("commit", "-qm", "x")
    assert re.fullmatch("[0-9a-f]{40}", output.commit())
    (tmp_path / "main.py").write_text("2")
    assert re.fullmatch(r"[0-9a-f]{40}\+", output.commit())


def test_name_says_what_was_run():
    name = name_of(tiny("PPO", "Pendulum-v1", *RECURRENT, "--observe", "positions", "--seed", "7"))
    assert name.startswith("Pendulum-v1_PPO_lstm_") and name.endswith("_seed=7")
    for part in ("observe=positions", "seq_len=4", "core_size=4"):
        assert part in name
    assert name_of([]) == "HopperBulletEnv-v0_TD3_ff_seed=0" and name_of(["--recurrent"]) == "HopperBulletEnv-v0_TD3_lstm_seed=0"
    assert name_of(["--recurrent_critic", "--core", "gru"]) == "HopperBulletEnv-v0_TD3_critic_gru_seed=0"


def test_arguments_of_the_environment_are_part_of_the_run(tmp_path, capsys):
    """Of its name, whatever their order, its flags and its model, which is tested with them."""
    path = run(tmp_path, [*tiny("TD3"), "--max_timesteps", "60", "--save_model", "--env_kwargs", "g=0.0"])
    assert "_env_kwargs=g=0.0_" in path and json.load(open(path + ".json"))["config"]["env_kwargs"] == "g=0.0"
    main.main(["--test", "--load_model", path + ".last.pt"])
    returned = capsys.readouterr().out.splitlines()[-1]
    main.main(["--test", "--load_model", path + ".last.pt", "--env_kwargs", "g=10.0"])
    assert capsys.readouterr().out.splitlines()[-1] != returned
    words = [["--env_kwargs", "b=1", "a=2"], ["--env_kwargs=a=2 b=1"], ["--env_kwargs", "a=2  b=1"]]
    assert {name_of(given) for given in words} == {"HopperBulletEnv-v0_TD3_ff_env_kwargs=a=2,b=1_seed=0"}


def test_name_is_one_that_every_system_takes():
    assert name_of(["--env", "my_envs.arm:ns/Arm-v0"]).startswith("my_envs.arm-ns-Arm-v0_TD3_ff_seed=")
    assert not set('<>:"/\\|?*') & set(name_of(["--policy", "BCQ", "--dataset", 'a<>:"/\\|?*b-v0']))


def test_every_file_of_a_run_has_such_a_name(tmp_path):
    gym.register("ns/Counter-v0", lambda length, note: test_envs.Counter(length=length))
    main.main([*tiny("TD3", "test_envs:ns/Counter-v0", *RECURRENT), "--env_kwargs", "length=6", "note='a|b'", "--save_model",
               "--staleness", "--tensorboard", "--results_dir", str(tmp_path)])
    names = [name for _, folders, files in os.walk(tmp_path) for name in folders + files]
    assert len(names) >= 8 and not set('<>:"\\|?*') & {*"".join(names)}


def test_every_run_has_a_name_of_its_own_that_fits():
    """File names end at 255 bytes, whatever the number of flags."""
    flags = [f"--{name}={value}" for name, value in dict(
        observe="positions", flicker=0.125, obs_noise=0.0625, sensor_dropout=0.03125, core_size=33, memory_input="obs",
        core_lr=1e-5, seq_len=11, hidden_init="stored", burn_in=7, critic_hidden="actor", num_envs=3, start_timesteps=12345,
        expl_noise=0.123, batch_size=33, replay_ratio=12.5, memory_size=54321, lr=1.23e-4, discount=0.987,
        tau=0.0123, policy_noise=0.123).items()]
    names = {name_of(["--recurrent", *flags, f"--seed={seed}", f"--policy_freq={k}"]) for seed in (0, 1) for k in (3, 4)}
    assert len(names) == 4 and all(len(name) < 240 for name in names)
    assert {name.split("_")[-1] for name in names} == {"seed=0", "seed=1"}


@pytest.mark.parametrize("policy,env_id", [*RUNS, ("TD3", "InvertedPendulumBulletEnv-v0")])
def test_same_seed_same_run(policy, env_id, tmp_path):
    """To the bit, PyBullet also in a process of its own; another seed is another run."""
    argv = tiny(policy, env_id, *RECURRENT, "--save_model", "--observe", "positions", "--flicker", "0.1")
    first, again = run(tmp_path / "1", argv), run(tmp_path / "2", argv)
    other = run(tmp_path / "other", [*argv, "--seed", "1"])
    assert evaluations(first) == evaluations(again) != evaluations(other)
    model = weights(first + ".last.pt")
    assert same_weights(model, weights(again + ".last.pt")) and not same_weights(model, weights(other + ".last.pt"))
    if "Bullet" in env_id:
        done = subprocess.run([sys.executable, os.path.join(HERE, "main.py"), *argv, "--results_dir", str(tmp_path / "3")],
                              capture_output=True, text=True)
        assert done.returncode == 0 and done.stderr == ""
        elsewhere = str(tmp_path / "3" / os.path.basename(first))
        assert evaluations(first) == evaluations(elsewhere) and same_weights(model, weights(elsewhere + ".last.pt"))


def test_every_environment_of_every_seed_begins_elsewhere(monkeypatch, tmp_path):
    """A run's environments start from its seed, and each from another state. (Seed 0's second one is seed 1's first.)"""
    starts, begin = [], main.Interaction.__init__

    def spied(self, *args, **kwargs):
        begin(self, *args, **kwargs)
        starts.append(self.state)
    monkeypatch.setattr(main.Interaction, "__init__", spied)
    for folder, seed in enumerate(["0", "0", "9"]):
        run(tmp_path / str(folder), tiny("PPO", "Pendulum-v1", "--num_envs", "3", "--seed", seed))
    np.testing.assert_array_equal(starts[0], starts[1])
    assert len(np.unique(np.concatenate([starts[0], starts[2]]), axis=0)) == 6


@pytest.mark.parametrize("policy,env_id", RUNS)
def test_evaluation_does_not_disturb_training(policy, env_id, tmp_path):
    """However often, and over however many episodes, it is evaluated: the same weights in the end."""
    argv = tiny(policy, env_id, *RECURRENT, "--save_model")
    first = run(tmp_path / "1", argv)
    other = run(tmp_path / "2", [*argv, "--eval_freq", "17", "--eval_episodes", "1"])
    assert len(evaluations(first)) != len(evaluations(other))
    assert same_weights(weights(first + ".last.pt"), weights(other + ".last.pt"))


def make(argv):
    run, cfg, algorithm, _ = parse(argv)
    main.seed_everything(run)
    env = main.make_env(run.env)
    spec = main.env_spec(env)
    return algorithm(spec, cfg, run.seed), env, spec


@pytest.mark.parametrize("policy,env_id", RUNS)
def test_evaluation_draws_no_random_number(policy, env_id):
    agent, env, spec = make(tiny(policy, env_id, *RECURRENT))

    def state():
        return str((torch.get_rng_state().tolist(), random.getstate(), np.random.get_state(), getattr(agent, "steps", None),
                    agent.rng.bit_generator.state if hasattr(agent, "rng") else None))
    before = state()
    first = main.evaluate(agent, env, spec, 2, seed=5)
    assert state() == before
    assert main.evaluate(agent, env, spec, 2, seed=5) == first         # the same starts every time
    assert main.evaluate(agent, env, spec, 2, seed=6) != first


def test_evaluation_starts_every_episode_from_zero():
    """Also what the agent perceives as its previous action and reward; then both are those of the step before."""
    agent, env, spec = make(tiny("TD3", "TestCounter-v0", *RECURRENT))
    seen = []

    def act(row, hidden, explore):
        assert not explore
        seen.append((row[0].tolist(), hidden[0, 0]))
        return np.full((1, 1), 0.5, np.float32), hidden + 1
    agent.act = act
    returns, lengths = main.evaluate(agent, env, spec, 3, seed=0)
    assert returns == [15, 15, 15] and lengths == [5, 5, 5]            # rewards 1 to 5
    for k, (row, hidden) in enumerate(seen):
        episode, t = divmod(k, 5)
        assert hidden == t and row == [100 * (episode + 2) + t] * 4 + [0.5 * (t > 0), t]


def test_what_the_loop_gives_to_agent_and_buffer(tmp_path, monkeypatch):
    """In three worlds that count their steps, and end at different times: every stored step is what happened, an episode's last
    observation included. Memory, previous action and previous reward begin anew with an episode, in its environment alone."""
    stored, rows, cls = [], [], importlib.import_module("TD3").TD3

    class Recorder(Buffer):
        def add(self, *args):
            stored.append([np.array(x) for x in args])
            super().add(*args)
    monkeypatch.setattr(cls, "buffer_class", Recorder)
    act = cls.act

    def noted(agent, row, hidden, explore=True):
        if explore:
            rows.append(row.copy())
        return act(agent, row, hidden, explore)
    monkeypatch.setattr(cls, "act", noted)
    run(tmp_path, tiny("TD3", "TestUneven-v0", *RECURRENT, "--num_envs", "3", "--hidden_init", "stored"))
    begins, before, after, seen = [True] * 3, None, None, set()
    for row, (state, action, reward, next_state, terminated, truncated, hidden, next_hidden) in zip(rows, stored, strict=True):
        assert action.shape == (3, 1) and np.all(abs(action) <= 1)
        assert next_hidden.any(1).all()                                # memory advances in the random warm-up too
        for e in range(3):
            mark, t = state[e, :2]
            assert (t == 0) == begins[e] and reward[e] == t + 1
            assert np.array_equal(next_state[e], np.float32([mark, t + 1, 0, 0]))      # of the same episode
            # What it acts from: the previous action and reward beside the observation, none at an episode's start
            assert np.array_equal(row[e], np.float32([*state[e], 0, 0] if begins[e] else [*state[e], *before[e], t]))
            assert np.array_equal(hidden[e], 0 * hidden[e] if begins[e] else after[e])
        begins, before, after = terminated | truncated, action, next_hidden
        seen.add((terminated.any(), truncated.any(), begins.all()))
    assert len(stored) == 80 and {(True, False, False), (False, True, False)} <= seen


def test_a_test_with_another_seed_plays_other_episodes(trained):
    one, again, other = (main.run(["--test", "--load_model", trained + ".best.pt", "--seed", seed]).returns
                         for seed in ("0", "0", "1000"))
    assert one == again and not {*one} & {*other}


def test_evaluation_sees_what_training_sees(tmp_path, monkeypatch):
    """Here nothing, as every sensor fails."""
    seen, cls = {True: [], False: []}, importlib.import_module("TD3").TD3
    act = cls.act
    monkeypatch.setattr(cls, "act", lambda agent, row, hidden, explore=True:
                        seen[explore].append(row[:, :3]) or act(agent, row, hidden, explore))
    run(tmp_path, tiny("TD3", "Pendulum-v1", "--sensor_dropout", "1"))
    assert all(rows and not np.any(rows) for rows in seen.values())


def test_a_run_trains_at_the_pace_of_replay_ratio(tmp_path, monkeypatch):
    """Also where several updates are due at once: eight for each step that four environments take together."""
    batches = spy(monkeypatch, Buffer, "sample")
    run(tmp_path, tiny("TD3", "Pendulum-v1", "--num_envs", "4", "--start_timesteps", "8", "--batch_size", "8",
                       "--replay_ratio", "16", "--max_timesteps", "40"))
    assert sum(batch.steps for batch in batches) == 16 * (40 - 8)


def test_a_run_keeps_its_steps_as_flags_say(tmp_path, monkeypatch):
    """--memory_size is the bound, --stored_precision that of the hidden states, --seed decides what is drawn."""
    made = buffers(monkeypatch)
    for seed in "01":
        run(tmp_path / seed, tiny("TD3", "Pendulum-v1", *RECURRENT, "--hidden_init", "stored", "--memory_size", "50",
                                  "--stored_precision", "float16", "--seed", seed))
    assert len(made[0].rows) == 50 and made[0].hidden.dtype == torch.float16
    assert [buffer.rng.bit_generator.seed_seq.entropy for buffer in made] == [0, 1]


@pytest.mark.parametrize("policy,env_id", RUNS)
def test_saved_model_returns_what_its_evaluation_did(policy, env_id, tmp_path, capsys):
    path = run(tmp_path, tiny(policy, env_id, *RECURRENT, "--save_model", "--obs_noise", "0.1"))
    returns = {}
    for step, _, ret, _ in evaluations(path):
        returns.setdefault(int(step), []).append(float(ret))
    before = sorted(os.listdir(tmp_path))
    best = max(returns, key=lambda step: np.mean(returns[step]))
    for name, step in (("best", best), ("last", 240)):
        assert torch.load(f"{path}.{name}.pt", weights_only=True)["step"] == step
        capsys.readouterr()
        main.main(["--test", "--load_model", f"{path}.{name}.pt"])
        out, err = capsys.readouterr()
        mean, std = re.fullmatch(r"return (\S+) \+- (\S+) over 2 episodes \(mean length \S+\)\n", out).groups()
        assert float(mean) == pytest.approx(np.mean(returns[step]), abs=0.051)
        assert float(std) == pytest.approx(np.std(returns[step]), abs=0.051)
        assert err == ""
    assert sorted(os.listdir(tmp_path)) == before

    # Training can go on from it: the first evaluation is that of the model
    again = run(tmp_path / "on", tiny(policy, env_id, *RECURRENT, "--obs_noise", "0.1", "--load_model", f"{path}.last.pt"))
    assert [row[2] for row in evaluations(again)[:2]] == [f"{ret:.3f}" for ret in returns[240]]


def test_flags_of_a_test_win_over_the_models(trained, capsys):
    main.main(["--test", "--load_model", trained + ".best.pt", "--eval_episodes", "3"])
    assert "over 3 episodes" in capsys.readouterr().out


def test_json_holds_flags_versions_and_commit(trained):
    info = json.load(open(trained + ".json"))
    assert set(info["config"]) == {f[0] for f in all_flags("TD3")}
    assert info["config"]["core_size"] == 4 and info["config"]["recurrent_critic"] is True and info["config"]["lr"] > 0
    assert {"torch", "numpy", "gymnasium", "pybullet", "pybullet-envs-gymnasium", "python"} <= set(info["versions"])
    assert info["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert info["finished"] is True and info["seconds"] > 0 and info["lines"] == {".csv": 1 + len(evaluations(trained))}
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=HERE, capture_output=True, text=True)
    if git.returncode == 0:
        assert re.fullmatch(r"[0-9a-f]{40}\+?", info["commit"])
    else:
        assert info["commit"] == ""


# ---------------------------------------------------------------------- progress and interruption

def start(argv, **streams):
    """main.py in a process of its own, with SIGINT as a terminal sends it (a shell's background jobs ignore it)."""
    return subprocess.Popen([sys.executable, os.path.join(HERE, "main.py"), *argv], text=True, **streams,
                            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))


def test_interrupted_run_keeps_what_it_had(tmp_path):
    process = start([*tiny("TD3"), "--max_timesteps", "1e6", "--save_model", "--results_dir", str(tmp_path)],
                    stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    for line in process.stdout:
        if line.startswith("step 200 "):
            break
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == "stopping after this step; once more to stop at once\ninterrupted: go on with the same command and --resume\n"
    path, = {str(tmp_path / name[:-len(".csv")]) for name in os.listdir(tmp_path) if name.endswith(".csv")}
    rows = evaluations(path)
    assert len(rows) >= 6 and rows[0][0] == "0" and rows[-1][1] == "1"
    assert json.load(open(path + ".json"))["finished"] is False
    assert torch.load(path + ".last.pt", weights_only=True)["step"] == int(rows[-1][0])
    main.main(["--test", "--load_model", path + ".last.pt"])


def test_output_to_a_file_is_lines(tmp_path):
    with open(tmp_path / "out", "w") as out, open(tmp_path / "err", "w") as err:
        assert start([*tiny("DDPG", "InvertedPendulumBulletEnv-v0"), "--results_dir", str(tmp_path / "results")],
                     stdout=out, stderr=err).wait(timeout=120) == 0
    assert (tmp_path / "err").read_bytes() == b""
    text = (tmp_path / "out").read_bytes().decode()
    assert "\r" not in text and "\x1b" not in text and "%|" not in text and "nan" not in text
    lines = text.splitlines()
    assert re.fullmatch(r"buffer: [\d,]+ rows, [\d.]+kB of RAM when full", lines[0])
    assert re.fullmatch(r"DDPG on InvertedPendulumBulletEnv-v0, seed 0: 240 steps, results in \S+\.csv", lines[1])
    assert re.fullmatch(r"step 0 of 240: return -?[\d.]+ \+- [\d.]+", lines[2])
    for line, step in zip(lines[3:6], (100, 200, 240), strict=True):
        assert re.fullmatch(rf"step {step} of 240: return -?[\d.]+ \+- [\d.]+, in training -?[\d.]+, [\d.]+ steps/s, "
                            r"[\d.]+ min left", line)
    assert re.fullmatch(r"\S+\.csv written, best evaluation -?[\d.]+", lines[6]) and len(lines) == 7


def test_progress_on_a_terminal_is_a_bar(tmp_path):
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 200, 0, 0))
    process = start([*tiny("DDPG"), "--results_dir", str(tmp_path / "results")], stdout=slave, stderr=slave)
    os.close(slave)
    text, deadline = "", time.time() + 120
    while time.time() < deadline:
        try:
            text += os.read(master, 4096).decode()
        except OSError:                                                # the other end has closed
            break
    os.close(master)
    assert process.wait(timeout=60) == 0
    assert text.count("DDPG on Pendulum-v1, seed 0: 240 steps, results in ") == 1
    assert "\r" in text and "%|" in text and "/240 [" in text and "return -" in text
    assert re.search(r"100%\|[^\r]*\| 240/240 \[\d\d:\d\d, return -[\d.]+, in training -[\d.]+, [\d.]+ steps/s, 0\.0 min left",
                     text)
    assert not re.search(r"step \d+ of 240", text)


@pytest.fixture
def clock(monkeypatch):
    """A clock by hand, for all but the bar: its only entry is the time. The time of day jumps back at every look."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "time", iter(range(2 ** 31, 0, -1000)).__next__)
    return now


def test_time_left_counts_from_the_first_update(clock, tmp_path, capsys, monkeypatch):
    """Random steps take next to no time; here each takes an hour, and an update a second."""
    cls = importlib.import_module("TD3").TD3
    act, train = cls.act, cls.train

    def slow_act(self, row, hidden, explore=True):
        clock[0] += 3600 * (explore and self.steps < 50)
        return act(self, row, hidden, explore)

    def slow_train(self, buffer):
        clock[0] += 1
        return train(self, buffer)
    monkeypatch.setattr(cls, "act", slow_act)
    monkeypatch.setattr(cls, "train", slow_train)
    path = run(tmp_path, [*tiny("TD3"), "--eval_freq", "40"])          # an update every 4 steps
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    paces = [re.findall(r"([\d.]+) steps/s, ([\d.]+) min left", line) for line in lines]
    assert paces[:2] == [[], []]
    for step, (pace,) in zip((80, 120, 160, 200, 240), paces[2:], strict=True):
        assert float(pace[0]) == pytest.approx(4, abs=0.4) and pace[1] == f"{(240 - step) / 4 / 60:.1f}"
    with open(path + ".csv") as file:
        seconds = [float(row["seconds"]) for row in csv.DictReader(file)]
    assert seconds[0] == 0 and seconds == sorted(seconds) and seconds[-1] > 50 * 3600


def test_the_return_of_training_episodes_is_shown(tmp_path, capsys, monkeypatch):
    """The mean over the last ten that have ended, in whichever environment."""
    totals, ended = np.zeros(3), []

    class Recorder(Buffer):
        def add(self, state, action, reward, next_state, terminated, truncated, *hidden):
            totals[:] += reward
            for env in np.flatnonzero(terminated | truncated):
                ended.append(float(totals[env]))
                totals[env] = 0
            super().add(state, action, reward, next_state, terminated, truncated, *hidden)
    monkeypatch.setattr(importlib.import_module("PPO").PPO, "buffer_class", Recorder)
    run(tmp_path, [*tiny("PPO", "CartPole-v1"), "--num_envs", "3", "--max_timesteps", "1000"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert lines[0].startswith("step 0 of 1,002: ") and "in training" not in lines[0]
    assert len(ended) > 12 and lines[-1].startswith("step 1,002 of 1,002: ")
    assert f", in training {np.mean(ended[-10:]):.1f}, " in lines[-1]


def test_a_clock_that_stands_still(clock, tmp_path, capsys):
    path = run(tmp_path, tiny("TD3"))
    assert "left" not in capsys.readouterr().out and json.load(open(path + ".json"))["seconds"] == 0
