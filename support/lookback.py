"""What a trained policy does with its memory: how many steps it needs (--memory_steps), how far back it looks (--lookback).

Both play the episodes of --test, and write a CSV into --results_dir, a row for each episode and number of steps. The file has
the model's name. Its first line is a comment with all that is needed to make it again.

    pandas.read_csv("results/policies/hopper-positions-ppo-recurrent.lookback.csv", comment="#").groupby("lag").influence.mean()

`python plot.py` draws your own in results/ beside those of results/policies/ (support/lookback_figures.py).
"""
import json
import os

import numpy as np
import torch

from support.system import fail, nearest, write_file

SAMPLES = 50                                                           # steps of an episode at which --lookback measures


class LastRows:
    """An agent whose memory is unrolled anew from zero at every step, over the last K rows only, the present one included.

    It acts like an Agent, but its `hidden` is no memory. It holds the K - 1 rows before the present one, the newest last, and
    how many of them there are: (N, (K - 1) * row + 1).
    """

    def __init__(self, agent, K):
        self.agent, self.before = agent, K - 1
        self.row = agent.spec.state_dim + agent.spec.action_dim + 1
        self.hidden_dim = self.before * self.row + 1

    def act(self, row, hidden, explore):
        """As Agent.act."""
        rows = hidden[:, :-1].reshape(len(row), self.before, self.row)
        count = hidden[:, -1].astype(int)
        past = np.array([np.roll(each, n, axis=0) for each, n in zip(rows, count)])     # rolled: real ones first
        action, _ = self.agent.act(row, remember(self.agent, past, count), explore)
        kept = np.concatenate([rows, row[:, None]], 1)[:, 1:].reshape(len(row), -1)
        return action, np.concatenate([kept, np.minimum(count + 1, self.before)[:, None]], 1, dtype=np.float32)


class Watched:
    """An agent in one environment that keeps each step's row (row,), the memory before it (hidden_dim,) and the action."""

    def __init__(self, agent):
        self.agent, self.hidden_dim = agent, agent.hidden_dim
        self.rows, self.hidden, self.actions = [], [], []

    def act(self, row, hidden, explore):
        """As Agent.act."""
        action, next_hidden = self.agent.act(row, hidden, explore)
        for kept, x in zip((self.rows, self.hidden, self.actions), (row, hidden, action)):
            kept.append(x[0])
        return action, next_hidden


@torch.no_grad()
def remember(agent, past, count, hidden=None):
    """The memory (N, hidden_dim) that an agent has after reading some rows.

    Args:
        past, count: (N, K, row) and (N,); the first `count` rows of each past are read
        hidden: (N, hidden_dim), the memory before these rows; zero if it is not given
    """
    hidden = np.zeros((len(past), agent.hidden_dim), np.float32) if hidden is None else hidden
    past, count, hidden = (torch.as_tensor(x, device=agent.device) for x in (past, count, hidden))
    return torch.cat([network.core.burn_in(past, count, part) for network, part in zip(agent.remembering, agent.split(hidden))],
                     -1).cpu().numpy()


def memory_steps(agent, play, choices):
    """A policy's returns when its memory is made of the last K rows alone.

    Args:
        play: a function that takes an agent, and gives the returns and lengths of the test's episodes
        choices: numbers of rows K, or "all": the memory as it is
    Yields:
        K and the episodes' returns, the same episodes for each K
    """
    for K in choices:
        yield K, play(agent if K == "all" else LastRows(agent, K))[0]


def lookback(agent, play, lags, samples, rng):
    """How far an action moves when one row of the history before it is replaced.

    At sampled steps t and for each lag k, the row of step t - k is replaced by another episode's row of the same step, or by that
    episode's last row if it is shorter. The memory is unrolled again from there, and the new action at step t is compared with
    the one that was taken.

    Args:
        lags: K, the largest k. Only steps with at least K before them are sampled, so all lags share their steps
        samples: steps of each episode, at most
        rng: the numpy generator that samples
    Returns:
        (episodes, K) influence of lags 1 to K: root mean square over the action's entries, each in units of its own spread over
        all steps. Actions count as they were chosen: those of PPO, A2C and REINFORCE may lie beyond the environment's bounds.
        With discrete actions it is the share of steps at which the action is another one. Episodes of K steps or fewer are left
        out, so there may be none.
    """
    watched = Watched(agent)
    _, lengths = play(watched)
    bounds = np.cumsum(lengths)[:-1]
    rows, hidden, actions = (np.split(np.array(kept), bounds) for kept in (watched.rows, watched.hidden, watched.actions))
    spread = np.std(watched.actions, axis=0)                           # (action_dim,)
    spread[spread == 0] = np.inf                                       # an entry that never moves counts 0
    influence = []
    for episode, T in enumerate(lengths):
        if T <= lags or len(lengths) < 2:
            continue
        steps = lags + rng.permutation(T - lags)[:samples]
        others = [i for i in range(len(lengths)) if i != episode]
        moved = []
        for t in steps:
            past = np.zeros((lags, lags, rows[0].shape[1]), np.float32)         # a history for each lag
            start = np.zeros((lags, agent.hidden_dim), np.float32)
            for k in range(1, lags + 1):
                other = rng.choice(others)
                past[k - 1, :k] = rows[episode][t - k:t]
                past[k - 1, 0] = rows[other][min(t - k, lengths[other] - 1)]
                start[k - 1] = hidden[episode][t - k]
            memory = remember(agent, past, np.arange(1, lags + 1), start)
            action, _ = agent.act(rows[episode][t][None].repeat(lags, 0), memory, explore=False)
            change = action - actions[episode][t]                      # (K, action_dim)
            moved.append((change != 0).any(1) if agent.spec.discrete else np.sqrt(((change / spread) ** 2).mean(1)))
        influence.append(np.mean(moved, axis=0))
    return np.array(influence)


# ---------------------------------------------------------------------- files

def probe(run, agent, play, about):
    """Measure what --memory_steps and --lookback ask for, print it and write it into --results_dir. Exits with 2 if it cannot.

    Args:
        run: the run's flags; play: see memory_steps; about: a dictionary, kept in the files' first lines
    """
    if run.memory_steps:
        given, rows = {*run.memory_steps.split()}, []
        for K, returns in memory_steps(agent, play, [*sorted(map(int, given - {"all"})), *given & {"all"}]):
            rows += [(K, episode, f"{value:.6g}") for episode, value in enumerate(returns)]
            words = {"all": "all steps", 1: "the last step"}.get(K, f"the last {K} steps")
            print(f"memory of {words}: return {np.mean(returns):.1f} +- {np.std(returns):.1f}", flush=True)
        write(run, "memory_steps", "steps,episode,return", rows, about)
    if run.lookback:
        influence = lookback(agent, play, run.lookback, SAMPLES, np.random.default_rng(run.seed))
        if not len(influence):
            fail(f"--lookback {run.lookback}: no episode has more steps than that; give a smaller number")
        rows = []
        for lag, each in enumerate(influence.T, 1):                    # (episodes,)
            rows += [(lag, episode, f"{value:.6g}") for episode, value in enumerate(each)]
            print(f"{lag} step{'s' * (lag > 1)} back: influence {each.mean():.3f}")
        write(run, "lookback", "lag,episode,influence", rows, about)


def file_of(run, kind):
    """The CSV that --memory_steps or --lookback writes."""
    folder, name = os.path.split(os.path.abspath(run.load_model).removesuffix(".pt"))
    if name in ("last", "best"):                                       # a copy that has lost its run's name
        name = f"{os.path.basename(folder)}.{name}"
    return os.path.join(run.results_dir or ".", f"{name}.{kind}.csv")


def check_free(run):
    """Raises ValueError, with one line, if a file cannot be written, or is there already without --overwrite. Leaves nothing."""
    for kind in ("lookback", "memory_steps"):
        path = file_of(run, kind)
        if getattr(run, kind) and os.path.lexists(path) and not run.overwrite:
            raise ValueError(f"--{kind}: {path} exists; add --overwrite to replace it, or choose another --results_dir")
    trial = os.path.join(nearest(run.results_dir), os.path.basename(path) + ".new")      # of the longer of the two names
    try:
        write_file(trial, b"")
        os.remove(trial)
    except OSError as error:
        raise ValueError(f"--results_dir {run.results_dir} cannot be written: {error.strerror}; choose another") from None


def write(run, kind, head, rows, about):
    """Write a CSV, whose first line is a comment with the dictionary `about`, into --results_dir. Exits with 2 if it cannot."""
    path = file_of(run, kind)
    lines = ["# " + json.dumps(about), head, *(",".join(map(str, row)) for row in rows)]
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        write_file(path, "".join(f"{line}\n" for line in lines).encode())
    except OSError as error:
        fail(f"--{kind}: {path} cannot be written ({error.strerror})")
    print(f"{path} written")
