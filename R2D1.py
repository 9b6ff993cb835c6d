"""R2D1: deep Q-learning from prioritised sequences (R2D2 with one actor), recurrent and feed-forward, discrete actions.

Paper: Kapturowski et al., "Recurrent Experience Replay in Distributed Reinforcement Learning", 2019 (R2D2); it joins double
       Q-learning (van Hasselt et al. 2016), dueling heads (Wang et al. 2016), prioritised replay (Schaul et al. 2016) and
       rescaled values (Pohlen et al. 2018).
Run:   python main.py --policy R2D1 --env CartPole-v1 --observe positions --recurrent

With --recurrent, windows start from stored states, burned in over the 16 steps before. The core reads the previous reward, too,
and returns are five-step returns.

Deliberate differences from the paper:
1. One process acts and learns in turn. Its epsilon falls from 1 to 0.05 over 10,000 steps. The paper has 256 that act, each with
   an epsilon of its own, and they compute the first priorities. Here a new window gets the largest priority ever set, as in
   Schaul et al.
2. Windows adjoin instead of overlapping by half: each stored step lies in one at most, so that with --priority_exponent 0
   every step is trained on equally often, as everywhere in this project. A window can be drawn once it is complete or its
   episode has ended.
3. n-step returns end with the window: near its end they sum fewer rewards, and bootstrap from the state after its last step.
   Feed-forward, a window is one step, so returns are one-step ones.
4. `batch_size` and `replay_ratio` count steps, not windows, and never padding.
5. Its one network is actor and critic at once: it acts by its own Q-values. Its heads read the core's output beside the current
   observation. It has 64 units in the core and 128 after it (paper: 512).
6. Set for small tasks, see HyperParameters: windows of 32 steps after a burn-in of 16 (paper: 80 after 40), 256 steps an
   update (64 windows), far more updates for each step taken, discount 0.99 (0.997), a learning rate of 1e-3 (1e-4), Adam's
   epsilon 1e-8 (1e-3), a target network copied every 200 updates (2500).
"""
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn as nn

from agent import Agent, MemoryFlags, flag
from cores import make_core
from networks import MLP, adam, optimize, soft_update
from utils import PrioritisedBuffer


@dataclass
class HyperParameters(MemoryFlags):
    # Exploration
    num_envs: int = flag(1, "environments stepped together")
    start_timesteps: int = flag(1_000, "steps of random actions before training", low=0)
    expl_rate: float = flag(0.05, "epsilon, the probability of a random action, at the end of its decay", high=1)
    expl_timesteps: int = flag(10_000, "steps over which epsilon falls from 1 to expl_rate")
    # Replay
    batch_size: int = flag(256, "steps trained on per update, at least: whole windows are drawn until they hold as many")
    replay_ratio: float = flag(64, "steps trained on per step taken: about one update every batch_size / replay_ratio steps")
    memory_size: int = flag(1_000_000, "rows the replay buffer holds: one for each step, one more for each episode")
    # Learning
    lr: float = flag(1e-3, "learning rate")
    lr_decay: bool = flag(False, "the learning rates fall linearly to zero")
    discount: float = flag(0.99, "discount factor gamma", high=1)
    n_steps: int = flag(1, "rewards in a return before it bootstraps")
    target_freq: int = flag(200, "updates between copies to the target network")
    rescale: bool = flag(True, "learn a squashed value, h(x) = sign(x) (sqrt(|x| + 1) - 1) + 0.001 x")
    # Priorities
    priority_exponent: float = flag(0.9, "how much priorities count; 0: windows are drawn uniformly", high=1)
    priority_max: float = flag(0.9, "eta: a window's priority is eta * largest error + (1 - eta) * mean error", high=1)
    importance_exponent: float = flag(0.6, "how much of the priorities' bias is corrected in the loss", high=1)
    # Networks, and the length of the run
    hidden_size: int = flag(128, "units of each hidden layer after the core")
    hidden_layers: int = flag(2, "hidden layers after the core", low=0)
    max_timesteps: int = flag(100_000, "steps in the environment, over all num_envs")
    # What --recurrent changes
    recurrent_defaults = dict(seq_len=32, hidden_init="stored", burn_in=16, memory_input="obs_action_reward", n_steps=5)
    # Actor and critic are one network
    one_network = True
    # Flags of memory that are refused, and why
    unused = {"critic_hidden": "its one network has one memory"}

    @classmethod
    def check(cls, config, given):
        """As MemoryFlags.check."""
        super().check(config, given)
        has_memory = config["recurrent_critic"]
        if config["n_steps"] > 1 and not has_memory:
            raise ValueError(f"--n_steps {config['n_steps']}: without a memory a window is one step, so returns are one-step "
                             "ones; leave it out")
        if config["seq_len"] != "full" and config["n_steps"] > config["seq_len"]:
            raise ValueError(f"--n_steps {config['n_steps']} with --seq_len {config['seq_len']}: a window holds no such return; "
                             f"add --n_steps {config['seq_len']} or a smaller one, or choose a larger --seq_len")
        if config["test"]:                                                 # a test draws no windows
            return
        rows = config["num_envs"] * (1 + (0 if config["seq_len"] == "full" else config["seq_len"]))
        if config["memory_size"] < rows:
            raise ValueError(f"--memory_size {config['memory_size']} holds no window of --seq_len {config['seq_len']}; choose "
                             f"{rows} or more")
        for name in ("priority_max", "importance_exponent"):
            if config["priority_exponent"] == 0 and config[name] != vars(cls)[name]:
                raise ValueError(f"--{name} is of no use with --priority_exponent 0, which draws windows uniformly; leave it out")
        if config["priority_max"] != cls.priority_max and config["seq_len"] == 1:
            raise ValueError("--priority_max is of no use where a window is one step, with one error; leave it out")


class QNetwork(nn.Module):
    """Q-values of every action. Its core reads the history, its head the core's features."""

    def __init__(self, spec, cfg):
        super().__init__()
        self.core = make_core(cfg.recurrent_critic, cfg, spec)
        self.value = MLP(1, self.core.feature_size, cfg.hidden_size, cfg.hidden_layers, 1)
        self.advantage = MLP(1, self.core.feature_size, cfg.hidden_size, cfg.hidden_layers, spec.action_dim)

    def head(self, features):
        advantage = self.advantage(features)[0]                                 # (N, actions)
        # Dueling: only differences between advantages mean anything, so their mean over the actions is zero
        return self.value(features)[0] + advantage - advantage.mean(-1, keepdim=True)


def squash(x, epsilon=1e-3):
    """h(x): large values grow like their root, so that one learning rate suits returns of 1 and of 1000 (paper, section 2.3)."""
    return x.sign() * ((x.abs() + 1).sqrt() - 1) + epsilon * x


def unsquash(y, epsilon=1e-3):
    """The x whose h(x) is y."""
    root = (1 + 4 * epsilon * (y.abs() + 1 + epsilon)).sqrt()
    return y.sign() * (((root - 1) / (2 * epsilon)).square() - 1)


class R2D1(Agent):
    HyperParameters = HyperParameters
    discrete, continuous = True, False
    buffer_class = PrioritisedBuffer

    def __init__(self, spec, cfg, seed=0, device="cpu"):
        network = QNetwork(spec, cfg)
        super().__init__(spec, cfg, seed, device, network, network)
        self.critic_target = self.target_of(self.critic)
        self.optimizer = adam(self.critic, cfg.lr, cfg.core_lr)
        self.squash, self.unsquash = (squash, unsquash) if cfg.rescale else (lambda x: x, lambda y: y)
        self.updates = 0

    def choose(self, features, explore):
        cfg, actions = self.cfg, self.spec.action_dim
        choice = self.critic.head(features).argmax(-1).cpu().numpy()            # (N,)
        if explore:
            progress = min(1, max(0, self.steps - cfg.start_timesteps) / cfg.expl_timesteps)
            epsilon = 1 - progress * (1 - cfg.expl_rate)
            random = self.rng.integers(actions, size=choice.shape)
            choice = np.where(self.rng.random(choice.shape) < epsilon, random, choice)
        return np.eye(actions, dtype=np.float32)[choice]                        # (N, actions), one-hot

    def ready(self, buffer):
        """Is an update due? At the pace of `replay_ratio`, once there is a window to draw. Cuts new steps into windows first."""
        return super().ready(buffer) and buffer.cut_windows(self.cfg.seq_len) > 0

    def values(self, features, batch):
        return self.critic.head(features)                                       # (N, actions), squashed

    def in_rewards(self, values):
        return self.unsquash(values)

    def train(self, buffer):
        """One update: of the Q-network, and of the priorities of what it was trained on."""
        cfg = self.cfg
        self.updates += 1

        # Sample windows of stored steps, those with a large error more often
        batch = self.sample(buffer)
        history = batch.history                                                 # (B, L + 1, row)

        # Each network's memory at the windows' first step. A target starts from its online network's memory. With --burn_in each
        # network first reads the steps before the window, with its own weights
        hidden = self.start_hidden(batch, self.critic)                          # (B, core's hidden_dim)
        target_hidden = self.start_hidden(batch, self.critic_target)

        # Unroll the critic over all L + 1 rows, and pick the real ones, of a window of l steps l + 1: a return may need the state
        # after its last step. So B windows of N steps in all have N + B rows
        real_rows = batch.real_rows                                             # (B, L + 1)
        features, _ = self.critic.core(history, hidden)                         # (B, L + 1, features)
        Q = self.critic.head(features[real_rows])                               # (N + B, actions)

        # Where a step's state lies among these. Two windows of 3 and 2 steps: their steps are 0 1 2 | 3 4, their rows are
        # 0 1 2 3 | 4 5 6. So step i's state is in row i + window[i], and the state n steps later is n rows on
        length = batch.mask.sum(1)                                              # (B,)
        window = batch.mask.nonzero()[:, 0]                                     # (N,): whose step it is
        step = torch.arange(batch.steps, device=self.device)                    # (N,)
        row = step + window                                                     # (N,): of the step's state

        with torch.no_grad():
            # Unroll the target network over the same
            target_features, _ = self.critic_target.core(history, target_hidden)

            # Double Q: the action that the online network would choose, valued by the target network
            best_action = Q.argmax(-1, keepdim=True)                            # (N + B, 1)
            best_Q = self.critic_target.head(target_features[real_rows]).gather(-1, best_action)
            best_Q = self.unsquash(best_Q)                                      # (N + B, 1)

            # Look n steps ahead, but no further than the state after the window's last step
            remaining = length.cumsum(0)[window] - step                         # (N,): steps of the window from this one on
            n = remaining.clamp(max=cfg.n_steps)
            not_done = batch.not_done[step + n - 1]                             # only a window's last step can terminate

            # Compute the n-step return. `roll` fetches the reward k steps later. Past a window's end that is another window's,
            # but there k is at least n, and it does not count
            rewards = torch.zeros_like(batch.reward)                            # (N, 1)
            for k in range(min(cfg.n_steps, batch.mask.shape[1])):
                rewards += cfg.discount ** k * torch.where((k < n)[:, None], batch.reward.roll(-k, 0), 0)

            # Compute the target Q value
            target_Q = rewards + not_done * (cfg.discount ** n)[:, None] * best_Q[row + n]
            target_Q = self.squash(target_Q)                                    # (N, 1)

        # Get the current Q estimates
        current_Q = (Q[row] * batch.action).sum(-1, keepdim=True)               # (N, 1): the action is one-hot
        assert current_Q.shape == target_Q.shape
        td_error = target_Q - current_Q

        # Compute the critic loss. Importance weights: windows that are drawn more often count less
        weight = buffer.importance(batch, cfg.importance_exponent)[window, None]        # (N, 1)
        critic_loss = (weight * td_error.square()).mean()

        # Optimize the critic
        optimize(self.optimizer, critic_loss)

        # Renew the windows' priorities: a mix of the largest and the mean error
        abs_error = td_error.detach().abs()[:, 0]                               # (N,)
        largest = abs_error.new_zeros(len(length)).scatter_reduce(0, window, abs_error, "amax")         # (B,)
        mean = abs_error.new_zeros(len(length)).index_add(0, window, abs_error) / length
        priority = cfg.priority_max * largest + (1 - cfg.priority_max) * mean
        buffer.set_priority(batch, (priority + 1e-6) ** cfg.priority_exponent)  # none is zero: it would never be drawn again

        # Let the target follow
        if self.updates % cfg.target_freq == 0:
            soft_update(self.critic, self.critic_target, 1)                     # tau 1: a copy

        # With --hidden_refresh: renew the stored hidden states of these windows
        self.refresh_hidden(buffer, batch)
        return {"critic_loss": critic_loss.detach()}
