"""What a program says, and how it is told to stop: no failing print ends a run, and Ctrl-C is one line at any time.

It imports nothing that takes time, so that a script can call `begin` before the imports that do.
"""
import contextlib
import functools
import os
import signal
import sys

FAILURES = (OSError, ValueError, RuntimeError)                         # from a full disk, a closed stream, a signal's handler


class Unfailing:
    """A text stream that may lose what is written to it (a full disk, a pipe that is closed), and never raises."""

    def __init__(self, stream):
        self.stream = stream

    def write(self, text):
        with contextlib.suppress(*FAILURES):
            self.stream.write(text)
        return len(text)

    def flush(self):
        with contextlib.suppress(*FAILURES):
            self.stream.flush()

    def __getattr__(self, name):
        return getattr(self.stream, name)


def begin():
    """What a script calls first. Then no print, warning or progress bar can raise, and Ctrl-C ends the program at once."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:                                                # it is closed: the next file opened would get its number
            os.open(os.devnull, os.O_RDWR)
        stream = getattr(sys, name) or open(os.devnull, "w" if number else "r")
        if number:
            stream.reconfigure(errors="backslashreplace")              # for letters that the terminal does not know
            stream = Unfailing(stream)
        setattr(sys, name, stream)
    signal.signal(signal.SIGINT, functools.partial(stop_at_once, os.dup(2)))


def stop_at_once(stderr, number, frame):
    """Ctrl-C while there is nothing to keep. It raises no exception, since the code that is imported might catch it."""
    os.dup2(stderr, 2)                                                 # envs.quiet may have turned it off
    say_interrupted()
    sys.stdout.flush()
    os._exit(128 + number)


def say_interrupted(more=""):
    """The one line after a Ctrl-C; on a terminal it begins beside a ^C or a bar."""
    print("\n" * sys.stderr.isatty() + "interrupted" + more, file=sys.stderr, flush=True)


def something_to_keep():
    """From here on Ctrl-C is Python's KeyboardInterrupt again, if `begin` had changed that."""
    if getattr(signal.getsignal(signal.SIGINT), "func", None) is stop_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)


class Stopped(KeyboardInterrupt):
    """A signal ended the run after a whole step. signal: its number; kept: is there a checkpoint to go on from?"""

    def __init__(self, signal, kept):
        self.signal, self.kept = signal, kept


class Stop:
    """Within it, the first SIGINT or SIGTERM is only noted, so that a step can be finished. The second acts as usual.

    says: what is printed at the first, if anything
    """

    def __init__(self, says=""):
        self.says = says

    def __enter__(self):
        self.signal, self.before = None, {}
        with contextlib.suppress(ValueError):                          # only the main thread may handle signals
            for number in (signal.SIGINT, signal.SIGTERM):
                self.before[number] = signal.signal(number, self.note)
        return self

    def note(self, number, frame):
        self.signal = number
        self.restore()
        if self.says:
            print("\n" * sys.stderr.isatty() + self.says, file=sys.stderr, flush=True)

    def restore(self):
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def __exit__(self, *error):
        self.restore()
