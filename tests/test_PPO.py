"""PPO: what it learns from is what acted, advantages are GAE's, and the update is the paper's; its acting, which is A2C's."""
import numpy as np
import pytest
import torch
from conftest import DISCRETE_SPEC, RECURRENT, SPEC, Plain, make_agent, make_on_policy, reproduced, spy, start_of, weights_of
from torch.distributions import Categorical, Normal

import A2C
import PPO
from utils import Batch

ROLLOUT = 25                                                           # steps per environment: some episodes go on across two
SPECS = {"continuous": SPEC, "discrete": DISCRETE_SPEC}


def make(spec=SPEC, module=PPO, **flags):
    """An agent, its empty buffer, and environments."""
    return make_on_policy(module, spec, **flags)


def hidden_parts(agent, hidden):
    """Actor's and critic's part of a recorded hidden state, (1, size) each."""
    size = agent.actor.core.hidden_dim
    return torch.as_tensor(hidden[None, :size]), torch.as_tensor(hidden[None, size:])


def log_prob_of(actor, log_std, features, action):
    """log pi(a|s) written out: a categorical distribution if there is no log_std, else independent normals."""
    output = actor.heads[0](features)
    action = torch.as_tensor(action)
    if log_std is None:
        return Categorical(logits=output).log_prob(action.argmax(-1))
    return Normal(output, log_std.exp()).log_prob(action).sum(-1)


def acted_log_prob(agent, played):
    """log pi of recorded actions, one step at a time, from the memory that each was acted from."""
    actor, values = Plain(agent.actor), []
    with torch.no_grad():
        for step in played:
            features, _ = actor.remember(torch.as_tensor(step.row)[None], hidden_parts(agent, step.hidden)[0])
            values.append(log_prob_of(actor, agent.actor.log_std, features, step.action).item())
    return np.array(values)


# ---------------------------------------------------------------------- the ratio

def spy_on_update(patch, agent, buffer):
    """What one update computes: rollouts, minibatches, policies and ratios, each in order."""
    seen = {"rollouts": spy(patch, buffer, "windows"), "selected": spy(patch, Batch, "select"),
            "policies": spy(patch, agent.actor, "head"), "ratios": []}
    exp = torch.Tensor.exp

    def spied_exp(x):
        if x.dim() == 2 and x.requires_grad:                           # the only one with a gradient and a row for each step
            seen["ratios"].append(exp(x))
            return seen["ratios"][-1]
        return exp(x)

    patch.setattr(torch.Tensor, "exp", spied_exp)
    return seen


@pytest.mark.parametrize("kind", ["continuous", "discrete"])
@pytest.mark.parametrize("seq_len", [1, 3, 8, "full"])
@pytest.mark.parametrize("flags", [dict(), dict(**RECURRENT), dict(core="gru", **RECURRENT), dict(burn_in=3, **RECURRENT),
                                   dict(recurrent_actor=True), dict(critic_hidden="zero", hidden_refresh=True, **RECURRENT)],
                         ids=["feed-forward", "lstm", "gru", "burn-in", "actor only", "refresh"])
def test_ratio_is_one_before_the_first_step(monkeypatch, kind, seq_len, flags):
    """In every rollout, with episodes that began in the one before under older weights; old means: of the actor that acted."""
    flags = dict(flags, burn_in=0) if seq_len == "full" else flags
    agent, buffer, game = make(SPECS[kind], seq_len=seq_len, hidden_init="stored", **{"epochs": 1, **flags})
    with torch.no_grad():
        agent.actor.mlp.weights[-1].mul_(100)                          # far from the even distribution it starts with
    continued = 0
    for _ in range(3):
        played = game.play(ROLLOUT)
        continued += sum(step.t > 0 for step in (played[0], played[ROLLOUT]))
        expected = acted_log_prob(agent, played)                       # before the update
        with monkeypatch.context() as patch:
            seen = spy_on_update(patch, agent, buffer)
            agent.train(buffer)
        # The first policy computed is the old one, over the whole rollout, in order of time
        old = seen["policies"][0].log_prob(seen["rollouts"][0].action).numpy()
        assert np.allclose(old, expected, atol=1e-4)
        ratios = seen["ratios"]
        assert [len(ratio) for ratio in ratios] == [batch.steps for batch, _ in seen["selected"]]
        assert len(ratios) > 1 and (ratios[0] - 1).abs().max() < 1e-4
        assert any((ratio - 1).abs().max() > 1e-3 for ratio in ratios[1:])
    assert continued >= 2


@pytest.mark.parametrize("burn_in", [0, 3])
def test_old_log_probs_are_of_the_actor_that_acted(monkeypatch, burn_in):
    """Also where windows start from zero, and are burned in over steps of the rollout before, of older weights."""
    agent, buffer, game = make(seq_len=4, epochs=3, burn_in=burn_in, **RECURRENT)
    with torch.no_grad():
        agent.actor.mlp.weights[-1].mul_(100)                          # far from the even distribution it starts with
    for _ in range(3):
        played = game.play(ROLLOUT)
        expected = acted_log_prob(agent, played)                       # before the update
        with monkeypatch.context() as patch:
            seen = spy_on_update(patch, agent, buffer)
            agent.train(buffer)
        old = seen["policies"][0].log_prob(seen["rollouts"][0].action).numpy()
        assert np.allclose(old, expected, atol=1e-4)


def test_minibatches_shuffle_windows_and_use_each_step_once(monkeypatch):
    """Every epoch trains on every step of the rollout once, in windows of consecutive steps."""
    agent, buffer, game = make(seq_len=4, hidden_init="stored", epochs=3, **RECURRENT)
    played = game.play(ROLLOUT)
    with monkeypatch.context() as patch:
        seen = spy_on_update(patch, agent, buffer)
        agent.train(buffer)
    trained = [[s.env, s.episode, s.t] for batch, _ in seen["selected"] for _, steps in game.windows(batch) for s in steps]
    whole = sorted([s.env, s.episode, s.t] for s in played)
    epochs = [trained[i:i + len(whole)] for i in range(0, len(trained), len(whole))]
    assert len(epochs) == 3 and all(sorted(epoch) == whole for epoch in epochs)
    assert epochs[0] != epochs[1]
    for batch, _ in seen["selected"]:
        for _, steps in game.windows(batch):
            assert [s[:3] for s in steps] == [(*steps[0][:2], steps[0].t + i) for i in range(len(steps))]


# ---------------------------------------------------------------------- advantages

def brute_force_gae(reward, value, last_value, terminated, discount, gae_lambda):
    """One episode's advantages as the GAE paper defines them: the lambda-weighted mean of all k-step advantages."""
    n, advantages = len(reward), []
    values = [*value, 0.0 if terminated else last_value]
    for t in range(n):
        k_step = []
        for k in range(1, n - t + 1):
            k_step.append(sum(discount ** i * reward[t + i] for i in range(k)) + discount ** k * values[t + k] - values[t])
        weights = [(1 - gae_lambda) * gae_lambda ** (k - 1) for k in range(1, n - t)] + [gae_lambda ** (n - t - 1)]
        advantages.append(sum(w * a for w, a in zip(weights, k_step)))
    return advantages


@pytest.mark.parametrize("discount, gae_lambda", [(0.9, 0.8), (0.99, 1.0), (1.0, 0.0), (0.5, 0.95)])
def test_gae_is_brute_force(discount, gae_lambda):
    """Episodes of several streams in one go: terminated, truncated, cut by the rollout's end, of one step."""
    rng = np.random.default_rng(0)
    episodes = [(5, True), (1, False), (7, False), (1, True), (1, True), (12, False), (4, True)]
    expected, arrays = [], []
    for n, terminated in episodes:
        reward, value, last_value = rng.normal(size=n), rng.normal(size=n), rng.normal()
        expected += brute_force_gae(reward, value, last_value, terminated, discount, gae_lambda)
        last = np.arange(n) == n - 1
        arrays.append((reward, value, np.append(value[1:], last_value), 1 - (last & terminated).astype(float), last))
    advantage = PPO.gae(*(np.concatenate(x) for x in zip(*arrays)), discount, gae_lambda)
    assert np.allclose(advantage, expected, atol=1e-5)


@pytest.mark.parametrize("flags", [dict(seq_len=1), dict(seq_len=3, **RECURRENT), dict(seq_len="full", core="gru", **RECURRENT)],
                         ids=["feed-forward", "lstm", "gru"])
def test_advantages_of_a_rollout(monkeypatch, flags):
    """From record to advantage: values step by step from the critic's memory, true last observations, nothing across
    episodes, two rollouts and two streams."""
    agent, buffer, game = make(hidden_init="stored", **flags)
    for _ in range(2):
        played = game.play(ROLLOUT)
        critic, scale = Plain(agent.critic), agent.return_scale

        def value_of(row, hidden, critic=critic, scale=scale):
            with torch.no_grad():
                features, _ = critic.remember(torch.as_tensor(row)[None], hidden_parts(agent, hidden)[1])
                return critic.heads[0](features).item() * scale
        expected = []
        for env, episode in dict.fromkeys((s.env, s.episode) for s in played):
            steps = [s for s in played if (s.env, s.episode) == (env, episode)]
            expected += brute_force_gae([s.reward for s in steps], [value_of(s.row, s.hidden) for s in steps],
                                        value_of(steps[-1].next_row, steps[-1].next_hidden), steps[-1].terminated,
                                        agent.cfg.discount, agent.cfg.gae_lambda)
        with monkeypatch.context() as patch:
            advantages = spy(patch, PPO, "gae")
            agent.train(buffer)
        assert len(advantages) == 1 and np.allclose(advantages[0], expected, atol=1e-4)
    assert {(s.terminated, s.truncated) for s in played} == {(False, False), (True, False), (False, True)}


# ---------------------------------------------------------------------- the update

def plain_update(agent, played, windows_of, epochs):
    """PPO as in the paper with one minibatch, one window and one step at a time. Returns networks and losses."""
    cfg = agent.cfg
    actor, critic = Plain(agent.actor), Plain(agent.critic)
    log_std = None if agent.actor.log_std is None else torch.nn.Parameter(agent.actor.log_std.detach().clone())
    actor_weights = [*actor.parameters()] + ([] if log_std is None else [log_std])
    actor_optimizer = torch.optim.Adam(actor_weights, lr=cfg.lr)
    critic_optimizer = torch.optim.Adam(critic.parameters(), lr=cfg.lr)
    old = dict(zip([s[:3] for s in played], acted_log_prob(agent, played)))

    def unroll(net, past, steps, which, last=False):
        with torch.no_grad():
            hidden = net.unroll([s.row for s in past], start_of(past, steps, agent, cfg)[which])[1]
        return net.unroll([s.row for s in steps] + ([steps[-1].next_row] if last else []), hidden)[0]

    advantage, returns = {}, {}
    for episode in dict.fromkeys(s[:2] for s in played):
        value, last_value = [], 0.0
        for past, steps in windows_of:
            if steps[0][:2] == episode:
                with torch.no_grad():
                    *inside, last_value = (critic.heads[0](f).item() * agent.return_scale
                                           for f in unroll(critic, past, steps, 1, last=True))
                value += inside
                value[-1] = (value[-1], last_value)                    # a window's own value of its last next state
        steps = [s for s in played if s[:2] == episode]
        now = [v[0] if isinstance(v, tuple) else v for v in value]
        after = [v[1] if isinstance(v, tuple) else w for v, w in zip(value, [*now[1:], None])]
        total = 0.0
        for s, v, w in reversed(list(zip(steps, now, after))):
            delta = s.reward + (0.0 if s.terminated else cfg.discount * w) - v
            total = delta + cfg.discount * cfg.gae_lambda * total
            advantage[s[:3]], returns[s[:3]] = total, total + v
    spread = np.array(list(advantage.values()))
    scale = agent.return_scale + 0.1 * (np.sqrt(np.mean(np.square(list(returns.values())))) - agent.return_scale)

    losses = {"critic_loss": [], "actor_loss": []}
    for _ in range(epochs):
        errors, gains = [], []
        for past, steps in windows_of:
            for s, f in zip(steps, unroll(critic, past, steps, 1)):
                errors.append((critic.heads[0](f) - returns[s[:3]] / scale) ** 2)
        critic_loss = sum(errors) / len(errors)
        critic_optimizer.zero_grad()
        critic_loss.backward()
        torch.nn.utils.clip_grad_norm_(critic.parameters(), cfg.max_grad_norm)
        critic_optimizer.step()
        for past, steps in windows_of:
            for s, f in zip(steps, unroll(actor, past, steps, 0)):
                ratio = torch.exp(log_prob_of(actor, log_std, f, s.action) - old[s[:3]])
                a = (advantage[s[:3]] - spread.mean()) / spread.std()
                output = actor.heads[0](f)
                policy = Categorical(logits=output) if log_std is None else Normal(output, log_std.exp())
                gains.append(torch.min(ratio * a, ratio.clamp(1 - cfg.clip, 1 + cfg.clip) * a) +
                             cfg.entropy_coef * policy.entropy().sum())
        actor_loss = -sum(gains) / len(gains)
        actor_optimizer.zero_grad()
        actor_loss.backward()
        torch.nn.utils.clip_grad_norm_(actor_weights, cfg.max_grad_norm)
        actor_optimizer.step()
        losses["critic_loss"].append(critic_loss.item())
        losses["actor_loss"].append(actor_loss.item())
    return actor, critic, log_std, {name: np.mean(x) for name, x in losses.items()}


@pytest.mark.parametrize("kind", ["continuous", "discrete"])
@pytest.mark.parametrize("flags", [
    dict(seq_len=1),
    dict(seq_len=5, hidden_init="stored", **RECURRENT),
    dict(seq_len=5, hidden_init="stored", critic_hidden="actor", burn_in=2, **RECURRENT),
    dict(seq_len=5, hidden_init="stored", critic_hidden="zero", core="gru", **RECURRENT),
    dict(seq_len=6, burn_in=3, **RECURRENT),
    dict(seq_len="full", hidden_init="stored", recurrent_actor=True),
    dict(seq_len=4, hidden_init="stored", recurrent_critic=True),
], ids=lambda flags: "-".join(str(v) for v in flags.values()))
def test_update_is_plain_ppo(monkeypatch, kind, flags):
    """Several epochs, with clipped ratios, against single steps in a Python loop."""
    agent, buffer, game = make(SPECS[kind], epochs=5, batch_size=1000, entropy_coef=0.1, clip=0.05, lr_decay=False, lr=1e-2,
                               max_grad_norm=0.2, **flags)
    # From zero a second one, for its windows are burned in over steps of the first; from stored states they are not
    for _ in range(2 if agent.cfg.burn_in and agent.cfg.hidden_init == "zero" else 1):
        for name in ("actor", "critic"):                               # Adam afresh, as in the plain update
            setattr(agent, name + "_optimizer", torch.optim.Adam(getattr(agent, name).parameters(), lr=1e-2))
        played = game.play(ROLLOUT)
        windows = game.windows(buffer.windows(agent.cfg.seq_len, agent.cfg.burn_in), agent.cfg.burn_in)
        actor, critic, log_std, expected = plain_update(agent, played, windows, 5)
        with monkeypatch.context() as patch:
            seen = spy_on_update(patch, agent, buffer)
            losses = agent.train(buffer)
        clipped = [((ratio - 1).abs() > 0.05).sum() for ratio in seen["ratios"]]
        assert max(clipped) >= 5
        for name, loss in expected.items():
            assert losses[name].item() == pytest.approx(loss, abs=1e-4), name
        assert actor.distance(agent.actor) < 1e-3 and critic.distance(agent.critic) < 1e-3
        if log_std is not None:
            assert torch.allclose(agent.actor.log_std, log_std, atol=1e-4)


def test_minibatches(monkeypatch):
    """As many as batch_size says; advantages are normalised over the rollout, not within each."""
    agent, buffer, game = make(seq_len=4, hidden_init="stored", epochs=1, lr=0.0, **RECURRENT)
    game.play(ROLLOUT)
    selected, losses = spy(monkeypatch, Batch, "select"), []
    monkeypatch.setattr(PPO, "optimize", lambda optimizer, loss, max_grad_norm: losses.append(loss.item()))
    agent.train(buffer)
    gains = [-loss for loss in losses[1::2]]                           # the actor's; nothing moves, so the ratio is 1
    assert len(selected) == len(gains) == 2 * ROLLOUT // 12
    assert max(map(abs, gains)) > 0.1
    assert sum(gain * batch.steps for gain, (batch, _) in zip(gains, selected)) == pytest.approx(0, abs=1e-3)


# ---------------------------------------------------------------------- what PPO and A2C share

@pytest.fixture(params=[PPO, A2C], ids=lambda module: module.__name__)
def module(request):
    """Both are tested alike from here on; A2C has neither epochs nor minibatches."""
    return request.param


def test_a_narrow_policy_stays_finite(module):
    """In padding the new policy is not computed: however unlikely an action is under it there, no gradient comes of it."""
    agent, buffer, game = make(module=module, seq_len=6, init_log_std=-4.0)
    agent.cfg.epochs = 3
    with torch.no_grad():
        agent.actor.mlp.weights[-1].mul_(300)
    game.play(ROLLOUT)
    agent.train(buffer)
    assert all(weight.isfinite().all() for weight in weights_of(agent))


# ---------------------------------------------------------------------- memory

def test_hidden_refresh_writes_recomputed_states(monkeypatch):
    """After the last epoch every stored state is that of the new weights, from where each episode entered the rollout."""
    agent, buffer, game = make(seq_len=4, hidden_init="stored", hidden_refresh=True, **RECURRENT)
    game.play(ROLLOUT)
    agent.train(buffer)
    assert min(game.t) > 0                                             # episodes that go on: they enter with a memory
    game.play(ROLLOUT)
    before, clear, compared = buffer.hidden.clone(), buffer.clear, []

    def check_and_clear(keep):
        changed = (buffer.hidden - before).abs().max(1).values > 1e-4
        firsts = buffer.windows("full").index[:, 0]
        assert torch.equal(buffer.hidden[firsts], before[firsts])
        compared.append((reproduced(agent, buffer), int(changed.sum())))
        clear(keep)
    monkeypatch.setattr(buffer, "clear", check_and_clear)
    agent.train(buffer)
    assert compared == [(2 * ROLLOUT, 2 * ROLLOUT)]


def test_later_epochs_start_from_refreshed_states(monkeypatch):
    """But their ratio is still to the policy that acted."""
    agent, buffer, game = make(seq_len=4, hidden_init="stored", hidden_refresh=True, batch_size=1000, lr=1e-2, **RECURRENT)
    game.play(ROLLOUT)
    before, select, starts = buffer.hidden.clone(), Batch.select, []

    def checked(rollout, windows):
        batch, steps = select(rollout, windows)
        assert torch.equal(batch.hidden, buffer.hidden[batch.index[:, 0]])
        starts.append((batch.hidden - before[batch.index[:, 0]]).abs().max())
        return batch, steps
    with monkeypatch.context() as patch:
        seen = spy_on_update(patch, agent, buffer)
        patch.setattr(Batch, "select", checked)
        agent.train(buffer)
    assert starts[0] == 0 and starts[1] > 1e-3
    first, second = ((ratio - 1).abs().max() for ratio in seen["ratios"])
    assert first < 1e-4 and second > 1e-3


# ---------------------------------------------------------------------- acting and pace

@pytest.mark.parametrize("kind", ["continuous", "discrete"])
def test_acting(module, kind):
    """Sampled from the policy while exploring, its mode otherwise; discrete actions are one-hot."""
    agent = make_agent(module, SPECS[kind])
    with torch.no_grad():
        agent.actor.mlp.weights[-1].mul_(100)
    row, hidden = np.ones((2, SPEC.state_dim + SPEC.action_dim + 1), np.float32), np.zeros((2, 0), np.float32)
    output = Plain(agent.actor).heads[0](torch.ones(1, SPEC.state_dim)).detach().numpy()[0]
    mode = agent.act(row, hidden, explore=False)[0]
    assert agent.steps == 0 and np.array_equal(mode, agent.act(row, hidden, explore=False)[0])
    sampled = np.concatenate([agent.act(row, hidden)[0] for _ in range(500)])
    assert agent.steps == 1000
    if kind == "discrete":
        assert np.array_equal(mode[0], np.eye(2)[output.argmax()])
        assert np.array_equal(np.unique(sampled, axis=0), [[0, 1], [1, 0]])
        assert sampled.mean(0) == pytest.approx(np.exp(output) / np.exp(output).sum(), abs=0.06)
    else:
        assert np.allclose(mode[0], output, atol=1e-5)
        assert sampled.mean(0) == pytest.approx(output, abs=0.1)
        assert sampled.std(0) == pytest.approx(np.exp(-0.5), abs=0.06)


def test_ready_after_a_rollout(module):
    """An update is due every rollout_steps steps, and forgets what it learned from."""
    agent, buffer, game = make(module=module)
    for _ in range(3):
        for _ in range(ROLLOUT - 1):
            game.play(1)
            assert not agent.ready(buffer)
        game.play(1)
        assert agent.ready(buffer)
        agent.train(buffer)
        assert len(buffer) == 0 and not agent.ready(buffer)
