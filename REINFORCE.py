"""REINFORCE: policy gradient from whole episodes, with and without a learned baseline, recurrent and feed-forward.

Paper: Williams, "Simple Statistical Gradient-Following Algorithms for Connectionist Reinforcement Learning", 1992.
Run:   python main.py --policy REINFORCE --env HopperBulletEnv-v0 --recurrent

Deliberate differences from the paper:
1. Actor and baseline are separate networks; each may have a recurrent core (cores.py) that reads the history of
   observations and actions. Recurrent, the gradient goes back to each episode's start by default (--seq_len full).
2. An action is credited with the discounted rewards that follow it, not with the whole episode's; late actions count as much as
   early ones, as nearly everywhere. There may be a bonus for entropy, and each network's gradient is clipped.
3. An update waits for whole episodes that hold `batch_size` steps together, and averages over steps, not episodes.
4. A time limit is no termination: with a baseline the return goes on with its value of the true last observation.
5. Returns are divided by a running scale, so that one learning rate suits returns of 1 and of 1000. Adam, not plain ascent.
"""
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn as nn
from torch.distributions import Independent, Normal, OneHotCategorical

from cores import MemoryFlags, flag, make_core, start_hidden
from utils import MLP, adam, decay_lr, masked_mean


@dataclass
class HyperParameters(MemoryFlags):
    batch_size: int = flag(2000, "steps per update, at least: it waits for the end of the episode in which they are reached")
    baseline: bool = flag(True, "subtract a learned value of the state from the return")
    memory_size: int = flag(100_000, "steps kept at least: the oldest of a longer batch of episodes are lost")
    lr: float = flag(1e-3, "learning rate of actor and baseline")
    lr_decay: bool = flag(True, "let the learning rates fall linearly to zero over max_timesteps")
    discount: float = flag(0.99, "discount factor gamma", high=1)
    entropy_coef: float = flag(0.0, "weight of the entropy bonus")
    max_grad_norm: float = flag(0.5, "bound of each network's gradient norm")
    init_log_std: float = flag(-0.5, "initial log standard deviation of the Gaussian policy", low=-10)
    hidden_size: int = flag(256, "units of each hidden layer after the core")
    hidden_layers: int = flag(2, "hidden layers after the core", low=0)
    max_timesteps: int = flag(1_000_000, "steps in the environment")
    num_envs = 1                                                       # no flag: episodes of one environment, end to end


# What changes where actor or critic is recurrent
RECURRENT_DEFAULTS = dict(seq_len="full")
DISCRETE = True
UNUSED = {"hidden_refresh": "episodes are forgotten after their one update, nothing is left to write states into",
          "stored_precision": "its buffer is a few episodes"}


def check(config):
    """Combinations of flags that make no sense here. Raises ValueError."""
    critic_has_memory, baseline = config["recurrent_critic"], config["baseline"]
    if critic_has_memory and not baseline:
        raise ValueError("--recurrent_critic needs the baseline; without it there is no critic: add --baseline, "
                         "or drop --recurrent_critic")
    if config["batch_size"] > config["memory_size"]:
        raise ValueError(f"--batch_size {config['batch_size']} is more than --memory_size {config['memory_size']}: "
                         "no update would come; choose a larger --memory_size")


class Actor(nn.Module):
    """Stochastic policy: history (B, L, row) -> distribution over actions (B, L, action_dim)."""

    def __init__(self, spec, cfg):
        super().__init__()
        self.core = make_core(cfg.recurrent_actor, cfg, spec.state_dim, spec.action_dim)
        self.mlp = MLP(1, self.core.feature_size, cfg.hidden_size, cfg.hidden_layers, spec.action_dim)
        with torch.no_grad():                                          # begin near the centre: all actions alike
            self.mlp.weights[-1].mul_(0.01)
            self.mlp.biases[-1].zero_()
        self.log_std = None if spec.discrete else nn.Parameter(torch.full((spec.action_dim,), cfg.init_log_std))

    def forward(self, history, hidden, real=None):
        features, next_hidden = self.core(history, hidden)
        output = self.mlp(features, real)[0]                           # (B, L, action_dim)
        if self.log_std is None:
            return OneHotCategorical(logits=output, validate_args=False), next_hidden
        return Independent(Normal(output, self.log_std.exp(), validate_args=False), 1, validate_args=False), next_hidden


class Critic(nn.Module):
    """State value, divided by the running scale of returns: history (B, L, row) -> (B, L, 1)."""

    def __init__(self, spec, cfg):
        super().__init__()
        self.core = make_core(cfg.recurrent_critic, cfg, spec.state_dim, spec.action_dim)
        self.mlp = MLP(1, self.core.feature_size, cfg.hidden_size, cfg.hidden_layers, 1)

    def forward(self, history, hidden, real=None):
        features, next_hidden = self.core(history, hidden)
        return self.mlp(features, real)[0], next_hidden


def returns_to_go(reward, end, value_after, discount):
    """Discounted rewards from each step to its episode's end, of episodes one after the other.

    Args:
        reward, end, value_after: arrays (N,). `end` is True at the last step of an episode; `value_after` is what counts
            as the return of all that would have come after it: 0 if the episode terminated
    Returns:
        returns (N,)
    """
    returns, following = np.empty(len(reward), np.float64), 0.0
    for t in reversed(range(len(reward))):
        following = reward[t] + discount * (value_after[t] if end[t] else following)
        returns[t] = following
    return returns


class REINFORCE:
    def __init__(self, spec, cfg, seed=0, device="cpu"):
        self.spec, self.cfg, self.device = spec, cfg, device
        self.actor, self.critic = Actor(spec, cfg).to(device), Critic(spec, cfg).to(device)
        self.actor_optimizer = adam(self.actor, cfg.lr, cfg.core_lr)
        self.critic_optimizer = adam(self.critic, cfg.lr, cfg.core_lr)
        # The critic's memory is advanced while acting only if windows start from it
        self.critic_remembers = cfg.hidden_init == "stored" and cfg.critic_hidden == "own"
        self.hidden_size = self.actor.core.hidden_size + self.critic_remembers * self.critic.core.hidden_size
        self.stored_hidden_size = self.hidden_size if cfg.hidden_init == "stored" else 0
        self.return_scale = 1.0
        self.steps = 0

    def buffer_size(self):
        return 2 * self.cfg.memory_size                                 # rows: at most two a step

    @torch.no_grad()
    def act(self, history, hidden, explore=True):
        """Act in N environments: history (N, row), hidden (N, hidden_size) -> action, next_hidden, as numpy arrays."""
        history = torch.as_tensor(history, device=self.device)[:, None]         # (N, 1, row)
        hidden_actor, hidden_critic = torch.as_tensor(hidden, device=self.device).tensor_split([self.actor.core.hidden_size], -1)
        policy, next_hidden = self.actor(history, hidden_actor)
        if self.critic_remembers:
            next_hidden = torch.cat([next_hidden, self.critic.core(history, hidden_critic)[1]], -1)
        action = policy.sample() if explore else policy.mode                    # (N, 1, action_dim)
        self.steps += explore * len(action)
        return action[:, 0].cpu().numpy(), next_hidden.cpu().numpy()

    def ready(self, buffer):
        """Is an update due? At an episode's end, when there are enough steps."""
        return len(buffer) >= self.cfg.batch_size and not buffer.running.any()

    def train(self, buffer):
        """One update, a single gradient step on whole episodes, which are then forgotten."""
        cfg = self.cfg
        if cfg.lr_decay:
            decay_lr((self.actor_optimizer, self.critic_optimizer), 1 - self.steps / cfg.max_timesteps)

        # Cut the episodes into windows, in order of time
        batch = buffer.windows(cfg.seq_len, cfg.burn_in)
        B, L = batch.mask.shape[:2]
        history, mask, real = batch.history, batch.mask, batch.real             # (B, L + 1, row), (B, L, 1)

        # Burn in: start states of both networks at the windows' first step
        hidden_actor, hidden_critic = start_hidden(batch, self.actor, self.critic, cfg)

        # Values of the windows' states and of their last next state, in one unroll; the gradient is for the former
        value, _ = self.critic(history, hidden_critic)                          # (B, L + 1, 1), over return_scale

        # Returns, step by step in order of time over all windows
        def flat(x):
            return x[mask].detach().cpu().numpy().astype(np.float64)
        flat_value = flat(value[:, :-1]) * self.return_scale * cfg.baseline     # (steps,)
        value_after = flat(value[:, 1:]) * self.return_scale * cfg.baseline * flat(batch.not_done)
        flat_return = returns_to_go(flat(batch.reward), flat(batch.end), value_after, cfg.discount)
        flat_advantage = flat_return - flat_value
        self.return_scale += 0.1 * (np.sqrt(np.mean(flat_return ** 2)) + 1e-6 - self.return_scale)
        advantage, target_value = torch.zeros_like(batch.reward), torch.zeros_like(batch.reward)    # (B, L, 1)
        advantage[mask] = torch.as_tensor(flat_advantage / self.return_scale).to(advantage)
        target_value[mask] = torch.as_tensor(flat_return / self.return_scale).to(target_value)

        # Compute the baseline's loss
        current_value = value[:, :-1]                                           # (B, L, 1)
        assert current_value.shape == target_value.shape == (B, L, 1)
        critic_loss = masked_mean((current_value - target_value).square(), mask)

        # Optimize the baseline
        if cfg.baseline:
            self.optimize(self.critic_optimizer, self.critic, critic_loss)

        # Compute the actor loss: policy gradient, and a bonus for entropy
        policy, _ = self.actor(history[:, :-1], hidden_actor, real)             # the head skips padding
        log_prob = policy.log_prob(batch.action)[..., None]                     # (B, L, 1)
        entropy = policy.entropy()[..., None].expand_as(log_prob)               # (B, L, 1)
        assert log_prob.shape == advantage.shape
        actor_loss = -masked_mean(log_prob * advantage + cfg.entropy_coef * entropy, mask)

        # Optimize the actor
        self.optimize(self.actor_optimizer, self.actor, actor_loss)

        # On-policy: what was learned from is forgotten
        buffer.clear()
        losses = {"critic_loss": critic_loss.detach()} if cfg.baseline else {}
        return {**losses, "actor_loss": actor_loss.detach()}

    def optimize(self, optimizer, network, loss):
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), self.cfg.max_grad_norm)
        optimizer.step()

    def values(self, features, batch):
        """--staleness: the critic's values of a batch's steps, (B, L, 1), from its core's features (B, L, features)."""
        return self.critic.mlp(features, batch.real)[0]

    def state_dict(self):
        return {"actor": self.actor.state_dict(), "critic": self.critic.state_dict(), "return_scale": float(self.return_scale)}

    def load_state_dict(self, state):
        self.actor.load_state_dict(state["actor"])
        self.critic.load_state_dict(state["critic"])
        self.return_scale = state["return_scale"]
