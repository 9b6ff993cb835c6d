"""R2D1 against the papers' equations, written a second time; its prioritised windows."""

import numpy as np
import pytest
import torch
from conftest import DISCRETE_SPEC, RECURRENT, Plain, make_agent, make_off_policy, spy
from scipy import stats

import R2D1
from R2D1 import squash, unsquash
from utils import PrioritisedBuffer, SumTree

STORED = dict(**RECURRENT, hidden_init="stored")
FLAGS = [dict(hidden_layers=0), dict(hidden_layers=2, rescale=False),
         dict(**RECURRENT, seq_len=5, n_steps=3), dict(**RECURRENT, seq_len=5, n_steps=5, burn_in=3, core="gru"),
         dict(**STORED, seq_len=4, n_steps=2, burn_in=3), dict(**STORED, seq_len=1, memory_input="obs"),
         dict(**STORED, seq_len="full", n_steps=4, rescale=False, memory_input="obs_action_reward")]


def filled(**flags):
    return make_off_policy(R2D1, **flags)


class PlainQ(Plain):
    """The Q-network rebuilt from torch.nn's parts."""

    def values(self, rows, hidden):
        """A list of Q-values (actions,), one per row."""
        features, _ = self.unroll(rows, hidden)
        advantages = [self.heads[1](f)[0] for f in features]
        return [self.heads[0](f)[0] + a - sum(a) / len(a) for f, a in zip(features, advantages)]


class PlainR2D1:
    """One window after the other, one step at a time; priorities in a dictionary, by the first step of each window."""

    def __init__(self, agent, game):
        self.agent, self.cfg = agent, agent.cfg
        self.critic, self.target = PlainQ(agent.critic), PlainQ(agent.critic)
        self.optimizer = torch.optim.Adam(self.critic.parameters(), lr=self.cfg.lr)
        self.updates, self.priorities = 0, {}
        for key, t, _ in cut(game, self.cfg.seq_len):
            self.priorities[*key, t] = 1.0

    def update(self, windows):
        cfg = self.cfg
        h, h_inverse = (squash, unsquash) if cfg.rescale else (lambda x: x, lambda x: x)
        self.updates += 1
        keys = [(steps[0].env, steps[0].episode, steps[0].t) for _, steps in windows]
        total = sum(self.priorities.values())
        weights = np.array([(len(self.priorities) * self.priorities[key] / total) ** -cfg.importance_exponent for key in keys])
        weights /= weights.max()
        loss, count, renewed = 0, 0, {}
        for (past, steps), key, weight in zip(windows, keys, weights):
            hidden = torch.as_tensor((past + steps)[0].hidden[None]) if cfg.hidden_init == "stored" else \
                torch.zeros(1, self.agent.hidden_dim)
            with torch.no_grad():
                warm, target_warm = (net.unroll([s.row for s in past], hidden)[1] for net in (self.critic, self.target))
            rows = [s.row for s in steps] + [steps[-1].next_row]
            Q = self.critic.values(rows, warm)
            with torch.no_grad():
                target_Q = self.target.values(rows, target_warm)
            errors = []
            for t, step in enumerate(steps):
                end = min(t + cfg.n_steps, len(steps))
                y = sum(cfg.discount ** (j - t) * float(steps[j].reward) for j in range(t, end))
                if not steps[end - 1].terminated:
                    y += cfg.discount ** (end - t) * h_inverse(target_Q[end][Q[end].argmax()])
                errors.append(h(torch.as_tensor(y)).detach() - Q[t][step.action.argmax()])
            loss += weight * sum(e ** 2 for e in errors)
            count += len(errors)
            sizes = [abs(e.item()) for e in errors]
            mixed = cfg.priority_max * max(sizes) + (1 - cfg.priority_max) * np.mean(sizes)
            renewed[key] = (mixed + 1e-6) ** cfg.priority_exponent
        loss = loss / count
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.priorities.update(renewed)
        if self.updates % cfg.target_freq == 0:
            self.target.load_state_dict(self.critic.state_dict())
        return loss.item()


def cut(game, seq_len, stored=None):
    """The windows that there should be: ((env, episode), first step, length). A running episode's incomplete one is not."""
    episodes = {}
    for step in stored or game.record:
        episodes.setdefault((step.env, step.episode), []).append(step)
    for key, steps in episodes.items():
        ended = steps[-1].terminated or steps[-1].truncated
        L = len(steps) if seq_len == "full" else seq_len
        for start in range(0, len(steps), max(L, 1)):
            length = min(L, len(steps) - start)
            if ended or (length == L and seq_len != "full"):
                yield key, steps[start].t, length


@pytest.mark.parametrize("flags", FLAGS, ids=lambda flags: "-".join(str(v) for v in flags.values()))
def test_update_is_plain_r2d1(float64, monkeypatch, flags):
    """Double Q, dueling, n-step returns, rescaling, burn-in, importance weights, priorities: over five updates."""
    agent, buffer, game = filled(lr=3e-3, **flags)
    plain, initial = PlainR2D1(agent, game), PlainQ(agent.critic)
    batches = spy(monkeypatch, buffer, "sample")
    for _ in range(5):
        loss = agent.train(buffer)["critic_loss"].item()
        assert loss == pytest.approx(plain.update(game.windows(batches[-1], agent.cfg.burn_in)), abs=1e-6)
        assert plain.critic.distance(agent.critic) < 1e-6 and plain.target.distance(agent.critic_target) < 1e-6
    assert initial.distance(agent.critic) > 1e-3
    kept = buffer.priority.nodes[buffer.priority.base:]
    assert sorted(kept[kept > 0]) == pytest.approx(sorted(plain.priorities.values()), abs=1e-6)
    assert buffer.count == len(plain.priorities) and len(set(plain.priorities.values())) > 5


def test_squash():
    x = torch.tensor([-1e4, -3.0, -0.1, 0.0, 0.5, 1e4], dtype=torch.float64)
    assert torch.allclose(unsquash(squash(x)), x)
    assert squash(torch.tensor(8.0)).item() == pytest.approx(2.008)    # sqrt(9) - 1 + 0.008


# ---------------------------------------------------------------------- prioritised windows

def test_sum_tree():
    rng, tree, values = np.random.default_rng(0), SumTree(37), np.zeros(37)
    for _ in range(50):
        leaves = rng.choice(37, rng.integers(1, 5), replace=False)
        values[leaves] = rng.random(len(leaves)) * (rng.random(len(leaves)) < 0.7)
        tree[leaves] = values[leaves]
        assert np.array_equal(tree[np.arange(37)], values) and tree.total == pytest.approx(values.sum())
    drawn = np.bincount(tree.draw(rng.random(40_000)), minlength=37)
    assert np.all(drawn[values == 0] == 0) and drawn.sum() == 40_000
    expected = values[values > 0] / values.sum() * 40_000
    assert stats.chisquare(drawn[values > 0], expected).pvalue > 1e-3
    only = SumTree(4)
    only[0] = 0.3
    assert only.draw(np.array([0.0, 1.0])).tolist() == [0, 0]          # no rounding leads into an empty half


@pytest.mark.parametrize("size", [400, 50, 16])
@pytest.mark.parametrize("seq_len", [1, 4, "full"])
def test_windows_partition_what_is_stored(seq_len, size):
    """At every single step, wrapped around or not: each stored step lies in one window at most, and only those of a running
    window's and of one whose first row is gone lie in none."""
    agent, buffer, game = filled(steps=0, size=size, **RECURRENT, seq_len=seq_len)
    for _ in range(120):
        game.play(1)
        count = buffer.cut_windows(seq_len)
        leaves = np.flatnonzero(buffer.priority.nodes[buffer.priority.base:])
        assert count == len(leaves)
        if size == 400 and seq_len != "full" or count == 0:
            continue
        batch = buffer.sample(100, seq_len)
        stored = {(s.env, s.episode, s.t) for s in game.stored()}
        owner = {}
        for _, steps in game.windows(batch):
            for step in steps:
                assert (step.env, step.episode, step.t) in stored
                assert owner.setdefault((step.env, step.episode, step.t), steps[0].t) == steps[0].t
    expected = {(*key, t) for key, t, _ in cut(game, seq_len)}
    if size == 400:
        assert buffer.count == len(expected)
    else:
        assert len(game.stored()) < len(game.record) and 0 < buffer.count < len(expected)


def test_priorities_decide_what_is_drawn():
    agent, buffer, game = filled(**RECURRENT, seq_len=4)
    first = buffer.sample(4, 4)
    buffer.set_priority(first, torch.full((len(first.mask),), 1e4))
    drawn = [int(buffer.sample(1, 4).index[0, 0]) for _ in range(50)]
    assert drawn.count(int(first.index[0, 0])) > 45
    # One that joins later gets as large a priority as there ever was
    buffer.set_priority(first, torch.ones(len(first.mask)))
    before = set(np.flatnonzero(buffer.priority.nodes[buffer.priority.base:]))
    game.play(8)
    buffer.cut_windows(4)
    new = sorted(set(np.flatnonzero(buffer.priority.nodes[buffer.priority.base:])) - before)
    assert new and np.all(buffer.priority[np.array(new)] == 1e4)


@pytest.mark.parametrize("batch_size,draws", [(1, 3000), (16, 600)])  # one window, several
@pytest.mark.parametrize("burn_in", [0, 3])
def test_without_priorities_every_step_is_sampled_equally_often(burn_in, batch_size, draws):
    agent, buffer, game = filled(**RECURRENT, seq_len=4, priority_exponent=0, burn_in=burn_in)
    for _ in range(5):
        agent.train(buffer)                                            # sets priorities: all to 1
    counts = {}
    windows = {(*key, t): length for key, t, length in cut(game, 4)}
    for _ in range(draws):
        for _, steps in game.windows(buffer.sample(batch_size, 4, burn_in), burn_in):
            key = steps[0].env, steps[0].episode, steps[0].t
            assert len(steps) == windows[key]
            counts[key] = counts.get(key, 0) + 1
    assert counts.keys() == windows.keys() and stats.chisquare(list(counts.values())).pvalue > 1e-3


def test_memory_needed():
    buffer = PrioritisedBuffer(1000, 3, 2, 4)
    parts = buffer.rows, buffer.hidden, buffer.episode, buffer.first, buffer.last, buffer.priority.nodes, buffer.changed
    assert sum(part.nbytes for part in parts) == pytest.approx(PrioritisedBuffer.bytes_needed(1000, 3, 2, 4), rel=0.01)


# ---------------------------------------------------------------------- exploration and pace

def test_exploration():
    """Random at first, then less and less so; greedy when evaluating."""
    agent = make_agent(R2D1, spec=DISCRETE_SPEC, start_timesteps=1000, expl_timesteps=1000, expl_rate=0.1)
    row, hidden = np.ones((2, 6), np.float32), np.zeros((2, 0), np.float32)
    greedy = agent.act(row, hidden, explore=False)[0]
    assert agent.steps == 0 and greedy.dtype == np.float32 and np.array_equal(greedy.sum(1), [1, 1])

    def greedily(steps):
        """Were the actions greedy ones? (steps / 2, environments). Each environment explores for itself."""
        chosen = np.array([(agent.act(row, hidden)[0] == greedy).all(1) for _ in range(steps // 2)])
        assert abs(np.corrcoef(chosen.T)[0, 1]) < 0.2
        return chosen
    assert greedily(1000).mean() == pytest.approx(0.5, abs=0.06)       # of two actions
    assert greedily(1000).mean() == pytest.approx(0.725, abs=0.06)     # rate falling from 1 to 0.1
    assert agent.steps == 2000 and greedily(2000).mean() == pytest.approx(0.95, abs=0.02)


def test_waits_for_a_window():
    """No update while no window is complete, however many are due."""
    agent, buffer, game = filled(**RECURRENT, seq_len="full", steps=1, batch_size=1)
    assert not agent.ready(buffer)
    game.play(1)
    assert agent.ready(buffer) and buffer.count == 1                   # the second environment's first episode has two steps
    long = make_agent(R2D1, spec=DISCRETE_SPEC, start_timesteps=0, batch_size=1, seq_len="full", **RECURRENT)
    long.steps = 10
    assert not long.ready(PrioritisedBuffer(100, 3, 2, 0))


@pytest.mark.parametrize("argv, words", [
    ("--recurrent_actor", ["one network", "--recurrent"]), ("--no-recurrent_critic --recurrent", ["one network"]),
    ("--n_steps 3", ["--n_steps 3", "without a memory"]), ("--recurrent --seq_len 4", ["--n_steps 5", "add --n_steps 4"]),
    ("--recurrent --seq_len full", ["--burn_in 16", "add --burn_in 0"]),
    ("--priority_max 0.5", ["--priority_max", "window is one step"]),
    ("--recurrent --priority_max 0.5 --priority_exponent 0", ["--priority_max", "--priority_exponent 0"]),
    ("--importance_exponent 0.5 --priority_exponent 0", ["--importance_exponent", "--priority_exponent 0"]),
    ("--recurrent --memory_size 65 --num_envs 2", ["--memory_size 65", "--seq_len 32", "66"]),
    ("--recurrent --critic_hidden zero", ["--critic_hidden", "one memory"]),
    ("--env Pendulum-v1", ["discrete", "TD3 or DDPG or SAC or PPO or A2C or REINFORCE or BCQ"])])
def test_bad_input(argv, words, refused):
    refused(["--policy", "R2D1", "--env", "CartPole-v1", *argv.split()], words)
