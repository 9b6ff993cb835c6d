"""A2C: synchronous advantage actor-critic, recurrent and feed-forward.

Paper: Mnih et al., "Asynchronous Methods for Deep Reinforcement Learning", 2016 (A3C; A2C is its synchronous form).
GAE:   Schulman et al., "High-Dimensional Continuous Control Using Generalized Advantage Estimation", 2015.
Run:   python main.py --policy A2C --env HopperBulletEnv-v0 --recurrent

Deliberate differences from the paper and common implementations:
1. Actor and critic are separate networks; each may have a recurrent core (cores.py) that reads the history of observations
   and actions (as sampled: the environment clips them to [-1, 1] later). Heads read its output beside the current observation.
   Without a core this is the textbook algorithm.
2. Advantages, and with them the critic's targets, are GAE's; --gae_lambda 1 is the paper's: returns until the rollout's end,
   then the value.
3. A time limit is no termination: values are bootstrapped from the true last observation. Many implementations do not.
4. Returns, values and advantages are divided by a running scale of returns, so that one learning rate suits returns of 1 and
   of 1000.
5. The spread of the Gaussian policy does not depend on the state. The policy's last layer begins near zero.
6. Adam instead of RMSProp. The actor's and the critic's gradient are clipped separately.
7. Rollouts of 16 steps and no bonus for entropy by default, where the paper has 5 steps and a bonus.
8. With --recurrent a window is by default all that an episode has in the rollout (--seq_len full). With --hidden_init zero
   log-probabilities are computed from another memory than the one that acted.
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
    rollout_steps: int = flag(16, "steps per environment between updates")
    # Learning
    lr: float = flag(7e-4, "learning rate of actor and critic")
    lr_decay: bool = flag(True, "the learning rates fall linearly to zero")
    discount: float = flag(0.99, "discount factor gamma", high=1)
    gae_lambda: float = flag(0.9, "lambda of generalised advantage estimation", high=1)
    entropy_coef: float = flag(0.0, "weight of the entropy bonus")
    max_grad_norm: float = flag(0.5, "bound of each network's gradient norm")
    # Exploration: a standard deviation of 0.6 at the start, of actions in [-1, 1]
    init_log_std: float = flag(-0.5, "initial log standard deviation of the Gaussian policy", low=-10)
    # Networks, and the length of the run
    hidden_size: int = flag(256, "units of each hidden layer after the core")
    hidden_layers: int = flag(2, "hidden layers after the core", low=0)
    max_timesteps: int = flag(1_000_000, "steps in the environment, over all num_envs")
    # What --recurrent changes
    recurrent_defaults = dict(seq_len="full", hidden_init="stored")
    # Flags of memory that are refused, and why
    unused = {"stored_precision": "its buffer is a rollout, and lasts for one update",
              "hidden_refresh": "a rollout is forgotten after its one update, nothing is left to write states into"}


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


class A2C(Agent):
    HyperParameters = HyperParameters
    discrete = True
    numbers = ("return_scale",)

    def __init__(self, spec, cfg, seed=0, device="cpu"):
        super().__init__(spec, cfg, seed, device, Actor(spec, cfg), Critic(spec, cfg))
        self.actor_optimizer = adam(self.actor, cfg.lr, cfg.core_lr)
        self.critic_optimizer = adam(self.critic, cfg.lr, cfg.core_lr)

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
        """One update, a single gradient step on the rollout, which is then forgotten."""
        cfg = self.cfg

        # Cut the rollout into windows, in order of time
        rollout = buffer.windows(cfg.seq_len, cfg.burn_in)
        history = rollout.history                                               # (B, L + 1, row)

        # Each network's memory at the windows' first step. With --burn_in the network first reads the steps before it
        hidden_actor = self.start_hidden(rollout, self.actor)                   # (B, core's hidden_dim)
        hidden_critic = self.start_hidden(rollout, self.critic)

        # Unroll the critic over all L + 1 rows: rows 0 to L - 1 are the steps' states, rows 1 to L their next states
        critic_features, _ = self.critic.core(history, hidden_critic)           # (B, L + 1, features)
        current_value = self.critic.head(rollout.pick(critic_features[:, :-1])) # (N, 1), in units of return_scale
        with torch.no_grad():
            value = current_value * self.return_scale
            next_value = self.critic.head(rollout.pick(critic_features[:, 1:])) * self.return_scale     # (N, 1)

        # Compute advantages and returns. Steps lie in order of time, one environment after the other
        advantage = gae(*to_array(rollout.reward, value, next_value, rollout.not_done, rollout.end),
                        cfg.discount, cfg.gae_lambda)
        returns = advantage + to_array(value)[0]                                # (N,)

        # Move return_scale, a running root mean square of the returns (1e-6 keeps it above zero), and divide both by it. It moves
        # slowly, since a rollout holds few steps, and the critic, whose values are in this unit, follows
        self.return_scale += 0.01 * (np.sqrt(np.mean(returns ** 2)) + 1e-6 - self.return_scale)
        advantage, target_value = (torch.as_tensor(x / self.return_scale).to(value)[:, None] for x in (advantage, returns))

        # Compute the critic loss
        assert current_value.shape == target_value.shape
        critic_loss = (current_value - target_value).square().mean()

        # Optimize the critic
        optimize(self.critic_optimizer, critic_loss, cfg.max_grad_norm)

        # Compute the actor loss: the policy gradient, and a bonus for entropy
        actor_features, _ = self.actor.core(history[:, :-1], hidden_actor)      # (B, L, features)
        policy = self.actor.head(rollout.pick(actor_features))
        log_prob = policy.log_prob(rollout.action)[:, None]                     # (N, 1)
        assert log_prob.shape == advantage.shape
        actor_loss = -(log_prob * advantage).mean() - cfg.entropy_coef * policy.entropy().mean()

        # Optimize the actor
        optimize(self.actor_optimizer, actor_loss, cfg.max_grad_norm)

        # Forget the rollout: a new policy needs new steps. With --hidden_init zero the last rows stay, to burn in the next one
        # (with stored states a rollout needs none)
        buffer.clear(cfg.burn_in if cfg.hidden_init == "zero" else 0)
        return {"critic_loss": critic_loss.detach(), "actor_loss": actor_loss.detach()}
