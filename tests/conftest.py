"""What the tests share: toy environments with a record of their own, small agents, networks rebuilt from torch.nn's parts."""
import itertools
import os
import re
import sys
from dataclasses import fields
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn as nn

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
torch.set_num_threads(1)

import main  # noqa: E402
from agent import Agent  # noqa: E402
from envs import EnvSpec, make_env  # noqa: E402
from networks import MLP  # noqa: E402
from support import data  # noqa: E402
from utils import Buffer  # noqa: E402

SPEC = EnvSpec(3, 2, False)
DISCRETE_SPEC = EnvSpec(3, 2, True)
SMALL = dict(core_size=6, hidden_size=16, hidden_layers=1, num_envs=2)
REPLAY = dict(start_timesteps=0, batch_size=24, max_timesteps=400)
TINY = {                                                               # a small agent's flags, besides SMALL
    "TD3": REPLAY, "DDPG": REPLAY, "SAC": REPLAY, "R2D1": dict(**REPLAY, expl_timesteps=1, expl_rate=0.5, target_freq=2),
    "PPO": dict(rollout_steps=25, batch_size=12, epochs=2, lr=3e-3), "A2C": dict(rollout_steps=25, lr=3e-3),
    "REINFORCE": dict(batch_size=20, memory_size=100), "BCQ": dict(batch_size=24, target_candidates=3, act_candidates=4),
}
RECURRENT = dict(recurrent_actor=True, recurrent_critic=True)


@pytest.fixture(autouse=True)
def same_start():
    """Every test starts from the same random numbers, whichever ran before it."""
    torch.manual_seed(0)
    np.random.seed(0)


@pytest.fixture
def float64():
    """Double precision, so that rounding cannot hide, or be blamed for, a difference."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def dtype():
    """NumPy's name of Torch's default."""
    return torch.zeros(()).numpy().dtype


def record(env_id, name, steps, seed=0):
    """A data set of so many random actions. Returns the environment."""
    env, rng = make_env(env_id, data.Recorder), np.random.default_rng(seed)
    env.reset(seed=seed)
    for _ in range(steps):
        _, _, terminated, truncated, _ = env.step(rng.uniform(-1, 1, env.action_space.shape).astype(np.float32))
        if terminated or truncated:
            env.reset()
    data.save(env, name, "random", "by hand")
    return env


def recorded(tmp_path_factory, *given):
    """For a fixture: while it lasts, data sets lie in a folder of their own, in which there is one (see record)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(tmp_path_factory.mktemp("minari")))
        record(*given)
        yield


@pytest.fixture
def refused(capsys, tmp_path):
    """A function that runs a command line which must be refused: exit code 2, one line that holds the words, no file touched.

    It returns that line.
    """
    def files():
        return {path: path.is_dir() or path.lstat().st_mtime_ns for path in tmp_path.rglob("*")}

    def refused(argv, words=()):
        before, argv = files(), [str(word) for word in argv]
        if not any(word.startswith("--results_dir") for word in argv):
            argv += ["--results_dir", str(tmp_path / "results")]
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main.main(argv)
        error = capsys.readouterr().err
        assert stop.value.code == 2 and re.fullmatch(r"error: [^\n]+\n", error), error
        assert not [word for word in words if word not in error], error
        assert files() == before
        return error
    return refused


# ---------------------------------------------------------------------- toy environments

class Step(NamedTuple):
    """One step as the test saw it, independent of the buffer."""
    env: int
    episode: int
    t: int                      # since the episode's start
    row: np.ndarray             # what the agent perceived: observation, previous action, previous reward
    hidden: np.ndarray          # its memory before it read `row`
    state: np.ndarray
    action: np.ndarray
    reward: float
    next_state: np.ndarray      # at an episode's end the true last observation
    next_row: np.ndarray
    next_hidden: np.ndarray
    terminated: bool
    truncated: bool


class RandomAgent:
    """Acts and remembers at random: enough to test the buffer."""

    def __init__(self, spec=SPEC, hidden_dim=4, seed=0):
        self.spec, self.hidden_dim, self.stored_hidden_dim = spec, hidden_dim, hidden_dim
        self.rng = np.random.default_rng(seed)

    def act(self, row, hidden):
        return self.rng.normal(size=(len(row), self.spec.action_dim)), self.rng.normal(size=hidden.shape)


class Toy:
    """main.py's loop over `len(lengths)` environments with random observations and rewards and scripted episodes.

    lengths[env] are the lengths of its episodes, over and over. A stream's even episodes end by termination, its odd ones
    by truncation, or all by `only`.
    """

    def __init__(self, agent, buffer, lengths, seed=0, only=None):
        self.agent, self.buffer, self.only, self.num_envs = agent, buffer, only, len(lengths)
        self.lengths = [itertools.cycle(x) for x in lengths]
        self.rng = np.random.default_rng(seed)
        self.record = []                                               # every Step, in order of time
        self.by_state, self.by_place = {}, {}                          # the same, by observation; by environment, episode, t
        self.episode, self.t = [-1] * self.num_envs, [0] * self.num_envs
        self.length = [0] * self.num_envs
        spec = agent.spec
        self.state = np.zeros((self.num_envs, spec.state_dim), dtype())
        self.row = np.zeros((self.num_envs, spec.state_dim + spec.action_dim + 1), dtype())
        self.hidden = np.zeros((self.num_envs, agent.hidden_dim), dtype())
        for env in range(self.num_envs):
            self.reset(env)

    def observe(self, t):
        return self.rng.normal(size=self.agent.spec.state_dim).astype(np.float32)

    def reward(self):
        return np.float32(self.rng.normal())

    def reset(self, env):
        self.episode[env] += 1
        self.t[env], self.length[env] = 0, next(self.lengths[env])
        self.state[env] = self.observe(0)
        self.row[env] = 0
        self.row[env, :self.agent.spec.state_dim] = self.state[env]
        self.hidden[env] = 0

    def play(self, steps):
        """Steps of every environment; returns what was recorded, per environment in order of time."""
        played = []
        for _ in range(steps):
            action, next_hidden = self.agent.act(self.row.copy(), self.hidden.copy())
            action, next_hidden = np.asarray(action, dtype()), np.asarray(next_hidden, dtype())
            next_state = np.stack([self.observe(t + 1) for t in self.t]).astype(dtype())
            reward = np.array([self.reward() for _ in self.t], dtype())
            done = np.array([t + 1 >= length for t, length in zip(self.t, self.length)])
            terminates = [self.only == "terminated" or (self.only is None and e % 2 == 0) for e in self.episode]
            terminated, truncated = done & terminates, done & ~np.array(terminates)
            next_row = np.concatenate([next_state, action, reward[:, None]], 1)
            self.buffer.add(self.state.copy(), action, reward, next_state, terminated, truncated, self.hidden.copy(), next_hidden)
            for env in range(self.num_envs):
                step = Step(env, self.episode[env], self.t[env], self.row[env].copy(), self.hidden[env].copy(),
                            self.state[env].copy(), action[env], reward[env], next_state[env], next_row[env],
                            next_hidden[env], terminated[env], truncated[env])
                self.by_state[step.state.tobytes()] = self.by_place[env, self.episode[env], self.t[env]] = step
                played.append(step)
                self.t[env] += 1
            self.state, self.row, self.hidden = next_state.copy(), next_row.copy(), next_hidden.copy()
            for env in np.flatnonzero(done):
                self.reset(env)
        self.record += played
        return sorted(played, key=lambda step: step.env)               # stable: order of time within an environment

    def play_until_due(self):
        """Until there is enough for an update. Returns what was recorded, as `play`."""
        played = self.play(1)
        while not self.agent.ready(self.buffer):
            played += self.play(1)
        return sorted(played, key=lambda step: step.env)

    def find(self, state):
        """The recorded step that was taken from this observation (all observations differ)."""
        return self.by_state[np.asarray(state, dtype()).tobytes()]

    def at(self, env, episode, t):
        return self.by_place[env, episode, t]

    def stored(self):
        """The steps that the buffer must hold: of each stream's rows, one per observation, the newest `capacity` remain,
        and a step needs the row before and the row after it."""
        kept = []
        for env in range(self.num_envs):
            mine = [step for step in self.record if step.env == env]
            rows, room = [], self.buffer.capacity
            for step in mine:
                rows += [None, step] if step.t == 0 else [step]        # the row after a step stands for it
            rows = rows[-room:]
            kept += [step for step in rows[1:] if step is not None]    # the oldest row has lost the row before it
        return kept

    def windows(self, batch, burn_in=0):
        """A batch in terms of the record: per window the recorded steps before it, and those in it, real ones only."""
        windows = []
        for state, mask in zip(batch.history[:, :-1, :self.agent.spec.state_dim], batch.mask):
            steps = [self.find(s) for s in state[mask].numpy()]
            first = steps[0]
            past = [self.at(first.env, first.episode, t) for t in range(max(0, first.t - burn_in), first.t)]
            windows.append((past, steps))
        return windows


# ---------------------------------------------------------------------- agents and buffers

def in_windows(batch, x):
    """A field of a batch's N steps, (N, dim), in its windows, (B, L, dim), with zeros in padding."""
    padded = x.new_zeros(*batch.mask.shape, x.shape[-1])
    padded[batch.mask] = x
    return padded


def make_agent(module, spec=None, seed=0, device="cpu", **flags):
    """A small agent of an algorithm's module."""
    name = module.__name__
    small = {flag: value for flag, value in SMALL.items() if flag in {f.name for f in fields(module.HyperParameters)}}
    torch.manual_seed(seed)
    return getattr(module, name)(spec or (DISCRETE_SPEC if name == "R2D1" else SPEC),
                                 module.HyperParameters(**{**small, **TINY[name], **flags}), seed, device)


def discount_of(agent):
    """The discount factor that an agent with --horizon_growth should have now, from the horizon itself."""
    share = agent.steps / agent.cfg.max_timesteps
    first = 1 / (1 - agent.cfg.discount)
    return 1 - 1 / (first * (1 - share) + first * agent.cfg.horizon_growth * share)


LENGTHS = [[7, 1, 12, 3], [2, 9, 1, 5]]                                # of the episodes in two environments


def make_off_policy(module, steps=60, size=400, seed=0, **flags):
    """An agent, a buffer that it has filled, and the record of that."""
    agent = make_agent(module, seed=seed, **flags)
    buffer = make_buffer(agent, size, seed=seed)
    game = Toy(agent, buffer, LENGTHS)
    game.play(steps)
    return agent, buffer, game


def make_on_policy(module, spec=None, seed=0, **flags):
    """An agent, its empty buffer, and environments."""
    agent = make_agent(module, spec, seed, **flags)
    num_envs = agent.cfg.num_envs
    buffer = make_buffer(agent, agent.buffer_size(), num_envs, seed)
    return agent, buffer, Toy(agent, buffer, LENGTHS[:num_envs])


def make_buffer(agent, size=400, num_envs=2, seed=0, on_device=False):
    return agent.buffer_class(size, agent.spec.state_dim, agent.spec.action_dim, agent.stored_hidden_dim, num_envs, seed,
                              agent.device, agent.cfg.stored_precision, on_device)


def buffers(monkeypatch):
    """All buffers that agents are given from now on, by main.py."""
    made = []

    class Kept(Buffer):
        def __init__(self, *args):
            super().__init__(*args)
            made.append(self)
    monkeypatch.setattr(Agent, "buffer_class", Kept)
    return made


def spy(monkeypatch, thing, name):
    """Let `thing.name` go on working, and collect what it returns."""
    original, results = getattr(thing, name), []

    def spied(*args, **kwargs):
        results.append(original(*args, **kwargs))
        return results[-1]
    monkeypatch.setattr(thing, name, spied)
    return results


def targets_of(agent):
    """Names of its target networks."""
    return [name for name in ("actor_target", "critic_target") if hasattr(agent, name)]


def weights_of(agent):
    """All weights, targets included, in a fixed order."""
    networks = [agent.actor, agent.critic, *(target for _, target in agent.targets)]
    weights = [p for network in networks for p in network.parameters()]
    return [p.detach().clone() for p in weights + ([agent.log_alpha] if hasattr(agent, "log_alpha") else [])]


def poison(buffer, *batches):
    """NaN into every row and hidden state of the buffer that these batches have no business to read.

    Each may read its windows' rows, the row after each window, the rows of its past, and one hidden state per window.
    """
    rows, states = set(), set()
    for index, mask, past in ((b.index[i], b.mask[i], int(b.past_length[i])) for b in batches for i in range(len(b.mask))):
        rows |= set(index[:int(mask.sum()) + 1].tolist())
        stream, at = divmod(int(index[0]), buffer.capacity)
        before = [stream * buffer.capacity + (at - k) % buffer.capacity for k in range(past + 1)]
        rows |= set(before)
        states.add(before[-1])
    buffer.rows[[i for i in range(len(buffer.rows)) if i not in rows]] = np.nan
    buffer.hidden[[i for i in range(len(buffer.hidden)) if i not in states]] = np.nan
    assert len(rows) < len(buffer.rows) and len(states) < len(buffer.hidden)


# ---------------------------------------------------------------------- networks rebuilt from torch.nn's parts

class Plain(nn.Module):
    """An actor or critic rebuilt with nn.LSTMCell, nn.GRUCell and nn.Linear, on a copy of its weights.

    Its heads are those of the network's MLPs, or of the given ones, one after the other.

    It shares no code with cores.py and utils.py but the names of the weights.
    """

    def __init__(self, network, *mlps):
        super().__init__()
        core, mlps = network.core, mlps or [part for part in network.children() if isinstance(part, MLP)]
        self.state_dim, self.cell, self.hidden_dim = core.state_dim, None, core.hidden_dim
        if core.hidden_dim:
            size = core.rnn.hidden_size
            self.packs = core.hidden_dim == 2 * size                   # [h, c]
            self.cell = (nn.LSTMCell if self.packs else nn.GRUCell)(core.rnn.input_size, size)
            for name, weight in self.cell.named_parameters():
                weight.detach().copy_(getattr(core.rnn, name + "_l0"))
        self.heads = nn.ModuleList()
        for weights, biases, k in ((mlp.weights, mlp.biases, k) for mlp in mlps for k in range(len(mlp.weights[0]))):
            layers = []
            for weight, bias in zip(weights, biases):
                linear = nn.Linear(weight.shape[1], weight.shape[2])
                linear.weight.detach().copy_(weight[k].T)
                linear.bias.detach().copy_(bias[k, 0])
                layers += [linear, nn.ReLU()]
            self.heads.append(nn.Sequential(*layers[:-1]))

    def remember(self, row, hidden):
        """One step: rows (N, row), hidden (N, hidden_dim) -> features, next hidden."""
        observation = row[:, :self.state_dim]
        if self.cell is None:
            return observation, hidden
        read = row[:, :self.cell.input_size]
        if self.packs:
            h, c = self.cell(read, hidden.chunk(2, -1))
            return torch.cat([h, observation], -1), torch.cat([h, c], -1)
        h = self.cell(read, hidden)
        return torch.cat([h, observation], -1), h

    def unroll(self, rows, hidden):
        """A list of features, one per row."""
        features = []
        for row in rows:
            feature, hidden = self.remember(torch.as_tensor(row)[None], hidden)
            features.append(feature)
        return features, hidden

    def distance(self, network):
        """The largest difference between its weights and another's."""
        return max((a - b).abs().max().item() for a, b in zip(self.parameters(), Plain(network).parameters(), strict=True))


def networks_of(agent):
    """Each network, and its part of the memory."""
    size = agent.actor.core.hidden_dim
    return [(agent.actor, slice(None, size)), *[(agent.critic, slice(size, None))] * agent.acting_advances_critic]


def reproduced(agent, buffer):
    """Read every stored row with the agent's own weights: the memory after it must be the one stored with the next row.
    Returns how many rows were read."""
    episodes, count = buffer.windows("full"), 0
    stored = buffer.hidden[episodes.index]                             # (B, L + 1, hidden_dim)
    assert stored[:, 1].abs().min() > 0                                # there is a memory, and it is not empty
    for network, part in networks_of(agent):
        plain = Plain(network)
        for rows, hidden, mask in zip(episodes.history, stored[..., part], episodes.mask):
            for t in range(int(mask.sum())):
                assert torch.allclose(plain.remember(rows[t:t + 1], hidden[t:t + 1])[1][0], hidden[t + 1], atol=1e-5)
                count += network is agent.actor
    return count


def start_of(past, steps, agent, flags):
    """The two hidden states, (1, size) each, that a window starts from before burn-in, by the flags' meaning."""
    first = (past + steps)[0]
    actor_size, critic_size = agent.actor.core.hidden_dim, agent.critic.core.hidden_dim
    zeros = torch.zeros(1, actor_size), torch.zeros(1, critic_size)
    if flags.hidden_init == "zero":
        return zeros
    actor = torch.as_tensor(first.hidden[None, :actor_size])
    critic = {"own": torch.as_tensor(first.hidden[None, actor_size:]), "actor": actor, "zero": zeros[1]}[flags.critic_hidden]
    return actor, critic


OFF_POLICY_FLAGS = [
    dict(**RECURRENT, seq_len=5),
    dict(**RECURRENT, seq_len=5, burn_in=3, core="gru"),
    dict(**RECURRENT, seq_len=5, hidden_init="stored"),
    dict(**RECURRENT, seq_len=4, hidden_init="stored", burn_in=3),
    dict(**RECURRENT, seq_len=4, hidden_init="stored", burn_in=2, critic_hidden="actor"),
    dict(**RECURRENT, seq_len=4, hidden_init="stored", burn_in=2, critic_hidden="zero", core="gru"),
    dict(**RECURRENT, seq_len=1, hidden_init="stored", memory_input="obs"),
    dict(**RECURRENT, seq_len="full", hidden_init="stored", memory_input="obs_action_reward"),
    dict(recurrent_actor=True, seq_len=5, hidden_init="stored", burn_in=2),
    dict(recurrent_critic=True, seq_len=5, hidden_init="stored", burn_in=2),
]


def compare_updates(agent, plain, buffer, game, updates, tolerance, monkeypatch):
    """Train an agent and its plain counterpart on the same windows and noise: losses and all weights must agree."""
    initial = Plain(agent.actor)
    batches = spy(monkeypatch, buffer, "sample")
    actor_updates = 0
    for k in range(updates):
        torch.manual_seed(k)
        losses = agent.train(buffer)
        windows = game.windows(batches[-1], agent.cfg.burn_in)
        torch.manual_seed(k)
        noise = torch.randn(*batches[-1].action.shape)                 # (N, action_dim): a window's steps are side by side
        expected = plain.update(windows, noise.split([len(steps) for _, steps in windows]))
        assert losses.keys() == expected.keys()
        for name, loss in expected.items():
            assert losses[name].item() == pytest.approx(loss, abs=tolerance), name
        actor_updates += "actor_loss" in losses
        for name in ("actor", "critic", *targets_of(agent)):
            assert getattr(plain, name).distance(getattr(agent, name)) < tolerance, name
    assert actor_updates >= 2 and initial.distance(agent.actor) > 1e-3
    return actor_updates
