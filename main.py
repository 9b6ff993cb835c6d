"""Train or test one agent on one environment.

    python main.py --policy TD3 --env HopperBulletEnv-v0 --recurrent
    python main.py --policy PPO --help                                    (the flags of PPO, with its defaults)
    python main.py --test --load_model results/RUN.best.pt                (run a saved policy; see it with --video FILE.gif)
    python main.py --test --load_model results/RUN.best.pt --export FOLDER    (pass it on; --load_model FOLDER reads it)
    python main.py --policy TD3 --record hopper/td3-v0                    (record all training episodes, see data.py)
    python main.py --policy BCQ --dataset hopper/td3-v0 --recurrent       (train from them alone)

Writes to --results_dir, per run: RUN.csv (one line per evaluation episode), RUN.json (all flags, versions, commit) and,
with --save_model, RUN.last.pt and RUN.best.pt, with --staleness RUN.staleness.csv. `python plot.py` draws them. logger.py
writes curves for TensorBoard and Weights & Biases.
"""
import argparse
import contextlib
import difflib
import functools
import importlib
import importlib.metadata
import json
import math
import os
import platform
import random
import shlex
import shutil
import subprocess
import sys
import time
import typing
import zlib
from dataclasses import MISSING, asdict, dataclass, fields

import numpy as np
import torch
from tqdm import tqdm

import data
import export
import video
from checkpoint import UNREPEATABLE, Checkpoints, Stop, Stopped, keep_going, random_state, set_random_state, set_state, state_of
from cores import MemoryFlags, flag
from envs import env_spec, make_env, make_vector_env
from logger import Logger, events_folder
from staleness import Staleness
from utils import Buffer, Parser, alone, fail, optional, save_checkpoint, write_file

OPTIONAL = {"tensorboard": ("torch.utils.tensorboard", "tensorboard"), "wandb": ("wandb", "wandb"),
            "video": ("moviepy", "moviepy"),                           # flag: module and package that only it needs
            "export": ("safetensors.torch", "safetensors")}
POLICIES = ["TD3", "DDPG", "SAC", "PPO", "A2C", "REINFORCE", "R2D1", "BCQ"]     # a new algorithm: one file, one entry here

PATIENCE = 30                                                          # seconds that --resume waits for a run that is being ended

measuring, machine, handling = (functools.partial(flag, role=role) for role in ("measuring", "machine", "handling"))


@dataclass
class RunFlags:
    """What is not the algorithm's own. Roles of flags: see cores.flag."""
    policy: str = flag("TD3", f"algorithm: {', '.join(POLICIES)}")
    env: str = flag("HopperBulletEnv-v0", "Gymnasium environment id")
    seed: int = flag(0, "seeds Python, NumPy, Torch, environments and action space", low=0)
    eval_freq: int = measuring(5_000, "steps between evaluations")
    eval_episodes: int = measuring(10, "episodes of an evaluation")
    observe: typing.Literal["full", "positions", "velocities"] = flag("full", "which part of the observation the agent sees")
    flicker: float = flag(0.0, "probability that the whole observation is zero", high=1)
    obs_noise: float = flag(0.0, "standard deviation of noise on the observation")
    sensor_dropout: float = flag(0.0, "probability that an entry of the observation is zero", high=1)
    device: str = machine("cpu", "cpu or cuda")
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
    resume: bool = handling(False, "go on from the last checkpoint of an interrupted run of the same flags; if none, start it")
    save_model: bool = handling(False, "save the last and the best model beside the results")
    load_model: str = flag("", "model file, or folder of --export, to start from, or to test")
    test: bool = handling(False, "run the model of --load_model and print its return; nothing is trained, no results are written")
    explore: bool = handling(False, "with --test: act with exploration, as in training")
    video: str = handling("", "with --test: write a video of the first episode, FILE.mp4 or FILE.gif")
    export: str = handling("", "with --test: write the policy and its returns as a folder for a model hub")
    record: str = handling("", "write all episodes, of training or of --test, as a data set of this name, such as hopper/td3-v0")


HANDLING = {f.name for f in fields(RunFlags) if f.metadata["role"] == "handling"}
NOT_LEARNING = {f.name for f in fields(RunFlags) if f.metadata["role"] != "learning"}


# ---------------------------------------------------------------------- flags

def whole_number(text):
    """An integer, also written 1e6."""
    value = float(text)
    if not value.is_integer():
        raise ValueError
    return int(value)


def add_flags(parser, cls, defaults):
    """One flag per field of a dataclass. Defaults stay out of the parser: only what the user gave is in its result."""
    hints = typing.get_type_hints(cls)
    for f in fields(cls):
        hint, default = hints[f.name], defaults[f.name]
        options = dict(default=argparse.SUPPRESS, help=f"{f.metadata['help']} [{default}]".replace("%", "%%"))
        if hint is bool:
            parser.add_argument(f"--{f.name}", action=argparse.BooleanOptionalAction, **options)
        elif typing.get_origin(hint) is typing.Literal:
            parser.add_argument(f"--{f.name}", choices=typing.get_args(hint), **options)
        else:
            parser.add_argument(f"--{f.name}", type=convert(hint, f), metavar="X", **options)


def convert(hint, f):
    """A function that reads and checks one flag's value."""
    kinds = typing.get_args(hint) or (hint,)
    words = [word for kind in kinds for word in typing.get_args(kind)]  # such as "full"

    def read(text):
        if text in words:
            return text
        if str in kinds:
            return text
        number = int if int in kinds else float
        low, high = f.metadata["low"], f.metadata["high"]
        low = (1 if number is int else 0) if low is None else low
        high = (2 ** 31 - 1 if number is int else sys.float_info.max) if high is None else high
        wanted = f"{'a whole number' if number is int else 'a number'} of at least {low}" + \
            (f" and at most {high}" if number is int or high <= 1 else "") + "".join(f", or '{word}'" for word in words)
        try:
            value = whole_number(text) if number is int else float(text)
            if not low <= value <= high:
                raise ValueError
        except (ValueError, OverflowError):
            raise argparse.ArgumentTypeError(f"'{text}' is not {wanted}") from None
        return value
    return read


def load_policy(name):
    """The module of an algorithm. Exits with 2 if there is none of that name."""
    if name not in POLICIES:
        near = difflib.get_close_matches(name.upper(), POLICIES, 1)
        fail(f"unknown policy '{name}'; " + (f"did you mean {near[0]}? " if near else "") + f"there are {', '.join(POLICIES)}")
    return importlib.import_module(name)


def defaults_of(cls):
    return {f.name: f.default for f in fields(cls) if f.default is not MISSING}


def parse(argv):
    """Command line -> run flags, hyper-parameters, the algorithm's module, and the flags that the user gave."""
    first = Parser(add_help=False, allow_abbrev=False)
    first.add_argument("--policy", default="TD3")
    first.add_argument("--load_model", default="")
    first.add_argument("--test", action=argparse.BooleanOptionalAction)
    early, _ = first.parse_known_args(argv)
    checkpoint, saved = None, {}
    if early.test and not early.load_model:
        fail("--test needs --load_model FILE, a model written by --save_model")
    if early.load_model:
        try:
            checkpoint = export.load_model(early.load_model)
        except ValueError as error:
            fail(f"--load_model: {error}")
    if early.test:                                                     # test as it was trained, unless told otherwise
        saved = checkpoint["config"]
        if not isinstance(saved, dict):
            fail(f"--load_model: '{early.load_model}' is not a model of this project; give a file written by --save_model")
        early.policy = str(saved.get("policy"))
    module = load_policy(early.policy)

    parser = Parser(description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--recurrent", action="store_true", default=argparse.SUPPRESS,
                        help="recurrent actor and critic; changes the defaults of " +
                             ", ".join(f"{k} to {v}" for k, v in module.RECURRENT_DEFAULTS.items()))
    add_flags(parser.add_argument_group("run"), RunFlags, defaults_of(RunFlags))
    add_flags(parser.add_argument_group(module.__name__), module.HyperParameters, defaults_of(module.HyperParameters))
    given, unknown = parser.parse_known_args(argv)
    given = vars(given)
    for word in unknown:
        name = word.lstrip("-").split("=")[0]
        owners = [p for p in POLICIES if name.removeprefix("no-") in defaults_of(importlib.import_module(p).HyperParameters)]
        if owners and module.__name__ not in owners:
            fail(f"--{name} is a flag of {' and '.join(owners)}, {module.__name__} does not use it")
        flags = {**defaults_of(RunFlags), **defaults_of(module.HyperParameters), "recurrent": None}
        near = difflib.get_close_matches(name, [*flags, *(f"no-{k}" for k, v in flags.items() if isinstance(v, bool))], 1)
        fail(f"unknown argument '{word}'; " + (f"did you mean --{near[0]}?" if near else "--help lists all flags"))
    if given.get("policy", early.policy) != early.policy:
        fail(f"--policy {given['policy']}: '{early.load_model}' is a model of {early.policy}; leave --policy out to test it")

    config = {**defaults_of(RunFlags), **defaults_of(module.HyperParameters)}
    # What the model was trained with, checked as if it had been given on the command line
    saved = {k: v for k, v in saved.items() if k in config and v is not None and k not in {*HANDLING, "load_model"}}
    words = [f"--{k}" if v is True else f"--no-{k}" if v is False else f"--{k}={v}" for k, v in saved.items()]
    config.update(vars(parser.parse_args(words)))
    if given.pop("recurrent", False):
        config.update(recurrent_actor=True, recurrent_critic=given.get("baseline", True))  # without a baseline: no critic
    for name in ("recurrent_actor", "recurrent_critic"):
        config[name] = given.get(name, config[name])
    if (config["recurrent_actor"] or config["recurrent_critic"]) and not saved:
        config.update(module.RECURRENT_DEFAULTS)
    config.update(given)
    check(config, given, module)
    run = RunFlags(**{f.name: config[f.name] for f in fields(RunFlags)})
    cfg = module.HyperParameters(**{f.name: config[f.name] for f in fields(module.HyperParameters)})
    return run, cfg, module, checkpoint


def check(config, given, module):
    """Combinations of flags that make no sense. Exits with 2 and one line."""
    actor, critic = config["recurrent_actor"], config["recurrent_critic"]
    if not (actor or critic):
        for name in defaults_of(MemoryFlags):
            if name in given and not name.startswith("recurrent_"):
                fail(f"--{name} needs a memory; add --recurrent, --recurrent_actor or --recurrent_critic")
    for name, why in getattr(module, "UNUSED", {}).items():
        if config[name] != defaults_of(MemoryFlags)[name]:
            given_as = name if config[name] is True else f"{name} {config[name]}"
            fail(f"--{given_as} is of no use to {module.__name__}: {why}")
    offline = getattr(module, "OFFLINE", False)
    if config["resume"]:
        for name in ("overwrite", "test", "record"):
            if config[name]:
                fail(f"--resume goes on with a run, and --{name} " +
                     dict(overwrite="replaces it", test="trains nothing",
                          record="needs all of its episodes, from the first one on")[name] + "; drop one of the two")
    logs = config["tensorboard"] or config["wandb"]
    if "log_freq" in given and not logs:
        fail("--log_freq is for --tensorboard and --wandb; add one of them")
    if logs and config["test"]:
        fail("--tensorboard and --wandb show how training goes, and --test trains nothing; leave them out")
    for name, does in dict(video="shows", export="passes on").items():
        if config[name] and not config["test"]:
            fail(f"--{name} {does} a saved policy; add --test --load_model FILE")
    if config["export"] and config["explore"]:
        fail("--export states what the policy returns, and --explore adds noise to it; drop one of the two")
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
        fail(f"--explore: {module.__name__} has no exploration; leave it out")
    if given.get("dataset") and config["test"]:
        fail("--dataset is trained from, and --test trains nothing; drop one of the two")
    if config["record"] and not config["test"]:
        if offline:
            fail(f"--record: {module.__name__} trains without stepping the environment; record a saved model, with --test")
        if config.get("num_envs", 1) > 1:
            fail(f"--record writes one stream of episodes, and there are {config['num_envs']} environments; add --num_envs 1")
    try:
        getattr(module, "check", dict)(config)                         # the algorithm's own
    except ValueError as error:
        fail(str(error))
    if config["burn_in"] and config["seq_len"] != "full" and config["seq_len"] >= config.get("rollout_steps", math.inf):
        fail(f"--burn_in with --seq_len {config['seq_len']}: a window is all of a rollout of {config['rollout_steps']} steps, "
             "none lie before it; choose a smaller --seq_len")
    if config["seq_len"] == "full" and config["burn_in"]:
        fail("--burn_in with --seq_len full: a full episode has no steps before it; drop one of the two")
    if config["critic_hidden"] != "own" and not critic:
        fail(f"--critic_hidden {config['critic_hidden']} needs a recurrent critic; add --recurrent_critic")
    if config["critic_hidden"] == "actor" and not actor:
        fail("--critic_hidden actor needs a recurrent actor to take it from; add --recurrent_actor")
    if config["critic_hidden"] != "own" and config["hidden_init"] == "zero":
        fail(f"--critic_hidden {config['critic_hidden']} needs --hidden_init stored; with zero every window starts from zero")
    if config["stored_precision"] != "float32" and config["hidden_init"] == "zero":
        fail("--stored_precision needs --hidden_init stored; with zero no stored state is ever read")
    if config["staleness"] and not critic:
        fail("--staleness compares states of a recurrent critic, and there is none; add --recurrent_critic" +
             (" and --baseline" if not config.get("baseline", True) else ""))
    if config["hidden_refresh"] and config["hidden_init"] == "zero":
        fail("--hidden_refresh needs --hidden_init stored; with zero no stored state is ever read")
    for name in ("lr", "core_lr", "tau", "replay_ratio", "max_grad_norm"):
        if config.get(name) == 0:
            fail(f"--{name} 0 learns nothing; give a positive number")
    if config["device"] not in ("cpu", "cuda"):
        fail(f"--device '{config['device']}' is unknown; there are cpu and cuda")
    if config["buffer_on_device"] and config["device"] == "cpu" and not config["test"]:      # a test has no buffer
        fail("--buffer_on_device needs --device cuda; on the CPU the buffer is where it is used")
    if config["device"] == "cuda" and not torch.cuda.is_available():
        fail("--device cuda: no CUDA device is available to this PyTorch; use --device cpu")


# ---------------------------------------------------------------------- results

def run_name(run, cfg, module):
    """Name of a run's files: what was run, every flag that differs from its default, the seed."""
    memory = ("actor_" if not cfg.recurrent_critic else "critic_" if not cfg.recurrent_actor else "") + cfg.core \
        if cfg.recurrent_actor or cfg.recurrent_critic else "ff"
    defaults = {**defaults_of(RunFlags), **defaults_of(module.HyperParameters)}
    if memory != "ff":
        defaults.update(module.RECURRENT_DEFAULTS)
    silent = {"policy", "env", "seed", "recurrent_actor", "recurrent_critic", "core"} | NOT_LEARNING
    other = [f"{k}={os.path.basename(os.path.normpath(v)) if k == 'load_model' else str(v).replace('/', '-')}"
             for k, v in {**asdict(run), **asdict(cfg)}.items() if k not in silent and v != defaults[k]]
    name = "_".join([run.env.replace("/", "-"), run.policy, memory, *other])
    if len(name) > 200:                                                # a file's name ends at 255
        name = f"{name[:190]}~{zlib.crc32(name.encode()):08x}"
    return f"{name}_seed={run.seed}"


def finished(path):
    """Has a run come to its end? path: of its results, without an ending."""
    try:
        with open(path + ".json") as file:
            return json.load(file).get("finished") is True and os.path.exists(path + ".csv")
    except (OSError, ValueError, AttributeError):
        return False


class Results:
    """The CSV of one run and its JSON, written as the run goes, so that an interrupted one keeps what it had."""

    def __init__(self, run, cfg, module):
        self.path = os.path.join(run.results_dir, run_name(run, cfg, module))
        for old in (self.path + end for end in (".csv", ".json", ".staleness.csv", ".last.pt", ".best.pt", ".checkpoint")):
            if os.path.exists(old) and not (run.overwrite or run.resume):
                fail(f"{old} exists; add --resume to go on with that run, --overwrite to replace it, or choose another "
                     "--results_dir or --seed")
        try:
            os.makedirs(run.results_dir, exist_ok=True)
            write_file(self.path + ".new", b"")                        # can it be written?
            os.remove(self.path + ".new")
        except OSError as error:
            fail(f"--results_dir {run.results_dir} cannot be written: {error.strerror}; choose another")
        self.lines = ["step,episode,return,length,seconds"]
        self.info = dict(config={**asdict(run), **asdict(cfg)}, command=" ".join(sys.argv), commit=commit(), finished=False,
                         versions={**versions(), "machine": processor()})

    def begin(self):
        """Start a new run's files in place of those of the same name."""
        self.start = time.time()
        for end in (".staleness.csv", ".last.pt", ".best.pt"):         # this run may not write any
            with contextlib.suppress(OSError):
                os.remove(self.path + end)
        shutil.rmtree(events_folder(self.path), ignore_errors=True)
        self.write()

    def write(self):
        """Both files whole, each in one piece: what is there is never half of one."""
        self.written = False
        with keep_going("the results"):
            os.makedirs(os.path.dirname(self.path) or ".", exist_ok=True)
            write_file(self.path + ".csv", "".join(f"{line}\n" for line in self.lines).encode())
            write_file(self.path + ".json", json.dumps(self.info, indent=1).encode())
            self.written = True

    def add(self, step, returns, lengths):
        seconds = time.time() - self.start
        self.lines += [f"{step},{episode},{ret:.3f},{length},{seconds:.1f}"
                       for episode, (ret, length) in enumerate(zip(returns, lengths))]
        self.write()

    def finish(self):
        """Returns whether it could be written."""
        self.info.update(finished=True, seconds=round(time.time() - self.start, 1))
        self.write()
        return self.written

    def save(self):
        """For a checkpoint."""
        return {"lines": self.lines, "seconds": time.time() - self.start, "resumed": self.info.get("resumed", [])}

    def restore(self, saved, step):
        """Go on where a checkpoint was written: what was evaluated after it will be evaluated again."""
        self.lines, self.start = saved["lines"], time.time() - saved["seconds"]
        self.info["resumed"] = [*saved["resumed"], step]
        self.write()


def commit():
    """The commit this code is at, with '+' if tracked files differ from it; '' outside a repository."""
    def git(*words):
        return subprocess.run(["git", *words], cwd=os.path.dirname(os.path.abspath(__file__)), capture_output=True,
                              text=True).stdout.strip()
    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no", "--", "*.py") else "")
    except OSError:
        return ""


def versions():
    packages = ("torch", "numpy", "gymnasium", "pybullet", "pybullet-envs-gymnasium")
    return {**{package: importlib.metadata.version(package) for package in packages}, "python": platform.python_version()}


def processor():
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


# ---------------------------------------------------------------------- training

def history_row(state, action, reward, keep):
    """What the agent perceives, (num_envs, row): observation, previous action and reward, zero where keep is 0."""
    return np.concatenate([state, action * keep, reward[:, None] * keep], 1, dtype=np.float32)


def evaluate(agent, env, spec, episodes, seed, explore=False):
    """Returns and lengths of some episodes: memory from zero at each start, the same starts every time."""
    returns, lengths = [], []
    for episode in range(episodes):
        state, _ = env.reset(seed=seed if episode == 0 else None)
        row = history_row(state[None], np.zeros((1, spec.action_dim)), np.zeros(1), 0)
        hidden = np.zeros((1, agent.hidden_size), np.float32)
        total, length, done = 0.0, 0, False
        while not done:
            action, hidden = agent.act(row, hidden, explore=explore)
            state, reward, terminated, truncated, _ = env.step(action[0])
            row = history_row(state[None], action, np.array([reward]), 1)
            total, length, done = total + reward, length + 1, terminated or truncated
        returns.append(total)
        lengths.append(length)
    return returns, lengths


def seed_everything(run):
    random.seed(run.seed)
    np.random.seed(run.seed)
    torch.manual_seed(run.seed)
    torch.set_num_threads(run.threads)
    torch.set_flush_denormal(True)                                     # denormal numbers slow an LSTM down, and matter to none


def test(run, agent, env, spec, checkpoint):
    """Evaluate a saved policy, and write what is asked for. checkpoint: what the agent was loaded from."""
    returns, lengths = evaluate(agent, env, spec, run.eval_episodes, run.seed + 10_000, run.explore)
    print(f"return {np.mean(returns):.1f} +- {np.std(returns):.1f} over {run.eval_episodes} episodes "
          f"(mean length {np.mean(lengths):.0f})")
    if run.video:
        try:
            env.get_wrapper_attr("save_video")(run.video)
        except (OSError, RuntimeError) as error:                       # moviepy's goes over several lines
            fail(f"--video: '{run.video}' could not be written: {' '.join(str(error).split())[:200]}")
        print(f"{run.video} written: the first episode, return {returns[0]:.1f}, {lengths[0]} steps")
    if run.export:
        try:
            export.save(run.export, checkpoint, run, returns, lengths, dict(versions=versions(), commit=commit()))
        except OSError as error:
            fail(f"--export: '{run.export}' could not be written: {error.strerror}")
        print(f"{run.export} written")


class Interaction:
    """Act, step, add. Iterating over it takes steps and yields how many there have been, over all environments."""

    def __init__(self, agent, envs, buffer, cfg, spec, seed):
        self.agent, self.envs, self.buffer, self.cfg = agent, envs, buffer, cfg
        self.step = 0
        self.state, _ = envs.reset(seed=seed)
        self.row = history_row(self.state, np.zeros((cfg.num_envs, spec.action_dim)), np.zeros(cfg.num_envs), 0)
        self.hidden = np.zeros((cfg.num_envs, agent.hidden_size), np.float32)
        self.acted_from = self.hidden                                  # the memory before the last action

    def __iter__(self):
        while self.step < self.cfg.max_timesteps:
            action, next_hidden = self.agent.act(self.row, self.hidden)
            next_state, reward, terminated, truncated, info = self.envs.step(action)
            done = terminated | truncated
            last_state = next_state
            if done.any():                                             # next_state is then the next episode's first
                last_state = next_state.copy()
                last_state[done] = np.stack(info["final_obs"][done])
            self.buffer.add(self.state, action, reward, last_state, terminated, truncated, self.hidden, next_hidden)

            keep = 1 - done[:, None]                                   # a new episode starts from an empty memory
            self.acted_from = self.hidden
            self.state, self.hidden = next_state, next_hidden * keep.astype(np.float32)
            self.row = history_row(self.state, action, reward, keep)
            self.step += self.cfg.num_envs
            yield self.step

    def save(self):
        """For a checkpoint."""
        return {"environments": [env.save() for env in self.envs.envs],
                **{name: torch.from_numpy(getattr(self, name)) for name in ("state", "row", "hidden")}}

    def restore(self, saved, step):
        """Go on after a checkpoint. Returns whether the environments are back where they were."""
        self.step = step
        for name in ("state", "row", "hidden"):
            setattr(self, name, saved[name].numpy())
        states = [env.restore(its) for env, its in zip(self.envs.envs, saved["environments"], strict=True)]
        return np.array_equal(np.array(states), self.state)


def train(run, cfg, module, agent, envs, eval_env, spec, episodes=None):
    """Make the buffer and the results' files, and run the loop. An offline agent gets recorded episodes and no environments."""
    size = data.rows(episodes) if envs is None else agent.buffer_size()
    kind = getattr(module, "BUFFER", Buffer)
    needed = kind.bytes_needed(size, spec.state_dim, spec.action_dim, agent.stored_hidden_size, cfg.stored_precision)
    print(f"buffer: {size:,} rows, {needed / 1e9:.2f} GB of RAM when full" +
          (", and as much of the device's memory at once" if run.buffer_on_device else ""), flush=True)
    try:
        buffer = kind(size, spec.state_dim, spec.action_dim, agent.stored_hidden_size, cfg.num_envs, run.seed, run.device,
                      cfg.stored_precision, run.buffer_on_device)
    except (RuntimeError, MemoryError):
        fail(f"a buffer of {needed / 1e9:.1f} GB does not fit in memory; choose a smaller --memory_size or --core_size")
    results = Results(run, cfg, module)
    with alone(results.path, PATIENCE if run.resume else 0):
        if run.resume and finished(results.path):
            Checkpoints(results.path, None).remove()                   # if it was killed before it could
            print(f"{results.path}.csv is there already: this run has finished")
        else:
            loop(run, cfg, agent, envs, eval_env, spec, episodes, buffer, results)


def loop(run, cfg, agent, envs, eval_env, spec, episodes, buffer, results):
    """Act, step, add, train when the agent says so, evaluate. For an offline agent a step is an update: its episodes are added
    beforehand."""
    offline = envs is None
    repeats = eval_env.unwrapped.spec.id not in UNREPEATABLE
    if not repeats:
        why = f"an episode of {run.env} depends on those before it, so a run cannot be resumed"
        if run.resume and os.path.exists(results.path + ".csv"):
            fail(f"--resume: {why}; --overwrite instead starts it anew")
        print(f"no checkpoints: {why}", flush=True)
    if offline:
        data.fill(buffer, episodes)
        results.info["data"] = data.summary(episodes)
        print(f"data set {cfg.dataset}: {', '.join(f'{k} {v:,}' for k, v in results.info['data'].items())}", flush=True)
    staleness = Staleness(results.path, run.eval_freq, agent, buffer) if run.staleness else None
    interaction = None if offline else Interaction(agent, envs, buffer, cfg, spec, run.seed)
    config = {**asdict(run), **asdict(cfg)}
    logger = Logger(results.path, run, config, agent, buffer) if run.tensorboard or run.wandb else None
    best, report, step = -math.inf, "", 0

    # Go on from a checkpoint, or start
    checkpoints = Checkpoints(results.path, None if offline else buffer)
    data_checksum = zlib.crc32(buffer.rows.numpy()) if offline else None
    try:
        saved = resume(checkpoints, config) if run.resume else None
        if saved:
            if saved["data_checksum"] != data_checksum:
                fail(f"--resume: the data set {cfg.dataset} is not the one that the run was started with")
            step, best = saved["step"], saved["best"]
            set_state(agent, saved["agent"])
            set_state(buffer, saved["buffer"])
            if not offline and not interaction.restore(saved["interaction"], step):
                fail(f"--resume: an episode of {run.env} does not repeat itself, so the run cannot go on where it was; "
                     "--overwrite starts it anew")
            if logger:
                logger.begin(step, saved["logger"])
            set_random_state(saved["random"])                          # from here on nothing may be drawn before the next step
            results.restore(saved["results"], step)
            if staleness:
                staleness.restore(saved["staleness"])
            print(f"going on from step {step:,}", flush=True)
    except (KeyError, RuntimeError, ValueError, TypeError, AttributeError, IndexError):
        fail(f"--resume: the checkpoints in {checkpoints.folder} are of another version of this program; delete them, or "
             "--overwrite to start anew")
    if not saved:
        if logger:
            logger.begin()                                             # first: it may be refused
        checkpoints.remove()
        results.begin()
        if staleness:
            staleness.write()

    def checkpoint():
        state = dict(step=step, best=best, config=config, data_checksum=data_checksum, agent=state_of(agent),
                     buffer=state_of(buffer), random=random_state(), results=results.save(),
                     staleness=staleness and staleness.save(), logger=logger and logger.save(),
                     interaction=None if offline else interaction.save())
        with keep_going(f"the checkpoint of step {step:,}"):
            checkpoints.save(step, state)

    unit = "update" if offline else "step"
    first = step
    # A bar on a terminal; in a file a line per evaluation
    bar = tqdm(total=cfg.max_timesteps, initial=step, unit=unit, disable=not sys.stderr.isatty(), dynamic_ncols=True)

    def evaluation():
        nonlocal best, report
        returns, lengths = evaluate(agent, eval_env, spec, run.eval_episodes, run.seed + 10_000)
        results.add(step, returns, lengths)
        if staleness:
            staleness.write()                                          # again, should it have been lost
        if logger:
            logger.write(step, "evaluation", {"return_mean": np.mean(returns), "return_std": np.std(returns),
                                              "episode_length": np.mean(lengths)})
        if run.save_model:
            with keep_going("the model"):
                save_checkpoint(results.path + ".last.pt", agent, config, step)
                if np.mean(returns) > best:
                    save_checkpoint(results.path + ".best.pt", agent, config, step)
        best = max(best, float(np.mean(returns)))
        report = f"return {np.mean(returns):.1f}"
        if bar.disable:
            pace = (step - first) / (time.time() - started)
            progress = f", {pace:.0f} {unit}s/s, {max(0, cfg.max_timesteps - step) / pace / 60:.1f} min left" if pace else ""
            print(f"{unit} {step:,} of {cfg.max_timesteps:,}: {report} +- {np.std(returns):.1f}{progress}", flush=True)
        bar.set_postfix_str(report)

    def update():
        row = staleness.measure_if_due(step) if staleness else None
        if logger:
            logger.before_update(step)
            if row:
                logger.write(row.pop("step"), "staleness", row)
        losses = agent.train(buffer)
        if not all(math.isfinite(loss) for loss in losses.values()):
            bar.close()
            fail_nan(step, losses, results.path, run)
        if logger:
            logger.after_update(step, losses, None if offline else interaction.acted_from)

    def due(freq):
        return freq and step // freq > (step - cfg.num_envs) // freq

    started = time.time()
    if not saved:
        evaluation()
    try:
        with Stop() as stop:
            for step in range(first + 1, cfg.max_timesteps + 1) if offline else interaction:
                if offline:
                    update()
                else:
                    while agent.ready(buffer):
                        update()
                bar.update(cfg.num_envs)
                if due(run.eval_freq) or step >= cfg.max_timesteps:
                    evaluation()
                keep = run.checkpoint_freq and repeats and not run.record and step < cfg.max_timesteps
                if keep and (due(run.checkpoint_freq) or stop.signal):
                    checkpoint()
                if stop.signal and step < cfg.max_timesteps:
                    bar.close()
                    raise Stopped(stop.signal, bool(checkpoints.steps()))
    except Exception:                                                  # such as a distribution that refuses NaN
        weights = [float(weight.detach().abs().max()) for weight in [*agent.actor.parameters(), *agent.critic.parameters()]]
        if all(weight < 1e6 for weight in weights):
            raise
        bar.close()
        fail_nan(step, {"the largest weight": np.max(weights)}, results.path, run)
    bar.close()
    if logger:
        logger.close()
    if not results.finish():
        print("error: the run has come to its end, but the results could not be written; make room, then run the same command "
              "with --resume", file=sys.stderr)
        sys.exit(1)
    checkpoints.remove()
    print(f"{results.path}.csv written, best evaluation {best:.1f}")


def resume(checkpoints, config):
    """The newest whole checkpoint of a run, its rows already in the buffer, or None. Exits with 2 if it is of other flags."""
    try:
        saved = checkpoints.load()
    except ValueError as error:
        fail(f"--resume: {error}")
    if saved is None:
        print("no checkpoint of this run is there: it starts from the beginning", flush=True)
        return None
    for name, value in saved["config"].items():
        if name not in HANDLING and config.get(name) != value:
            fail(f"--resume: the run was started with --{name} {value}; give the same, or --overwrite to start anew")
    return saved


def fail_nan(step, losses, path, run):
    """Stop a run that has diverged."""
    saved = f"the last good model is {path}.last.pt" if run.save_model else "no model was saved (--save_model would have)"
    print(f"error: {', '.join(f'{k} is {float(v)}' for k, v in losses.items())} at step {step}; {saved}; all flags are in "
          f"{path}.json; a smaller --lr may help", file=sys.stderr)
    sys.exit(1)


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    run, cfg, module, checkpoint = parse(argv)
    seed_everything(run)
    observation = dict(observe=run.observe, flicker=run.flicker, obs_noise=run.obs_noise, sensor_dropout=run.sensor_dropout)
    offline, envs, episodes = getattr(module, "OFFLINE", False), None, None
    recorder = data.Recorder if run.record else video.Video if run.video else None
    try:
        if run.record:
            data.check_free(run.record)
        if run.video:
            video.check_free(run.video, run.overwrite)
        if run.export:
            export.check_free(run.export, run.overwrite)
        eval_env = make_env(run.env, recorder if run.test else None, bool(run.video), **observation)
        spec = env_spec(eval_env)
        if spec.discrete and not module.DISCRETE:
            fail(f"{run.policy} needs continuous actions and {run.env} has discrete ones; "
                 "use --policy PPO, A2C, REINFORCE or R2D1")
        if not spec.discrete and not getattr(module, "CONTINUOUS", True):
            fail(f"{run.policy} needs discrete actions and {run.env} has continuous ones; use --policy TD3, SAC or PPO")
        if offline and not run.test:
            if not cfg.dataset:
                fail(f"{run.policy} trains from a recorded data set; add --dataset NAME")
            episodes = data.load(cfg.dataset, eval_env, run.seed)
        elif not run.test:
            envs = make_vector_env(run.env, cfg.num_envs, recorder, **observation)
    except ValueError as error:
        fail(str(error))
    try:
        agent = getattr(module, run.policy)(spec, cfg, run.seed, run.device)
    except (RuntimeError, MemoryError):
        fail("the networks do not fit in memory; choose a smaller --hidden_size, --hidden_layers or --core_size")
    if checkpoint:
        try:
            agent.load_state_dict(checkpoint["agent"])
            if run.explore:                                            # as it did when it was saved, but not at random
                agent.steps = max(int(checkpoint["step"]), getattr(cfg, "start_timesteps", 0))
        except (RuntimeError, KeyError, TypeError, AttributeError, ValueError):
            fail(f"--load_model: '{run.load_model}' holds another architecture; give the flags it was trained with")
    try:
        if run.test:
            test(run, agent, eval_env, spec, checkpoint)
        else:
            train(run, cfg, module, agent, envs, eval_env, spec, episodes)
    except Stopped as stopped:
        print("interrupted: " + ("go on with the same command and --resume" if stopped.kept else
                                 "evaluations so far are kept, but no checkpoint"), file=sys.stderr)
        sys.exit(128 + stopped.signal)
    except KeyboardInterrupt:
        kept = "" if run.test else ": evaluations so far are kept" + (", and the last model" if run.save_model else "")
        print("\n" * sys.stderr.isatty() + "interrupted" + kept, file=sys.stderr)
        sys.exit(130)
    finally:                                                           # also what an interrupted run has recorded
        if run.record:
            data.save(eval_env if run.test else envs.envs[0], run.record, run.policy, shlex.join(["python", "main.py", *argv]))


if __name__ == "__main__":
    main()
