"""A2C: synchronous advantage actor-critic, recurrent and feed-forward.

Paper: Mnih et al., "Asynchronous Methods for Deep Reinforcement Learning", 2016 (A3C; A2C is its synchronous form); advantages:
       Schulman et al., "High-Dimensional Continuous Control Using Generalized Advantage Estimation" (GAE), 2015.
Run:   python main.py --policy A2C --env HopperBulletEnv-v0 --recurrent

Deliberate differences from the paper and common implementations:
1. Actor and critic are separate networks; each may have a recurrent core (cores.py) that reads the history of observations
   and actions. Without one this is the textbook algorithm.
2. Advantages are GAE's; --gae_lambda 1 is the paper's: returns until the rollout's end, then the value.
3. A time limit is no termination: values are bootstrapped from the true last observation. Many implementations do not.
4. Both losses are in units of a running scale of returns, so that one learning rate suits returns of 1 and of 1000.
5. Adam instead of RMSProp; each network's gradient is clipped by itself; the spread of the Gaussian policy does not depend on
   the state.
6. Rollouts of 16 steps and no bonus for entropy by default, where the paper has 5 steps and a bonus, see HyperParameters.
7. Recurrent, a window is by default all that an episode has in the rollout (--seq_len full). What --burn_in reads before a
   shorter one may lie before the rollout where windows start from zero, as in PPO.py.
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
    num_envs: int = flag(8, "environments stepped together, each a stream of the rollout")
    rollout_steps: int = flag(16, "steps per environment between updates")
    lr: float = flag(7e-4, "learning rate of actor and critic")
    lr_decay: bool = flag(True, "let the learning rates fall linearly to zero over max_timesteps")
    discount: float = flag(0.99, "discount factor gamma", high=1)
    gae_lambda: float = flag(0.9, "lambda of generalised advantage estimation", high=1)
    entropy_coef: float = flag(0.0, "weight of the entropy bonus")
    max_grad_norm: float = flag(0.5, "bound of each network's gradient norm")
    init_log_std: float = flag(-0.5, "initial log standard deviation of the Gaussian policy", low=-10)
    hidden_size: int = flag(256, "units of each hidden layer after the core")
    hidden_layers: int = flag(2, "hidden layers after the core", low=0)
    max_timesteps: int = flag(1_000_000, "steps in the environment, over all num_envs")


# What changes where actor or critic is recurrent
RECURRENT_DEFAULTS = dict(seq_len="full", hidden_init="stored")
DISCRETE = True
UNUSED = {"stored_precision": "its buffer is a rollout",
          "hidden_refresh": "a rollout is forgotten after its one update, nothing is left to write states into"}


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


def gae(reward, value, next_value, not_done, end, discount, gae_lambda):
    """Generalised advantage estimation over steps in order of time; GAE paper, equation 16.

    Args:
        reward, value, next_value, not_done, end: arrays (N,). `not_done` is 0 where the episode terminated, and cuts the
            bootstrap; `end` is True at the last step of an episode or rollout, however it ended, and cuts the sum
    Returns:
        advantage (N,)
    """
    delta = (reward + discount * not_done * next_value - value).tolist()
    decay = (discount * gae_lambda * (1 - end)).tolist()
    advantage, following = np.empty(len(delta), np.float32), 0.0
    for t in reversed(range(len(delta))):
        advantage[t] = following = delta[t] + decay[t] * following
    return advantage


class A2C:
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
        # Rows: at most two a step, and a past
        return (2 * (self.cfg.rollout_steps + 1) + self.cfg.burn_in) * self.cfg.num_envs

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
        """Is an update due? After a rollout."""
        return len(buffer) >= self.cfg.rollout_steps * self.cfg.num_envs

    def train(self, buffer):
        """One update, a single gradient step on the rollout, which is then forgotten."""
        cfg = self.cfg
        if cfg.lr_decay:
            decay_lr((self.actor_optimizer, self.critic_optimizer), 1 - self.steps / cfg.max_timesteps)

        # Cut the rollout into windows, in order of time
        rollout = buffer.windows(cfg.seq_len, cfg.burn_in)
        B, L = rollout.mask.shape[:2]
        history, mask, real = rollout.history, rollout.mask, rollout.real       # (B, L + 1, row), (B, L, 1)

        # Burn in: start states of both networks at the windows' first step
        hidden_actor, hidden_critic = start_hidden(rollout, self.actor, self.critic, cfg)

        # Values of the windows' states and of their last next state, in one unroll; the gradient is for the former
        value, _ = self.critic(history, hidden_critic)                          # (B, L + 1, 1), over return_scale

        # Advantages and returns, step by step in order of time over all windows
        def flat(x):
            return x[mask].detach().cpu().numpy().astype(np.float64)
        flat_value = flat(value[:, :-1]) * self.return_scale                    # (steps,)
        flat_advantage = gae(flat(rollout.reward), flat_value, flat(value[:, 1:]) * self.return_scale, flat(rollout.not_done),
                             flat(rollout.end), cfg.discount, cfg.gae_lambda)
        flat_return = flat_advantage + flat_value
        # Slower than PPO's: it has 16 times as many rollouts, of a 16th of the steps
        self.return_scale += 0.01 * (np.sqrt(np.mean(flat_return ** 2)) + 1e-6 - self.return_scale)
        advantage, target_value = torch.zeros_like(rollout.reward), torch.zeros_like(rollout.reward)    # (B, L, 1)
        advantage[mask] = torch.as_tensor(flat_advantage / self.return_scale).to(advantage)
        target_value[mask] = torch.as_tensor(flat_return / self.return_scale).to(target_value)

        # Compute the critic loss
        current_value = value[:, :-1]                                           # (B, L, 1)
        assert current_value.shape == target_value.shape == (B, L, 1)
        critic_loss = masked_mean((current_value - target_value).square(), mask)

        # Optimize the critic
        self.optimize(self.critic_optimizer, self.critic, critic_loss)

        # Compute the actor loss: policy gradient, and a bonus for entropy
        policy, _ = self.actor(history[:, :-1], hidden_actor, real)             # the head skips padding
        log_prob = policy.log_prob(rollout.action)[..., None]                   # (B, L, 1)
        entropy = policy.entropy()[..., None].expand_as(log_prob)               # (B, L, 1)
        assert log_prob.shape == advantage.shape
        actor_loss = -masked_mean(log_prob * advantage + cfg.entropy_coef * entropy, mask)

        # Optimize the actor
        self.optimize(self.actor_optimizer, self.actor, actor_loss)

        # On-policy: what was learned from is forgotten. Where windows start from zero, the rows to burn the next ones in stay
        buffer.clear(cfg.burn_in if cfg.hidden_init == "zero" else 0)
        return {"critic_loss": critic_loss.detach(), "actor_loss": actor_loss.detach()}

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
