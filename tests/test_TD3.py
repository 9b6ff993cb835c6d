"""TD3 against the paper's equations, written a second time without batches or padding; and what TD3, DDPG and SAC share."""
import copy

import numpy as np
import pytest
import torch
from conftest import (
    CHAIN_SPEC,
    LENGTHS,
    OFF_POLICY_FLAGS,
    RECURRENT,
    SPEC,
    Chain,
    Plain,
    Toy,
    check_pace,
    check_stored_hidden,
    compare_updates,
    fill_padding,
    make_agent,
    make_buffer,
    make_off_policy,
    poison,
    spy,
    start_of,
    targets_of,
    weights_of,
)

import DDPG
import SAC
import TD3

# ---------------------------------------------------------------------- the algorithm

class PlainTD3:
    """TD3 as in the paper, on a copy of an agent's weights: one window after the other, one step at a time."""

    def __init__(self, agent):
        self.agent, self.cfg = agent, agent.cfg
        self.actor, self.critic = Plain(agent.actor), Plain(agent.critic)
        self.actor_target, self.critic_target = copy.deepcopy(self.actor), copy.deepcopy(self.critic)
        self.actor_optimizer = torch.optim.Adam(self.actor.parameters(), lr=self.cfg.lr)
        self.critic_optimizer = torch.optim.Adam(self.critic.parameters(), lr=self.cfg.lr)
        self.updates = 0

    def update(self, windows, noise):
        """windows: (steps before, steps) each; noise of the standard normal, (steps, action_dim) for each."""
        cfg = self.cfg
        self.updates += 1
        starts, errors = [], []
        for (past, steps), epsilon in zip(windows, noise):
            with torch.no_grad():
                start_actor, start_critic = start_of(past, steps, self.agent, cfg)
                warm = {net: net.unroll([step.row for step in past], start)[1] for net, start in
                        ((self.actor, start_actor), (self.actor_target, start_actor),
                         (self.critic, start_critic), (self.critic_target, start_critic))}
                rows = [step.row for step in steps] + [steps[-1].next_row]
                next_actor = self.actor_target.unroll(rows, warm[self.actor_target])[0][1:]
                next_critic = self.critic_target.unroll(rows, warm[self.critic_target])[0][1:]
            starts.append((warm[self.actor], warm[self.critic]))
            features, _ = self.critic.unroll(rows[:-1], warm[self.critic])
            for t, step in enumerate(steps):
                with torch.no_grad():
                    smooth = (cfg.policy_noise * epsilon[t]).clamp(-cfg.noise_clip, cfg.noise_clip)
                    next_action = (torch.tanh(self.actor_target.heads[0](next_actor[t])) + smooth).clamp(-1, 1)
                    joined = torch.cat([next_critic[t], next_action], -1)
                    next_Q = min(self.critic_target.heads[0](joined).item(), self.critic_target.heads[1](joined).item())
                    y = step.reward + (0 if step.terminated else cfg.discount * next_Q)
                joined = torch.cat([features[t], torch.as_tensor(step.action)[None]], -1)
                errors.append((y - self.critic.heads[0](joined)) ** 2 + (y - self.critic.heads[1](joined)) ** 2)
        critic_loss = sum(errors) / len(errors)
        self.critic_optimizer.zero_grad()
        critic_loss.backward()
        self.critic_optimizer.step()
        if self.updates % cfg.policy_freq:
            return {"critic_loss": critic_loss.item()}

        values = []
        for (_, steps), (start_actor, start_critic) in zip(windows, starts):
            rows = [step.row for step in steps]
            with torch.no_grad():
                features, _ = self.critic.unroll(rows, start_critic)
            actor_features, _ = self.actor.unroll(rows, start_actor)
            for feature, actor_feature in zip(features, actor_features):
                values.append(self.critic.heads[0](torch.cat([feature, torch.tanh(self.actor.heads[0](actor_feature))], -1)))
        actor_loss = -sum(values) / len(values)
        self.actor_optimizer.zero_grad()
        actor_loss.backward()
        self.actor_optimizer.step()
        for net, target in ((self.critic, self.critic_target), (self.actor, self.actor_target)):
            for p, q in zip(net.parameters(), target.parameters()):
                q.detach().mul_(1 - cfg.tau).add_(cfg.tau * p.detach())
        return {"critic_loss": critic_loss.item(), "actor_loss": actor_loss.item()}


@pytest.mark.parametrize("hidden_layers", [0, 2])
def test_feed_forward_is_plain_td3(float64, monkeypatch, hidden_layers):
    """At L = 1 the textbook algorithm, over six updates with three of the actor's."""
    agent, buffer, game = make_off_policy(TD3, hidden_layers=hidden_layers, tau=0.1, policy_noise=0.5)
    assert compare_updates(agent, PlainTD3(agent), buffer, game, 6, 1e-6, monkeypatch) == 3


@pytest.mark.parametrize("flags", OFF_POLICY_FLAGS, ids=lambda flags: "-".join(str(v) for v in flags.values()))
def test_recurrent_is_plain_td3_window_by_window(float64, monkeypatch, flags):
    """Windows with padding, burn-in and every kind of start state, targets over L + 1: no difference to single steps."""
    agent, buffer, game = make_off_policy(TD3, tau=0.1, policy_noise=0.5, **flags)
    assert compare_updates(agent, PlainTD3(agent), buffer, game, 5, 1e-6, monkeypatch) == 2


# ---------------------------------------------------------------------- what TD3, DDPG and SAC share

@pytest.fixture(params=[TD3, DDPG, SAC], ids=lambda module: module.__name__)
def module(request):
    """All are tested alike from here on; only TD3 has a delay to switch off."""
    return request.param


def every_update(module):
    return dict(policy_freq=1) if module is TD3 else {}


def test_padding_changes_nothing(module):
    """Garbage in the padding of a batch's windows, and NaN in that of their pasts, leave losses, gradients and weights alone."""
    agent, buffer, _ = make_off_policy(module, seq_len=6, burn_in=3, hidden_init="stored", **every_update(module), **RECURRENT)
    batch = buffer.sample(40, 6, 3)
    garbage = fill_padding(batch)
    results = []
    for fake in (batch, garbage):
        twin = copy.deepcopy(agent)
        torch.manual_seed(0)
        buffer.sample = lambda *_, fake=fake: fake
        losses = twin.train(buffer)
        gradients = [p.grad for net in (twin.actor, twin.critic) for p in net.parameters()]
        results.append([*losses.values(), *gradients, *weights_of(twin)])
    assert all(torch.equal(a, b) and a.isfinite().all() for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("size, steps", [(400, 60), (60, 80)], ids=["not yet full", "wrapped around"])
@pytest.mark.parametrize("flags", [dict(seq_len=1), dict(seq_len=6, **RECURRENT),
                                   dict(seq_len=4, burn_in=3, hidden_init="stored", **RECURRENT),
                                   dict(seq_len="full", hidden_init="stored", **RECURRENT)],
                         ids=["feed-forward", "zero", "stored", "full"])
def test_nan_outside_the_windows_changes_nothing(module, flags, size, steps):
    """In other episodes, other steps, unused slots, the slot past the write head: losses, gradients, weights to the bit."""
    agent, buffer, _ = make_off_policy(module, steps, size, batch_size=12, **every_update(module), **flags)
    state = buffer.rng.bit_generator.state
    batch = buffer.sample(12, agent.cfg.seq_len, agent.cfg.burn_in)
    results = []
    for poisoned in (False, True):
        if poisoned:
            poison(buffer, batch)
            assert buffer.rows.isnan().any()
        buffer.rng.bit_generator.state = state
        torch.manual_seed(0)
        twin = copy.deepcopy(agent)
        losses = twin.train(buffer)
        gradients = [p.grad for net in (twin.actor, twin.critic) for p in net.parameters()]
        results.append([*losses.values(), *gradients, *weights_of(twin)])
    assert all(torch.equal(a, b) and a.isfinite().all() for a, b in zip(*results, strict=True))


# ---------------------------------------------------------------------- gradients

@pytest.mark.parametrize("flags", [dict(), dict(seq_len=4, burn_in=2, hidden_init="stored", **RECURRENT)])
def test_each_loss_reaches_its_own_network_only(module, flags, monkeypatch):
    """The critic's loss gives the actor no gradient, the actor's loss gives the critic none, targets never get any."""
    agent, buffer, _ = make_off_policy(module, **every_update(module), **flags)
    seen = {}

    def at_critic_step(*args):
        seen["actor"] = [p.grad for p in agent.actor.parameters()]
        seen["critic"] = [p.grad.clone() for p in agent.critic.parameters()]
        return step(*args)
    step = agent.critic_optimizer.step
    monkeypatch.setattr(agent.critic_optimizer, "step", at_critic_step)
    agent.train(buffer)
    assert all(grad is None for grad in seen["actor"])
    assert all(torch.equal(p.grad, grad) for p, grad in zip(agent.critic.parameters(), seen["critic"], strict=True))
    assert all(p.grad.abs().sum() > 0 for p in agent.actor.parameters())
    assert all(p.grad is None for name in targets_of(agent) for p in getattr(agent, name).parameters())


# ---------------------------------------------------------------------- memory

@pytest.mark.parametrize("start_timesteps", [0, 1000], ids=["policy", "random warm-up"])
@pytest.mark.parametrize("flags", [dict(), dict(core="gru"), dict(critic_hidden="zero")])
def test_stored_hidden_reproduces_the_next(module, flags, start_timesteps):
    """With unchanged weights, for each stored row, the critic's own memory included; the ring has wrapped around."""
    agent, buffer, game = make_off_policy(module, 80, 100, start_timesteps=start_timesteps, hidden_init="stored", **RECURRENT,
                                          **flags)
    assert check_stored_hidden(agent, buffer) == len(buffer) < len(game.record)


def test_hidden_refresh_writes_recomputed_states(module):
    """Windows are whole episodes here: their states are those of the new weights, all others as they were."""
    agent, buffer, game = make_off_policy(module, hidden_init="stored", hidden_refresh=True, seq_len="full", batch_size=12,
                                          lr=0.01, **RECURRENT)
    for updated in ({agent.critic}, {agent.critic, agent.actor}):      # without and with an actor update
        state, before = buffer.rng.bit_generator.state, buffer.hidden.clone()
        agent.train(buffer)
        after = buffer.rng.bit_generator.state
        buffer.rng.bit_generator.state = state
        batch = buffer.sample(12, "full")
        buffer.rng.bit_generator.state = after
        written = torch.zeros(len(buffer.hidden), dtype=torch.bool)
        size = agent.actor.core.hidden_dim
        for index, history, mask in zip(batch.index, batch.history, batch.mask):
            n = int(mask.sum())
            written[index[:n + 1]] = True
            for net, part in ((agent.actor, slice(None, size)), (agent.critic, slice(size, None))):
                plain, hidden = Plain(net), torch.zeros(1, net.core.hidden_dim)
                for t in range(n + 1):
                    assert torch.allclose(buffer.hidden[index[t], part], hidden[0], atol=1e-5)
                    if t and net in updated:
                        assert not torch.allclose(before[index[t], part], hidden[0], atol=1e-4)
                    hidden = plain.remember(history[t:t + 1], hidden)[1].detach()
        assert torch.equal(buffer.hidden[~written], before[~written]) and not written.all()


def test_hidden_refresh_goes_on_from_the_burned_in_state(module, monkeypatch):
    """Of one window: burned in, and unrolled, with the weights as they are after the update; its first row included."""
    agent, buffer, _ = make_off_policy(module, batch_size=1, seq_len=4, burn_in=3, hidden_init="stored", hidden_refresh=True,
                                       lr=0.01, **RECURRENT)
    batches, size, warm = spy(monkeypatch, buffer, "sample"), agent.actor.core.hidden_dim, 0
    for _ in range(8):
        agent.train(buffer)
        batch, n, k = batches[-1], batches[-1].steps, int(batches[-1].past_length)
        for net, part in ((agent.actor, slice(None, size)), (agent.critic, slice(size, None))):
            _, first = Plain(net).unroll(batch.past[0, :k], batch.hidden[:, part])
            _, last = Plain(net).unroll(batch.history[0, :n], first)
            assert torch.allclose(buffer.hidden[batch.index[0, 0], part], first[0], atol=1e-6)
            assert torch.allclose(buffer.hidden[batch.index[0, n], part], last[0], atol=1e-6)
        warm += k > 0
    assert warm >= 3


@pytest.mark.parametrize("flags, stored", [(dict(critic_hidden="own", hidden_init="stored"), 24),
                                           (dict(critic_hidden="actor", hidden_init="stored"), 12),
                                           (dict(critic_hidden="zero", hidden_init="stored"), 12),
                                           (dict(hidden_init="zero"), 0)])
def test_what_is_stored(module, flags, stored):
    """No number is stored that no window starts from."""
    agent, buffer, _ = make_off_policy(module, **RECURRENT, **flags)
    assert agent.stored_hidden_dim == buffer.hidden.shape[1] == stored
    if flags["hidden_init"] == "stored":                               # hidden_refresh fits each of them
        agent.cfg.hidden_refresh = True
        agent.train(buffer)


# ---------------------------------------------------------------------- acting and pace

@pytest.mark.parametrize("module", [TD3, DDPG])
def test_exploration(module):
    """Random actions first, then the policy with noise; never outside [-1, 1]; no noise and no count when evaluating."""
    agent = make_agent(module, start_timesteps=20, expl_noise=0.5)
    row, hidden = np.ones((2, SPEC.state_dim + SPEC.action_dim + 1), np.float32), np.zeros((2, 0), np.float32)
    policy = agent.act(row, hidden, explore=False)[0]
    assert agent.steps == 0 and np.array_equal(policy, agent.act(row, hidden, explore=False)[0])
    expected = torch.tanh(Plain(agent.actor).heads[0](torch.ones(2, SPEC.state_dim))).detach().numpy()
    assert np.allclose(policy, expected, atol=1e-5)
    warm_up = np.concatenate([agent.act(row, hidden)[0] for _ in range(10)])
    assert agent.steps == 20 and warm_up.min() < -0.7 and warm_up.max() > 0.7
    explored = np.concatenate([agent.act(row, hidden)[0] for _ in range(400)]).reshape(-1, 2, 2)
    assert np.abs(explored).max() <= 1 and explored.dtype == np.float32
    assert np.median(explored, 0) == pytest.approx(policy, abs=0.1)
    assert explored.std() == pytest.approx(0.5, abs=0.15)


def test_pace(module, monkeypatch):
    """As many stored steps are trained on per environment step as --replay_ratio says, whatever a window holds."""
    for flags in (dict(seq_len=1), dict(seq_len=8, **RECURRENT)):
        agent = make_agent(module, start_timesteps=10, batch_size=16, replay_ratio=4, hidden_layers=0, **flags)
        buffer = make_buffer(agent)
        check_pace(agent, buffer, Toy(agent, buffer, LENGTHS), monkeypatch)


def test_the_buffer_holds_every_step(module):
    """Where --memory_size is not the bound, even if every episode has a single step."""
    agent = make_agent(module, max_timesteps=50)
    buffer = make_buffer(agent, agent.buffer_size())
    Toy(agent, buffer, [[1], [1]]).play(25)
    assert len(buffer) == 50


def test_learning_rates_fall_linearly(module):
    """--lr_decay: to zero at max_timesteps, those of cores and temperature too; without it none moves."""
    for decay, expected in ((True, 0.75), (False, 1.0)):
        agent, buffer, game = make_off_policy(module, steps=50, max_timesteps=400, lr=1e-2, core_lr=1e-3, lr_decay=decay,
                                              **RECURRENT)
        agent.train(buffer)                                            # after 100 steps, those of both environments
        for optimizer in (agent.actor_optimizer, agent.critic_optimizer):
            assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([expected * 1e-2, expected * 1e-3])
        if module is SAC:
            assert agent.alpha_optimizer.param_groups[0]["lr"] == pytest.approx(expected * 1e-2)


def test_loaded_agent_bootstraps_from_what_was_loaded(module):
    """--load_model goes on from there: the targets are the loaded networks, not this run's random ones."""
    saved, agent = make_agent(module, seed=0, **RECURRENT), make_agent(module, seed=1, **RECURRENT)
    agent.load_state_dict(saved.state_dict())
    for target in targets_of(agent):
        assert Plain(getattr(agent, target.removesuffix("_target"))).distance(getattr(agent, target)) == 0
    assert Plain(saved.critic).distance(agent.critic) == 0


# ---------------------------------------------------------------------- learning

@pytest.mark.parametrize("flags", [dict(), dict(seq_len=5, burn_in=2, hidden_init="stored", **RECURRENT)],
                         ids=["feed-forward", "recurrent"])
def test_a_time_limit_is_no_end(module, flags):
    """Reward 1 for ever in episodes of 10: Q is 1 / (1 - gamma) = 10; with truncation taken for termination about 5."""
    no_entropy = dict(init_alpha=1e-6, target_entropy=-10.0) if module is SAC else {}
    agent = make_agent(module, CHAIN_SPEC, start_timesteps=1000, batch_size=32, discount=0.9, tau=0.2, lr=3e-3, **no_entropy,
                       **flags)
    buffer = make_buffer(agent)
    Chain(agent, buffer, 2).play(95)
    for _ in range(400):
        agent.train(buffer)
    episodes = buffer.windows("full")
    with torch.no_grad():
        features, _ = agent.critic.core(episodes.history[:, :-1], torch.zeros(len(episodes.mask), agent.critic.core.hidden_dim))
        Q = agent.critic.head(episodes.pick(features), episodes.action)         # each twin's
    assert 9 < Q.min() and Q.max() < 11, (Q.min(), Q.max())


def test_same_seed_same_weights(module):
    """To the bit, after acting and training; another seed, other weights."""
    flags = dict(seq_len=4, burn_in=2, hidden_init="stored", hidden_refresh=True, **RECURRENT)

    def run(seed):
        agent, buffer, game = make_off_policy(module, 20, seed=seed, **flags)
        for _ in range(6):
            game.play(3)
            agent.train(buffer)
        return weights_of(agent)
    first, second, other = run(0), run(0), run(1)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))
