"""REINFORCE against its equation, written a second time: whole episodes, with and without a baseline."""
import numpy as np
import pytest
import torch
from conftest import CHAIN_SPEC, RECURRENT, Chain, Plain, Toy, check_stored_hidden, make_agent, make_buffer, start_of, weights_of
from test_PPO import SPECS
from torch.distributions import Categorical, Normal

import REINFORCE

LENGTHS = [[7, 1, 12, 3]]                                              # of the episodes in its one environment


def make(spec=SPECS["continuous"], seed=0, **flags):
    """An agent, its empty buffer, and its environment."""
    agent = make_agent(REINFORCE, spec, seed, **{"num_envs": 1, "batch_size": 20, "memory_size": 100, **flags})
    buffer = make_buffer(agent, agent.buffer_size(), 1, seed)
    return agent, buffer, Toy(agent, buffer, LENGTHS)


@pytest.fixture(autouse=True)
def no_num_envs(monkeypatch):
    """`num_envs` is no flag here; conftest's small agents give one."""
    hyper = REINFORCE.HyperParameters
    monkeypatch.setattr(REINFORCE, "HyperParameters", lambda num_envs, **flags: hyper(**flags))


def play_until_ready(agent, buffer, game):
    played = game.play(1)
    while not agent.ready(buffer):
        played += game.play(1)
    return played


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
        played = play_until_ready(agent, buffer, game)
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


@pytest.mark.parametrize("flags", [dict(), dict(core="gru"), dict(critic_hidden="actor")])
def test_stored_hidden_reproduces_the_next(flags):
    """The critic's own memory included; an update lies in between."""
    agent, buffer, game = make(seq_len=4, hidden_init="stored", **RECURRENT, **flags)
    for _ in range(2):
        assert len(play_until_ready(agent, buffer, game)) == len(buffer) == check_stored_hidden(agent, buffer)
        agent.train(buffer)


def test_learning_rates_fall_linearly():
    """--lr_decay: to zero at max_timesteps, the core's own too; without it neither moves."""
    for decay, expected in ((True, 0.75), (False, 1.0)):
        agent, buffer, game = make(max_timesteps=80, lr=1e-2, core_lr=1e-3, lr_decay=decay, **RECURRENT)
        assert len(play_until_ready(agent, buffer, game)) == 20
        agent.train(buffer)
        for optimizer in (agent.actor_optimizer, agent.critic_optimizer):
            assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([expected * 1e-2, expected * 1e-3])


def test_checkpoint_keeps_the_scale_of_returns():
    """Values are predictions times the scale: a critic without it is another critic."""
    agent, buffer, game = make()
    play_until_ready(agent, buffer, game)
    agent.train(buffer)
    other = make(seed=1)[0]
    other.load_state_dict(agent.state_dict())
    assert other.return_scale == pytest.approx(agent.return_scale) and agent.return_scale != 1
    assert Plain(agent.critic).distance(other.critic) == Plain(agent.actor).distance(other.actor) == 0


def test_an_update_waits_for_whole_episodes():
    """Episodes of 7, 1, 12, 3 steps: 20 are reached at the third's end, then inside the 12; it comes at its end, forgets all."""
    agent, buffer, game = make()
    for steps in (20, 3 + 7 + 1 + 12, 3 + 7 + 1 + 12):
        assert len(play_until_ready(agent, buffer, game)) == steps
        assert not buffer.running.any()
        agent.train(buffer)
        assert len(buffer) == 0 and not agent.ready(buffer)


def test_an_episode_longer_than_memory_goes_on():
    """Its beginning is lost, the update comes at its end."""
    agent, buffer, _ = make(memory_size=15, batch_size=10)
    game = Toy(agent, buffer, [[60]])
    played = play_until_ready(agent, buffer, game)
    assert len(played) == 60 and len(buffer) == 29
    agent.train(buffer)
    assert all(w.isfinite().all() for w in weights_of(agent))


@pytest.mark.parametrize("flags", [dict(), dict(seq_len="full", **RECURRENT)], ids=["feed-forward", "recurrent"])
def test_a_time_limit_is_no_end(flags):
    """Reward 1 for ever in episodes of 10: the baseline is 1 / (1 - gamma) = 2; with truncation taken for termination less."""
    agent = make_agent(REINFORCE, CHAIN_SPEC, num_envs=1, batch_size=20, discount=0.5, lr=1e-2, lr_decay=False, **flags)
    buffer = make_buffer(agent, agent.buffer_size(), 1)
    game = Chain(agent, buffer, 1)
    for _ in range(100):
        play_until_ready(agent, buffer, game)
        agent.train(buffer)
    critic, (last,) = Plain(agent.critic), game.play(1)
    with torch.no_grad():
        features, hidden = critic.unroll([last.row], torch.zeros(1, critic.hidden_dim))
        for _ in range(9):
            (step,) = game.play(1)
            feature, hidden = critic.remember(torch.as_tensor(step.row)[None], hidden)
        value = critic.heads[0](feature).item() * agent.return_scale
    assert step.truncated and value == pytest.approx(2, abs=0.2)        # the last step's: 1 if nothing came after it


def test_same_seed_same_weights():
    """To the bit, after acting and training; another seed, other weights."""
    def run(seed):
        agent, buffer, game = make(seed=seed, seq_len="full", **RECURRENT)
        for _ in range(2):
            play_until_ready(agent, buffer, game)
            agent.train(buffer)
        return weights_of(agent)
    first, second, other = run(0), run(0), run(1)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))
