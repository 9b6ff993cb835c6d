"""TD3 against the paper's equations, written a second time without batches or padding; its exploration, which is DDPG's."""
import copy

import numpy as np
import pytest
import torch
from conftest import OFF_POLICY_FLAGS, SPEC, Plain, compare_updates, discount_of, make_agent, make_off_policy, start_of

import DDPG
import TD3


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
                    y = step.reward + (0 if step.terminated else discount_of(self.agent) * next_Q)
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
    noise = np.corrcoef((explored - policy).reshape(-1, 4).T)          # two environments, two entries: each has its own
    assert np.abs(noise - np.eye(4)).max() < 0.2
