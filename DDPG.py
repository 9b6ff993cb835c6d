"""DDPG: deep deterministic policy gradient, recurrent and feed-forward.

Paper: Lillicrap et al., "Continuous Control with Deep Reinforcement Learning", 2015.
Run:   python main.py --policy DDPG --env HopperBulletEnv-v0 --recurrent

Deliberate differences from the paper and its reference code:
1. Actor and critic may have a recurrent core (cores.py) that reads the history of observations and actions; without one
   this is the textbook algorithm. The action joins after the critic's core, in its head.
2. An update trains on windows of steps, (B, L), feed-forward on L = 1. `batch_size` and `replay_ratio` count steps, not
   windows, and never padding, so both kinds of update learn from the same amount of data.
3. In the actor's loss no gradient passes through the critic's core: its features depend on the past alone.
4. Gaussian exploration noise instead of Ornstein-Uhlenbeck, no batch or weight regularisation, and TD3's networks and
   hyper-parameters, so that `diff DDPG.py TD3.py` is the difference between the algorithms and nothing else.
"""
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn as nn

from cores import MemoryFlags, flag, make_core, start_hidden
from utils import MLP, adam, decay_lr, masked_mean, soft_update, target_of


@dataclass
class HyperParameters(MemoryFlags):
    num_envs: int = flag(1, "environments stepped together")
    start_timesteps: int = flag(5_000, "steps of random actions before training", low=0)
    expl_noise: float = flag(0.1, "standard deviation of the exploration noise")
    batch_size: int = flag(128, "steps trained on per update (windows are drawn until they hold as many)")
    replay_ratio: float = flag(128, "stored steps trained on per environment step: one update every batch_size / replay_ratio")
    memory_size: int = flag(1_000_000, "rows the replay buffer holds: one for each step, one more for each episode")
    lr: float = flag(6e-4, "learning rate of actor and critic")
    lr_decay: bool = flag(False, "let the learning rates fall linearly to zero over max_timesteps")
    discount: float = flag(0.98, "discount factor gamma", high=1)
    tau: float = flag(0.005, "rate at which the target networks follow", high=1)
    hidden_size: int = flag(256, "units of each hidden layer after the core")
    hidden_layers: int = flag(2, "hidden layers after the core", low=0)
    max_timesteps: int = flag(200_000, "steps in the environment, over all num_envs")


# What changes where actor or critic is recurrent
RECURRENT_DEFAULTS = dict(seq_len=32)
DISCRETE = False


class Actor(nn.Module):
    """Deterministic policy: history (B, L, row) -> action (B, L, action_dim) in [-1, 1]."""

    def __init__(self, spec, cfg):
        super().__init__()
        self.core = make_core(cfg.recurrent_actor, cfg, spec.state_dim, spec.action_dim)
        self.mlp = MLP(1, self.core.feature_size, cfg.hidden_size, cfg.hidden_layers, spec.action_dim)

    def head(self, features, real=None):
        return torch.tanh(self.mlp(features, real)[0])                 # (B, L, action_dim)

    def forward(self, history, hidden, real=None):
        features, next_hidden = self.core(history, hidden)
        return self.head(features, real), next_hidden


class Critic(nn.Module):
    """Q-value of state and action. The core reads the history only; the action joins after it."""

    def __init__(self, spec, cfg):
        super().__init__()
        self.core = make_core(cfg.recurrent_critic, cfg, spec.state_dim, spec.action_dim)
        self.mlp = MLP(1, self.core.feature_size + spec.action_dim, cfg.hidden_size, cfg.hidden_layers, 1)

    def head(self, features, action, real=None):
        return self.mlp(torch.cat([features, action], -1), real)[0]    # (B, L, 1)


class DDPG:
    def __init__(self, spec, cfg, seed=0, device="cpu"):
        self.spec, self.cfg, self.device = spec, cfg, device
        self.actor, self.critic = Actor(spec, cfg).to(device), Critic(spec, cfg).to(device)
        self.actor_target, self.critic_target = target_of(self.actor), target_of(self.critic)
        self.actor_optimizer = adam(self.actor, cfg.lr, cfg.core_lr)
        self.critic_optimizer = adam(self.critic, cfg.lr, cfg.core_lr)
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
        action, next_hidden = self.actor(history, hidden_actor)
        if self.critic_remembers:
            next_hidden = torch.cat([next_hidden, self.critic.core(history, hidden_critic)[1]], -1)
        action = action[:, 0].cpu().numpy()                                     # (N, action_dim)
        if explore and self.steps < self.cfg.start_timesteps:
            action = self.rng.uniform(-1, 1, action.shape).astype(np.float32)
        elif explore:
            noise = self.rng.normal(0, self.cfg.expl_noise, action.shape)
            action = (action + noise).clip(-1, 1).astype(np.float32)
        self.steps += explore * len(action)
        return action, next_hidden.cpu().numpy()

    def ready(self, buffer):
        """Is an update due? As many as keep `replay_ratio` steps trained on per step in the environment."""
        return (self.steps - self.cfg.start_timesteps) * self.cfg.replay_ratio - self.steps_trained >= self.cfg.batch_size

    def train(self, buffer):
        """One update."""
        cfg = self.cfg
        if cfg.lr_decay:
            decay_lr((self.actor_optimizer, self.critic_optimizer), 1 - self.steps / cfg.max_timesteps)

        # Sample windows of stored steps
        batch = buffer.sample(cfg.batch_size, cfg.seq_len, cfg.burn_in)
        B, L = batch.mask.shape[:2]
        history, mask = batch.history, batch.mask                               # (B, L + 1, row), (B, L, 1)
        real = batch.real                                                       # heads skip padding
        self.steps_trained += batch.steps

        # Burn in: start states of every network at the windows' first step
        hidden_actor, hidden_critic = start_hidden(batch, self.actor, self.critic, cfg)
        target_hidden_actor, target_hidden_critic = start_hidden(batch, self.actor_target, self.critic_target, cfg)

        with torch.no_grad():
            # Unroll the target networks once over the windows' states and their last next state
            actor_features, _ = self.actor_target.core(history, target_hidden_actor)     # (B, L + 1, features)
            critic_features, _ = self.critic_target.core(history, target_hidden_critic)

            # Select the next action according to the target policy
            next_action = self.actor_target.head(actor_features[:, 1:], real)         # (B, L, action_dim)

            # Compute the target Q value
            target_Q = self.critic_target.head(critic_features[:, 1:], next_action, real)    # (B, L, 1)
            target_Q = batch.reward + batch.not_done * cfg.discount * target_Q  # (B, L, 1)

        # Get the current Q estimates
        critic_features, _ = self.critic.core(history[:, :-1], hidden_critic)   # (B, L, features)
        current_Q = self.critic.head(critic_features, batch.action, real)       # (B, L, 1)
        assert current_Q.shape == target_Q.shape == (B, L, 1)

        # Compute the critic loss
        critic_loss = masked_mean((current_Q - target_Q).square(), mask)

        # Optimize the critic
        self.critic_optimizer.zero_grad()
        critic_loss.backward()
        self.critic_optimizer.step()
        losses = {"critic_loss": critic_loss.detach()}

        # Compute the actor loss, with the critic's features as they are now
        with torch.no_grad():
            critic_features, _ = self.critic.core(history[:, :-1], hidden_critic)
        action, _ = self.actor(history[:, :-1], hidden_actor, real)             # (B, L, action_dim)
        actor_loss = -masked_mean(self.critic.head(critic_features, action, real), mask)

        # Optimize the actor alone
        self.actor_optimizer.zero_grad()
        actor_loss.backward(inputs=list(self.actor.parameters()))
        self.actor_optimizer.step()
        losses["actor_loss"] = actor_loss.detach()

        # Let the target networks follow
        soft_update(self.critic, self.critic_target, cfg.tau)
        soft_update(self.actor, self.actor_target, cfg.tau)

        # Refresh the stored hidden states of these windows with the new weights
        self.refresh_hidden(buffer, batch, hidden_actor, hidden_critic)
        return losses

    def refresh_hidden(self, buffer, batch, hidden_actor, hidden_critic):
        """--hidden_refresh: write the windows' hidden states back, recomputed with the weights as they are now."""
        if not self.cfg.hidden_refresh:
            return
        states = [self.actor.core.states(batch.history, hidden_actor)]          # (B, L + 1, hidden_size)
        if self.critic_remembers:
            states.append(self.critic.core.states(batch.history, hidden_critic))
        buffer.write_hidden(batch, torch.cat(states, -1))

    def values(self, features, batch):
        """--staleness: the critic's values of a batch's steps, (B, L, 1), from its core's features (B, L, features)."""
        return self.critic.head(features, batch.action, batch.real)

    def state_dict(self):
        return {"actor": self.actor.state_dict(), "critic": self.critic.state_dict()}

    def load_state_dict(self, state):
        for network in (self.actor, self.actor_target):
            network.load_state_dict(state["actor"])
        for network in (self.critic, self.critic_target):
            network.load_state_dict(state["critic"])
