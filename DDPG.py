"""DDPG: deep deterministic policy gradient, recurrent and feed-forward.

Paper: Lillicrap et al., "Continuous Control with Deep Reinforcement Learning", 2015.
Run:   python main.py --policy DDPG --env HopperBulletEnv-v0 --recurrent

Deliberate differences from the paper and its reference code:
1. Actor and critic may have a recurrent core (cores.py) that reads the history of observations and actions. Heads read its
   output beside the current observation. Without a core the update is the textbook's.
   The action joins after the critic's core, in its head.
2. An update trains on windows: up to `seq_len` steps of one episode, one step without a recurrent core. `batch_size` and
   `replay_ratio` count real steps, never padding: with memory and without, a run learns from as many steps.
3. The actor's loss needs no gradient through the critic's core: it has not read the action that the actor now chooses.
4. Over a run the learning rates fall to zero and the discount rises, and an average of the actor's weights is evaluated.
   `--no-lr_decay --horizon_growth 1 --average 0` turns the three off. They are in agent.py, and main.py calls them.
5. Gaussian exploration noise instead of Ornstein-Uhlenbeck, no batch normalisation, no weight decay, and TD3's networks and
   hyper-parameters, so that `diff DDPG.py TD3.py` is the difference between the algorithms and nothing else.
"""
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn as nn

from agent import Agent, MemoryFlags, flag
from cores import make_core
from networks import MLP, adam, optimize, soft_update


@dataclass
class HyperParameters(MemoryFlags):
    # Exploration
    num_envs: int = flag(1, "environments stepped together")
    start_timesteps: int = flag(5_000, "steps of random actions before training", low=0)
    expl_noise: float = flag(0.1, "standard deviation of the exploration noise")
    # Replay. One small update per step learned faster on the hopper than fewer, larger ones of the same cost in all
    batch_size: int = flag(128, "steps trained on per update, at least: whole windows are drawn until they hold as many")
    replay_ratio: float = flag(128, "steps trained on per step taken: about one update every batch_size / replay_ratio steps")
    memory_size: int = flag(1_000_000, "rows the replay buffer holds: one for each step, one more for each episode")
    # Learning, set for PyBullet's hopper. With a discount of 0.99 from the start it learns to stand still for the alive bonus.
    # With 0.98 to the end a fast hop that falls can be worth as much as a slower one that does not. So it rises to 0.995
    lr: float = flag(6e-4, "learning rate of actor and critic")
    lr_decay: bool = flag(True, "the learning rates fall linearly to zero")
    discount: float = flag(0.98, "discount factor gamma, at the start of the run", high=1)
    horizon_growth: float = flag(4, "factor by which the horizon, 1 / (1 - discount), grows over the run", low=1)
    tau: float = flag(0.005, "rate at which the targets follow", high=1)
    average: float = flag(0.02, "evaluate the mean of the actor over this latest share of updates", high=1)
    # Networks, and the length of the run
    hidden_size: int = flag(256, "units of each hidden layer after the core")
    hidden_layers: int = flag(2, "hidden layers after the core", low=0)
    max_timesteps: int = flag(300_000, "steps in the environment, over all num_envs")
    # What --recurrent changes
    recurrent_defaults = dict(seq_len=32)


class Actor(nn.Module):
    """Deterministic policy. Its core reads the history, its head the core's features."""

    def __init__(self, spec, cfg):
        super().__init__()
        self.core = make_core(cfg.recurrent_actor, cfg, spec)
        self.mlp = MLP(1, self.core.feature_size, cfg.hidden_size, cfg.hidden_layers, spec.action_dim)

    def head(self, features):
        return torch.tanh(self.mlp(features)[0])                                # (N, action_dim) in [-1, 1]


class Critic(nn.Module):
    """Q-value of state and action. The core reads the history only, the action joins after it."""

    def __init__(self, spec, cfg):
        super().__init__()
        self.core = make_core(cfg.recurrent_critic, cfg, spec)
        self.mlp = MLP(1, self.core.feature_size + spec.action_dim, cfg.hidden_size, cfg.hidden_layers, 1)

    def head(self, features, action):
        return self.mlp(torch.cat([features, action], -1))[0]                   # (N, 1)


class DDPG(Agent):
    HyperParameters = HyperParameters

    def __init__(self, spec, cfg, seed=0, device="cpu"):
        super().__init__(spec, cfg, seed, device, Actor(spec, cfg), Critic(spec, cfg))
        self.actor_target, self.critic_target = self.target_of(self.actor), self.target_of(self.critic)
        self.actor_average = self.target_of(self.actor)                         # moved by average_actor, in agent.py
        self.actor_optimizer = adam(self.actor, cfg.lr, cfg.core_lr)
        self.critic_optimizer = adam(self.critic, cfg.lr, cfg.core_lr)

    def choose(self, features, explore):
        action = self.actor.head(features).cpu().numpy()                        # (N, action_dim)
        if explore and self.steps < self.cfg.start_timesteps:
            action = self.rng.uniform(-1, 1, action.shape)
        elif explore:
            action = (action + self.rng.normal(0, self.cfg.expl_noise, action.shape)).clip(-1, 1)
        return action.astype(np.float32)

    def train(self, buffer):
        """One update."""
        cfg = self.cfg

        # Sample B windows of stored steps, N steps in all. A window of L steps is L + 1 rows: the steps' states, and the next
        # state of the last one. A row is an observation, and the action and the reward before it
        batch = self.sample(buffer)
        history = batch.history                                                 # (B, L + 1, row)

        # Each network's memory at the windows' first step. A target starts from its online network's memory. With --burn_in each
        # network first reads the steps before the window, with its own weights
        hidden_critic = self.start_hidden(batch, self.critic)                   # (B, core's hidden_dim)
        target_hidden_actor = self.start_hidden(batch, self.actor_target)
        target_hidden_critic = self.start_hidden(batch, self.critic_target)

        with torch.no_grad():
            # Unroll the targets over all L + 1 rows: to value the next state a core must have read the rows before it
            target_actor_features, _ = self.actor_target.core(history, target_hidden_actor)     # (B, L + 1, features)
            target_critic_features, _ = self.critic_target.core(history, target_hidden_critic)
            # [:, 1:] belongs to the next states. Pick the real steps, and leave the padding of short windows behind
            next_actor_features = batch.pick(target_actor_features[:, 1:])      # (N, features)
            next_critic_features = batch.pick(target_critic_features[:, 1:])

            # Select the next action by the target policy
            next_action = self.actor_target.head(next_actor_features)           # (N, action_dim)

            # Compute the target Q value
            target_Q = self.critic_target.head(next_critic_features, next_action)   # (N, 1)
            target_Q = batch.reward + batch.not_done * self.discount * target_Q     # (N, 1); the discount rises, see agent.py

        # Get the current Q estimates: [:, :-1] belongs to the states
        critic_features, _ = self.critic.core(history[:, :-1], hidden_critic)   # (B, L, features)
        current_Q = self.critic.head(batch.pick(critic_features), batch.action)     # (N, 1)
        assert current_Q.shape[-2:] == target_Q.shape

        # Compute the critic loss
        critic_loss = (current_Q - target_Q).square().mean()

        # Optimize the critic
        optimize(self.critic_optimizer, critic_loss)

        # Compute the actor loss. The critic has changed, so its features are computed again. They need no gradient: its core
        # reads the past alone, and the actor's new action does not change the past. hidden_critic is used again: burned
        # in anew, it would differ by one small step of the optimizer, and cost another pass
        with torch.no_grad():
            critic_features, _ = self.critic.core(history[:, :-1], hidden_critic)
        hidden_actor = self.start_hidden(batch, self.actor)                     # (B, core's hidden_dim)
        actor_features, _ = self.actor.core(history[:, :-1], hidden_actor)      # (B, L, features)
        action = self.actor.head(batch.pick(actor_features))                    # (N, action_dim)
        actor_loss = -self.critic.head(batch.pick(critic_features), action).mean()

        # Optimize the actor
        optimize(self.actor_optimizer, actor_loss)

        # Let the targets follow
        soft_update(self.critic, self.critic_target, cfg.tau)
        soft_update(self.actor, self.actor_target, cfg.tau)

        # With --hidden_refresh: renew the stored hidden states of these windows
        self.refresh_hidden(buffer, batch)
        return {"critic_loss": critic_loss.detach(), "actor_loss": actor_loss.detach()}
