"""DDPG against the paper's equations, written a second time; its exploration is tested in test_TD3.py."""
import copy

import pytest
import torch
from conftest import OFF_POLICY_FLAGS, Plain, compare_updates, discount_of, make_off_policy, start_of

import DDPG


class PlainDDPG:
    """DDPG as in the paper, on a copy of an agent's weights: one window after the other, one step at a time."""

    def __init__(self, agent):
        self.agent, self.cfg = agent, agent.cfg
        self.actor, self.critic = Plain(agent.actor), Plain(agent.critic)
        self.actor_target, self.critic_target = copy.deepcopy(self.actor), copy.deepcopy(self.critic)
        self.actor_optimizer = torch.optim.Adam(self.actor.parameters(), lr=self.cfg.lr)
        self.critic_optimizer = torch.optim.Adam(self.critic.parameters(), lr=self.cfg.lr)

    def update(self, windows, noise):
        """windows: (steps before, steps) each; DDPG uses no noise."""
        cfg = self.cfg
        starts, errors = [], []
        for past, steps in windows:
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
                    next_action = torch.tanh(self.actor_target.heads[0](next_actor[t]))
                    next_Q = self.critic_target.heads[0](torch.cat([next_critic[t], next_action], -1)).item()
                    y = step.reward + (0 if step.terminated else discount_of(self.agent) * next_Q)
                errors.append((y - self.critic.heads[0](torch.cat([features[t], torch.as_tensor(step.action)[None]], -1))) ** 2)
        critic_loss = sum(errors) / len(errors)
        self.critic_optimizer.zero_grad()
        critic_loss.backward()
        self.critic_optimizer.step()

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
def test_feed_forward_is_plain_ddpg(float64, monkeypatch, hidden_layers):
    """At L = 1 the textbook algorithm, over six updates."""
    agent, buffer, game = make_off_policy(DDPG, hidden_layers=hidden_layers, tau=0.1)
    assert compare_updates(agent, PlainDDPG(agent), buffer, game, 6, 1e-6, monkeypatch) == 6


@pytest.mark.parametrize("flags", OFF_POLICY_FLAGS, ids=lambda flags: "-".join(str(v) for v in flags.values()))
def test_recurrent_is_plain_ddpg_window_by_window(float64, monkeypatch, flags):
    """Windows with padding, burn-in and every kind of start state, targets over L + 1: no difference to single steps."""
    agent, buffer, game = make_off_policy(DDPG, tau=0.1, **flags)
    assert compare_updates(agent, PlainDDPG(agent), buffer, game, 4, 1e-6, monkeypatch) == 4
