"""SAC: soft actor-critic, recurrent and feed-forward.

Paper: Haarnoja et al., "Soft Actor-Critic Algorithms and Applications", 2018 (the version with a tuned temperature).
Run:   python main.py --policy SAC --env HopperBulletEnv-v0 --recurrent

Deliberate differences from the paper and its reference code:
1. Actor and critic may have a recurrent core (cores.py) that reads the history of observations and actions. Heads read its
   output beside the current observation. Without a core the update is the textbook's.
   The twin Q-heads share one critic core, and the action joins after it, in the heads.
2. An update trains on windows: up to `seq_len` steps of one episode, one step without a recurrent core. `batch_size` and
   `replay_ratio` count real steps, never padding: with memory and without, a run learns from as many steps.
3. The actor's loss needs no gradient through the critic's core: it has not read the action that the actor now chooses.
4. The temperature's loss is -log(alpha) (log_prob + target_entropy), as in the authors' code. The paper has alpha in place of
   log(alpha).
5. Over a run the learning rates fall to zero and the discount rises, and an average of the actor's weights is evaluated.
   `--no-lr_decay --horizon_growth 1 --average 0` turns the three off. They are in agent.py, and main.py calls them.
6. Set as in TD3.py: batches of 128 steps (paper: 256), a discount that rises from 0.98 to 0.995 (0.99), learning rates of 6e-4
   (3e-4), and 5,000 steps of random actions at first.

Lines marked `# TD3:` came to SAC from TD3.
"""
import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn as nn
from torch.nn.functional import softplus

from agent import Agent, MemoryFlags, flag
from cores import make_core
from networks import MLP, adam, optimize, soft_update


@dataclass
class HyperParameters(MemoryFlags):
    # Exploration
    num_envs: int = flag(1, "environments stepped together")
    start_timesteps: int = flag(5_000, "steps of random actions before training", low=0)
    # Replay. One small update per step learned faster on the hopper than fewer, larger ones of the same cost in all
    batch_size: int = flag(128, "steps trained on per update, at least: whole windows are drawn until they hold as many")
    replay_ratio: float = flag(128, "steps trained on per step taken: about one update every batch_size / replay_ratio steps")
    memory_size: int = flag(1_000_000, "rows the replay buffer holds: one for each step, one more for each episode")
    # Learning, set for PyBullet's hopper. With a discount of 0.99 from the start it learns to stand still for the alive bonus.
    # With 0.98 to the end a fast hop that falls can be worth as much as a slower one that does not. So it rises to 0.995
    lr: float = flag(6e-4, "learning rate of actor, critic and temperature")
    lr_decay: bool = flag(True, "the learning rates fall linearly to zero")
    discount: float = flag(0.98, "discount factor gamma, at the start of the run", high=1)
    horizon_growth: float = flag(4, "factor by which the horizon, 1 / (1 - discount), grows over the run", low=1)
    tau: float = flag(0.005, "rate at which the targets follow", high=1)
    average: float = flag(0.02, "evaluate the mean of the actor over this latest share of updates", high=1)
    init_alpha: float = flag(1.0, "temperature at the start: what a unit of entropy is worth, in reward", low=1e-6)
    target_entropy: float | None = flag(None, "entropy that the temperature is tuned to (default: minus the actions' dimension)",
                                        low=-1e6)
    # Networks, and the length of the run
    hidden_size: int = flag(256, "units of each hidden layer after the core")
    hidden_layers: int = flag(2, "hidden layers after the core", low=0)
    max_timesteps: int = flag(300_000, "steps in the environment, over all num_envs")
    # What --recurrent changes
    recurrent_defaults = dict(seq_len=32)


class Actor(nn.Module):
    """Stochastic policy, a Gaussian squashed by tanh. Its core reads the history, its head the core's features."""

    def __init__(self, spec, cfg):
        super().__init__()
        self.core = make_core(cfg.recurrent_actor, cfg, spec)
        self.mlp = MLP(1, self.core.feature_size, cfg.hidden_size, cfg.hidden_layers, 2 * spec.action_dim)

    def head(self, features):
        """Mean and logarithm of the standard deviation before the tanh, (N, action_dim) each."""
        mean, log_std = self.mlp(features)[0].chunk(2, -1)
        return mean, log_std.clamp(-20, 2)                                      # bounds keep exp finite, and above zero

    def sample_action(self, features):
        """An action (N, action_dim) and its log-probability (N, 1). Gradients pass through both."""
        mean, log_std = self.head(features)
        noise = torch.randn_like(mean)
        u = mean + log_std.exp() * noise                                        # (N, action_dim), before the tanh
        # Paper, equation 26: the Gaussian's log-density minus the logarithm of tanh's derivative. That is log(1 - tanh(u)^2),
        # written so that it stays finite where tanh(u) rounds to 1
        log_prob = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
        log_prob = log_prob - 2 * (math.log(2) - u - softplus(-2 * u))          # (N, action_dim)
        return torch.tanh(u), log_prob.sum(-1, keepdim=True)


class Critic(nn.Module):
    """Q-values of state and action. The core reads the history only, the action joins after it."""

    def __init__(self, spec, cfg):
        super().__init__()
        self.core = make_core(cfg.recurrent_critic, cfg, spec)
        self.mlp = MLP(2, self.core.feature_size + spec.action_dim, cfg.hidden_size, cfg.hidden_layers, 1)  # TD3: twins

    def head(self, features, action):
        return self.mlp(torch.cat([features, action], -1))                      # (2, N, 1)  # TD3: twins


class SAC(Agent):
    HyperParameters = HyperParameters
    numbers = ("log_alpha",)

    def __init__(self, spec, cfg, seed=0, device="cpu"):
        super().__init__(spec, cfg, seed, device, Actor(spec, cfg), Critic(spec, cfg))
        self.critic_target = self.target_of(self.critic)
        self.actor_average = self.target_of(self.actor)                         # moved by average_actor, in agent.py
        self.actor_optimizer = adam(self.actor, cfg.lr, cfg.core_lr)
        self.critic_optimizer = adam(self.critic, cfg.lr, cfg.core_lr)
        self.log_alpha = nn.Parameter(torch.tensor(math.log(cfg.init_alpha), device=device))
        # initial_lr: for --lr_decay
        self.alpha_optimizer = torch.optim.Adam([{"params": [self.log_alpha], "initial_lr": cfg.lr}], cfg.lr)
        self.target_entropy = -spec.action_dim if cfg.target_entropy is None else cfg.target_entropy

    def choose(self, features, explore):
        action = self.actor.sample_action(features)[0] if explore else torch.tanh(self.actor.head(features)[0])
        action = action.cpu().numpy()                                           # (N, action_dim)
        if explore and self.steps < self.cfg.start_timesteps:
            action = self.rng.uniform(-1, 1, action.shape)
        return action.astype(np.float32)

    def train(self, buffer):
        """One update: of the critics, the actor and the temperature."""
        cfg = self.cfg
        alpha = self.log_alpha.detach().exp()

        # Sample B windows of stored steps, N steps in all. A window of L steps is L + 1 rows: the steps' states, and the next
        # state of the last one. A row is an observation, and the action and the reward before it
        batch = self.sample(buffer)
        history = batch.history                                                 # (B, L + 1, row)

        # Each network's memory at the windows' first step. A target starts from its online network's memory. With --burn_in each
        # network first reads the steps before the window, with its own weights
        hidden_actor = self.start_hidden(batch, self.actor)                     # (B, core's hidden_dim)
        hidden_critic = self.start_hidden(batch, self.critic)
        target_hidden_critic = self.start_hidden(batch, self.critic_target)

        # Unroll the actor once, for the next actions and for its own loss
        actor_features, _ = self.actor.core(history, hidden_actor)              # (B, L + 1, features)

        with torch.no_grad():
            # Unroll the target over all L + 1 rows: to value the next state a core must have read the rows before it
            target_critic_features, _ = self.critic_target.core(history, target_hidden_critic)
            # [:, 1:] belongs to the next states. Pick the real steps, and leave the padding of short windows behind
            next_actor_features = batch.pick(actor_features[:, 1:])             # (N, features)
            next_critic_features = batch.pick(target_critic_features[:, 1:])

            # Select the next action by the policy as it is now
            next_action, next_log_prob = self.actor.sample_action(next_actor_features)     # (N, action_dim), (N, 1)

            # Compute the target Q value
            target_Q = self.critic_target.head(next_critic_features, next_action)   # (2, N, 1)  # TD3: twins
            target_Q = target_Q.min(0).values                                   # TD3: the smaller of the twins
            target_Q = target_Q - alpha * next_log_prob                         # plus the worth of the next action's entropy
            target_Q = batch.reward + batch.not_done * self.discount * target_Q     # (N, 1); the discount rises, see agent.py

        # Get the current Q estimates: [:, :-1] belongs to the states
        critic_features, _ = self.critic.core(history[:, :-1], hidden_critic)   # (B, L, features)
        current_Q = self.critic.head(batch.pick(critic_features), batch.action)     # (2, N, 1)  # TD3: twins
        assert current_Q.shape[-2:] == target_Q.shape

        # Compute the critic loss
        critic_loss = (current_Q - target_Q).square().sum(0).mean()             # TD3: sum over the twins

        # Optimize the critic
        optimize(self.critic_optimizer, critic_loss)

        # Compute the actor loss. The critic has changed, so its features are computed again. They need no gradient: its core
        # reads the past alone, and the actor's new action does not change the past. hidden_critic is used again: burned
        # in anew, it would differ by one small step of the optimizer, and cost another pass
        with torch.no_grad():
            critic_features, _ = self.critic.core(history[:, :-1], hidden_critic)
        action, log_prob = self.actor.sample_action(batch.pick(actor_features[:, :-1]))    # (N, action_dim), (N, 1)
        Q = self.critic.head(batch.pick(critic_features), action).min(0).values     # (N, 1)
        actor_loss = (alpha * log_prob - Q).mean()

        # Optimize the actor
        optimize(self.actor_optimizer, actor_loss)

        # Optimize the temperature: it rises while the policy's entropy, -log_prob, is below target_entropy, and else falls
        alpha_loss = -self.log_alpha * (log_prob.detach().mean() + self.target_entropy)
        optimize(self.alpha_optimizer, alpha_loss)

        # Let the target follow
        soft_update(self.critic, self.critic_target, cfg.tau)

        # With --hidden_refresh: renew the stored hidden states of these windows
        self.refresh_hidden(buffer, batch)
        return {"critic_loss": critic_loss.detach(), "actor_loss": actor_loss.detach(), "alpha": alpha}
