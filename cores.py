"""Recurrent cores: LSTM, GRU and none behind one interface. Only this file knows what a hidden state looks like.

A core turns a history into features. Everywhere else a hidden state is one opaque vector of `core.hidden_size` numbers:

    core  remembers          hidden_size   features
    lstm  [h, c], packed     2 * size      [h, observation]
    gru   h                  size          [h, observation]
    none  nothing            0             observation          (feed-forward: the textbook algorithm)

A *history row* is what an agent perceives at time t: the observation, the previous action and the previous reward,
side by side. At the first step of an episode the last two are zero. A recurrent core reads as much of the row as
`--memory_input` says, `none` the observation alone. The *current* action is never part of it: it joins after the core,
in the critic's head, else the actor's gradient could rewrite the critic's past.
`hidden[t]` is the memory before it reads row t.
"""
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn as nn


def flag(default, help, low=None, high=None):
    """A hyper-parameter whose command-line flag is generated: main.py reads type, default, help and bounds from it.

    Without bounds an integer is at least 1 and a float at least 0.
    """
    return field(default=default, metadata={"help": help, "low": low, "high": high})


@dataclass
class MemoryFlags:
    """The hidden-state vocabulary, the same for every algorithm. Each algorithm's HyperParameters extend it."""
    recurrent_actor: bool = flag(False, "give the actor a recurrent core (--recurrent: actor and critic)")
    recurrent_critic: bool = flag(False, "give the critic a recurrent core (--recurrent: actor and critic)")
    core: Literal["lstm", "gru"] = flag("lstm", "which recurrent core")
    core_size: int = flag(64, "units of the recurrent core")
    memory_input: Literal["obs", "obs_action", "obs_action_reward"] = flag(
        "obs_action", "what the core reads at each step, besides the observation: previous action, previous reward")
    core_lr: float | None = flag(None, "learning rate of the recurrent cores (default: that of their network)")
    seq_len: int | Literal["full"] = flag(
        1, "steps in a training window: back-propagation goes no further; full = whole episodes")
    hidden_init: Literal["stored", "zero"] = flag("zero", "start state of a training window: as stored while acting, or zero")
    burn_in: int = flag(0, "unroll up to this many steps before each window, without gradient, to warm up its start state", low=0)
    hidden_refresh: bool = flag(False, "after each update write the recomputed hidden states back into the buffer")
    critic_hidden: Literal["own", "actor", "zero"] = flag(
        "own", "start state of the critic: its own memory, advanced while acting; the actor's stored state; zero")


class NoCore(nn.Module):
    """Feed-forward: passes the observation on and remembers nothing."""
    hidden_size = 0

    def __init__(self, state_dim):
        super().__init__()
        self.state_dim = self.feature_size = state_dim

    def forward(self, history, hidden):
        return history[..., :self.state_dim], hidden

    def burn_in(self, past, past_length, hidden):
        return hidden

    def states(self, history, hidden):
        return hidden[:, None].expand(-1, history.shape[1], -1)


class RecurrentCore(nn.Module):
    """What LSTM and GRU share. `Rnn` and `Rnn cell` differ; how windows are unrolled does not.

    Args:
        state_dim, action_dim: widths of the observation and of the action in a history row
        size: units H of the recurrent layer
        memory_input: how much of a history row it reads, see MemoryFlags
    """

    def __init__(self, rnn, state_dim, action_dim, size, memory_input):
        super().__init__()
        self.state_dim = state_dim
        self.in_size = state_dim + {"obs": 0, "obs_action": action_dim, "obs_action_reward": action_dim + 1}[memory_input]
        self.size = size
        self.feature_size = size + state_dim
        self.rnn = rnn(self.in_size, size, batch_first=True)

    def forward(self, history, hidden):
        """Unroll over a window.

        Args:
            history: (B, L, state_dim + action_dim + 1)
            hidden: (B, hidden_size), the memory before the first row
        Returns:
            features (B, L, feature_size) and next_hidden (B, hidden_size), the memory after the last row
        """
        B, L = history.shape[:2]
        assert hidden.shape == (B, self.hidden_size), (hidden.shape, (B, self.hidden_size))
        x = history[..., :self.in_size]                                # (B, L, in)
        if L <= 2:                                                     # single cells: oneDNN's LSTM is slow to start up
            outputs = []
            for t in range(L):
                output, hidden = self.cell(x[:, t], hidden)            # (B, H), (B, hidden_size)
                outputs.append(output)
            output = outputs[0][:, None] if L == 1 else torch.stack(outputs, 1)
        else:
            output, state = self.rnn(x, self.unpack(hidden))           # (B, L, H)
            hidden = self.pack(state)
        return torch.cat([output, history[..., :self.state_dim]], -1), hidden

    @torch.no_grad()
    def burn_in(self, past, past_length, hidden):
        """Bring a start state forward over the steps before a window, without gradient.

        Args:
            past: (B, K, row), each row's history before the window, left-aligned
            past_length: (B,) how many of the K steps are real; 0 where the window starts with its episode
            hidden: (B, hidden_size), the memory before the first real step of `past`
        Returns:
            (B, hidden_size), the memory before the window's first step
        """
        if past.shape[1] == 0:
            return hidden
        # Sequences of different length: a PackedSequence returns each one's state after its own last step
        packed = nn.utils.rnn.pack_padded_sequence(past[..., :self.in_size], past_length.clamp(min=1).cpu(),
                                                   batch_first=True, enforce_sorted=False)
        _, state = self.rnn(packed, self.unpack(hidden))
        return torch.where(past_length[:, None] > 0, self.pack(state), hidden)

    @torch.no_grad()
    def states(self, history, hidden):
        """The memory before each of the window's L rows: (B, L, hidden_size). For --hidden_refresh."""
        states = [hidden]
        for t in range(history.shape[1] - 1):
            states.append(self.cell(history[:, t, :self.in_size], states[-1])[1])
        return torch.stack(states, 1)


class LSTMCore(RecurrentCore):
    """Long short-term memory (Hochreiter & Schmidhuber 1997). Its hidden vector is [h, c]."""

    def __init__(self, *args):
        super().__init__(nn.LSTM, *args)
        self.hidden_size = 2 * self.size

    def unpack(self, hidden):
        h, c = hidden.split(self.size, -1)
        return h[None].contiguous(), c[None].contiguous()              # (1, B, H) each, as nn.LSTM wants them

    def pack(self, state):
        return torch.cat([state[0][0], state[1][0]], -1)               # (B, 2H)

    def cell(self, x, hidden):
        h, c = torch.lstm_cell(x, hidden.split(self.size, -1), *self.rnn.all_weights[0])
        return h, torch.cat([h, c], -1)


class GRUCore(RecurrentCore):
    """Gated recurrent unit (Cho et al. 2014). Its hidden vector is its output h."""

    def __init__(self, *args):
        super().__init__(nn.GRU, *args)
        self.hidden_size = self.size

    def unpack(self, hidden):
        return hidden[None].contiguous()                               # (1, B, H)

    def pack(self, state):
        return state[0]                                                # (B, H)

    def cell(self, x, hidden):
        h = torch.gru_cell(x, hidden, *self.rnn.all_weights[0])
        return h, h


CORES = {"lstm": LSTMCore, "gru": GRUCore}                             # a new core: one class above, one entry here


def make_core(recurrent, flags, state_dim, action_dim):
    """The core of one network: `flags.core` if it is to be recurrent, else none."""
    if not recurrent:
        return NoCore(state_dim)
    return CORES[flags.core](state_dim, action_dim, flags.core_size, flags.memory_input)


def start_hidden(batch, actor, critic, flags):
    """Start states of actor and critic at the first trained step of each window, without gradient.

    `batch.hidden` (B, actor's + critic's hidden_size) holds the memories as they were while acting. --hidden_init and
    --critic_hidden choose what a window starts from, then --burn_in carries it over the steps before the window, with
    the weights of the networks passed in (so online and target networks each get their own).

    Returns:
        (B, actor.core.hidden_size), (B, critic.core.hidden_size)
    """
    actor_size, critic_size = actor.core.hidden_size, critic.core.hidden_size
    B = batch.history.shape[0]
    zeros = batch.history.new_zeros
    if flags.hidden_init == "zero":
        hidden_actor, hidden_critic = zeros(B, actor_size), zeros(B, critic_size)
    else:
        hidden_actor = batch.hidden[:, :actor_size]
        hidden_critic = {"own": batch.hidden[:, actor_size:],
                         "actor": hidden_actor,
                         "zero": zeros(B, critic_size)}[flags.critic_hidden]
    return (actor.core.burn_in(batch.past, batch.past_length, hidden_actor),
            critic.core.burn_in(batch.past, batch.past_length, hidden_critic))
