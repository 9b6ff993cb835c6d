"""SAC against the paper's equations, written a second time."""
import copy
import math

import numpy as np
import pytest
import torch
from conftest import OFF_POLICY_FLAGS, SPEC, Plain, compare_updates, discount_of, make_agent, make_off_policy, start_of
from torch.distributions import Normal, TransformedDistribution
from torch.distributions.transforms import TanhTransform

import SAC


class PlainSAC:
    """SAC as in the paper, on a copy of an agent's weights: one window after the other, one step at a time."""

    def __init__(self, agent):
        self.agent, self.cfg = agent, agent.cfg
        self.actor, self.critic = Plain(agent.actor), Plain(agent.critic)
        self.critic_target = copy.deepcopy(self.critic)
        self.log_alpha = torch.tensor(math.log(self.cfg.init_alpha), requires_grad=True)
        self.optimizers = [torch.optim.Adam(weights, lr=self.cfg.lr) for weights in
                           (self.critic.parameters(), self.actor.parameters(), [self.log_alpha])]

    def sample(self, feature, epsilon):
        """The policy as torch.distributions has it: action and log-probability, (1, action_dim) and (1, 1)."""
        mean, log_std = self.actor.heads[0](feature).chunk(2, -1)
        log_std = log_std.clamp(-20, 2)
        policy = TransformedDistribution(Normal(mean, log_std.exp()), TanhTransform(cache_size=1))
        action = torch.tanh(mean + log_std.exp() * epsilon)
        return action, policy.log_prob(action).sum(-1, keepdim=True)

    def step(self, which, loss):
        self.optimizers[which].zero_grad()
        loss.backward()
        self.optimizers[which].step()

    def update(self, windows, noise):
        """windows: (steps before, steps) each; noise of the standard normal, (steps, action_dim) for each."""
        cfg, alpha = self.cfg, self.log_alpha.detach().exp()
        later_noise = torch.randn_like(torch.cat(noise)).split([len(epsilon) for epsilon in noise])
        starts, errors = [], []
        for (past, steps), epsilon in zip(windows, noise):
            with torch.no_grad():
                start_actor, start_critic = start_of(past, steps, self.agent, cfg)
                warm = {net: net.unroll([step.row for step in past], start)[1] for net, start in
                        ((self.actor, start_actor), (self.critic, start_critic), (self.critic_target, start_critic))}
                rows = [step.row for step in steps] + [steps[-1].next_row]
                next_actor = self.actor.unroll(rows, warm[self.actor])[0][1:]
                next_critic = self.critic_target.unroll(rows, warm[self.critic_target])[0][1:]
            starts.append((warm[self.actor], warm[self.critic]))
            features, _ = self.critic.unroll(rows[:-1], warm[self.critic])
            for t, step in enumerate(steps):
                with torch.no_grad():
                    next_action, log_prob = self.sample(next_actor[t], epsilon[t])
                    joined = torch.cat([next_critic[t], next_action], -1)
                    next_Q = min(head(joined).item() for head in self.critic_target.heads)
                    y = step.reward + (0 if step.terminated else discount_of(self.agent) * (next_Q - alpha * log_prob).item())
                joined = torch.cat([features[t], torch.as_tensor(step.action)[None]], -1)
                errors.append(sum((y - head(joined)) ** 2 for head in self.critic.heads))
        critic_loss = sum(errors) / len(errors)
        self.step(0, critic_loss)

        values, log_probs = [], []
        for (_, steps), (start_actor, start_critic), epsilon in zip(windows, starts, later_noise):
            rows = [step.row for step in steps]
            with torch.no_grad():
                features, _ = self.critic.unroll(rows, start_critic)
            for t, (feature, actor_feature) in enumerate(zip(features, self.actor.unroll(rows, start_actor)[0])):
                action, log_prob = self.sample(actor_feature, epsilon[t])
                joined = torch.cat([feature, action], -1)
                values.append(torch.min(*[head(joined) for head in self.critic.heads]) - alpha * log_prob)
                log_probs.append(log_prob.item())
        actor_loss = -sum(values) / len(values)
        self.step(1, actor_loss)
        target_entropy = -self.agent.spec.action_dim if cfg.target_entropy is None else cfg.target_entropy
        self.step(2, -self.log_alpha * (np.mean(log_probs) + target_entropy))
        for p, q in zip(self.critic.parameters(), self.critic_target.parameters()):
            q.detach().mul_(1 - cfg.tau).add_(cfg.tau * p.detach())
        return {"critic_loss": critic_loss.item(), "actor_loss": actor_loss.item(), "alpha": alpha.item()}


@pytest.mark.parametrize("flags", [dict(hidden_layers=0), dict(hidden_layers=2), dict(target_entropy=1.5, init_alpha=0.2)])
def test_feed_forward_is_plain_sac(float64, monkeypatch, flags):
    """At L = 1 the textbook algorithm, over six updates; the temperature is compared in each but the first."""
    agent, buffer, game = make_off_policy(SAC, tau=0.1, lr=3e-3, **flags)
    plain = PlainSAC(agent)
    assert compare_updates(agent, plain, buffer, game, 6, 1e-6, monkeypatch) == 6
    assert agent.log_alpha.item() == pytest.approx(plain.log_alpha.item(), abs=1e-9)
    assert abs(agent.log_alpha.item() - math.log(agent.cfg.init_alpha)) > 0.01


@pytest.mark.parametrize("flags", OFF_POLICY_FLAGS, ids=lambda flags: "-".join(str(v) for v in flags.values()))
def test_recurrent_is_plain_sac_window_by_window(float64, monkeypatch, flags):
    """Windows with padding, burn-in and every kind of start state, targets over L + 1: no difference to single steps."""
    agent, buffer, game = make_off_policy(SAC, tau=0.1, **flags)
    assert compare_updates(agent, PlainSAC(agent), buffer, game, 4, 1e-6, monkeypatch) == 4


def test_log_probability_far_out():
    """Where tanh saturates, log(1 - tanh(u)^2) would be -inf: finite, with a finite gradient."""
    agent = make_agent(SAC, hidden_layers=0)
    with torch.no_grad():
        agent.actor.mlp.biases[0][..., :SPEC.action_dim] = 50
    action, log_prob = agent.actor.sample_action(torch.zeros(4, SPEC.state_dim))
    log_prob.sum().backward()
    assert (action == 1).all() and log_prob.isfinite().all()
    assert all(p.grad.isfinite().all() for p in agent.actor.mlp.parameters())


def test_bounds_of_the_spread():
    """exp(log_std) neither overflows nor vanishes, and between the bounds nothing is changed."""
    agent, features = make_agent(SAC, hidden_layers=0), torch.zeros(4, SPEC.state_dim)
    for output, expected in ((50.0, 2), (1.0, 1), (-10.0, -10), (-50.0, -20)):
        with torch.no_grad():
            agent.actor.mlp.biases[0][..., SPEC.action_dim:] = output
        assert (agent.actor.head(features)[1] == expected).all()


def test_exploration():
    """Random actions first, then samples of the policy; its most likely action, always the same, when evaluating."""
    agent = make_agent(SAC, start_timesteps=20)
    row, hidden = np.ones((2, SPEC.state_dim + SPEC.action_dim + 1), np.float32), np.zeros((2, 0), np.float32)
    policy = agent.act(row, hidden, explore=False)[0]
    assert agent.steps == 0 and np.array_equal(policy, agent.act(row, hidden, explore=False)[0])
    mean, log_std = Plain(agent.actor).heads[0](torch.ones(2, SPEC.state_dim)).detach().chunk(2, -1)
    assert np.allclose(policy, torch.tanh(mean), atol=1e-5)
    warm_up = np.concatenate([agent.act(row, hidden)[0] for _ in range(10)])
    assert agent.steps == 20 and abs(warm_up.std() - 3 ** -0.5) < 0.15
    sampled = np.concatenate([agent.act(row, hidden)[0] for _ in range(400)]).reshape(-1, 2, 2)
    assert np.abs(sampled).max() <= 1 and sampled.dtype == np.float32
    before_tanh = np.arctanh(sampled.clip(-0.9999, 0.9999))
    assert before_tanh.mean(0) == pytest.approx(mean.numpy(), abs=0.25)
    assert before_tanh.std(0) == pytest.approx(log_std.exp().numpy(), rel=0.2)


@pytest.mark.parametrize("target_entropy, direction", [(-50.0, -1), (50.0, 1)])
def test_temperature_follows_entropy(target_entropy, direction):
    """It falls while there is more entropy than wanted, and rises while there is less."""
    agent, buffer, _ = make_off_policy(SAC, target_entropy=target_entropy)
    agent.train(buffer)
    assert agent.log_alpha.item() * direction > 0
