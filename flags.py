"""The command line: a run's own flags, those of the algorithm, and which combinations of them are refused.

A flag is a field of a dataclass, RunFlags here or HyperParameters in an algorithm's file; its default, help, bounds and role
stand beside it (agent.flag). Bad input gets one line, and exit code 2.
"""
import argparse
import difflib
import functools
import importlib
import math
import os
import re
import shutil
import sys
import textwrap
import typing
import zlib
from dataclasses import asdict, dataclass, fields
from types import SimpleNamespace

import torch

from agent import MemoryFlags, flag
from cores import make_core
from support import models
from support.system import Parser, fail, optional

# Flags that need a package: its module, its name
OPTIONAL = {"tensorboard": ("torch.utils.tensorboard", "tensorboard"), "wandb": ("wandb", "wandb"),
            "video": ("moviepy", "moviepy"), "export": ("safetensors.torch", "safetensors")}
POLICIES = ["TD3", "DDPG", "SAC", "PPO", "A2C", "REINFORCE", "R2D1", "BCQ"]     # a new algorithm: one file, one entry here
OBSERVE = re.compile(r"full|positions|velocities|[0-9]{1,6}(-[0-9]{1,6})?(,[0-9]{1,6}(-[0-9]{1,6})?)*")
ONE_VALUE = "a flag takes one value; sweep.py does the runs of several"
# What flags are called in other programs
ELSEWHERE = dict(
    policy="algo algorithm agent", env="env_id env_name task gym_id environment", device="gpu cuda", observe="obs_mask mask",
    env_kwargs="env_args make_kwargs",
    lr="learning_rate step_size", discount="gamma", tau="polyak target_smoothing", core="rnn rnn_type cell cell_type",
    core_size="lstm_size lstm_hidden_size lstm_hidden_dim gru_size rnn_size rnn_hidden_size rnn_hidden_dim",
    hidden_size="net_arch hidden_dim units", seq_len="sequence_length bptt", max_timesteps="total_timesteps total_steps steps",
    memory_size="buffer_size replay_size", num_envs="n_envs num_processes", start_timesteps="learning_starts warmup start_steps",
    rollout_steps="num_steps", epochs="n_epochs update_epochs ppo_epochs", clip="clip_range clip_coef clip_ratio",
    gae_lambda="lam lambda", entropy_coef="ent_coef", recurrent="lstm gru", results_dir="log_dir out_dir output_dir",
    load_model="model checkpoint", test="eval evaluate play enjoy", max_episode_steps="time_limit horizon")

measuring, machine, handling = (functools.partial(flag, role=role) for role in ("measuring", "machine", "handling"))


@dataclass
class RunFlags:
    """What is not the algorithm's own. Roles of flags: see agent.flag."""
    policy: str = flag("TD3", f"algorithm: {', '.join(POLICIES)}")
    env: str = flag("HopperBulletEnv-v0", "Gymnasium environment id, or MODULE:ID; the module may lie in the current folder")
    seed: int = flag(0, "seeds Python, NumPy, Torch, environments, agent and buffer", low=0)
    eval_freq: int = measuring(5_000, "steps between evaluations")
    eval_episodes: int = measuring(10, "episodes of an evaluation")
    env_kwargs: str = flag("", "arguments that the environment is made with: KEY=VALUE, or several of them")
    observe: str = flag("full", "what the agent sees of the observation: full, positions, velocities, or indices such as 0-4,7")
    max_episode_steps: int = flag(0, "truncate episodes, in training and evaluation, after so many steps; 0: where the "
                                     "environment does", low=0)
    flicker: float = flag(0.0, "probability that the whole observation is zero", high=1)
    obs_noise: float = flag(0.0, "standard deviation of noise on the observation")
    sensor_dropout: float = flag(0.0, "probability that an entry of the observation is zero", high=1)
    device: str = machine("cpu", "cpu, cuda, or cuda:N for one of several")
    buffer_on_device: bool = machine(False, "keep a copy of the buffer on the device, so that a batch is gathered there")
    threads: int = machine(1, "Torch threads; the networks are small: one is fastest, and leaves the other cores to other seeds",
                           high=1024)
    results_dir: str = handling("results", "where results are written")
    staleness: bool = measuring(False, "measure how stale the hidden states are that training starts from, every eval_freq steps")
    tensorboard: bool = handling(False, "write curves for TensorBoard, too: RESULTS_DIR/tensorboard/RUN")
    wandb: bool = handling(False, "write curves to Weights & Biases, too")
    log_freq: int = handling(1_000, "steps between the entries of --tensorboard and --wandb, besides evaluations")
    overwrite: bool = handling(False, "replace the results of an earlier run of the same name")
    checkpoint_freq: int = handling(20_000, "steps between checkpoints, kept until the run has finished; 0: none", low=0)
    keep_checkpoint: bool = handling(False, "keep one of the last step, so that the run can be made longer")
    resume: bool = handling(False, "go on from the last checkpoint of a run of the same flags; if none, start it. With a larger "
                                   "--max_timesteps: make a run longer")
    save_model: bool = handling(False, "save the last and the best model beside the results")
    load_model: str = flag("", "model file, or folder of --export, to train on from, or to test; it brings its flags")
    test: bool = handling(False, "run the model of --load_model and print its return; nothing is trained, or written unasked")
    explore: bool = handling(False, "with --test: act with exploration, as in training")
    video: str = handling("", "with --test: write a video of the first episode, FILE.mp4 or FILE.gif")
    export: str = handling("", "with --test: write the policy and its returns as a folder for a model hub")
    memory_steps: str = handling("", "with --test: returns with a memory of the last K rows alone, for each K given: 1 4 16 all")
    lookback: int = handling(0, "with --test: how far an action moves if the row k steps before is another one, k = 1 to X",
                             low=0, high=1000)
    record: str = handling("", "write all episodes, of training or of --test, as a data set of this name, such as hopper/td3-v0")


GROUPS = dict(                                                         # the groups of --help; learning: all other flags
    task="policy env env_kwargs observe flicker obs_noise sensor_dropout max_episode_steps max_timesteps seed".split(),
    memory=["recurrent", *(f.name for f in fields(MemoryFlags))],
    learning=[],
    evaluation="eval_freq eval_episodes test explore memory_steps lookback video export".split(),
    files="results_dir save_model load_model checkpoint_freq keep_checkpoint resume overwrite record".split(),
    logging="tensorboard wandb log_freq staleness".split())
ARCHITECTURE = ("recurrent_actor", "recurrent_critic", "core", "core_size", "memory_input", "hidden_size", "hidden_layers")
HANDLING = {f.name for f in fields(RunFlags) if f.metadata["role"] == "handling"}
BEFORE = {"lr_decay": False, "horizon_growth": 1, "average": 0}        # in runs that are older than these flags
MACHINE = {f.name for f in fields(RunFlags) if f.metadata["role"] == "machine"}
NOT_LEARNING = {f.name for f in fields(RunFlags) if f.metadata["role"] != "learning"}


class Words(argparse.Action):
    """Several words as one sorted text, so that the same arguments in another order are the same run."""

    def __call__(self, parser, namespace, values, option_string=None):
        setattr(namespace, self.dest, " ".join(sorted(" ".join(values).split())))


def add_flags(parser, cls):
    """One flag per field of a dataclass. Defaults stay out of the parser: only what the user gave is in its result."""
    hints = typing.get_type_hints(cls)
    for f in fields(cls):
        hint, options = hints[f.name], dict(default=argparse.SUPPRESS)
        if f.name in ("env_kwargs", "memory_steps"):
            parser.add_argument(f"--{f.name}", nargs="+", action=Words, **options)
        elif hint is bool:
            parser.add_argument(f"--{f.name}", action=argparse.BooleanOptionalAction, **options)
        elif typing.get_origin(hint) is typing.Literal:
            parser.add_argument(f"--{f.name}", choices=typing.get_args(hint), **options)
        else:
            parser.add_argument(f"--{f.name}", type=convert(hint, f), **options)


def show_help(algorithm, config):
    """Print an algorithm's flags with their values in a run, `config`. Flags that the algorithm refuses are left out."""
    cls = algorithm.HyperParameters
    known = {f.name: (f, typing.get_type_hints(owner)[f.name]) for owner in (cls, RunFlags) for f in fields(owner)}
    refused = {*cls.unused, *(["recurrent_actor", "recurrent_critic"] if cls.one_network else []),
               *(["explore"] if algorithm.offline else [])}
    recurrent, plain = config["recurrent_actor"] or config["recurrent_critic"], defaults_of(cls)

    def line(name):
        if name == "recurrent":
            return "give actor and critic a memory, and other defaults to some flags"
        f, hint = known[name]
        text, value = f.metadata["help"], config[name]
        if typing.get_origin(hint) is typing.Literal:
            text += f"; one of {', '.join(typing.get_args(hint))}"
        values = [str(value)] if value not in (None, "", False) or type(value) in (int, float) else []
        values += [f"--no-{name} turns it off"] if value is True else []
        if name in cls.recurrent_defaults:
            values.append(f"without --recurrent: {plain[name]}" if recurrent else
                          f"with --recurrent: {cls.recurrent_defaults[name]}")
        return text + (f" [{'; '.join(values)}]" if values else "")

    width = min(130, max(100, shutil.get_terminal_size().columns))
    about = sys.modules[algorithm.__module__].__doc__ or algorithm.__name__
    print(about.splitlines()[0], *re.findall("^Run: .*", about, re.MULTILINE), sep="\n")
    others = [name for name in known if not any(name in names for names in GROUPS.values())]
    for group, names in GROUPS.items():
        print(f"\n{group}")
        for name in names or others:
            if name not in refused:
                print(textwrap.fill(f"  --{name:<20} {line(name)}", width, subsequent_indent=" " * 25))


def convert(hint, f):
    """A function that reads and checks one flag's value."""
    kinds = typing.get_args(hint) or (hint,)
    words = [word for kind in kinds for word in typing.get_args(kind)]  # such as "full"

    def read(text):
        if str in kinds or text in words:
            return text
        number = int if int in kinds else float
        low, high = f.metadata["low"], f.metadata["high"]
        low = (1 if number is int else 0) if low is None else low
        high = (2 ** 31 - 1 if number is int else sys.float_info.max) if high is None else high
        wanted = f"{'a whole number' if number is int else 'a number'} of at least {low}" + \
            (f" and at most {high}" if number is int or high <= 1 else "") + "".join(f", or '{word}'" for word in words)
        try:
            value = number(float(text))                                # also of 1e6; int() of inf or NaN raises
            if value != float(text) or not low <= value <= high:
                raise ValueError
        except (ValueError, OverflowError):
            raise argparse.ArgumentTypeError(f"'{text}' is not {wanted}" + f"; {ONE_VALUE}" * ("," in text)) from None
        return value
    return read


def check_saved(config):
    """Check a run's flags that were read from a file: each value must be one that the command line could have given. Another
    version's flags, which are unknown here, must be plain values. Raises ValueError, with one line."""
    if config["policy"] not in POLICIES:                               # a file must not choose what is imported
        raise ValueError(f"there is no policy {config['policy']!r:.60}")
    if len(str(config)) > 10_000:
        raise ValueError("its flags are more than 10,000 characters")
    known, anything = {}, flag(None, "", low=-sys.float_info.max)
    for cls in (RunFlags, load_policy(config["policy"]).HyperParameters):
        hints = typing.get_type_hints(cls)
        known |= {f.name: (hints[f.name], f) for f in fields(cls)}
    for name, value in config.items():
        hint, f = known.get(name, (bool | float | str | None, anything))
        kinds = typing.get_args(hint) or (hint,)
        try:
            if type(value) in (int, float) and {int, float} & {*kinds}:
                convert(int if int in kinds else float, f)(str(value))
                fits = True
            else:
                fits = type(value) in kinds or value in [word for kind in kinds for word in typing.get_args(kind) or [kind]]
        except argparse.ArgumentTypeError:
            fits = False
        if name not in HANDLING and not f"{name}{value}".isprintable() or name == "env" and len(str(value).encode()) > 150 or \
                name == "observe" and not OBSERVE.fullmatch(str(value)):
            fits = False                                               # the environment's name is part of a file's name
        if not fits:
            raise ValueError(f"a run cannot have had {name} {value!r:.60}")


def check_same(name, saved, config):
    """Were the flags of a finished run, `saved`, those of `config`? Machine and folders may differ. A model or a checkpoint that
    `config` wants kept must have been kept. Raises ValueError, with one line, if not: a run of the same name may have been
    measured otherwise, or be of before a default was changed."""
    saved = BEFORE | saved
    for key, value in config.items():
        if key not in HANDLING | MACHINE and saved.get(key, value) != value:
            raise ValueError(f"{name} has finished, with {as_word(key, saved[key])[:100]}; give the same, or choose another "
                             "--results_dir")
    for key in ("save_model", "keep_checkpoint"):
        if config.get(key) and not saved.get(key):
            raise ValueError(f"{name} has finished, without --{key}; leave it out, or choose another --results_dir")


def load_policy(name):
    """The class of an algorithm's agents. Exits with 2 if there is none of that name."""
    if name not in POLICIES:
        near = difflib.get_close_matches(name.upper(), POLICIES, 1)
        fail(f"unknown policy '{name}'; " + (f"did you mean {near[0]}? " if near else "") + f"there are {', '.join(POLICIES)}")
    return vars(importlib.import_module(name))[name]


def defaults_of(cls):
    return {f.name: f.default for f in fields(cls)}


def as_word(name, value):
    """A flag as it is given on the command line."""
    return f"--{name}" if value is True else f"--no-{name}" if value is False else f"--{name}={value}"


def parse(argv):
    """Command line -> run flags, hyper-parameters, the class of the agent, and the dictionary of --load_model, or None."""
    first = Parser(add_help=False, allow_abbrev=False)
    first.add_argument("--policy")
    first.add_argument("--load_model")
    first.add_argument("--test", action=argparse.BooleanOptionalAction)
    early, _ = first.parse_known_args(argv)
    model, saved = None, {}
    if early.load_model == "":                                         # an empty variable in a script
        fail("--load_model '' is no model; give a file or a folder, or leave it out")
    if early.test and not early.load_model:
        fail("--test needs --load_model FILE, a model written by --save_model")
    if early.load_model:
        try:
            model = models.load_model(early.load_model)
        except ValueError as error:
            fail(f"--load_model: {error}")
        saved = BEFORE | model["config"]                               # the model's flags, unless others are given
        if early.policy not in (None, saved.get("policy")):
            fail(f"--policy {early.policy}: '{early.load_model}' is a model of {saved.get('policy')}; leave --policy out")
    algorithm = load_policy(str(saved.get("policy")) if model else early.policy or RunFlags.policy)

    parser = Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("-h", "--help", action="store_true", default=argparse.SUPPRESS)
    parser.add_argument("--recurrent", action="store_true", default=argparse.SUPPRESS)
    add_flags(parser, RunFlags)
    add_flags(parser, algorithm.HyperParameters)
    given, unknown = parser.parse_known_args(argv)
    given = vars(given)
    for word in unknown:
        name = word.lstrip("-").split("=")[0]
        owners = [p for p in POLICIES if name.removeprefix("no-") in defaults_of(load_policy(p).HyperParameters)]
        if owners and algorithm.__name__ not in owners:
            fail(f"--{name} is a flag of {' and '.join(owners)}, {algorithm.__name__} does not use it")
        flags = {**defaults_of(RunFlags), **defaults_of(algorithm.HyperParameters), "recurrent": None}
        near = [flag for flag in flags if name.replace("-", "_") in ELSEWHERE.get(flag, "").split()] or \
            difflib.get_close_matches(name, [*flags, *(f"no-{k}" for k, v in flags.items() if isinstance(v, bool))], 1)
        fail(f"unknown argument '{word}'; " + (f"did you mean --{near[0]}?" if near else "--help lists all flags" if
                                               word.startswith("-") else f"{ONE_VALUE} (--help lists all flags)"))
    env = str(saved.get("env"))
    if ":" in env and "env" not in given:                              # an import runs code, and a model is only data
        fail(f"--load_model: '{early.load_model}' names the environment {env}, which would import the module "
             f"{env.split(':')[0]} and so run its code; if you trust it, add --env {env}")

    if model:
        try:
            check_saved({k: v for k, v in saved.items() if k not in given} | {"policy": algorithm.__name__})
        except ValueError as error:
            fail(f"--load_model: '{early.load_model}' is damaged: {error}; give another model")
    config = {**defaults_of(RunFlags), **defaults_of(algorithm.HyperParameters)}
    # What the model was trained with, checked as if it had been given on the command line
    saved = {k: v for k, v in saved.items() if k in config and v is not None and k not in {*HANDLING, "load_model"}}
    saved = vars(parser.parse_args([as_word(k, v) for k, v in saved.items()]))
    config.update(saved)
    if given.pop("recurrent", False):
        config.update(recurrent_actor=True, recurrent_critic=given.get("baseline", True))  # no baseline, no critic
    config.update(given)
    if (config["recurrent_actor"] or config["recurrent_critic"]) and not saved:
        config.update(algorithm.HyperParameters.recurrent_defaults | given)     # what the user gave wins
    if config.pop("help", False):
        show_help(algorithm, config)
        sys.exit(0)
    check(config, given, algorithm)
    for name in ARCHITECTURE:
        if config[name] != saved.get(name, config[name]):
            fail(f"{as_word(name, config[name])}: '{early.load_model}' holds another architecture, of "
                 f"{as_word(name, saved[name])}; leave it out, the flags it was trained with come with it")
    if model:
        check_size(config, given, early.load_model)
    run = RunFlags(**{f.name: config[f.name] for f in fields(RunFlags)})
    cfg = algorithm.HyperParameters(**{f.name: config[f.name] for f in fields(algorithm.HyperParameters)})
    return run, cfg, algorithm, model


def check_size(config, given, path):
    """Do a model's flags ask for more than its file can hold? Exits with 2 and one line, before any RAM or time is spent."""
    for name, most in (("eval_episodes", 10_000), ("num_envs", 1_000)):
        if name not in given and config.get(name, 0) > most:
            fail(f"--load_model: '{path}' asks for --{name} {config[name]}; if you want as many, add this to the command")
    layers, size, flags = config["hidden_layers"], config["hidden_size"], SimpleNamespace(**config)
    recurrent = config["recurrent_actor"] or config["recurrent_critic"]
    try:
        with torch.device("meta"):                                     # which takes no RAM
            smallest = make_core(recurrent, flags, SimpleNamespace(state_dim=1, action_dim=1))
            core = sum(weight.numel() for weight in smallest.parameters())
    except RuntimeError:                                               # more than can be counted
        core = math.inf
    # The least that one network has. A layer takes at least two entries in the file's table of contents
    head = size * (config["core_size"] if recurrent else 1) + size * size * (layers - 1) if layers else 0
    least = 4 * (core + head + config.get("act_candidates", 0)) + 100 * layers
    actual = os.path.getsize(os.path.join(path, models.WEIGHTS) if os.path.isdir(path) else path)
    if least > actual:
        sizes = [name for name in ("hidden_layers", "hidden_size", "core_size", "act_candidates") if name in config]
        fail(f"--load_model: '{path}' has {actual:,} bytes, and {', '.join(f'--{name} {config[name]}' for name in sizes)} would "
             f"take {least:,} at least: it holds another architecture; give the flags it was trained with")


def check(config, given, algorithm):
    """Refuse combinations of flags that make no sense. Exits with 2 and one line."""
    try:
        algorithm.HyperParameters.check(config, given)
    except ValueError as error:
        fail(str(error))
    offline = algorithm.offline
    for name, does in dict(overwrite="replaces it", test="trains nothing", record="needs all of its episodes").items():
        if config["resume"] and config[name]:
            fail(f"--resume goes on with a run, and --{name} {does}; drop one of the two")
    logs = config["tensorboard"] or config["wandb"]
    if "log_freq" in given and not logs:
        fail("--log_freq is for --tensorboard and --wandb; add one of them")
    if logs and config["test"]:
        fail("--tensorboard and --wandb show how training goes, and --test trains nothing; leave them out")
    for name, does in dict(video="shows", export="passes on", memory_steps="measures", lookback="measures").items():
        if config[name] and not config["test"]:
            fail(f"--{name} {does} a saved policy; add --test --load_model FILE")
    if config["export"] and config["explore"]:
        fail("--export states what the policy returns, and --explore adds noise to it; drop one of the two")
    if not re.fullmatch(r"((all|[1-9][0-9]{0,3})( |$))*", config["memory_steps"]):
        fail(f"--memory_steps '{config['memory_steps']}' must be whole numbers from 1 to 9999, or all")
    if (config["memory_steps"] or config["lookback"]) and (config["explore"] or config["record"] or config["video"]):
        fail("--memory_steps and --lookback play episodes again, without noise; drop --explore, --record and --video")
    if (config["memory_steps"] or config["lookback"]) and not config["recurrent_actor"]:
        fail("--memory_steps and --lookback need a policy with a memory, and this one's actor has none")
    if config["lookback"] and config["eval_episodes"] == 1:
        fail("--lookback puts a row of another episode in, and --eval_episodes 1 has no other; choose more")
    if config["video"] and config["record"]:
        fail("--video records in an environment that draws itself, which is not the one that --record describes; run it twice")
    for name, package in OPTIONAL.items():
        try:
            config[name] and optional(*package)
        except ValueError as error:
            fail(f"--{name}: {error}")
    if config["explore"] and not config["test"]:
        fail("--explore is for --test; training explores anyway")
    if config["explore"] and offline:
        fail(f"--explore: {algorithm.__name__} has no exploration; leave it out")
    if given.get("dataset") and config["test"]:
        fail("--dataset is trained from, and --test trains nothing; drop one of the two")
    if "record" in given and not config["record"]:
        fail("--record '' is no name of a data set; give one such as hopper/td3-v0")
    for name in ("checkpoint_freq", "keep_checkpoint"):
        if config["record"] and given.get(name):
            fail(f"--{name} is of no use with --record: a run that records cannot be resumed; leave it out")
    if config["record"] and not config["test"]:
        if offline:
            fail(f"--record: {algorithm.__name__} trains without stepping the environment; record a saved model, with --test")
        if config.get("num_envs", 1) > 1:
            fail(f"--record writes one stream of episodes, and there are {config['num_envs']} environments; add --num_envs 1")
    if config["staleness"] and not config["recurrent_critic"]:
        whose = "recurrent" if algorithm.HyperParameters.one_network else "recurrent_critic"
        fail(f"--staleness compares states of a recurrent critic, and there is none; add --{whose}" +
             (" and --baseline" if not config.get("baseline", True) else ""))
    if not OBSERVE.fullmatch(config["observe"]):
        fail(f"--observe '{config['observe']}' is not full, positions or velocities, nor indices such as 0-4,7")
    for name in ("lr", "core_lr", "tau", "replay_ratio", "max_grad_norm"):
        if config.get(name) == 0:
            fail(f"--{name} 0 learns nothing; give a positive number")
    if config.get("discount") == 1 and given.get("horizon_growth", 1) > 1:
        fail("--horizon_growth is of no use with --discount 1, whose horizon has no end; choose a smaller --discount")
    if config["hidden_layers"] == 0 and "hidden_size" in given:
        fail("--hidden_size is of no use with --hidden_layers 0; leave it out")
    device = re.fullmatch(r"cpu|cuda(?::(0|[1-9][0-9]*))?", config["device"])
    if not device:
        fail(f"--device '{config['device']}' is unknown; there are cpu, cuda, and cuda:0, cuda:1 ... where there are several")
    if config["buffer_on_device"] and config["device"] == "cpu" and not config["test"]:      # a test has no buffer
        fail("--buffer_on_device needs --device cuda; on the CPU the buffer is where it is used")
    if config["device"] != "cpu" and not torch.cuda.is_available():
        fail(f"--device {config['device']}: no CUDA device is available to this PyTorch; use --device cpu")
    if device[1] and int(device[1]) >= torch.cuda.device_count():
        fail(f"--device {config['device']}: the last CUDA device of this machine is cuda:{torch.cuda.device_count() - 1}")


def run_name(run, cfg, algorithm):
    """Name of a run's files: what was run, every flag that differs from its default, the seed."""
    memory = ("actor_" if not cfg.recurrent_critic else "critic_" if not cfg.recurrent_actor else "") + cfg.core \
        if cfg.recurrent_actor or cfg.recurrent_critic else "ff"
    defaults = {**defaults_of(RunFlags), **defaults_of(algorithm.HyperParameters)}
    if memory != "ff":
        defaults.update(algorithm.HyperParameters.recurrent_defaults)
    silent = {"policy", "env", "seed", "recurrent_actor", "recurrent_critic", "core"} | NOT_LEARNING
    brief = dict(load_model=os.path.basename(os.path.normpath(run.load_model)), env_kwargs=run.env_kwargs.replace(" ", ","))
    other = [f"{k}={brief.get(k, v)}" for k, v in {**asdict(run), **asdict(cfg)}.items() if k not in silent and v != defaults[k]]
    name = re.sub(r'[<>:"/\\|?*]', "-", "_".join([run.env, run.policy, memory, *other]))   # some systems allow none of these
    if len(name.encode()) > 200:                                       # a file's name has at most 255 bytes
        name = f"{name.encode()[:190].decode(errors='ignore')}~{zlib.crc32(name.encode()):08x}"
    return f"{name}_seed={run.seed}"


def env_options(run):
    """What a run's environments are made with, see envs.make_env."""
    names = ("observe", "flicker", "obs_noise", "sensor_dropout", "max_episode_steps", "env_kwargs")
    return {name: getattr(run, name) for name in names}


def check_actions(run, cfg, discrete):
    """Can the algorithm act in the environment? Exits with 2 and one line if not. discrete: are the environment's actions?"""
    def able(policy):
        algorithm = load_policy(policy)
        return algorithm.discrete if discrete else algorithm.continuous
    if not able(run.policy):
        needs, has = ("continuous", "discrete") if discrete else ("discrete", "continuous")
        fail(f"{run.policy} needs {needs} actions and {run.env} has {has} ones; use --policy "
             f"{' or '.join(filter(able, POLICIES))}")
    if discrete and not run.test and vars(cfg).get("init_log_std") != defaults_of(type(cfg)).get("init_log_std"):
        fail(f"--init_log_std is of a Gaussian policy, and {run.env} has discrete actions; leave it out")
