"""SAC: soft actor-critic, recurrent and feed-forward.

Paper: Haarnoja et al., "Soft Actor-Critic Algorithms and Applications", 2018 (the version with a tuned temperature).
Run:   python main.py --policy SAC --env HopperBulletEnv-v0 --recurrent

Deliberate differences from the paper and its reference code:
1. Actor and critic may have a recurrent core (cores.py) that reads the history of observations and actions; without one
   this is the textbook algorithm. The twin Q-heads share one critic core, and the action joins after it, in the heads.
2. An update trains on windows of steps, (B, L), feed-forward on L = 1. `batch_size` and `replay_ratio` count steps, not
   windows, and never padding, so both kinds of update learn from the same amount of data.
3. In the actor's loss no gradient passes through the critic's core: its features depend on the past alone.
4. The temperature's logarithm is tuned, as the authors' code does, not the temperature itself.
5. Discount, learning rates and warm-up are TD3's here, see HyperParameters.
"""
import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn as nn
from torch.nn.functional import softplus

from cores import MemoryFlags, flag, make_core, start_hidden, window_start
from utils import MLP, adam, decay_lr, masked_mean, soft_update, target_of


@dataclass
class HyperParameters(MemoryFlags):
    num_envs: int = flag(1, "environments stepped together")
    start_timesteps: int = flag(5_000, "steps of random actions before training", low=0)
    batch_size: int = flag(128, "steps trained on per update (windows are drawn until they hold as many)")
    replay_ratio: float = flag(128, "stored steps trained on per environment step: one update every batch_size / replay_ratio")
    memory_size: int = flag(1_000_000, "rows the replay buffer holds: one for each step, one more for each episode")
    lr: float = flag(6e-4, "learning rate of actor, critic and temperature")
    lr_decay: bool = flag(False, "let the learning rates fall linearly to zero over max_timesteps")
    discount: float = flag(0.98, "discount factor gamma", high=1)
    tau: float = flag(0.005, "rate at which the target network follows", high=1)
    init_alpha: float = flag(1.0, "temperature at the start: what a unit of entropy is worth, in reward", low=1e-6)
    target_entropy: float | None = flag(None, "entropy that the temperature is tuned to (default: minus the actions' dimension)",
                                        low=-1e6)
    hidden_size: int = flag(256, "units of each hidden layer after the core")
    hidden_layers: int = flag(2, "hidden layers after the core", low=0)
    max_timesteps: int = flag(300_000, "steps in the environment, over all num_envs")


# What changes where actor or critic is recurrent
RECURRENT_DEFAULTS = dict(seq_len=32)
DISCRETE = False


class Actor(nn.Module):
    """Stochastic policy, a Gaussian squashed by tanh: history (B, L, row) -> action (B, L, action_dim) in [-1, 1]."""

    def __init__(self, spec, cfg):
        super().__init__()
        self.core = make_core(cfg.recurrent_actor, cfg, spec.state_dim, spec.action_dim)
        self.mlp = MLP(1, self.core.feature_size, cfg.hidden_size, cfg.hidden_layers, 2 * spec.action_dim)

    def head(self, features, real=None):
        """Mean and logarithm of the standard deviation before the tanh, (B, L, action_dim) each."""
        mean, log_std = self.mlp(features, real)[0].chunk(2, -1)
        return mean, log_std.clamp(-20, 2)

    def sample(self, features, real=None):
        """An action (B, L, action_dim) and its log-probability (B, L, 1). Gradients pass through both."""
        mean, log_std = self.head(features, real)
        noise = torch.randn_like(mean)
        before_tanh = mean + log_std.exp() * noise
        # Paper, equation 26: the Gaussian's density, less what tanh does to a volume: log(1 - tanh(u)^2), written such
        # that it does not overflow
        log_prob = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
        log_prob = log_prob - 2 * (math.log(2) - before_tanh - softplus(-2 * before_tanh))
        return torch.tanh(before_tanh), log_prob.sum(-1, keepdim=True)


class Critic(nn.Module):
    """Q-values of state and action. The core reads the history only; the action joins after it."""

    def __init__(self, spec, cfg):
        super().__init__()
        self.core = make_core(cfg.recurrent_critic, cfg, spec.state_dim, spec.action_dim)
        self.mlp = MLP(2, self.core.feature_size + spec.action_dim, cfg.hidden_size, cfg.hidden_layers, 1)

    def head(self, features, action, real=None):
        return self.mlp(torch.cat([features, action], -1), real)       # (2, B, L, 1)


class SAC:
    def __init__(self, spec, cfg, seed=0, device="cpu"):
        self.spec, self.cfg, self.device = spec, cfg, device
        self.actor, self.critic = Actor(spec, cfg).to(device), Critic(spec, cfg).to(device)
        self.critic_target = target_of(self.critic)
        self.log_alpha = nn.Parameter(torch.tensor(math.log(cfg.init_alpha), device=device))
        self.target_entropy = -spec.action_dim if cfg.target_entropy is None else cfg.target_entropy
        self.actor_optimizer = adam(self.actor, cfg.lr, cfg.core_lr)
        self.critic_optimizer = adam(self.critic, cfg.lr, cfg.core_lr)
        self.alpha_optimizer = torch.optim.Adam([{"params": [self.log_alpha], "initial_lr": cfg.lr}], cfg.lr)
        # The critic's memory is advanced while acting only if windows start from it
        self.critic_remembers = cfg.hidden_init == "stored" and cfg.critic_hidden == "own"
        self.hidden_size = self.actor.core.hidden_size + self.critic_remembers * self.critic.core.hidden_size
        self.stored_hidden_size = self.hidden_size if cfg.hidden_init == "stored" else 0
        self.rng = np.random.default_rng(seed)
        self.steps, self.steps_trained = 0, 0

    def buffer_size(self):
        return min(self.cfg.memory_size, 2 * self.cfg.max_timesteps)            # rows: at most two a step

    @torch.no_grad()
    def act(self, history, hidden, explore=True):
        """Act in N environments: history (N, row), hidden (N, hidden_size) -> action, next_hidden, as numpy arrays.

        The memory advances on every step, those with random actions included.
        """
        history = torch.as_tensor(history, device=self.device)[:, None]         # (N, 1, row)
        hidden_actor, hidden_critic = torch.as_tensor(hidden, device=self.device).tensor_split([self.actor.core.hidden_size], -1)
        features, next_hidden = self.actor.core(history, hidden_actor)
        action = self.actor.sample(features)[0] if explore else torch.tanh(self.actor.head(features)[0])
        if self.critic_remembers:
            next_hidden = torch.cat([next_hidden, self.critic.core(history, hidden_critic)[1]], -1)
        action = action[:, 0].cpu().numpy()                                     # (N, action_dim)
        if explore and self.steps < self.cfg.start_timesteps:
            action = self.rng.uniform(-1, 1, action.shape).astype(np.float32)
        self.steps += explore * len(action)
        return action, next_hidden.cpu().numpy()

    def ready(self, buffer):
        """Is an update due? As many as keep `replay_ratio` steps trained on per step in the environment."""
        return (self.steps - self.cfg.start_timesteps) * self.cfg.replay_ratio - self.steps_trained >= self.cfg.batch_size

    def train(self, buffer):
        """One update."""
        cfg = self.cfg
        if cfg.lr_decay:
            decay_lr((self.actor_optimizer, self.critic_optimizer, self.alpha_optimizer), 1 - self.steps / cfg.max_timesteps)
        alpha = self.log_alpha.detach().exp()

        # Sample windows of stored steps
        batch = buffer.sample(cfg.batch_size, cfg.seq_len, cfg.burn_in)
        B, L = batch.mask.shape[:2]
        history, mask = batch.history, batch.mask                               # (B, L + 1, row), (B, L, 1)
        real = batch.real                                                       # heads skip padding
        self.steps_trained += batch.steps

        # Burn in: start states of every network at the windows' first step
        hidden_actor, hidden_critic = start_hidden(batch, self.actor, self.critic, cfg)
        _, start_critic = window_start(batch, self.actor, self.critic, cfg)
        target_hidden_critic = self.critic_target.core.burn_in(batch.past, batch.past_length, start_critic)

        # Unroll the actor once over the windows' states and their last next state, for the target and for its own loss
        actor_features, _ = self.actor.core(history, hidden_actor)              # (B, L + 1, features)

        with torch.no_grad():
            # Unroll the target network over the same
            critic_features, _ = self.critic_target.core(history, target_hidden_critic)

            # Select the next action according to the policy
            next_action, next_log_prob = self.actor.sample(actor_features[:, 1:], real)

            # Compute the target Q value: the smaller of the twins, and the entropy of what comes
            target_Q = self.critic_target.head(critic_features[:, 1:], next_action, real)    # (2, B, L, 1)
            target_Q = target_Q.min(0).values - alpha * next_log_prob
            target_Q = batch.reward + batch.not_done * cfg.discount * target_Q  # (B, L, 1)

        # Get the current Q estimates
        critic_features, _ = self.critic.core(history[:, :-1], hidden_critic)   # (B, L, features)
        current_Q = self.critic.head(critic_features, batch.action, real)       # (2, B, L, 1)
        assert current_Q.shape[1:] == target_Q.shape == (B, L, 1)

        # Compute the critic loss
        critic_loss = masked_mean((current_Q - target_Q).square().sum(0), mask)

        # Optimize the critic
        self.critic_optimizer.zero_grad()
        critic_loss.backward()
        self.critic_optimizer.step()

        # Compute the actor loss, with the critic's features as they are now
        with torch.no_grad():
            critic_features, _ = self.critic.core(history[:, :-1], hidden_critic)
        action, log_prob = self.actor.sample(actor_features[:, :-1], real)     # (B, L, action_dim), (B, L, 1)
        Q = self.critic.head(critic_features, action, real).min(0).values       # (B, L, 1)
        actor_loss = masked_mean(alpha * log_prob - Q, mask)

        # Optimize the actor alone
        self.actor_optimizer.zero_grad()
        actor_loss.backward(inputs=list(self.actor.parameters()))
        self.actor_optimizer.step()

        # Optimize the temperature: entropy is worth more while there is less of it than wanted
        alpha_loss = -self.log_alpha * (masked_mean(log_prob.detach(), mask) + self.target_entropy)
        self.alpha_optimizer.zero_grad()
        alpha_loss.backward()
        self.alpha_optimizer.step()

        # Let the target network follow
        soft_update(self.critic, self.critic_target, cfg.tau)

        # Refresh the stored hidden states of these windows with the new weights
        self.refresh_hidden(buffer, batch, hidden_actor, hidden_critic)
        return {"critic_loss": critic_loss.detach(), "actor_loss": actor_loss.detach(), "alpha": alpha}

    def refresh_hidden(self, buffer, batch, hidden_actor, hidden_critic):
        """--hidden_refresh: write the windows' hidden states back, recomputed with the weights as they are now."""
        if not self.cfg.hidden_refresh:
            return
        states = [self.actor.core.states(batch.history, hidden_actor)]          # (B, L + 1, hidden_size)
        if self.critic_remembers:
            states.append(self.critic.core.states(batch.history, hidden_critic))
        buffer.write_hidden(batch, torch.cat(states, -1))

    def values(self, features, batch):
        """--staleness: the critic's values of a batch's steps, (2, B, L, 1), from its core's features (B, L, features)."""
        return self.critic.head(features, batch.action, batch.real)

    def state_dict(self):
        return {"actor": self.actor.state_dict(), "critic": self.critic.state_dict(), "log_alpha": self.log_alpha.item()}

    def load_state_dict(self, state):
        self.actor.load_state_dict(state["actor"])
        for network in (self.critic, self.critic_target):
            network.load_state_dict(state["critic"])
        with torch.no_grad():
            self.log_alpha.fill_(state["log_alpha"])
