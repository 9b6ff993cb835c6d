"""PPO: proximal policy optimisation with a clipped objective, recurrent and feed-forward.

Paper: Schulman et al., "Proximal Policy Optimization Algorithms", 2017.
GAE:   Schulman et al., "High-Dimensional Continuous Control Using Generalized Advantage Estimation", 2015.
Run:   python main.py --policy PPO --env HopperBulletEnv-v0 --recurrent

Deliberate differences from the paper and common implementations:
1. Actor and critic are separate networks; each may have a recurrent core (cores.py) that reads the history of observations
   and actions (as sampled: the environment clips them to [-1, 1] later). Heads read its output beside the current observation.
   Without a core this is the textbook algorithm.
2. The rollout is cut into windows of seq_len steps. A minibatch is a random set of windows, whose steps keep their order.
   Feed-forward, a window is one step. With --hidden_init stored, windows start from the memory that was acted from, so that the
   probability ratio begins at 1. With zero it may not, since the old log-probabilities are those of the memory that acted.
3. A time limit is no termination: values are bootstrapped from the true last observation. Many implementations do not.
4. The critic predicts returns divided by a running scale, so that one learning rate suits returns of 1 and of 1000.
5. Networks are ReLUs of 256 units (paper: tanh, 64), the policy's last layer begins near zero, minibatches have 256 steps
   (paper: 64), and the learning rates fall to zero (paper: only on Atari).
6. Advantages are normalised over the whole rollout (many implementations: over each minibatch), and each network's gradient is
   clipped. The paper has neither.
7. The critic's loss is not clipped, nor is the paper's. Observations are not normalised, weights begin uniform, and Adam's
   epsilon is 1e-8. Many implementations clip, normalise, begin orthogonal and use 1e-5.
"""
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn as nn

from agent import Agent, MemoryFlags, flag
from cores import make_core
from networks import MLP, adam, begin_near_zero, distribution, gae, optimize, to_array


@dataclass
class HyperParameters(MemoryFlags):
    # Rollouts
    num_envs: int = flag(8, "environments stepped together, each a stream of the rollout")
    rollout_steps: int = flag(256, "steps per environment between updates")
    epochs: int = flag(10, "passes over each rollout")
    batch_size: int = flag(256, "steps per minibatch, about: whole windows are dealt out evenly")
    # Learning
    lr: float = flag(3e-4, "learning rate of actor and critic")
    lr_decay: bool = flag(True, "the learning rates fall linearly to zero")
    discount: float = flag(0.99, "discount factor gamma", high=1)
    gae_lambda: float = flag(0.95, "lambda of generalised advantage estimation", high=1)
    clip: float = flag(0.2, "bound of the probability ratio's distance from 1")
    entropy_coef: float = flag(0.0, "weight of the entropy bonus")
    max_grad_norm: float = flag(0.5, "bound of each network's gradient norm")
    # Exploration: a standard deviation of 0.6 at the start, of actions in [-1, 1]
    init_log_std: float = flag(-0.5, "initial log standard deviation of the Gaussian policy", low=-10)
    # Networks, and the length of the run
    hidden_size: int = flag(256, "units of each hidden layer after the core")
    hidden_layers: int = flag(2, "hidden layers after the core", low=0)
    max_timesteps: int = flag(1_000_000, "steps in the environment, over all num_envs")
    # What --recurrent changes
    recurrent_defaults = dict(seq_len=32, hidden_init="stored")
    # Flags of memory that are refused, and why
    unused = {"stored_precision": "its buffer is a rollout, and rounded states would change the old log-probabilities"}


class Actor(nn.Module):
    """Stochastic policy. Its core reads the history, its head the core's features."""

    def __init__(self, spec, cfg):
        super().__init__()
        self.core = make_core(cfg.recurrent_actor, cfg, spec)
        self.mlp = MLP(1, self.core.feature_size, cfg.hidden_size, cfg.hidden_layers, spec.action_dim)
        begin_near_zero(self.mlp)
        self.log_std = None if spec.discrete else nn.Parameter(torch.full((spec.action_dim,), cfg.init_log_std))

    def head(self, features):
        return distribution(self.mlp(features)[0], self.log_std)                # over actions (N, action_dim)


class Critic(nn.Module):
    """Value of a state, divided by the running scale of returns."""

    def __init__(self, spec, cfg):
        super().__init__()
        self.core = make_core(cfg.recurrent_critic, cfg, spec)
        self.mlp = MLP(1, self.core.feature_size, cfg.hidden_size, cfg.hidden_layers, 1)

    def head(self, features):
        return self.mlp(features)[0]                                            # (N, 1)


class PPO(Agent):
    HyperParameters = HyperParameters
    discrete = True
    numbers = ("return_scale",)

    def __init__(self, spec, cfg, seed=0, device="cpu"):
        super().__init__(spec, cfg, seed, device, Actor(spec, cfg), Critic(spec, cfg))
        self.actor_optimizer = adam(self.actor, cfg.lr, cfg.core_lr)
        self.critic_optimizer = adam(self.critic, cfg.lr, cfg.core_lr)

    @property
    def stored_hidden_dim(self):
        """Stored even with --hidden_init zero: old log-probabilities are computed from the memory that was acted from."""
        return self.hidden_dim

    def choose(self, features, explore):
        policy = self.actor.head(features)
        # (N, action_dim). It is not clipped here, since log_prob must be of what was sampled. The environment clips it
        return (policy.sample() if explore else policy.mode).cpu().numpy()

    def values(self, features, batch):
        return self.critic.head(features)                                       # (N, 1)

    def ready(self, buffer):
        """Is an update due? After a rollout."""
        return len(buffer) >= self.cfg.rollout_steps * self.cfg.num_envs

    def buffer_size(self):
        """Rows of the buffer: a step takes at most two. The newest stays for the next rollout, and --burn_in rows may, too."""
        return (2 * (self.cfg.rollout_steps + 1) + self.cfg.burn_in) * self.cfg.num_envs

    def train(self, buffer):
        """One update: several epochs over the rollout, which is then forgotten."""
        cfg = self.cfg

        # Cut the rollout into windows, in order of time
        rollout = buffer.windows(cfg.seq_len, cfg.burn_in)
        history = rollout.history                                               # (B, L + 1, row)

        with torch.no_grad():
            # Compute the old log-probabilities. The weights are still those that acted, so one pass here does, and none is stored
            # at every step. The memory must be the one that acted, too: that stored at each window's first row. With --burn_in,
            # rollout.hidden is an earlier one
            acted_from, _ = self.split(buffer.hidden[rollout.index[:, 0]].to(self.device))
            actor_features, _ = self.actor.core(history[:, :-1], acted_from)    # (B, L, features)
            old_log_prob = self.actor.head(rollout.pick(actor_features)).log_prob(rollout.action)[:, None]      # (N, 1)

            # Unroll the critic over all L + 1 rows: rows 0 to L - 1 are the steps' states, rows 1 to L their next states
            hidden_critic = self.start_hidden(rollout, self.critic)             # (B, core's hidden_dim)
            critic_features, _ = self.critic.core(history, hidden_critic)       # (B, L + 1, features)
            value = self.critic.head(rollout.pick(critic_features[:, :-1])) * self.return_scale         # (N, 1)
            next_value = self.critic.head(rollout.pick(critic_features[:, 1:])) * self.return_scale     # (N, 1)

        # Compute advantages and returns. Steps lie in order of time, one environment after the other
        advantage = gae(*to_array(rollout.reward, value, next_value, rollout.not_done, rollout.end),
                        cfg.discount, cfg.gae_lambda)
        returns = advantage + to_array(value)[0]                                # (N,)

        # Move return_scale, a running root mean square of the returns, by a tenth (1e-6 keeps it above zero). The critic learns
        # its values in this unit, and follows when it moves
        self.return_scale += 0.1 * (np.sqrt(np.mean(returns ** 2)) + 1e-6 - self.return_scale)

        # Normalise the advantages over the whole rollout
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        advantage, target_value = (torch.as_tensor(x).to(value)[:, None] for x in (advantage, returns / self.return_scale))

        critic_losses, actor_losses = [], []
        B = len(history)
        minibatches = min(B, max(1, rollout.steps // cfg.batch_size))           # none is empty
        for _ in range(cfg.epochs):
            for windows in np.array_split(self.rng.permutation(B), minibatches):
                # Take a random part of the windows, whole, so that a core reads steps in order. `chosen` (n,): its steps among N
                batch, chosen = rollout.select(torch.as_tensor(windows, device=self.device))
                history = batch.history                                         # (b, L + 1, row)

                # Each network's memory at the windows' first step. With --burn_in the network first reads the steps before it
                hidden_actor = self.start_hidden(batch, self.actor)             # (b, core's hidden_dim)
                hidden_critic = self.start_hidden(batch, self.critic)

                # Get the current values
                critic_features, _ = self.critic.core(history[:, :-1], hidden_critic)   # (b, L, features)
                current_value = self.critic.head(batch.pick(critic_features))   # (n, 1)
                assert current_value.shape == target_value[chosen].shape

                # Compute the critic loss
                critic_loss = (current_value - target_value[chosen]).square().mean()

                # Optimize the critic
                optimize(self.critic_optimizer, critic_loss, cfg.max_grad_norm)

                # Compute the actor loss: the clipped objective (equation 7), and a bonus for entropy
                actor_features, _ = self.actor.core(history[:, :-1], hidden_actor)      # (b, L, features)
                policy = self.actor.head(batch.pick(actor_features))
                log_prob = policy.log_prob(batch.action)[:, None]               # (n, 1)
                ratio = (log_prob - old_log_prob[chosen]).exp()                 # (n, 1)
                A = advantage[chosen]
                assert ratio.shape == A.shape
                surrogate = torch.min(ratio * A, ratio.clamp(1 - cfg.clip, 1 + cfg.clip) * A)
                actor_loss = -surrogate.mean() - cfg.entropy_coef * policy.entropy().mean()

                # Optimize the actor
                optimize(self.actor_optimizer, actor_loss, cfg.max_grad_norm)
                critic_losses.append(critic_loss.detach())
                actor_losses.append(actor_loss.detach())

            # With --hidden_refresh: unroll each episode from its first row in the rollout, and store its hidden states anew. The
            # windows are cut as before, so advantages and old log-probabilities still belong to them
            if cfg.hidden_refresh:
                self.refresh_hidden(buffer, buffer.windows("full"))
                rollout = buffer.windows(cfg.seq_len, cfg.burn_in)

        # Forget the rollout: a new policy needs new steps. With --hidden_init zero the last rows stay, to burn in the next one
        buffer.clear(cfg.burn_in if cfg.hidden_init == "zero" else 0)
        return {"critic_loss": torch.stack(critic_losses).mean(), "actor_loss": torch.stack(actor_losses).mean()}
