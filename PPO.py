"""PPO: proximal policy optimisation with a clipped objective, recurrent and feed-forward.

Paper: Schulman et al., "Proximal Policy Optimization Algorithms", 2017; advantages: Schulman et al., "High-Dimensional
       Continuous Control Using Generalized Advantage Estimation" (GAE), 2015.
Run:   python main.py --policy PPO --env HopperBulletEnv-v0 --recurrent

Deliberate differences from the paper and common implementations:
1. Actor and critic are separate networks; each may have a recurrent core (cores.py) that reads the history of observations
   and actions. Without one this is the textbook algorithm.
2. The rollout is cut into windows of seq_len steps; minibatches shuffle windows, never the steps of one. What --burn_in reads
   may lie before the rollout where windows start from zero. From stored states a rollout's first window starts from the state as
   it was acted from, not burned in: the ratio has to begin at 1.
3. A time limit is no termination: values are bootstrapped from the true last observation. Many implementations do not.
4. The critic predicts returns divided by a running scale, so that one learning rate suits returns of 1 and of 1000.
5. No value clipping; the spread of the Gaussian policy does not depend on the state; both as in the paper.
"""
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn as nn
from torch.distributions import Independent, Normal, OneHotCategorical

from cores import MemoryFlags, flag, make_core, start_hidden, window_start
from utils import MLP, adam, decay_lr, masked_mean


@dataclass
class HyperParameters(MemoryFlags):
    num_envs: int = flag(8, "environments stepped together, each a stream of the rollout")
    rollout_steps: int = flag(256, "steps per environment between updates")
    epochs: int = flag(10, "passes over each rollout")
    batch_size: int = flag(256, "steps per minibatch")
    lr: float = flag(3e-4, "learning rate of actor and critic")
    lr_decay: bool = flag(True, "let the learning rates fall linearly to zero over max_timesteps")
    discount: float = flag(0.99, "discount factor gamma", high=1)
    gae_lambda: float = flag(0.95, "lambda of generalised advantage estimation", high=1)
    clip: float = flag(0.2, "bound of the probability ratio's distance from 1")
    entropy_coef: float = flag(0.0, "weight of the entropy bonus")
    max_grad_norm: float = flag(0.5, "bound of each network's gradient norm")
    init_log_std: float = flag(-0.5, "initial log standard deviation of the Gaussian policy", low=-10)
    hidden_size: int = flag(256, "units of each hidden layer after the core")
    hidden_layers: int = flag(2, "hidden layers after the core", low=0)
    max_timesteps: int = flag(1_000_000, "steps in the environment, over all num_envs")


# What changes where actor or critic is recurrent
RECURRENT_DEFAULTS = dict(seq_len=32, hidden_init="stored")
DISCRETE = True
UNUSED = {"stored_precision": "its buffer is a rollout, and old log-probabilities must be those of the states acted from"}


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


class PPO:
    def __init__(self, spec, cfg, seed=0, device="cpu"):
        self.spec, self.cfg, self.device = spec, cfg, device
        self.actor, self.critic = Actor(spec, cfg).to(device), Critic(spec, cfg).to(device)
        self.actor_optimizer = adam(self.actor, cfg.lr, cfg.core_lr)
        self.critic_optimizer = adam(self.critic, cfg.lr, cfg.core_lr)
        # The critic's memory is advanced while acting only if windows start from it. The actor's is always stored: the
        # old log-probabilities are those of the actor that acted
        self.critic_remembers = cfg.hidden_init == "stored" and cfg.critic_hidden == "own"
        self.hidden_size = self.actor.core.hidden_size + self.critic_remembers * self.critic.core.hidden_size
        self.stored_hidden_size = self.hidden_size
        self.rng = np.random.default_rng(seed)
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
        """One update: several epochs over the rollout, which is then forgotten."""
        cfg = self.cfg
        if cfg.lr_decay:
            decay_lr((self.actor_optimizer, self.critic_optimizer), 1 - self.steps / cfg.max_timesteps)

        # Cut the rollout into windows, in order of time
        rollout = buffer.windows(cfg.seq_len, cfg.burn_in)
        B, L = rollout.mask.shape[:2]
        mask = rollout.mask                                                     # (B, L, 1)

        with torch.no_grad():
            # Old log-probabilities: of the actor that acted, from the states it acted from
            acted_from = buffer.hidden[rollout.index[:, 0], :self.actor.core.hidden_size].to(self.device)
            old_policy, _ = self.actor(rollout.history[:, :-1], acted_from)
            old_log_prob = old_policy.log_prob(rollout.action)[..., None]       # (B, L, 1)

            # Values of the windows' states and of their last next state, in one unroll
            _, start_critic = window_start(rollout, self.actor, self.critic, cfg)
            hidden_critic = self.critic.core.burn_in(rollout.past, rollout.past_length, start_critic)
            value = self.critic(rollout.history, hidden_critic)[0] * self.return_scale     # (B, L + 1, 1)

        # Advantages and returns, step by step in order of time over all windows
        def flat(x):
            return x[mask].cpu().numpy().astype(np.float64)
        flat_value = flat(value[:, :-1])                                        # (steps,)
        flat_advantage = gae(flat(rollout.reward), flat_value, flat(value[:, 1:]), flat(rollout.not_done),
                             flat(rollout.end), cfg.discount, cfg.gae_lambda)
        flat_return = flat_advantage + flat_value
        self.return_scale += 0.1 * (np.sqrt(np.mean(flat_return ** 2)) + 1e-6 - self.return_scale)
        flat_advantage = (flat_advantage - flat_advantage.mean()) / (flat_advantage.std() + 1e-8)
        advantage, target_value = torch.zeros_like(rollout.reward), torch.zeros_like(rollout.reward)    # (B, L, 1)
        advantage[mask] = torch.as_tensor(flat_advantage).to(advantage)
        target_value[mask] = torch.as_tensor(flat_return / self.return_scale).to(target_value)

        critic_losses, actor_losses = [], []
        minibatches = min(B, max(1, rollout.steps // cfg.batch_size))
        for _ in range(cfg.epochs):
            for windows in np.array_split(self.rng.permutation(B), minibatches):
                # Sample windows of the rollout
                windows = torch.as_tensor(windows, device=self.device)
                batch = rollout.select(windows)
                L = batch.mask.shape[1]
                history, mask, real = batch.history[:, :-1], batch.mask, batch.real     # heads skip padding

                # Burn in: start states of both networks at the windows' first step
                hidden_actor, hidden_critic = start_hidden(batch, self.actor, self.critic, cfg)

                # Compute the critic loss
                current_value, _ = self.critic(history, hidden_critic, real)    # (b, L, 1)
                assert current_value.shape == target_value[windows, :L].shape
                critic_loss = masked_mean((current_value - target_value[windows, :L]).square(), mask)

                # Optimize the critic
                self.optimize(self.critic_optimizer, self.critic, critic_loss)

                # Compute the actor loss: PPO paper, equation 7
                policy, _ = self.actor(history, hidden_actor, real)
                log_prob = policy.log_prob(batch.action)[..., None]             # (b, L, 1)
                # In padding the ratio is 1: it could overflow there, and 0 * inf is a NaN in the gradient, mask or not
                ratio = torch.where(mask, log_prob - old_log_prob[windows, :L], 0).exp()
                assert ratio.shape == advantage[windows, :L].shape
                gain = torch.min(ratio * advantage[windows, :L],
                                 ratio.clamp(1 - cfg.clip, 1 + cfg.clip) * advantage[windows, :L])
                entropy = policy.entropy()[..., None].expand_as(gain)           # (b, L, 1)
                actor_loss = -masked_mean(gain + cfg.entropy_coef * entropy, mask)

                # Optimize the actor
                self.optimize(self.actor_optimizer, self.actor, actor_loss)
                critic_losses.append(critic_loss.detach())
                actor_losses.append(actor_loss.detach())

            # Refresh the rollout's hidden states with the new weights
            if cfg.hidden_refresh:
                self.refresh_hidden(buffer)
                rollout = buffer.windows(cfg.seq_len, cfg.burn_in)

        # On-policy: what was learned from is forgotten. Where windows start from zero, the rows to burn the next ones in stay
        buffer.clear(cfg.burn_in if cfg.hidden_init == "zero" else 0)
        return {"critic_loss": torch.stack(critic_losses).mean(), "actor_loss": torch.stack(actor_losses).mean()}

    def refresh_hidden(self, buffer):
        """Write hidden states back, recomputed with the weights as they are now from where each episode entered the rollout."""
        episodes = buffer.windows("full")
        hidden_actor, hidden_critic = episodes.hidden.tensor_split([self.actor.core.hidden_size], -1)
        states = [self.actor.core.states(episodes.history, hidden_actor)]       # (episodes, L + 1, hidden_size)
        if self.critic_remembers:
            states.append(self.critic.core.states(episodes.history, hidden_critic))
        buffer.write_hidden(episodes, torch.cat(states, -1))

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
