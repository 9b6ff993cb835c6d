"""Exact resume: checkpoints from which an interrupted run goes on to the same evaluations, to the bit.

    python main.py --policy TD3 --env HopperBulletEnv-v0 --recurrent --resume      (the same command again, and --resume)

A checkpoint holds all that a run is made of: weights, targets, optimizers, counters, every generator of random numbers, the
replay buffer with its hidden states, and the row that the agent reads next. An environment cannot be saved, but its running
episode can be played again: it follows from the generator's state at its reset and from the actions since (envs.Replayable).
An environment may depend on more than that. So before each checkpoint the running episode is played again in a new environment,
and must come out the same. Before the first checkpoint, finished episodes are played again, too, since one alone may not show it.

A run keeps its checkpoints in the folder RUN.checkpoint/ until it has finished. With --keep_checkpoint one of the last step
stays, and a run of more --max_timesteps can go on from it. The files are

    000040000.state    everything but the buffer's rows, at that step; the last two are kept
    000040000.rows     the rows that were written since the checkpoint before, so that a large buffer costs little

A file begins with its checksum. It is written under another name, flushed and renamed, so it is never half written. If the
newest checkpoint is damaged, the one before it is used. Both need the older files of rows. There is no second copy of these: it
would be as large as the buffer. Nothing is unpickled that could execute code.
"""
import contextlib
import io
import os
import random
import re
import shutil
import sys
import types
import zlib

import numpy as np
import torch

from support.system import Listener, keep_going, write_file

IN_PLACE = "in place"                                                  # marks a state that is loaded into an object that exists
PLAIN = (bool, int, float, str, type(None))
FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType, types.MethodType, type)
LOOKED_AT = 5000                                                       # steps of finished episodes, played again at first
SPARSE = 0.5                                                           # rows move to a new file if less of their file is in use


# ---------------------------------------------------------------------- files

def pack(state):
    """A dictionary of plain values and tensors -> bytes, checksum first."""
    file = io.BytesIO()
    torch.save(state, file)
    return zlib.crc32(file.getbuffer()).to_bytes(4, "big") + file.getbuffer()


def load(content):
    """The dictionary that `pack` turned into these bytes. It may raise anything if they hold something else."""
    return torch.load(io.BytesIO(content[4:]), map_location="cpu", weights_only=True)


def unpack(path):
    """Read a file of `pack`. Raises ValueError, with one line, if it is missing or damaged."""
    try:
        with open(path, "rb") as file:
            content = memoryview(file.read())
    except OSError as error:
        raise ValueError(f"{path} is missing or cannot be read ({error.strerror})") from None
    if len(content) < 4 or int.from_bytes(content[:4], "big") != zlib.crc32(content[4:]):
        raise ValueError(f"{path} is damaged: its checksum is wrong")
    try:
        return load(content)
    except Exception as error:                                         # it is undamaged, but not ours
        raise ValueError(f"{path} is no checkpoint ({type(error).__name__})") from None


# ---------------------------------------------------------------------- what things are made of

class CannotResume(Exception):
    """A run cannot be resumed from a checkpoint. The text says why, in one line."""


class Unrepeatable(CannotResume):
    """The environment is at fault, so the checkpoints written so far are of no use either."""


def state_of(thing):
    """All attributes of an agent or a buffer that change, in a form that `unpack` reads back. An attribute of an unknown kind
    raises CannotResume, so that none is left out in silence."""
    state = {}
    for name, value in changing(thing).items():
        if isinstance(value, (torch.nn.Module, torch.optim.Optimizer)):
            state[name] = IN_PLACE, value.state_dict()
        elif isinstance(value, np.random.Generator):
            state[name] = IN_PLACE, value.bit_generator.state
        elif hasattr(value, "nodes"):                                  # a SumTree
            state[name] = IN_PLACE, torch.from_numpy(value.nodes)
        elif torch.is_tensor(value) and value.requires_grad:           # its optimizer holds this very tensor
            state[name] = IN_PLACE, value.detach().clone()
        else:
            state[name] = encode(value, f"{type(thing).__name__}.{name}")
    return state


def set_state(thing, state):
    """Give an agent or a buffer the state that `state_of` returned. Raises KeyError, RuntimeError, TypeError or ValueError if
    it does not fit."""
    here = changing(thing)
    if missing := here.keys() - state.keys():
        raise KeyError(missing)
    for name, value in state.items():
        now = here.get(name)
        if type(value) is not tuple or value[0] != IN_PLACE:
            setattr(thing, name, decode(value))
        elif isinstance(now, np.random.Generator):
            now.bit_generator.state = value[1]
        elif hasattr(now, "nodes"):
            now.nodes[...] = value[1].numpy()
        elif torch.is_tensor(now):
            with torch.no_grad():
                now.copy_(value[1])
        else:
            now.load_state_dict(value[1])


def checked_state_of(thing):
    """As `state_of`. Raises CannotResume if an attribute could be written but not read back, as a module's state may be."""
    state = state_of(thing)
    for name, value in state.items():
        try:
            load(pack({name: value}))
        except Exception as error:
            raise CannotResume(f"{type(thing).__name__}.{name} could not be read again ({type(error).__name__})") from None
    return state


def in_place(state):
    """Names of the attributes that `set_state` cannot make, only load into: they have to exist from the start."""
    return {name for name, value in state.items() if type(value) is tuple and value[0] == IN_PLACE}


def changing(thing):
    """The attributes of an agent or a buffer that are its state, by name."""
    return {name: value for name, value in vars(thing).items()
            if name not in thing.not_state and not isinstance(value, FUNCTIONS)}


def encode(value, name):
    """A plain value, array, tensor, list, tuple or dictionary as `load` accepts it. Arrays and tuples become (kind, content)."""
    if isinstance(value, np.generic):
        value = value.item()
    if type(value) in PLAIN:
        return value
    if type(value) is torch.Tensor and not value.requires_grad:
        return value.clone()                                           # Torch would save a view with the whole tensor behind it
    if type(value) is np.ndarray:
        with contextlib.suppress(TypeError, ValueError):               # Torch has no strings, objects or other byte orders
            return "array", torch.from_numpy(value.copy())
    if type(value) is tuple:
        return "tuple", [encode(x, name) for x in value]
    if type(value) is list:
        return [encode(x, name) for x in value]
    if type(value) is dict and all(type(key) in PLAIN for key in value):
        return {key: encode(x, name) for key, x in value.items()}
    raise CannotResume(f"{name}: checkpoint.py does not know how to save a {type(value).__name__}")


def decode(value):
    """What `encode` was given."""
    if type(value) is tuple:
        kind, content = value
        return content.numpy() if kind == "array" else tuple(decode(content))
    if type(value) is list:
        return [decode(x) for x in value]
    return {key: decode(x) for key, x in value.items()} if type(value) is dict else value


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


def place_in(buffer, index, capacity):
    """Where `buffer` holds the rows that lay at `index` in a buffer of another capacity (rows per stream)."""
    return index // capacity * buffer.capacity + index % capacity


def widen(state, buffer):
    """Fit the saved state of a buffer to `buffer`, a new one that has more room if its run is longer. Raises CannotResume if
    the old buffer has overwritten rows that the new one would still hold."""
    old = state["capacity"]
    if old == buffer.capacity:
        return
    if (state["head"][1] >= old).any():
        raise CannotResume("the buffer was full, and in a longer run it would have more room")
    for name in ("episode", "first", "last"):                          # (num_envs, rows or episodes there is room for)
        wide = vars(buffer)[name].copy()
        wide[:, :state[name][1].shape[1]] = state[name][1]
        state[name] = "array", torch.from_numpy(wide)
    if "priority" in state:
        nodes = state["priority"][1].numpy()
        leaves = nodes[len(nodes) // 2:]
        at = np.flatnonzero(leaves)
        if len(at):
            buffer.priority[place_in(buffer, at, old)] = leaves[at]
        state["priority"] = IN_PLACE, torch.from_numpy(buffer.priority.nodes)
    state.update(capacity=buffer.capacity, max_episodes=buffer.max_episodes)


# ---------------------------------------------------------------------- checkpoints

class Checkpoints(Listener):
    """The folder of checkpoints of one run.

    Args:
        path: the run's results, without an ending
        buffer: the buffer whose rows are written, or None: an offline agent's rows come from its data set
    """

    key = "checkpoints"

    def __init__(self, path, buffer):
        self.folder, self.buffer = path + ".checkpoint", buffer
        # The last file that holds a row counts, so files are read from the oldest to the newest. A file is removed only when
        # neither the newest checkpoint nor the one before it needs it
        rows = 0 if buffer is None else len(buffer.changed)
        self.written = np.zeros(rows, np.int64)                        # the step of the file that holds each row
        self.size = {}                                                 # step of such a file -> rows in it
        self.files = []                                                # steps of the files that the newest checkpoint needs
        self.possible, self.looks = True, 0                            # looks: how often `check_repeats` has been called

    @contextlib.contextmanager
    def if_possible(self):
        """If CannotResume is raised within it, that is said once, and the run goes on without further checkpoints."""
        try:
            yield
        except CannotResume as error:
            self.possible = False
            if isinstance(error, Unrepeatable):
                self.remove()
            more, less = ("more ", "") if self.steps() else ("", ", and cannot be resumed")
            print(f"no {more}checkpoints: {error}; the run goes on without{less}", flush=True)

    def begin(self, step, saved):
        if not step:
            self.remove()                                              # the checkpoints of an earlier run

    def watch(self, agent, buffer):
        """Raises CannotResume if the state of agent or buffer could not be saved, so that this is known at the start."""
        checked_state_of(buffer)
        self.made = in_place(checked_state_of(agent))

    def save_run(self, agent, buffer, steps, listeners, config, started_with):
        """Write a checkpoint of a run. Raises CannotResume if it could not be used. A full disk is only reported.

        Args:
            steps: main.py's Interaction or Updates
            config: all flags of the run, as they are now; started_with: as they were at its start
        """
        if steps.envs:
            self.check_repeats(steps.envs, config["env"])
        state = dict(step=steps.step, config=started_with, agent=state_of(agent), buffer=state_of(buffer),
                     random=random_state(), steps=steps.save(), listeners=listeners.save())
        if later := in_place(state["agent"]) - self.made:
            raise CannotResume(f"{config['policy']}.{min(later)} was not there at the start, so nothing can be loaded into it")
        if config != started_with:
            raise CannotResume("the flags are not what they were at the start; what an agent changes, it should keep apart")
        with keep_going(f"the checkpoint of step {steps.step:,}"):
            self.write(steps.step, state)

    def check_repeats(self, envs, env_id):
        """Raises Unrepeatable if an episode is not a function of its beginning and its actions.

        envs: made by make_vector_env. The first call looks at all of them, a later one at the next in turn: they are of one
        kind, and it takes time.
        """
        pairs, before = list(zip(envs.envs, envs.env_fns)), random_state()
        try:
            if self.looks:
                env, make = pairs[self.looks % len(pairs)]
                same = env.repeats(make)
            else:
                same = all(env.repeats(make) and env.finished_repeat(make, LOOKED_AT // len(pairs)) for env, make in pairs)
            why = "observations or rewards differ"
        except Exception as error:                                     # an environment's own code may raise anything
            same, why = False, " ".join(f"{type(error).__name__}: {error}".split())
        set_random_state(before)                                       # making an environment may draw random numbers
        self.looks += 1
        if not same:
            raise Unrepeatable(f"an episode of {env_id} does not repeat itself when it is played again ({why})")

    def steps(self):
        """The steps of the checkpoints in the folder, the newest first."""
        names = os.listdir(self.folder) if os.path.isdir(self.folder) else []
        steps = [int(name[:-6]) for name in names if re.fullmatch(r"\d{9,}\.state", name)]
        return sorted((step for step in steps if os.path.isfile(self.name(step, "state"))), reverse=True)

    def name(self, step, kind):
        return os.path.join(self.folder, f"{step:09d}.{kind}")

    def write(self, step, state):
        """Write a checkpoint. Raises OSError; earlier checkpoints can then still be used."""
        os.makedirs(self.folder, exist_ok=True)
        written, size = self.written.copy(), self.size                 # offline both are empty
        if self.buffer is not None:
            index = self.rows_to_write()
            rows = {"index": torch.from_numpy(index), "rows": self.buffer.rows[index], "hidden": self.buffer.hidden[index]}
            write_file(self.name(step, "rows"), pack(rows))
            written[index], size = step, {**size, step: len(index)}
        files = [int(s) for s in np.unique(written) if s]
        write_file(self.name(step, "state"), pack({**state, "files": files}))
        self.written, self.size = written, size                        # these rows count as written only now
        if self.buffer is not None:
            self.buffer.changed[:] = False
        self.clean(files)

    def rows_to_write(self):
        """Indices of the rows that changed since the last checkpoint, and of those whose file is gone or mostly out of use."""
        changed = self.buffer.changed.copy()
        for step in self.size:
            left = (self.written == step) & ~changed
            if 0 < left.sum() < SPARSE * self.size[step] or not os.path.isfile(self.name(step, "rows")):
                changed |= left
        return np.flatnonzero(changed)

    def clean(self, files):
        """Remove the files that neither of the last two checkpoints needs. files: steps of those that the newest needs"""
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
        """Read the newest undamaged checkpoint, its rows into the buffer. Returns the rest, or None if there is none at all.

        Raises ValueError, with one line, if all checkpoints are damaged.
        """
        problems = []
        for step in self.steps():
            try:
                state = unpack(self.name(step, "state"))
                for file in state["files"]:
                    rows = unpack(self.name(file, "rows"))
                    index = place_in(self.buffer, rows["index"].numpy(), state["buffer"]["capacity"])
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
            if self.buffer is not None:
                widen(state["buffer"], self.buffer)
            return state
        if problems:
            raise ValueError("; ".join(problems) + f"; no checkpoint is left, delete {self.folder} to start anew")
        return None

    def load_from(self, path):
        """`load` from the checkpoints of a shorter run, which stay there, but for damaged ones. The next checkpoint of this run
        holds all rows.
        """
        other = Checkpoints(path, self.buffer)
        state = other.load()
        if self.buffer is not None:
            self.buffer.changed |= other.written > 0
        return state

    def remove(self):
        shutil.rmtree(self.folder, ignore_errors=True)
