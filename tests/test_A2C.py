"""A2C against its equations, written a second time; its acting is tested in test_PPO.py."""
import numpy as np
import pytest
import torch
from conftest import RECURRENT, Plain, start_of
from test_PPO import ROLLOUT, SPECS, make
from torch.distributions import Categorical, Normal

import A2C


def plain_update(agent, played, windows_of):
    """A2C as in the paper, one window and one step at a time. Returns networks, log_std, scale of returns and losses."""
    cfg = agent.cfg
    actor, critic = Plain(agent.actor), Plain(agent.critic)
    log_std = None if agent.actor.log_std is None else torch.nn.Parameter(agent.actor.log_std.detach().clone())
    actor_weights = [*actor.parameters()] + ([] if log_std is None else [log_std])

    def unroll(net, past, steps, which):
        with torch.no_grad():
            hidden = net.unroll([s.row for s in past], start_of(past, steps, agent, cfg)[which])[1]
        return net.unroll([s.row for s in steps] + [steps[-1].next_row], hidden)[0]

    # Values with gradient, and each step's following value, a window's last from the window itself
    value, after = {}, {}
    for past, steps in windows_of:
        predicted = [critic.heads[0](f) for f in unroll(critic, past, steps, 1)]
        for s, v, w in zip(steps, predicted, predicted[1:]):
            value[s[:3]], after[s[:3]] = v, w.item() * agent.return_scale
    advantage, returns = {}, {}
    for episode in dict.fromkeys(s[:2] for s in played):
        total = 0.0
        for s in reversed([s for s in played if s[:2] == episode]):
            v = value[s[:3]].item() * agent.return_scale
            delta = s.reward + (0.0 if s.terminated else cfg.discount * after[s[:3]]) - v
            total = delta + cfg.discount * cfg.gae_lambda * total
            advantage[s[:3]], returns[s[:3]] = total, total + v
    scale = agent.return_scale + 0.01 * (np.sqrt(np.mean(np.square(list(returns.values())))) - agent.return_scale)

    critic_loss = sum((value[k] - returns[k] / scale) ** 2 for k in value) / len(value)
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
            gains.append(log_prob * advantage[s[:3]] / scale + cfg.entropy_coef * policy.entropy().sum())
    actor_loss = -sum(gains) / len(gains)
    for weights, loss in (([*critic.parameters()], critic_loss), (actor_weights, actor_loss)):
        optimizer = torch.optim.Adam(weights, lr=cfg.lr)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, cfg.max_grad_norm)
        optimizer.step()
    return actor, critic, log_std, scale, {"critic_loss": critic_loss.item(), "actor_loss": actor_loss.item()}


@pytest.mark.parametrize("kind", ["continuous", "discrete"])
@pytest.mark.parametrize("flags", [
    dict(seq_len=1, gae_lambda=1.0),
    dict(seq_len=5, hidden_init="stored", **RECURRENT),
    dict(seq_len=5, hidden_init="stored", critic_hidden="actor", burn_in=2, **RECURRENT),
    dict(seq_len=5, hidden_init="stored", critic_hidden="zero", core="gru", **RECURRENT),
    dict(seq_len=6, burn_in=3, **RECURRENT),
    dict(seq_len="full", hidden_init="stored", recurrent_actor=True),
    dict(seq_len=4, hidden_init="stored", recurrent_critic=True),
], ids=lambda flags: "-".join(str(v) for v in flags.values()))
def test_update_is_plain_a2c(float64, kind, flags):
    """Two rollouts, so that episodes go on from one into the other, against single steps in a Python loop."""
    agent, buffer, game = make(SPECS[kind], module=A2C, entropy_coef=0.1, lr_decay=False, lr=1e-2, max_grad_norm=0.2, **flags)
    # A stored state at a rollout's start is used as it is: nothing before it is burned in
    for _ in range(1 if agent.cfg.burn_in and agent.cfg.hidden_init == "stored" else 2):
        agent.return_scale = 2.0
        for name in ("actor", "critic"):                               # Adam afresh, as in the plain update
            setattr(agent, name + "_optimizer", torch.optim.Adam(getattr(agent, name).parameters(), lr=1e-2))
        played = game.play(ROLLOUT)
        windows = game.windows(buffer.windows(agent.cfg.seq_len, agent.cfg.burn_in), agent.cfg.burn_in)
        actor, critic, log_std, scale, expected = plain_update(agent, played, windows)
        losses = agent.train(buffer)
        for name, loss in expected.items():
            assert losses[name].item() == pytest.approx(loss, abs=1e-6), name
        assert actor.distance(agent.actor) < 1e-6 and critic.distance(agent.critic) < 1e-6
        assert agent.return_scale == pytest.approx(scale, abs=1e-5)
        if log_std is not None:
            assert torch.allclose(agent.actor.log_std, log_std, atol=1e-6)


@pytest.mark.parametrize("hidden_init,past", [("stored", 0), ("zero", 2)])
def test_a_second_rollout_has_a_past_only_where_memory_begins_at_zero(hidden_init, past):
    """Stored states are of the rollout's own first step, so nothing before it is burned in."""
    agent, buffer, game = make(module=A2C, seq_len=5, hidden_init=hidden_init, burn_in=2, **RECURRENT)
    game.play(ROLLOUT)
    agent.train(buffer)
    assert min(game.t) >= 2                                            # episodes that go on into the next rollout
    game.play(ROLLOUT)
    windows = buffer.windows(5, 2)
    first = [int(np.flatnonzero(windows.index[:, 0].numpy() // buffer.capacity == env)[0]) for env in range(buffer.num_envs)]
    assert windows.past_length[first].tolist() == [past] * buffer.num_envs
