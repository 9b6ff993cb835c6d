"""What all other modules need: files that are whole or not there, locks, errors of one line, the command line, listeners."""
import argparse
import contextlib
import contextvars
import errno
import importlib
import os
import re
import sys

from filelock import FileLock, Timeout

PATIENCE = 30                                                              # seconds to wait for a process that is ending


class BadInput(SystemExit):
    """Ends the program with exit code 2. line: what was wrong and what would be right."""

    def __init__(self, line):
        super().__init__(2)
        self.line = line


class Failed(Exception):
    """A run could not be brought to its end, or what it found could not be written. Its text is one line, its exit code 1."""


printing = contextvars.ContextVar("printing", default=True)                # is bad input printed?


def fail(message):
    """Bad input: one line on stderr, exit code 2. Within no_exit it is a ValueError."""
    line = " ".join(message.splitlines())                                  # a name that the user gave may have several lines
    if printing.get():
        print(f"error: {line}", file=sys.stderr)
    raise BadInput(line)


@contextlib.contextmanager
def no_exit():
    """For calls from Python. Within it, bad input raises ValueError with its line, and nothing is printed."""
    before = printing.set(False)
    try:
        yield
    except BadInput as error:
        raise ValueError(error.line) from None
    finally:
        printing.reset(before)


class Parser(argparse.ArgumentParser):
    """A parser of command lines whose errors are one line."""

    def __init__(self, **options):
        super().__init__(**options)
        self._negative_number_matcher = re.compile(r"-\.?\d|-inf|-nan")  # argparse takes -1 for a number, but -1e3 for a flag

    def parse_known_args(self, args=None, namespace=None):
        words = sys.argv[1:] if args is None else args
        for word, after in zip(words, [*words[1:], ""]):
            name, _, value = word.partition("=")
            if word.startswith("--") and word.endswith("=--"):         # argparse takes this for an empty list
                self.error(f"argument {word[:-3]}: expected one argument")
            known = self._option_string_actions
            if name in known and known[name].nargs == 0 and (value or after.lower() in ("true", "false")):
                no = f"--no-{name[2:]}"
                no = f"{no} for no" if no in known else "leave it out for no"
                self.error(f"{name} takes no value: write {name} for yes, {no}")
        return super().parse_known_args(args, namespace)

    def error(self, message):
        fail(message + " (--help lists all flags)")


def optional(module, package):
    """Import a module that only some flag needs. Raises ValueError, with one line, if its package is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ValueError(f"it needs a package; pip install {package}") from None


def regular(path):
    """The same path if it is a file. Raises OSError if it is not: opening a pipe would wait for ever."""
    if not os.path.isfile(path):
        raise OSError(errno.ENOENT, f"{path} is no file")
    return path


def write_file(path, payload):
    """Write bytes so that there is never half a file of this name. Raises OSError, and then leaves the old file."""
    try:
        with open(path + ".new", "wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        os.replace(path + ".new", path)
    except OSError:
        with contextlib.suppress(OSError):
            os.remove(path + ".new")
        raise


@contextlib.contextmanager
def keep_going(what):
    """Within it, a full disk or a folder that is gone is reported, and does not end the run."""
    try:
        yield
    except OSError as error:
        print(f"warning: {what} could not be written ({error.strerror}); training goes on", file=sys.stderr, flush=True)


@contextlib.contextmanager
def alone(path, patience):
    """Within it, no other process works at the run of this path. Exits with 2 if one still does after `patience` seconds. A
    process that was told to stop can finish its step in that time. The operating system frees the lock of a process that dies."""
    lock = FileLock(path + ".lock")
    try:
        lock.acquire(timeout=patience)
    except Timeout:
        fail(f"another process is at work on {path}; wait for it, or stop it")
    except PermissionError:
        fail(f"{path}.lock is another user's; if nobody is at work on this run, delete it")
    except (OSError, NotImplementedError) as error:                    # such as a file system without locks
        print(f"warning: {path}.lock could not be locked ({error}); see that no other process works at this run", file=sys.stderr)
    try:
        yield
    finally:
        if lock.is_locked:
            with contextlib.suppress(OSError):
                os.remove(path + ".lock")
            lock.release()


def nearest(path):
    """The path itself if it exists, else the nearest one above it that does."""
    path = os.path.abspath(path)
    while not os.path.lexists(path):
        path = os.path.dirname(path)
    return path


def can_be_made(path):
    """Could a file or a folder be made there? Writes nothing."""
    folder = nearest(path)
    return os.path.isdir(folder) and os.access(folder, os.W_OK)


def events_folder(path):
    """The folder of a run's event files. path: the run's results, without an ending"""
    return os.path.join(os.path.dirname(path), "tensorboard", os.path.basename(path))


class Listener:
    """A part of the program that is told how a run goes. The loop in main.py knows only the checkpoints by name."""
    key = ""                                # the name of its state in a checkpoint

    def begin(self, step, saved):
        """The run begins or, from a checkpoint of that step, goes on. saved: what `save` had returned, or None"""

    def before_update(self, step):
        """The agent is about to train."""

    def after_update(self, step, losses):
        """The agent has trained. losses: a dictionary of numbers or tensors"""

    def stepped(self, step):
        """Every environment has taken a step; offline: an update was made. step: how many there have been in all"""

    def evaluated(self, step, returns, lengths):
        """The agent has been evaluated: lists of the episodes' returns and lengths."""

    def missing(self):
        """At the run's end: make a last attempt to write what could not be written. Returns the files that are still missing."""
        return []

    def save(self):
        """What `begin` needs to go on, in plain values. By default nothing."""

    def close(self):
        """The run stops, at its end or before."""


class Listeners:
    """Tells several listeners, in order. Those that are None are left out."""

    def __init__(self, *listeners):
        self.all = [listener for listener in listeners if listener]

    def begin(self, step=0, saved=None):
        for listener in self.all:
            listener.begin(step, saved.get(listener.key) if saved else None)

    def before_update(self, step):
        for listener in self.all:
            listener.before_update(step)

    def after_update(self, step, losses):
        for listener in self.all:
            listener.after_update(step, losses)

    def stepped(self, step):
        for listener in self.all:
            listener.stepped(step)

    def evaluated(self, step, returns, lengths):
        for listener in self.all:
            listener.evaluated(step, returns, lengths)

    def missing(self):
        return [file for listener in self.all for file in listener.missing()]

    def save(self):
        return {listener.key: listener.save() for listener in self.all}

    def close(self):
        for listener in self.all:
            listener.close()
