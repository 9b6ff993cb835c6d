"""The buffer of sequences, what is left of a window without its padding, networks, and the style that the design asks for."""
import difflib
import pathlib
import re
import sys
import tracemalloc

import numpy as np
import pytest
import torch
import torch.nn as nn
from conftest import RECURRENT, SPEC, RandomAgent, Toy, in_windows, make_agent, make_buffer, make_off_policy, poison
from scipy import stats

import TD3
from envs import EnvSpec
from networks import MLP, adam, soft_update
from support.models import pack_model, read_model_file
from support.system import fail
from utils import Buffer, PrioritisedBuffer

ROOT = pathlib.Path(__file__).parent.parent
# One-step episodes, long ones, one that the ring has cut, ones still running
LENGTHS = [[4, 1, 9, 2, 1, 12], [1, 1, 3, 17]]


def toy(capacity=30, steps=50, lengths=LENGTHS, seed=0):
    """A buffer of random steps, and the record of them. Wrapped around unless capacity is large."""
    buffer = Buffer(capacity * len(lengths), SPEC.state_dim, SPEC.action_dim, 4, len(lengths), seed)
    game = Toy(RandomAgent(), buffer, lengths)
    game.play(steps)
    return buffer, game


def check_windows(batch, game, burn_in, stored=None, kept=frozenset()):
    """Every field of a batch against the record. Returns the real steps, window after window. kept: steps that are but a past."""
    stored = stored or {(s.env, s.episode, s.t) for s in game.stored()}
    newest = {}
    for env, episode, t in stored:
        newest[env, episode] = max(t, newest.get((env, episode), 0))
    B, L = batch.mask.shape
    assert batch.mask.dtype == batch.end.dtype == torch.bool
    N = int(batch.mask.sum())
    assert [x.shape for x in (batch.action, batch.reward, batch.not_done, batch.end)] == [(N, 2), (N, 1), (N, 1), (N, 1)]
    assert torch.equal(batch.pick(batch.mask[..., None]), torch.ones(N, 1, dtype=torch.bool))
    assert (batch.real is None) == bool(batch.mask.all())              # nothing to leave behind
    fields = {name: in_windows(batch, getattr(batch, name)) for name in ("action", "reward", "not_done", "end")}
    fields |= dict(state=batch.history[:, :-1, :3], next_state=batch.history[:, 1:, :3])
    assert batch.history.shape == (B, L + 1, 6) and batch.past.shape == (B, burn_in, 6) and batch.hidden.shape == (B, 4)
    everything = []
    for b in range(B):
        n = int(batch.mask[b].sum())
        assert n > 0 and batch.mask[b, :n].all()                       # padding lies at the end, and repeats the last row
        assert (batch.history[b, n:] == batch.history[b, n]).all()
        first = game.find(fields["state"][b, 0].numpy())
        steps = [game.at(first.env, first.episode, first.t + i) for i in range(n)]    # one episode, in order of time
        for i, step in enumerate(steps):
            assert (step.env, step.episode, step.t) in stored
            last = step.t == newest[step.env, step.episode]
            for name, value in dict(state=step.state, action=step.action, reward=step.reward, next_state=step.next_state,
                                    not_done=1 - step.terminated, end=last).items():
                assert np.array_equal(fields[name][b, i].numpy().squeeze(), np.float32(value).squeeze()), name
            assert np.array_equal(batch.history[b, i].numpy(), step.row.astype(np.float32))
            assert np.array_equal(batch.history[b, i + 1].numpy(), step.next_row.astype(np.float32))
        past = []                                                      # exactly the stored steps before, at most burn_in
        for t in range(first.t - 1, first.t - 1 - burn_in, -1):
            if (first.env, first.episode, t) not in stored | kept:
                break
            past.insert(0, game.at(first.env, first.episode, t))
        assert batch.past_length[b] == len(past)
        for i, step in enumerate(past):
            assert np.array_equal(batch.past[b, i].numpy(), step.row.astype(np.float32))
        assert np.array_equal(batch.hidden[b].numpy(), (past + steps)[0].hidden.astype(np.float32))
        everything.append(steps)
    assert batch.steps == sum(map(len, everything)) == int(batch.mask.sum())
    return everything


# ---------------------------------------------------------------------- what is stored

@pytest.mark.parametrize("capacity, steps", [(100, 50), (30, 50), (30, 200), (5, 60), (2, 30)])
def test_the_buffer_holds_the_newest_steps_whole(capacity, steps):
    """Cut into windows, in order of time, each stored step appears once with everything that belongs to it."""
    buffer, game = toy(capacity, steps)
    stored = sorted((s.env, s.episode, s.t) for s in game.stored())
    assert len(buffer) == len(stored) and (capacity > steps) == (len(stored) == len(game.record))
    for seq_len in (1, 3, 8, "full"):
        for burn_in in (0, 2) if seq_len != "full" else (0,):
            windows = check_windows(buffer.windows(seq_len, burn_in), game, burn_in)
            assert [(s.env, s.episode, s.t) for steps in windows for s in steps] == stored
            assert seq_len == "full" or max(map(len, windows)) <= seq_len
    full = buffer.windows("full")
    assert full.mask.shape[0] == len({(env, episode) for env, episode, _ in stored})


def test_the_ring_stays_right_at_every_single_step():
    """The same after each step of a small ring that wraps around many times."""
    buffer, game = toy(capacity=7, steps=0, lengths=[[3, 1, 5, 11], [2, 1, 1]])
    for _ in range(60):
        game.play(1)
        stored = sorted((s.env, s.episode, s.t) for s in game.stored())
        windows = check_windows(buffer.windows(4, 1), game, 1)
        assert [(s.env, s.episode, s.t) for steps in windows for s in steps] == stored


@pytest.mark.parametrize("burn_in", [0, 3])
@pytest.mark.parametrize("seq_len", [1, 2, 7, "full"])
@pytest.mark.parametrize("capacity", [30, 100])
def test_sampled_windows_are_what_was_added(capacity, seq_len, burn_in):
    """One episode each, in order of time, with the true past before them; shorter only where the episode is."""
    buffer, game = toy(capacity)
    stored = {(s.env, s.episode, s.t) for s in game.stored()}
    for _ in range(10):
        batch = buffer.sample(40, seq_len, burn_in)
        for steps in check_windows(batch, game, burn_in, stored):
            env, episode, t = steps[0][:3]
            at_start, at_end = (env, episode, t - 1) not in stored, (env, episode, steps[-1].t + 1) not in stored
            if seq_len == "full":
                assert at_start and at_end
            else:
                assert len(steps) == seq_len or (len(steps) < seq_len and (at_start or at_end))


def test_a_batch_holds_as_many_real_steps_as_asked_for():
    """At least batch_size, padding not counted, and not a window more than needed."""
    buffer, _ = toy()
    for seq_len in (1, 7, "full"):
        for batch_size in (1, 20, 100):
            batch = buffer.sample(batch_size, seq_len)
            lengths = batch.mask.sum(1)
            assert batch.steps == lengths.sum() >= batch_size
            assert lengths[:-1].sum() < batch_size
            assert batch.mask.shape[1] == lengths.max()                # trimmed


def test_truncated_is_not_terminated():
    """At truncation not_done stays 1 and next_state is the episode's true last observation; at termination it is 0."""
    buffer, game = toy(100, 60)
    windows = buffer.windows(1)
    seen = set()
    for b in range(len(windows.mask)):
        step = game.find(windows.history[b, 0, :3].numpy())
        assert windows.not_done[b, 0] == (0 if step.terminated else 1)
        assert np.array_equal(windows.history[b, 1, :3].numpy(), step.next_state.astype(np.float32))
        if step.terminated or step.truncated:
            assert windows.end[b, 0]
            seen.add("terminated" if step.terminated else "truncated")
    assert seen == {"terminated", "truncated"}


def check_rollout(buffer, game, steps):
    """Play, and find just these steps in the buffer, each once. Returns them: (env, episode, t)."""
    before = len(game.record)
    game.play(steps)
    stored = {(s.env, s.episode, s.t) for s in game.record[before:]}
    assert len(buffer) == len(stored)
    windows = check_windows(buffer.windows("full"), game, 0, stored)
    assert {(s.env, s.episode, s.t) for steps in windows for s in steps} == stored
    return stored


def test_clear_forgets_steps_and_lets_running_episodes_go_on():
    """After a rollout: nothing is left of it but the newest row and hidden state of each running episode."""
    buffer, game = toy(100, 0)
    for steps in (14, 20, 1, 9):                                       # some streams at an episode's end, some within
        stored = check_rollout(buffer, game, steps)
        check_windows(buffer.windows(3, 2), game, 2, stored)
        buffer.clear()
        assert len(buffer) == 0


@pytest.mark.parametrize("keep", [1, 3, 50])
def test_clear_keeps_a_past_to_burn_in(keep):
    """Of running episodes alone, across several rollouts, and never as a step to be trained on."""
    buffer, game = toy(100, 0)
    pasts, kept = set(), set()
    for steps in (14, 20, 1, 9, 2):
        stored = check_rollout(buffer, game, steps)
        for burn_in in (keep, keep + 2):
            check_windows(buffer.windows(3, burn_in), game, burn_in, stored, kept)
        pasts |= set(buffer.windows("full", 50).past_length.tolist())  # all that lies before the rollout
        buffer.clear(keep)
        assert len(buffer) == 0
        kept = set()
        for env in np.flatnonzero(buffer.running):
            last = max(s[:3] for s in game.record if s.env == env)     # (env, episode, t)
            kept |= {(*last[:2], t) for t in range(max(0, last[2] + 1 - keep), last[2] + 1)}
    assert max(pasts) >= min(keep, 9)


def same(a, b):
    """Two fields of batches: tensors, or None."""
    return a is b or torch.equal(a, b)


def test_same_seed_same_windows():
    """The buffer draws from its own generator, not from a global one."""
    (a, _), (b, _), (c, _) = toy(), toy(), toy(seed=1)
    np.random.seed(1)
    torch.manual_seed(1)
    x, y, z = a.sample(200, 5), b.sample(200, 5), c.sample(200, 5)
    assert torch.equal(x.index, y.index) and torch.equal(x.history, y.history)
    assert x.index.shape != z.index.shape or not torch.equal(x.index, z.index)


@pytest.mark.parametrize("kind", [Buffer, PrioritisedBuffer])
def test_a_buffer_on_the_device_draws_the_same(kind):
    """--buffer_on_device: the copy there follows what is added, overwritten, forgotten and written back, row by row."""
    def batches(on_device):
        buffer = kind(60, SPEC.state_dim, SPEC.action_dim, 4, 2, 0, "cpu", "float16", on_device)
        game = Toy(RandomAgent(), buffer, LENGTHS)
        for steps in (3, 1, 1, 2, 40, 100, 5, 5):                      # more than the ring holds in between
            game.play(steps)
            for burn_in in (0, 2):
                batch = buffer.sample(20, 5, burn_in)
                buffer.write_hidden(batch, torch.full((*batch.index.shape, 4), float(len(game.record))))
                yield batch
            if steps == 5 and kind is Buffer:                          # a prioritised one never forgets
                yield buffer.windows(4, 2)
                buffer.clear()
    for here, there in zip(batches(False), batches(True), strict=True):
        for name in here._fields:
            assert same(getattr(here, name), getattr(there, name)), name


def test_a_buffer_on_the_device_copies_what_is_new_and_no_more():
    """A batch is gathered from the device's rows, and one step added is at most two rows of each stream copied."""
    buffer = Buffer(4000, SPEC.state_dim, SPEC.action_dim, 4, 2, on_device=True)
    game = Toy(RandomAgent(), buffer, LENGTHS)
    game.play(500)
    buffer.sample(10, 3)
    buffer.device_rows.fill_(7), buffer.device_hidden.fill_(7)
    game.play(1)
    batch = buffer.sample(10, 3)
    assert (buffer.device_rows != 7).all(1).sum() <= 6 and (batch.history == 7).any() and (batch.hidden == 7).any()


# ---------------------------------------------------------------------- what is drawn

def uneven(counts):
    """p-value of "every step is drawn equally often": counts (samples, steps) of independent samples.

    Steps of one window are drawn together, so their counts are correlated and a plain chi-squared does not hold.
    Hotelling's test uses their measured covariance: chi-squared over independent directions, with small-sample correction.
    """
    M = len(counts)
    contrast = counts - counts.mean(1, keepdims=True)
    mean, covariance = contrast.mean(0), np.cov(contrast.T)
    values, vectors = np.linalg.eigh(covariance)
    varies = values > 1e-9 * values.max()                              # steps always drawn together leave the rest at zero
    along = vectors.T @ mean
    if np.abs(along[~varies]).max(initial=0) > 1e-6:
        return 0.0
    df = int(varies.sum())
    statistic = M * (along[varies] ** 2 / values[varies]).sum()
    return stats.f.sf(statistic * (M - df) / ((M - 1) * df), df, M - df)


def test_the_test_of_fairness_is_fair():
    """It accepts correlated but even counts, and rejects a step drawn 20 % less often than the others."""
    rng = np.random.default_rng(0)
    pairs = np.repeat(rng.poisson(1.0, (3000, 10)), 2, 1).astype(float) + rng.poisson(0.1, (3000, 20))
    assert uneven(pairs) > 1e-3
    pairs[:, 7] *= rng.random(3000) < 0.8
    assert uneven(pairs) < 1e-9


@pytest.mark.parametrize("batch_size", [1, 16])
@pytest.mark.parametrize("burn_in", [0, 3])
@pytest.mark.parametrize("seq_len", [1, 2, 7, "full"])
def test_every_stored_step_is_sampled_equally_often(seq_len, burn_in, batch_size):
    """First and last steps, one-step episodes, running ones, a ring that has wrapped around, two streams."""
    buffer, game = toy()
    stored = {(s.env, s.episode, s.t): k for k, s in enumerate(game.stored())}
    lengths = np.unique([(env, episode) for env, episode, _ in stored], axis=0, return_counts=True)[1]
    assert lengths.min() == 1 and lengths.max() > 7 and len(stored) < len(game.record) and game.t[0] and game.t[1]
    columns = np.full(len(buffer.rows), -1)                            # where a step's own row lies -> its column
    every = buffer.windows(1)
    for state, index in zip(every.history[:, 0, :3], every.index[:, 0]):
        step = game.find(state.numpy())
        columns[index] = stored[step.env, step.episode, step.t]
    M = 1500
    counts = np.zeros((M, len(stored)))
    for m in range(M):
        batch = buffer.sample(batch_size, seq_len, burn_in)
        np.add.at(counts[m], columns[batch.index[:, :-1][batch.mask].numpy()], 1)
    assert counts.sum(0).min() > 0
    assert uneven(counts) > 1e-4
    # Many steps together show smaller differences than each for itself
    ended = {(s.env, s.episode) for s in game.record if s.terminated or s.truncated}
    last = {(env, episode): t for env, episode, t in sorted(stored)}
    for which in (lambda s: s[2] == 0, lambda s: s[2] == last[s[:2]], lambda s: s[:2] not in ended):
        columns = [k for s, k in stored.items() if which(s)]
        more = counts[:, columns].mean(1) - counts.mean(1)
        assert columns and abs(more.mean()) < 4 * more.std() / M ** 0.5


@pytest.mark.parametrize("seq_len", [1, 8])
@pytest.mark.parametrize("kind", [Buffer, PrioritisedBuffer])
def test_the_cost_of_a_sample_does_not_grow_with_the_buffer(kind, seq_len):
    """Lines of Python run and memory used by samples from 400 and from 40,000 stored steps are alike: no scan, no list.

    A draw by priority goes down a tree that is seven levels deeper, and may run a few lines more at each of them.
    """
    def cost(steps):
        buffer, zeros, lines, peaks = kind(2 * steps, 3, 2, 4), np.zeros((1, 4)), 0, []
        for i in range(steps):
            buffer.add(zeros[:, :3], zeros[:, :2], zeros[:, 0], zeros[:, :3], [i % 9 == 0], [i % 5 == 0], zeros, zeros)
        assert len(buffer) == steps
        buffer.sample(64, seq_len, 2)                                  # by priority: cuts what is new into windows, once

        def trace(frame, event, arg):
            nonlocal lines
            lines += event == "line"
            return trace
        traced = sys.gettrace()
        try:
            sys.settrace(trace)
            for _ in range(30):
                buffer.sample(64, seq_len, 2)
        finally:
            sys.settrace(traced)
        tracemalloc.start()
        for _ in range(30):
            before = tracemalloc.get_traced_memory()[0]
            tracemalloc.reset_peak()
            buffer.sample(64, seq_len, 2)
            peaks.append(tracemalloc.get_traced_memory()[1] - before)
        tracemalloc.stop()
        return lines, np.median(peaks)
    (few_lines, few_bytes), (many_lines, many_bytes) = cost(400), cost(40_000)
    deeper = 0 if kind is Buffer else 30 * 7 * 6                       # 30 samples, 7 levels, 6 lines
    assert 0 < few_lines and many_lines < 1.3 * few_lines + deeper
    assert few_bytes > 0 and many_bytes < few_bytes + 20_000           # one byte for each stored step would be 40,000 more


def test_nan_outside_the_windows_is_never_read():
    """NaN in other episodes, other streams, other steps, unused slots and hidden states leaves a sample as it was."""
    for capacity in (30, 100):                                         # wrapped around, and not yet full
        for seq_len, burn_in in ((1, 0), (1, 2), (7, 0), (7, 3), ("full", 0)):
            buffer, _ = toy(capacity)
            state = buffer.rng.bit_generator.state
            clean = buffer.sample(12, seq_len, burn_in)
            poison(buffer, clean)
            buffer.rng.bit_generator.state = state
            poisoned = buffer.sample(12, seq_len, burn_in)
            for name, a, b in zip(clean._fields, clean, poisoned):
                assert same(a, b), name


# ---------------------------------------------------------------------- what is written back, what it weighs

def test_write_hidden_writes_the_real_rows_and_no_others():
    """The rows of the windows and the one after each; never padding's, never another episode's."""
    buffer, game = toy()
    batch = buffer.sample(20, 7)
    assert not batch.mask.all()
    before = buffer.hidden.clone()
    B, L = batch.mask.shape
    own, others = set(), {(s.env, s.episode, s.t) for s in game.stored()}
    for _, steps in game.windows(batch):
        own |= {(s.env, s.episode, s.t) for s in steps} | {(steps[-1].env, steps[-1].episode, steps[-1].t + 1)}
    states = torch.full((B, L + 1, 4), torch.nan)
    states[:, 0] = 7
    states[:, 1:][batch.mask] = 7                                      # NaN beside padding
    buffer.write_hidden(batch, states)
    assert not buffer.hidden.isnan().any()
    assert int(((buffer.hidden == 7).all(1)).sum()) == len(own)
    windows = buffer.windows(1)
    for state, index in zip(windows.history[:, 0, :3], windows.index[:, 0]):
        step = game.find(state.numpy())
        expected = torch.full((4,), 7.0) if (step.env, step.episode, step.t) in own else before[index]
        assert torch.equal(buffer.hidden[index], expected)
    assert own & others and others - own


def test_memory_of_a_transition():
    """At most 2.2 kB a row for Hopper (15 + 3 numbers) with LSTMs of 128 in actor and critic, and as announced."""
    hopper = EnvSpec(15, 3, False)
    agent = make_agent(TD3, hopper, core_size=128, hidden_init="stored", **RECURRENT)
    rows = 2000
    buffer = make_buffer(agent, rows, 1)
    arrays = {}
    for value in vars(buffer).values():                                # views of one array count once
        if torch.is_tensor(value):
            arrays[value.data_ptr()] = value.numel() * value.element_size()
        elif isinstance(value, np.ndarray):
            arrays[value.ctypes.data] = value.nbytes
    measured = sum(arrays.values())
    assert agent.stored_hidden_dim == 4 * 128
    assert measured / rows <= 2200
    assert measured == pytest.approx(Buffer.bytes_needed(rows, 15, 3, 4 * 128), rel=0.02)
    assert make_agent(TD3, hopper, core_size=128, hidden_init="zero", **RECURRENT).stored_hidden_dim == 0
    half = Buffer(1000, 15, 3, 512, precision="float16")
    assert half.hidden.numel() * half.hidden.element_size() == Buffer.bytes_needed(1000, 15, 3, 512, "float16") - \
        Buffer.bytes_needed(1000, 15, 3, 0)


def test_states_kept_as_float16():
    """The same states to three digits, batches in single precision, refreshed ones as well."""
    flags = dict(hidden_init="stored", hidden_refresh=True, seq_len=4, burn_in=2, **RECURRENT)
    (_, full, _), (agent, half, _) = [make_off_policy(TD3, stored_precision=p, **flags) for p in ("float32", "float16")]
    assert half.hidden.dtype == torch.float16 and full.hidden.dtype == torch.float32
    assert half.hidden.abs().max() > 0.1 and torch.allclose(half.hidden.float(), full.hidden, atol=1e-3)
    batch, before = half.sample(20, 4, 2), half.hidden.clone()
    assert batch.hidden.dtype == torch.float32
    agent.train(half)
    assert half.hidden.isfinite().all() and not torch.equal(half.hidden, before)


def test_select_is_the_same_windows_trimmed():
    """A minibatch of windows: their fields as they were, no longer than the longest of them."""
    buffer, game = toy(100, 60)
    rollout = buffer.windows(7, 2)
    lengths = rollout.mask.sum(1)
    windows = torch.nonzero(lengths <= 4)[:, 0].flip(0)
    batch, steps = rollout.select(windows)
    L = int(lengths[windows].max())
    assert batch.mask.shape == (len(windows), L) and L < rollout.mask.shape[1]
    assert batch.history.shape[1] == batch.index.shape[1] == L + 1
    check_windows(batch, game, 2)
    assert torch.equal(batch.real, batch.mask.flatten().nonzero()[:, 0]) and len(batch.real) == batch.steps
    assert rollout.select(torch.nonzero(lengths == 7)[:, 0])[0].real is None       # nothing to leave behind
    for name in ("action", "reward", "not_done", "end"):
        assert torch.equal(getattr(batch, name), getattr(rollout, name)[steps])
    for k, w in enumerate(windows):
        assert torch.equal(batch.history[k], rollout.history[w, :L + 1])


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, 1e30])
def test_what_lies_in_padding_is_left_behind(poison):
    """Value and gradient of a mean over picked steps are those of the real steps alone, in order of time."""
    buffer, _ = toy(100, 60)
    batch = buffer.sample(20, 7)
    x = torch.randn(*batch.mask.shape, 3).masked_fill(~batch.mask[..., None], poison).requires_grad_()
    picked = batch.pick(x)
    assert torch.equal(picked, x[batch.mask])
    picked.mean().backward()
    assert torch.equal(x.grad, batch.mask[..., None].expand_as(x) / (3 * batch.steps))


# ---------------------------------------------------------------------- networks, optimizers, checkpoints

@pytest.mark.parametrize("hidden_layers", [0, 1, 3])
def test_mlp_is_n_independent_networks(hidden_layers):
    """Against nn.Linear and ReLU; `n` computes the first ones alone; initialised within nn.Linear's bounds, not alike."""
    mlp = MLP(2, 5, 7, hidden_layers, 3)
    x = torch.randn(24, 5)
    y = mlp(x)
    assert y.shape == (2, 24, 3)
    for k in range(2):
        expected = x
        for i, (weight, bias) in enumerate(zip(mlp.weights, mlp.biases)):
            expected = nn.functional.linear(expected if i == 0 else expected.relu(), weight[k].T, bias[k, 0])
        assert torch.allclose(y[k], expected, atol=1e-6)
    assert torch.allclose(mlp(x, n=1), y[:1], atol=1e-6)
    assert not torch.allclose(y[0], y[1], atol=1e-2)
    for weight, bias in zip(mlp.weights, mlp.biases):
        bound = weight.shape[1] ** -0.5
        assert weight.abs().max() <= bound and bias.abs().max() <= bound and weight.std() > bound / 3


def test_adam_trains_every_weight_once():
    """The core's learning rate is its own if given, else the network's."""
    critic = make_agent(TD3, **RECURRENT).critic
    core = {id(p) for p in critic.core.parameters()}
    for core_lr, expected in ((None, 0.1), (0.02, 0.02)):
        groups = adam(critic, 0.1, core_lr).param_groups
        trained = [id(p) for group in groups for p in group["params"]]
        assert sorted(trained) == sorted(id(p) for p in critic.parameters())
        assert all(group["lr"] == (expected if id(p) in core else 0.1) for group in groups for p in group["params"])


def test_learning_rates_never_fall_below_zero():
    """Several environments may step past max_timesteps before the last update."""
    agent = make_agent(TD3, lr=0.1, lr_decay=True, max_timesteps=100)
    for steps, expected in ((0, 0.1), (75, 0.025), (101, 0)):
        agent.steps = steps
        agent.decay_lr()
        assert [group["lr"] for group in agent.critic_optimizer.param_groups] == pytest.approx([expected])


def test_soft_update():
    """target <- tau * network + (1 - tau) * target, in place and without gradient."""
    network, target = nn.Linear(3, 2), nn.Linear(3, 2)
    expected = [0.1 * p + 0.9 * q for p, q in zip(network.parameters(), target.parameters())]
    before = [p.detach().clone() for p in network.parameters()]
    soft_update(network, target, 0.1)
    assert all(torch.allclose(p, q) and p.grad_fn is None for p, q in zip(target.parameters(), expected))
    assert all(torch.equal(p, q) for p, q in zip(network.parameters(), before))


def test_checkpoint_comes_back(tmp_path):
    """The same agent, config and step."""
    path = str(tmp_path / "run.pt")
    agent = make_agent(TD3, **RECURRENT)
    (tmp_path / "run.pt").write_bytes(pack_model(agent, {"policy": "TD3"}, 17))
    other = make_agent(TD3, seed=1, **RECURRENT)
    model = read_model_file(path)
    other.load_state_dict(model["agent"])
    assert model["config"] == {"policy": "TD3"} and model["step"] == 17
    for name in ("actor", "critic"):
        pairs = zip(getattr(agent, name).parameters(), getattr(other, name).parameters(), strict=True)
        assert all(torch.equal(p, q) for p, q in pairs)


def plain(thing):
    """Nested dictionaries as values that can be compared, to the bit."""
    if isinstance(thing, dict):
        return {name: plain(value) for name, value in thing.items()}
    return (thing.shape, thing.numpy().tobytes()) if torch.is_tensor(thing) else (type(thing), thing)


def test_a_model_that_is_damaged_is_refused(tmp_path):
    """A single bit anywhere in the file: it is refused, or it is in one of the gaps, and what is read is the same."""
    whole = pack_model(make_agent(TD3, **RECURRENT), {"policy": "TD3"}, 17)
    (tmp_path / "whole.pt").write_bytes(whole)
    expected = plain(read_model_file(str(tmp_path / "whole.pt")))
    weight = whole.index(np.float32(next(make_agent(TD3, **RECURRENT).actor.parameters())[0, 0].item()).tobytes())
    entries = [match.start() for match in re.finditer(b"PK\x01\x02", whole)]       # zip's list of its parts
    bits = {(at, 1 << at % 8) for at in range(0, len(whole), 23)} | {(entry + 38, 16) for entry in entries}     # is a folder!
    refused = 0
    for at, bit in sorted(bits | {(weight, 1), (weight + 3, 64)}):
        damaged = bytearray(whole)
        damaged[at] ^= bit
        (tmp_path / "damaged.pt").write_bytes(damaged)
        try:
            assert plain(read_model_file(str(tmp_path / "damaged.pt"))) == expected, (at, bit)
            assert at // 4 != weight // 4
        except ValueError:
            refused += 1
    assert refused > len(bits) / 2


def test_bad_checkpoints_are_one_line(tmp_path):
    """Missing, damaged, or not a model of this project."""
    damaged, other = tmp_path / "damaged.pt", tmp_path / "other.pt"
    damaged.write_bytes(b"not a model")
    torch.save({"weights": 1}, other)
    for path in (tmp_path / "missing.pt", damaged, other):
        with pytest.raises(ValueError) as error:
            read_model_file(str(path))
        assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_fail_is_one_line_and_exit_code_2(capsys):
    with pytest.raises(SystemExit) as error:
        fail("no such thing")
    assert error.value.code == 2 and capsys.readouterr().err == "error: no such thing\n"


# ---------------------------------------------------------------------- style

def code(name):
    """(line number, text) of a source file, docstrings and comments left out."""
    text = (ROOT / name).read_text()
    text = re.sub(r'""".*?"""', lambda match: "\n" * match[0].count("\n"), text, flags=re.S)
    return [(i, line.split("  #")[0].rstrip()) for i, line in enumerate(text.split("\n"), 1) if not line.lstrip().startswith("#")]


ALGORITHMS = ["TD3.py", "DDPG.py", "SAC.py", "PPO.py", "A2C.py", "REINFORCE.py", "R2D1.py", "BCQ.py"]
NO_CORES = ["utils.py", "envs.py", "networks.py", "main.py", "policy.py", *ALGORITHMS]
BANS = [
    (r"\.data\b", ["cores.py", "utils.py", "agent.py", "networks.py", *ALGORITHMS], "writes behind autograd's back"),
    (r"retain_graph|requires_grad\s*=\s*True|requires_grad_\(", ["cores.py", "utils.py", *ALGORITHMS], "no need"),
    (r"\blstm\b|\bgru\b|\bLSTM|\bGRU", NO_CORES, "only cores.py knows which"),
    (r"\bif\b.*\b(lstm|gru|mingru|LSTM\w*|GRU\w*)\b", ["agent.py"], "it has the flag, and only cores.py knows which"),
    (r"\bif\b.*\brecurrent(_actor|_critic)?\b", NO_CORES, "no `if recurrent`"),
    (r"\bif\b.*\bcfg\.recurrent_", ["agent.py"], "it checks these flags, and then no `if recurrent`"),
    (r"hidden\w*\s+is\s+(not\s+)?None|hidden\w*\s*=\s*None\b",
     ["cores.py", "utils.py", "agent.py", "main.py", "flags.py", *ALGORITHMS], "a hidden state is never None"),
    (r"\bgetattr\((?!HyperParameters)|\bhasattr\(", ["agent.py", "networks.py", *ALGORITHMS], "no asking what kind an agent is"),
    (r"\bmask\b", [name for name in ALGORITHMS if name != "R2D1.py"], "padding is left behind right after the core"),
]


@pytest.mark.parametrize("pattern, files, why", BANS)
def test_style_bans(pattern, files, why):
    """What the design bans by grep."""
    found = [f"{name}:{i}: {line.strip()} ({why})" for name in files for i, line in code(name) if re.search(pattern, line)]
    assert not found, "\n".join(found)


def test_style_ddpg_and_td3_are_line_aligned():
    """`diff DDPG.py TD3.py`: nothing is only DDPG's, and each block that is only TD3's says so."""
    texts = [(ROOT / name).read_text().replace("DDPG", "TD3") for name in ("DDPG.py", "TD3.py")]
    ddpg, td3 = (text.split('"""', 2)[2].split("\n") for text in texts)          # below the module docstring

    def without_docstrings(lines):
        return [line for line in lines if line.strip() and not line.lstrip().startswith('"""')]
    for tag, i, j, k, m in difflib.SequenceMatcher(None, ddpg, td3, autojunk=False).get_opcodes():
        if tag == "equal":
            continue
        added = without_docstrings(td3[k:m])
        assert not added or any("TD3" in line for line in added), "\n".join(added)
        for line in without_docstrings(ddpg[i:j]):                     # each has its counterpart
            assert difflib.get_close_matches(line, added, 1, 0.6), f"only in DDPG.py: {line}"
