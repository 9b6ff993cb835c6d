"""REINFORCE against its equation, written a second time: whole episodes, with and without a baseline."""
import numpy as np
import pytest
import torch
from conftest import RECURRENT, Plain, Toy, make_on_policy, start_of, weights_of
from test_PPO import SPECS
from torch.distributions import Categorical, Normal

import REINFORCE


def make(spec=SPECS["continuous"], **flags):
    """An agent, its empty buffer, and its environment."""
    return make_on_policy(REINFORCE, spec, **flags)


def plain_update(agent, played, windows_of):
    """One window and one step at a time. Returns networks, log_std, scale of returns and losses."""
    cfg = agent.cfg
    actor, critic = Plain(agent.actor), Plain(agent.critic)
    log_std = None if agent.actor.log_std is None else torch.nn.Parameter(agent.actor.log_std.detach().clone())
    actor_weights = [*actor.parameters()] + ([] if log_std is None else [log_std])

    def unroll(net, past, steps, which):
        with torch.no_grad():
            hidden = net.unroll([s.row for s in past], start_of(past, steps, agent, cfg)[which])[1]
        return net.unroll([s.row for s in steps] + [steps[-1].next_row], hidden)[0]

    value, after = {}, {}
    for past, steps in windows_of:
        predicted = [critic.heads[0](f) for f in unroll(critic, past, steps, 1)]
        for s, v, w in zip(steps, predicted, predicted[1:]):
            value[s[:3]], after[s[:3]] = v, w.item() * agent.return_scale
    returns = {}
    for episode in dict.fromkeys(s[:2] for s in played):
        steps = [s for s in played if s[:2] == episode]
        last = steps[-1]
        assert last.terminated or last.truncated                       # whole episodes
        for k, s in enumerate(steps):
            rest = after[last[:3]] if cfg.baseline and not last.terminated else 0.0
            returns[s[:3]] = sum(cfg.discount ** i * x.reward for i, x in enumerate(steps[k:])) + \
                cfg.discount ** (len(steps) - k) * rest
    scale = agent.return_scale + 0.1 * (np.sqrt(np.mean(np.square(list(returns.values())))) - agent.return_scale)

    gains = []
    for past, steps in windows_of:
        for s, f in zip(steps, unroll(actor, past, steps, 0)):
            output, action = actor.heads[0](f), torch.as_tensor(s.action)
            if log_std is None:
                policy = Categorical(logits=output)
                log_prob = policy.log_prob(action.argmax(-1))
            else:
                policy = Normal(output, log_std.exp())
                log_prob = policy.log_prob(action).sum(-1)
            advantage = returns[s[:3]] - cfg.baseline * value[s[:3]].item() * agent.return_scale
            gains.append(log_prob * advantage / scale + cfg.entropy_coef * policy.entropy().sum())
    actor_loss = -sum(gains) / len(gains)
    critic_loss = sum((value[k] - returns[k] / scale) ** 2 for k in value) / len(value)
    for weights, loss in [(actor_weights, actor_loss)] + [([*critic.parameters()], critic_loss)] * cfg.baseline:
        optimizer = torch.optim.Adam(weights, lr=cfg.lr)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, cfg.max_grad_norm)
        optimizer.step()
    losses = {"critic_loss": critic_loss.item()} if cfg.baseline else {}
    return actor, critic, log_std, scale, {**losses, "actor_loss": actor_loss.item()}


@pytest.mark.parametrize("kind", ["continuous", "discrete"])
@pytest.mark.parametrize("flags", [
    dict(seq_len=1),
    dict(seq_len=1, baseline=False),
    dict(seq_len="full", **RECURRENT),
    dict(seq_len="full", baseline=False, core="gru", **RECURRENT),
    dict(seq_len=5, hidden_init="stored", critic_hidden="zero", burn_in=2, **RECURRENT),
    dict(seq_len=6, burn_in=3, recurrent_actor=True),
], ids=lambda flags: "-".join(str(v) for v in flags.values()))
def test_update_is_plain_reinforce(float64, kind, flags):
    """Two batches of episodes that end by termination and by truncation, against single steps in a Python loop."""
    agent, buffer, game = make(SPECS[kind], entropy_coef=0.1, lr_decay=False, lr=1e-2, max_grad_norm=0.2, **flags)
    for _ in range(2):
        agent.return_scale = 2.0
        for name in ("actor", "critic"):                               # Adam afresh, as in the plain update
            setattr(agent, name + "_optimizer", torch.optim.Adam(getattr(agent, name).parameters(), lr=1e-2))
        played = game.play_until_due()
        assert any(s.terminated for s in played) and any(s.truncated for s in played)
        windows = game.windows(buffer.windows(agent.cfg.seq_len, agent.cfg.burn_in), agent.cfg.burn_in)
        actor, critic, log_std, scale, expected = plain_update(agent, played, windows)
        before = Plain(agent.critic)
        losses = agent.train(buffer)
        assert losses.keys() == expected.keys()
        for name, loss in expected.items():
            assert losses[name].item() == pytest.approx(loss, abs=1e-6), name
        assert actor.distance(agent.actor) < 1e-6 and critic.distance(agent.critic) < 1e-6
        assert (before.distance(agent.critic) > 0) == agent.cfg.baseline
        assert agent.return_scale == pytest.approx(scale, abs=1e-5)
        if log_std is not None:
            assert torch.allclose(agent.actor.log_std, log_std, atol=1e-6)


def test_acting():
    """Begins near the centre; sampled from the policy while exploring, and counted; its mode otherwise."""
    agent, buffer, game = make()
    row, hidden = np.ones((1, 6), np.float32), np.zeros((1, 0), np.float32)
    mode = agent.act(row, hidden, explore=False)[0]
    assert agent.steps == 0 and np.array_equal(mode, agent.act(row, hidden, explore=False)[0]) and np.abs(mode).max() < 0.02
    sampled = np.concatenate([agent.act(row, hidden)[0] for _ in range(1000)])
    assert agent.steps == 1000
    assert sampled.mean(0) == pytest.approx(mode[0], abs=0.1) and sampled.std(0) == pytest.approx(np.exp(-0.5), abs=0.06)


def test_an_update_waits_for_whole_episodes():
    """Episodes of 7, 1, 12, 3 steps: 20 are reached at the third's end, then inside the 12; it comes at its end, forgets all."""
    agent, buffer, game = make()
    for steps in (20, 3 + 7 + 1 + 12, 3 + 7 + 1 + 12):
        assert len(game.play_until_due()) == steps
        assert not buffer.running.any()
        agent.train(buffer)
        assert len(buffer) == 0 and not agent.ready(buffer)


def test_an_episode_longer_than_memory_goes_on():
    """Its beginning is lost, the update comes at its end."""
    agent, buffer, _ = make(memory_size=15, batch_size=10)
    game = Toy(agent, buffer, [[60]])
    played = game.play_until_due()
    assert len(played) == 60 and len(buffer) == 29
    agent.train(buffer)
    assert all(w.isfinite().all() for w in weights_of(agent))
