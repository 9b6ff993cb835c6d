"""Exact resume: checkpoints from which an interrupted run goes on to the same evaluations, to the bit.

    python main.py --policy TD3 --env HopperBulletEnv-v0 --recurrent --resume      (the same command again, and --resume)

A checkpoint holds all that a run is made of: weights, targets, optimizers, counters, every generator of random numbers, the
replay buffer with its hidden states, and what the agent perceives at the moment. An environment cannot be saved, but it
can be led back: each episode is a function of the generator's state at its reset and of the actions since (Replayable).

RUN.checkpoint/ holds, until the run has finished,

    000040000.state    everything but the buffer's rows, at that step; the last two are kept
    000040000.rows     the rows that were written since the checkpoint before, so that a large buffer costs little

A file begins with its checksum and is written under another name, flushed and renamed, so what is there under its own name
was complete once. If the newest checkpoint is damaged, the one before it is used. Nothing is unpickled that could execute code.
"""
import contextlib
import io
import os
import random
import re
import shutil
import signal
import sys
import zlib

import gymnasium as gym
import numpy as np
import torch

from utils import write_file

NOT_STATE = {"spec", "cfg", "device", "targets",                       # an agent's: made from the flags, or there by another name
             "rows", "hidden", "_rows", "_hidden", "changed",          # a buffer's: kept apart
             "device_rows", "device_hidden", "copied"}                 # copies of these
# Environments that keep something of one episode in the next, so that no generator's state leads back to where they were
UNREPEATABLE = {"ThrowerBulletEnv-v0", "HumanoidFlagrunHarderBulletEnv-v0"}
SPARSE = 0.5                                                           # a file of rows with fewer left in use is rewritten


# ---------------------------------------------------------------------- files

@contextlib.contextmanager
def keep_going(what):
    """A full disk or a folder that is gone is told, and does not end the run."""
    try:
        yield
    except OSError as error:
        print(f"warning: {what} could not be written ({error.strerror}); training goes on", file=sys.stderr, flush=True)


def pack(state):
    """A dictionary of plain values and tensors -> bytes, checksum first."""
    file = io.BytesIO()
    torch.save(state, file)
    return zlib.crc32(file.getbuffer()).to_bytes(4, "big") + file.getbuffer()


def unpack(path):
    """What `pack` made of a dictionary. Raises ValueError, with one line, if the file is missing or damaged."""
    try:
        with open(path, "rb") as file:
            content = memoryview(file.read())
    except OSError as error:
        raise ValueError(f"{path} is missing or cannot be read ({error.strerror})") from None
    if len(content) < 4 or int.from_bytes(content[:4], "big") != zlib.crc32(content[4:]):
        raise ValueError(f"{path} is damaged: its checksum is wrong")
    try:
        return torch.load(io.BytesIO(content[4:]), map_location="cpu", weights_only=True)
    except Exception as error:                                         # it is whole, and still not ours
        raise ValueError(f"{path} is no checkpoint ({type(error).__name__})") from None


# ---------------------------------------------------------------------- what things are made of

def state_of(thing):
    """All attributes of an agent or a buffer that change, as plain values. A kind that is unknown here raises TypeError, so
    that nothing can be forgotten in silence."""
    state = {}
    for name, value in vars(thing).items():
        if name in NOT_STATE or callable(value) and not isinstance(value, torch.nn.Module):
            continue
        if isinstance(value, (torch.nn.Module, torch.optim.Optimizer)):
            value = value.state_dict()
        elif isinstance(value, np.random.Generator):
            value = value.bit_generator.state
        elif isinstance(value, np.ndarray):
            value = torch.from_numpy(value)
        elif isinstance(value, np.generic):
            value = value.item()
        elif hasattr(value, "nodes"):                                  # a SumTree
            value = torch.from_numpy(value.nodes)
        elif isinstance(value, torch.nn.Parameter):
            value = value.detach()
        elif isinstance(value, list):                                  # a view would be saved with all that it is a view of
            for x in value:
                if type(x) not in (bool, int, float, torch.Tensor, type(None)):
                    raise TypeError(f"{type(thing).__name__}.{name}: checkpoint.py does not know how to save a list of "
                                    f"{type(x).__name__}")
            value = [x.clone() if torch.is_tensor(x) else x for x in value]
        elif not isinstance(value, (bool, int, float, torch.Tensor)):
            raise TypeError(f"{type(thing).__name__}.{name}: checkpoint.py does not know how to save a {type(value).__name__}")
        state[name] = value
    return state


def set_state(thing, state):
    """Make an agent or a buffer what it was. Raises KeyError, RuntimeError or ValueError if it is another kind of thing."""
    for name, now in vars(thing).items():
        if name in NOT_STATE or callable(now) and not isinstance(now, torch.nn.Module):
            continue
        value = state[name]
        if isinstance(now, (torch.nn.Module, torch.optim.Optimizer)):
            now.load_state_dict(value)
        elif isinstance(now, np.random.Generator):
            now.bit_generator.state = value
        elif isinstance(now, np.ndarray):
            now[...] = value.numpy()
        elif hasattr(now, "nodes"):
            now.nodes[...] = value.numpy()
        elif isinstance(now, torch.nn.Parameter):
            now.data.copy_(value)
        else:
            setattr(thing, name, value)


def random_state():
    """The state of every global generator of random numbers."""
    kind, keys, *rest = np.random.get_state()
    state = {"python": random.getstate(), "numpy": (kind, torch.from_numpy(keys.astype(np.int64)), *rest),
             "torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_random_state(state):
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


class Replayable(gym.Wrapper):
    """Remembers how the running episode came about, so that another environment of its kind can be brought to the same point."""

    def __init__(self, env):
        super().__init__(env)
        self.began, self.actions = {}, []

    def reset(self, *, seed=None, options=None):
        self.began = {"seed": seed, "generator": self.unwrapped.np_random.bit_generator.state}
        self.actions = []
        return self.env.reset(seed=seed, options=options)

    def step(self, action):
        self.actions.append(np.array(action))
        return self.env.step(action)

    def save(self):
        return {**self.began, "actions": torch.from_numpy(np.array(self.actions))}

    def restore(self, saved):
        """Play the episode again; returns the last observation.

        The robot of a PyBullet environment shares its generator, so that is changed in place.
        """
        self.unwrapped.np_random.bit_generator.state = saved["generator"]
        observation, _ = self.reset(seed=saved["seed"])
        for action in saved["actions"]:
            observation, *_ = self.step(action.numpy())
        return observation


# ---------------------------------------------------------------------- checkpoints

class Checkpoints:
    """The folder of checkpoints of one run.

    Args:
        path: of the run's results, without an ending
        buffer: whose rows are written; None: none are (an offline agent's come from its data set)
    """

    def __init__(self, path, buffer):
        self.folder, self.buffer = path + ".checkpoint", buffer
        # A row counts where it was written last, so files are read from the oldest to the newest. The checkpoint before the
        # newest may need one that the newest does not, so a file is removed only when neither does
        rows = 0 if buffer is None else len(buffer.changed)
        self.written = np.zeros(rows, np.int64)                        # the step of the file that holds each row
        self.size = {}                                                 # rows in each such file
        self.files = []                                                # those that the newest checkpoint needs

    def steps(self):
        """Of the checkpoints there are, the newest first."""
        names = os.listdir(self.folder) if os.path.isdir(self.folder) else []
        steps = [int(name[:-6]) for name in names if re.fullmatch(r"\d{9,}\.state", name)]
        return sorted((step for step in steps if os.path.isfile(self.name(step, "state"))), reverse=True)

    def name(self, step, kind):
        return os.path.join(self.folder, f"{step:09d}.{kind}")

    def save(self, step, state):
        """Write a checkpoint. Raises OSError; what was saved before is then as good as it was."""
        os.makedirs(self.folder, exist_ok=True)
        if self.buffer is not None:
            index = self.rows_to_write()
            rows = {"index": torch.from_numpy(index), "rows": self.buffer.rows[index], "hidden": self.buffer.hidden[index]}
            write_file(self.name(step, "rows"), pack(rows))
            written = self.written.copy()
            written[index] = step
            files = [int(s) for s in np.unique(written) if s]
        else:
            files = []
        write_file(self.name(step, "state"), pack({**state, "files": files}))
        if self.buffer is not None:                                    # only now do these rows count as written
            self.written, self.size = written, {**self.size, step: len(index)}
            self.buffer.changed[:] = False
        self.clean(files)

    def rows_to_write(self):
        """Where the rows lie that changed since the last checkpoint, and those of files that are mostly overwritten, or gone."""
        changed = self.buffer.changed.copy()
        for step in self.size:
            left = (self.written == step) & ~changed
            if 0 < left.sum() < SPARSE * self.size[step] or not os.path.isfile(self.name(step, "rows")):
                changed |= left
        return np.flatnonzero(changed)

    def clean(self, files):
        """Remove all that neither of the last two checkpoints needs. `files`: those the newest needs."""
        kept = self.steps()[:2]
        needed = {*files, *self.files}
        self.files = files
        for name in os.listdir(self.folder):
            ours = re.fullmatch(r"(\d+)\.(state|rows)(\.new)?", name)
            if ours and (ours[3] or int(ours[1]) not in (kept if ours[2] == "state" else needed)):
                with contextlib.suppress(OSError):
                    os.remove(os.path.join(self.folder, name))
        self.size = {step: size for step, size in self.size.items() if step in needed}

    def load(self):
        """The newest checkpoint that is whole, its rows already in the buffer; None if there are none at all.

        Raises ValueError, with one line, if there are some and all are damaged.
        """
        problems = []
        for step in self.steps():
            try:
                state = unpack(self.name(step, "state"))
                for file in state["files"]:
                    rows = unpack(self.name(file, "rows"))
                    index = rows["index"].numpy()
                    self.buffer.rows[index], self.buffer.hidden[index] = rows["rows"], rows["hidden"]
                    self.written[index] = file
                    self.size[file] = len(index)
            except (ValueError, KeyError, TypeError, RuntimeError, IndexError) as error:
                problems.append(str(error) if isinstance(error, ValueError) else
                                f"{self.name(step, 'state')} is of another version of this program")
                self.written[:], self.size = 0, {}
                continue
            for problem in problems:
                print(f"warning: {problem}; going on from the checkpoint before it, at step {step:,}", file=sys.stderr)
            for newer in self.steps():                                 # damaged; their steps will be run again
                if newer > step:
                    with contextlib.suppress(OSError):
                        os.remove(self.name(newer, "state"))
            self.files = state["files"]
            return state
        if problems:
            raise ValueError("; ".join(problems) + f"; no checkpoint is left, delete {self.folder} to start anew")
        return None

    def remove(self):
        shutil.rmtree(self.folder, ignore_errors=True)


class Stopped(KeyboardInterrupt):
    """A run ended by a signal, after a whole step. Arguments: the signal's number; is there a checkpoint to go on from?"""

    def __init__(self, signal, kept):
        self.signal, self.kept = signal, kept


class Stop:
    """Within it, SIGINT and SIGTERM only take a note, so that a step can be finished; a second one acts as ever."""

    def __enter__(self):
        self.signal, self.before = None, {}
        with contextlib.suppress(ValueError):                          # not the main thread: no signals come here
            for number in (signal.SIGINT, signal.SIGTERM):
                self.before[number] = signal.signal(number, self.note)
        return self

    def note(self, number, frame):
        self.signal = number
        self.restore()
        print("\n" * sys.stderr.isatty() + "stopping after this step; once more to stop at once", file=sys.stderr, flush=True)

    def restore(self):
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def __exit__(self, *error):
        self.restore()
