"""Train or test one agent on one environment.

    python main.py --policy TD3 --env HopperBulletEnv-v0 --recurrent
    python main.py --policy PPO --help                                    (the flags of PPO, with its defaults)
    python main.py --test --load_model results/RUN.best.pt                (run a saved policy; see it with --video FILE.gif)
    python main.py --test --load_model results/RUN.best.pt --export FOLDER    (pass it on; --load_model FOLDER reads it)
    python main.py --load_model results/RUN.last.pt                       (train on from its weights, with its flags)
    python main.py --policy TD3 --record hopper/td3-v0                    (record all training episodes, see support/data.py)
    python main.py --policy BCQ --dataset hopper/td3-v0 --recurrent       (train from them alone)

A run writes into --results_dir: RUN.csv (one line per evaluation episode) and RUN.json (all flags, versions, commit). With
--save_model it also writes RUN.last.pt and RUN.best.pt, with --staleness RUN.staleness.csv. `python plot.py` draws them.
support/logger.py writes curves for TensorBoard and Weights & Biases.
"""
from support import console

if __name__ == "__main__":
    console.begin()                                                    # first: the imports that follow take seconds

import collections
import contextlib
import functools
import glob
import math
import os
import random
import shlex
import sys
import zlib
from dataclasses import asdict, replace
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from envs import Faulty, env_spec, make_env, make_vector_env
from flags import HANDLING, as_word, check_actions, check_same, check_saved, env_options, parse, run_name
from support import data, lookback, models, video
from support.checkpoint import CannotResume, Checkpoints, set_random_state, set_state
from support.console import Stop, Stopped
from support.logger import Logger
from support.models import Models, largest, read_model_file
from support.progress import Progress
from support.results import Results, commit, finished, mean_returns, processor, read_info, versions
from support.staleness import Staleness
from support.system import PATIENCE, Failed, Listeners, alone, fail, no_exit


class Trained(NamedTuple):
    """What a training found."""
    path: str           # its results, without an ending
    steps: list         # the steps at which it was evaluated
    returns: list       # the mean return of each evaluation
    best: float
    last: float


class Tested(NamedTuple):
    """What a test found, for each episode."""
    returns: list
    lengths: list


def history_row(state, action, reward, keep):
    """What the agent perceives, (num_envs, row): observation, previous action and reward. The last two are 0 where keep is 0."""
    return np.concatenate([state, action * keep, reward[:, None] * keep], 1, dtype=np.float32)


def evaluate(agent, env, spec, episodes, seed, explore=False):
    """Returns and lengths of some episodes. Each begins with a memory of zeros, and every evaluation has the same starts.

    With noise (--obs_noise and the like) only the first start is the same: noise and the later starts share a generator.
    """
    returns, lengths = [], []
    for episode in range(episodes):
        state, _ = env.reset(seed=seed if episode == 0 else None)
        row = history_row(state[None], np.zeros((1, spec.action_dim)), np.zeros(1), 0)
        hidden = np.zeros((1, agent.hidden_dim), np.float32)
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
    torch.set_flush_denormal(True)                                     # denormal numbers slow an LSTM down: they become 0


def test(run, agent, env, spec, model):
    """Evaluate a saved policy, and write what is asked for. Returns Tested. model: the dictionary that it was loaded from"""
    returns, lengths = evaluate(agent, env, spec, run.eval_episodes, run.seed + 10_000, run.explore)
    print(f"return {np.mean(returns):.1f} +- {np.std(returns):.1f} over {run.eval_episodes} episodes "
          f"(mean length {np.mean(lengths):.0f})")
    if run.video:
        try:
            env.get_wrapper_attr("save_video")(run.video)
        except (OSError, RuntimeError) as error:                       # moviepy's text has several lines
            fail(f"--video: '{run.video}' could not be written: {' '.join(str(error).split())[:200]}")
        print(f"{run.video} written: the first episode, return {returns[0]:.1f}, {lengths[0]} steps")
    if run.export:
        try:
            models.save(run.export, model, dict(env=run.env, **env_options(run)), returns, lengths,
                        dict(versions=versions(), commit=commit()))
        except OSError as error:
            fail(f"--export: '{run.export}' could not be written: {error.strerror}")
        print(f"{run.export} written")
    if run.memory_steps or run.lookback:
        play = functools.partial(evaluate, env=env, spec=spec, episodes=run.eval_episodes, seed=run.seed + 10_000)
        lookback.probe(run, agent, play, dict(policy=f"{run.policy} on {run.env}, {run.observe}", seed=run.seed, commit=commit(),
                                              versions=versions(), processor=processor(),
                                              config={k: v for k, v in model["config"].items() if k not in HANDLING} |
                                              dict(env=run.env, eval_episodes=run.eval_episodes, **env_options(run))))
    return Tested(returns, lengths)


class Interaction:
    """Acts, steps the environments, adds to the buffer. Iterating yields the steps taken so far, over all environments."""

    def __init__(self, agent, envs, buffer, cfg, spec, seed, env_id=""):
        self.env_id = env_id
        self.agent, self.envs, self.buffer, self.cfg = agent, envs, buffer, cfg
        self.step = 0
        self.state, _ = envs.reset(seed=seed)
        self.row = history_row(self.state, np.zeros((cfg.num_envs, spec.action_dim)), np.zeros(cfg.num_envs), 0)
        self.hidden = np.zeros((cfg.num_envs, agent.hidden_dim), np.float32)
        self.acted_from = self.hidden                                  # the memory before the last action, for the logger
        self.total = np.zeros(cfg.num_envs)                            # rewards of the running episodes so far
        self.returns = collections.deque(maxlen=10)                    # returns of the last episodes that have ended

    def __iter__(self):
        while self.step < self.cfg.max_timesteps:
            action, next_hidden = self.agent.act(self.row, self.hidden)
            next_state, reward, terminated, truncated, info = self.envs.step(action)
            done = terminated | truncated
            last_state = next_state
            if done.any():                                             # an ended one was reset: next_state begins an episode
                last_state = next_state.copy()
                last_state[done] = np.stack(info["final_obs"][done])
            self.total += reward
            self.returns.extend(self.total[done])
            self.buffer.add(self.state, action, reward, last_state, terminated, truncated, self.hidden, next_hidden)

            self.total[done] = 0
            keep = 1 - done[:, None]                                   # a new episode starts from an empty memory
            self.acted_from = self.hidden
            self.state, self.hidden = next_state, next_hidden * keep.astype(np.float32)
            self.row = history_row(self.state, action, reward, keep)
            self.step += self.cfg.num_envs
            yield self.step

    def save(self):
        """For a checkpoint."""
        return {"environments": [env.save() for env in self.envs.envs], "returns": [float(x) for x in self.returns],
                "total": torch.from_numpy(self.total),
                **{name: torch.from_numpy(getattr(self, name)) for name in ("state", "row", "hidden")}}

    def restore(self, saved, step):
        """Go on after a checkpoint. Raises CannotResume if the environments are not back where they were."""
        self.step = step
        for name in ("state", "row", "hidden"):
            setattr(self, name, saved[name].numpy())
        self.total = saved["total"].numpy()
        self.returns.extend(saved["returns"])
        if not all([env.restore(its) for env, its in zip(self.envs.envs, saved["environments"], strict=True)]):
            raise CannotResume(f"an episode of {self.env_id} does not repeat itself, so the run cannot go on where it was")


class Updates:
    """The steps of an agent that learns from recorded episodes: a step is an update, and no environment is stepped."""
    envs = acted_from = None                                           # Interaction has these
    returns = ()

    def __init__(self, agent, buffer, cfg):
        self.agent, self.cfg, self.step = agent, cfg, 0
        self.checksum = zlib.crc32(buffer.rows.numpy())                # of the data set: a resumed run notices another one

    def __iter__(self):
        while self.step < self.cfg.max_timesteps:
            self.step += 1
            self.agent.steps = self.step
            yield self.step

    def save(self):
        """For a checkpoint."""
        return {"checksum": self.checksum}

    def restore(self, saved, step):
        """Go on after a checkpoint. Raises CannotResume if it is another data set."""
        self.step = step
        if saved["checksum"] != self.checksum:
            raise CannotResume(f"the data set {self.cfg.dataset} is not the one that the run was started with")


class Diverged(Exception):
    """Training has led to numbers that are not finite. Argument: a dictionary of them."""


def train(run, cfg, algorithm, agent, envs, eval_env, spec, episodes=None, command=""):
    """Make the buffer and the results' files, and run the loop. Returns Trained.

    An offline agent gets recorded episodes and no environments. command: kept in the run's JSON
    """
    offline, unit = envs is None, "update" if envs is None else "step"
    config = {**asdict(run), **asdict(cfg)}
    size = data.rows(episodes) if offline else agent.buffer_size()
    kind = agent.buffer_class
    needed = kind.bytes_needed(size, spec.state_dim, spec.action_dim, agent.stored_hidden_dim, cfg.stored_precision)
    needed = tqdm.format_sizeof(needed, "B")
    print(f"buffer: {size:,} rows, {needed} of RAM when full" +
          (", and as much of the device's memory at once" if run.buffer_on_device else ""), flush=True)
    try:
        buffer = kind(size, spec.state_dim, spec.action_dim, agent.stored_hidden_dim, cfg.num_envs, run.seed, run.device,
                      cfg.stored_precision, run.buffer_on_device)
    except (RuntimeError, MemoryError):
        large = [f"--{name}" for name in ("memory_size", "rollout_steps", "core_size") if name in config]
        fail(f"a buffer of {needed} does not fit in memory; choose a smaller {'--dataset' if offline else ' or '.join(large)}")
    results = Results(run, run_name(run, cfg, algorithm), config, command)
    path = results.path
    with alone(path, PATIENCE if run.resume else 0):
        if run.resume and has_finished(path, config):
            return trained(path)
        if offline:
            data.fill(buffer, episodes)
            results.info["data"] = data.summary(episodes)
            print(f"data set {cfg.dataset}: {', '.join(f'{k} {v:,}' for k, v in results.info['data'].items())}", flush=True)
        steps = Updates(agent, buffer, cfg) if offline else Interaction(agent, envs, buffer, cfg, spec, run.seed, run.env)
        checkpoints = Checkpoints(path, None if offline else buffer)
        logger = Logger(path, run, config, agent, buffer, steps) if run.tensorboard or run.wandb else None
        staleness = Staleness(path, run.eval_freq, agent, buffer, logger and logger.write) if run.staleness else None
        kept = Models(path, agent, config, results) if run.save_model else None
        progress = Progress(-(-cfg.max_timesteps // cfg.num_envs) * cfg.num_envs, unit, steps)
        # The logger comes first: if W&B refuses it, no file has been touched. Results begin by removing old files
        listeners = Listeners(logger, checkpoints, results, staleness, kept, progress)
        print(f"{run.policy} on {run.env}, seed {run.seed}: {progress.total:,} {unit}s, results in {path}.csv", flush=True)
        saved = begin(run, checkpoints, steps, agent, buffer, listeners, config)
        try:
            with contextlib.closing(listeners):
                loop(run, cfg, agent, steps, buffer, eval_env, spec, listeners, checkpoints, config, new=not saved)
        except Exception as error:                                     # NaN in the weights can surface anywhere
            weight = largest({"actor": agent.actor.state_dict(), "critic": agent.critic.state_dict()})
            if isinstance(error, Diverged) or not weight < 1e6:                # `not <`: NaN counts, too
                numbers = error.args[0] if isinstance(error, Diverged) else {"the largest weight": weight}
                raise Failed(has_diverged(steps.step, numbers, path, run)) from error
            if isinstance(error, Faulty):
                raise Faulty(f"{error}, after {unit} {steps.step:,} of the run; results so far are in {path}.csv") from error
            raise
        missing = listeners.missing()
        if missing or not results.finish(staleness):
            raise Failed(f"the run has come to its end, but {' and '.join(missing) or 'the results'} could not be written; make "
                         "room, then run the same command with --resume")
        if not run.keep_checkpoint:
            checkpoints.remove()
        print(f"{path}.csv written, best evaluation {results.best:.1f}")
        return trained(path)


def has_finished(path, config):
    """Has the run that --resume asks for come to its end? Exits with 2 if it has, and is damaged or was run with other flags."""
    try:
        info = finished(path, lambda saved: check_same(path, saved, config))
    except ValueError as error:
        fail(f"--resume: {error}; --overwrite in place of --resume runs it anew")
    if not info:
        return False
    if not info["config"].get("keep_checkpoint"):
        Checkpoints(path, None).remove()                               # the run may have been killed before it did so
    print(f"{path}.csv is there already: this run has finished")
    return True


def trained(path):
    """Trained, of a run that has finished."""
    steps, returns = zip(*mean_returns(path).items())
    return Trained(path, list(steps), list(returns), max(returns), returns[-1])


def begin(run, checkpoints, steps, agent, buffer, listeners, config):
    """Go on from a checkpoint, if --resume finds one, or start anew. Returns the checkpoint, or None. Exits with 2 if it
    belongs to another run."""
    try:
        saved = resume(checkpoints, run, agent, config) if run.resume else None
        if saved:
            set_state(agent, saved["agent"])
            set_state(buffer, saved["buffer"])
            steps.restore(saved["steps"], saved["step"])
            generators = saved["random"]                               # read here: a KeyError must come before a file is touched
            listeners.begin(saved["step"], saved["listeners"])
            set_random_state(generators)                               # last: until the next step nothing may draw from these
            print(f"going on from step {saved['step']:,}", flush=True)
    except CannotResume as error:
        fail(f"--resume: {error}; --overwrite starts it anew")
    except (KeyError, RuntimeError, ValueError, TypeError, AttributeError, IndexError):
        fail(f"--resume: the checkpoints in {checkpoints.folder} are of another version of this program; delete them, or "
             "--overwrite to start anew")
    if not saved:
        listeners.begin()
    if run.checkpoint_freq or run.keep_checkpoint:
        with checkpoints.if_possible():
            if run.record:
                raise CannotResume("--record needs all of a run's episodes")
            checkpoints.watch(agent, buffer)
    return saved


def loop(run, cfg, agent, steps, buffer, eval_env, spec, listeners, checkpoints, config, new):
    """Act, step, add, train when the agent says so, evaluate. Listeners are told what happens.

    config: all flags as they were at the start; new: nothing was resumed, so the run begins with an evaluation
    """
    def evaluation():
        with agent.as_evaluated():                                     # so that a listener saves the actor that is evaluated
            weight = largest(agent.state_dict())
            if not math.isfinite(weight):
                raise Diverged({"the largest weight": weight})
            listeners.evaluated(steps.step, *evaluate(agent, eval_env, spec, run.eval_episodes, run.seed + 10_000))

    def due(freq):                                                     # has this step, num_envs wide, passed a multiple of freq?
        return freq and steps.step // freq > (steps.step - cfg.num_envs) // freq

    if new:
        evaluation()
    with Stop("stopping after this step; once more to stop at once") as stop:
        for step in steps:
            while agent.ready(buffer):
                listeners.before_update(step)
                agent.decay_lr()
                losses = agent.train(buffer)
                agent.average_actor()
                if not all(math.isfinite(loss) for loss in losses.values()):
                    raise Diverged(losses)
                listeners.after_update(step, losses)
            listeners.stepped(step)
            if due(run.eval_freq):
                evaluation()
            last = step >= cfg.max_timesteps
            keep = run.keep_checkpoint if last else run.checkpoint_freq and (due(run.checkpoint_freq) or stop.signal)
            if keep and checkpoints.possible:
                with checkpoints.if_possible():
                    checkpoints.save_run(agent, buffer, steps, listeners, {**asdict(run), **asdict(cfg)}, config)
            if stop.signal and not last:
                raise Stopped(stop.signal, bool(checkpoints.steps()))
        if not due(run.eval_freq):                                     # after the checkpoint: no part of a run made longer
            evaluation()


def resume(checkpoints, run, agent, config):
    """The newest undamaged checkpoint of a run, its rows already in the buffer, or None. If the run has none at all, the longest
    run of the same flags but fewer --max_timesteps is made longer. Exits with 2 if that cannot be, or if flags differ.
    """
    path, origin = checkpoints.folder.removesuffix(".checkpoint"), None
    try:
        saved = checkpoints.load()
        if saved is None and not os.path.exists(path + ".log"):        # with a log it is sweep.py's, which makes none longer
            shorter, paced = shorter_runs(run, agent), paced_by_the_end(config)
            kept = [other for other in shorter if Checkpoints(other, None).steps()]
            if shorter and (paced or not kept) and not os.path.exists(path + ".json"):
                why = f"with {paced} every step depends on --max_timesteps" if paced else \
                    "it kept no checkpoint (a run with --keep_checkpoint keeps one)"
                fail(f"--resume: {shorter[0]} cannot be made longer: {why}; without --resume this run starts from the beginning")
            if kept and not paced:
                origin = kept[0]
                with alone(origin, 0):
                    saved = checkpoints.load_from(origin)
                print(f"{origin} is made longer, and stays as it is", flush=True)
    except ValueError as error:
        fail(f"--resume: {error}")
    if saved is None:
        print("no checkpoint of this run is there: it starts from the beginning", flush=True)
        return None
    for name, value in saved["config"].items():
        if name not in HANDLING and config.get(name) != value and not (origin and name == "max_timesteps"):
            # Does its version lack some of today's flags? Then "give the same" would be no help: the run would have another name
            older = not config.keys() <= saved["config"].keys() | HANDLING
            fail(f"--resume: the run was started with {as_word(name, value)}" + (", by a version with other flags; choose another"
                 " --results_dir" if older else "; give the same") + ", or --overwrite to start anew")
    if saved["listeners"].get("models") and not run.save_model and not origin:     # else RUN.best.pt would stay as it is now
        fail("--resume: the run was started with --save_model; give the same, or --overwrite to start anew")
    return saved


def paced_by_the_end(config):
    """The flags, in words, because of which a run of more --max_timesteps is another run from its first step on."""
    paced = {"--lr_decay": config.get("lr_decay"), "--horizon_growth": config.get("horizon_growth", 1) > 1}
    return " and ".join(name for name, used in paced.items() if used)


def shorter_runs(run, agent):
    """The runs in --results_dir of the same flags but fewer --max_timesteps, the longest first: paths without an ending."""
    found = {}
    for file in glob.glob(f"{glob.escape(run.results_dir)}/*_seed={run.seed}.json"):
        with contextlib.suppress(Exception):                           # a damaged file may raise anything
            path = file.removesuffix(".json")
            saved = read_info(path, check_saved)["config"]
            cfg = replace(agent.cfg, max_timesteps=saved["max_timesteps"])
            if cfg.max_timesteps < agent.cfg.max_timesteps and os.path.basename(path) == run_name(run, cfg, type(agent)):
                check_same(path, saved, asdict(cfg))                   # an older run of this name may have had other defaults
                found[cfg.max_timesteps] = path
    return [found[steps] for steps in sorted(found, reverse=True)]


def has_diverged(step, numbers, path, run):
    """A line that says so, and what is left of the run. numbers: {name: what is not finite}"""
    saved = "no model was saved" if run.save_model else "no model was saved (--save_model would have)"
    with contextlib.suppress(ValueError):                              # there is no such file
        saved = f"the last good model is {path}.last.pt, of step {read_model_file(path + '.last.pt')['step']:,}"
    return (f"{', '.join(f'{k} is {float(v)}' for k, v in numbers.items())} at step {step}; {saved}; all flags are in "
            f"{path}.json; a smaller --lr may help")


def make_agent(run, cfg, algorithm, spec, model):
    """An agent with new weights or, if `model` is given, with this model's. Exits with 2 if it cannot be made."""
    try:
        agent = algorithm(spec, cfg, run.seed, run.device)
    except (RuntimeError, MemoryError):
        fail("the networks do not fit in memory; choose a smaller --hidden_size, --hidden_layers or --core_size")
    if model:
        try:
            agent.load_state_dict(model["agent"])
            if not math.isfinite(largest(agent.state_dict())):
                fail(f"--load_model: '{run.load_model}' holds numbers that are not finite; give another model")
            if run.explore:                                            # it explores as when saved, but is past the warm-up
                agent.steps = max(int(model["step"]), getattr(cfg, "start_timesteps", 0))
        except (RuntimeError, KeyError, TypeError, AttributeError, ValueError):
            was, now = model["config"], asdict(run)
            others = [name for name in ("env", "env_kwargs", "observe") if was.get(name, now[name]) != now[name]]
            fail(f"--load_model: '{run.load_model}' " + (" and ".join(f"was trained with --{name} {was[name]}" for name in others)
                 + " and does not fit; leave out " + " and ".join(f"--{name}" for name in others) if others else
                 "holds another architecture; give the flags it was trained with"))
    return agent


def carry_out(argv, run, cfg, algorithm, model):
    """Do what a command line asks for. Returns Trained or Tested. The arguments after `argv` are what parse(argv) returned."""
    seed_everything(run)
    options = env_options(run)
    offline, envs, episodes = algorithm.offline, None, None
    recorder = data.Recorder if run.record else video.Video if run.video else None
    try:
        if run.record:
            data.check_free(run.record)
        if run.video:
            video.check_free(run.video, run.overwrite)
        if run.export:
            models.check_free(run.export, run.overwrite)
        if run.memory_steps or run.lookback:
            lookback.check_free(run)
        eval_env = make_env(run.env, recorder if run.test else None, bool(run.video), **options)
        spec = env_spec(eval_env)
        check_actions(run, cfg, spec.discrete)
        if offline and not run.test:
            if not cfg.dataset:
                fail(f"{run.policy} trains from a recorded data set; add --dataset NAME")
            episodes = data.load(cfg.dataset, eval_env, run.seed)
        elif not run.test:
            envs = make_vector_env(run.env, cfg.num_envs, recorder, **options)
    except ValueError as error:
        fail(str(error))
    if eval_env.spec.max_episode_steps is None:
        print(f"note: {run.env} has no time limit, and an episode that does not end by itself goes on for ever; "
              "--max_episode_steps N truncates it", flush=True)
    if model and not run.test:
        print(f"{run.load_model}, of step {model['step']:,}: training goes on from its weights, with its flags where none "
              "are given\noptimizers, buffer, count of steps and exploration start anew; --resume goes on with those", flush=True)
    agent, command = make_agent(run, cfg, algorithm, spec, model), shlex.join(["python", "main.py", *argv])
    console.something_to_keep()
    try:
        if run.test:
            return test(run, agent, eval_env, spec, model)
        return train(run, cfg, algorithm, agent, envs, eval_env, spec, episodes, command)
    finally:                                                           # so that an interrupted run's recording is saved, too
        if run.record:
            data.save(eval_env if run.test else envs.envs[0], run.record, run.policy, command)


def run(argv):
    """For Python: do what the command line `argv`, a list of words, asks for. Returns what was found, Trained or Tested.

        found = run(["--policy", "PPO", "--env", "CartPole-v1", "--max_timesteps", "1e4"])
        print(found.best)

    Raises:
        ValueError: bad input, with the line that the command line would have printed
        Failed, Faulty: the run has diverged, could not write its results, or its environment is at fault
        KeyboardInterrupt: it was interrupted; Stopped, if after a whole step
    """
    argv = [str(word) for word in argv]                                # 3 is the word "3"
    with no_exit():
        return carry_out(argv, *parse(argv))


def main(argv=None):
    """The command line: `run`, with a line on stderr and an exit code where that raises."""
    argv = sys.argv[1:] if argv is None else argv
    flags, *rest = parse(argv)
    try:
        carry_out(argv, flags, *rest)
    except Stopped as stopped:
        print("interrupted: " + ("go on with the same command and --resume" if stopped.kept else
                                 "evaluations so far are kept, but no checkpoint"), file=sys.stderr)
        sys.exit(128 + stopped.signal)
    except (Faulty, Failed) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        kept = "" if flags.test else ": evaluations so far are kept" + (", and the last model" if flags.save_model else "") + \
            "; with --resume it goes on from its last checkpoint, if there is one"
        console.say_interrupted(kept)
        sys.exit(130)


if __name__ == "__main__":
    main()
