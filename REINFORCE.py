"""REINFORCE: policy gradient from whole episodes, with and without a learned baseline, recurrent and feed-forward.

Paper: Williams, "Simple Statistical Gradient-Following Algorithms for Connectionist Reinforcement Learning", 1992.
Run:   python main.py --policy REINFORCE --env HopperBulletEnv-v0 --recurrent

Deliberate differences from the paper:
1. Actor and critic (the baseline) are separate networks; each may have a recurrent core (cores.py) that reads the history of
   observations and actions (as sampled: the environment clips them to [-1, 1] later). Heads read its output beside the current
   observation. With --recurrent the gradient goes back to each episode's start by default (--seq_len full).
   With shorter windows and --hidden_init zero, log-probabilities are computed from another memory than the one that acted.
2. An action is credited with the discounted rewards that follow it, not with the whole episode's. The factor discount^t, by
   which late actions would count less, is left out, as nearly everywhere. There may be a bonus for entropy, and each network's
   gradient is clipped.
3. An update waits for whole episodes that hold `batch_size` steps together, and averages over steps, not episodes.
4. With a baseline a time limit is no termination: the return goes on with the value of the true last observation. Without one
   it ends there.
5. Returns are divided by a running scale, so that one learning rate suits returns of 1 and of 1000. Adam, not plain ascent,
   with learning rates that fall to zero. The spread of the Gaussian policy does not depend on the state. The policy's last
   layer begins near zero.
"""
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn as nn

from agent import Agent, MemoryFlags, flag
from cores import make_core
from networks import MLP, adam, begin_near_zero, distribution, optimize, to_array


@dataclass
class HyperParameters(MemoryFlags):
    # Episodes of an update
    batch_size: int = flag(2000, "steps per update, at least: it waits for the end of the episode in which they are reached")
    baseline: bool = flag(True, "subtract a learned value of the state from the return")
    memory_size: int = flag(100_000, "steps that the buffer holds, at least; longer episodes lose their oldest")
    # Learning
    lr: float = flag(1e-3, "learning rate of actor and baseline")
    lr_decay: bool = flag(True, "the learning rates fall linearly to zero")
    discount: float = flag(0.99, "discount factor gamma", high=1)
    entropy_coef: float = flag(0.0, "weight of the entropy bonus")
    max_grad_norm: float = flag(0.5, "bound of each network's gradient norm")
    # Exploration: a standard deviation of 0.6 at the start, of actions in [-1, 1]
    init_log_std: float = flag(-0.5, "initial log standard deviation of the Gaussian policy", low=-10)
    # Networks, and the length of the run
    hidden_size: int = flag(256, "units of each hidden layer after the core")
    hidden_layers: int = flag(2, "hidden layers after the core", low=0)
    max_timesteps: int = flag(1_000_000, "steps in the environment")
    num_envs = 1                                                       # no flag: episodes of one environment, end to end
    # What --recurrent changes
    recurrent_defaults = dict(seq_len="full")
    # Flags of memory that are refused, and why
    unused = {"hidden_refresh": "episodes are forgotten after their one update, nothing is left to write states into",
              "stored_precision": "its buffer is a few episodes"}

    @classmethod
    def check(cls, config, given):
        """As MemoryFlags.check."""
        super().check(config, given)
        critic_has_memory, baseline = config["recurrent_critic"], config["baseline"]
        if critic_has_memory and not baseline:
            raise ValueError("--recurrent_critic needs the baseline; without it there is no critic: add --baseline, "
                             "or drop --recurrent_critic")
        if config["batch_size"] > config["memory_size"]:
            raise ValueError(f"--batch_size {config['batch_size']} is more than --memory_size {config['memory_size']}: "
                             "no update would come; choose a larger --memory_size")


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


def returns_to_go(reward, end, bootstrap, discount):
    """Discounted rewards from each step to its episode's end, of episodes one after the other.

    Args:
        reward, end, bootstrap: arrays (N,). `end` is True at the last step of an episode; `bootstrap` is the value of the
            state after it, 0 if the episode terminated there
    Returns:
        returns (N,)
    """
    returns, future = np.empty(len(reward)), 0.0
    for t in reversed(range(len(reward))):
        returns[t] = future = reward[t] + discount * (bootstrap[t] if end[t] else future)
    return returns


class REINFORCE(Agent):
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
        """Is an update due? At an episode's end, when there are enough steps."""
        return len(buffer) >= self.cfg.batch_size and not buffer.running.any()

    def buffer_size(self):
        """Rows of the buffer: a step takes at most two."""
        return 2 * self.cfg.memory_size

    def train(self, buffer):
        """One update, a single gradient step on whole episodes, which are then forgotten."""
        cfg = self.cfg

        # Cut the episodes into windows, in order of time
        batch = buffer.windows(cfg.seq_len, cfg.burn_in)
        history = batch.history                                                 # (B, L + 1, row)

        # Each network's memory at the windows' first step. With --burn_in the network first reads the steps before it
        hidden_actor = self.start_hidden(batch, self.actor)                     # (B, core's hidden_dim)
        hidden_critic = self.start_hidden(batch, self.critic)

        # Unroll the critic over all L + 1 rows: rows 0 to L - 1 are the steps' states, rows 1 to L their next states
        critic_features, _ = self.critic.core(history, hidden_critic)           # (B, L + 1, features)
        current_value = self.critic.head(batch.pick(critic_features[:, :-1]))   # (N, 1), in units of return_scale
        with torch.no_grad():
            scale = self.return_scale if cfg.baseline else 0                    # without a baseline the critic is never trained
            value = current_value * scale
            next_value = self.critic.head(batch.pick(critic_features[:, 1:])) * scale   # (N, 1)

        # Compute returns and advantages. Steps lie in order of time, one environment after the other
        returns = returns_to_go(*to_array(batch.reward, batch.end, next_value * batch.not_done), cfg.discount)     # (N,)
        advantage = returns - to_array(value)[0]

        # Move return_scale, a running root mean square of the returns (1e-6 keeps it above zero), and divide both by it. The
        # critic, whose values are in this unit, follows
        self.return_scale += 0.1 * (np.sqrt(np.mean(returns ** 2)) + 1e-6 - self.return_scale)
        advantage, target_value = (torch.as_tensor(x / self.return_scale).to(value)[:, None] for x in (advantage, returns))

        # Compute the critic loss
        assert current_value.shape == target_value.shape
        critic_loss = (current_value - target_value).square().mean()

        # Optimize the critic
        if cfg.baseline:
            optimize(self.critic_optimizer, critic_loss, cfg.max_grad_norm)

        # Compute the actor loss: the policy gradient, and a bonus for entropy
        actor_features, _ = self.actor.core(history[:, :-1], hidden_actor)      # (B, L, features)
        policy = self.actor.head(batch.pick(actor_features))
        log_prob = policy.log_prob(batch.action)[:, None]                       # (N, 1)
        assert log_prob.shape == advantage.shape
        actor_loss = -(log_prob * advantage).mean() - cfg.entropy_coef * policy.entropy().mean()

        # Optimize the actor
        optimize(self.actor_optimizer, actor_loss, cfg.max_grad_norm)

        # Forget the episodes: on-policy learning uses them once
        buffer.clear()
        losses = {"critic_loss": critic_loss.detach()} if cfg.baseline else {}
        return {**losses, "actor_loss": actor_loss.detach()}
