"""What an agent is, whatever its algorithm: its flags of memory, its interface, and the bookkeeping of memories.

An algorithm's file defines two subclasses: of MemoryFlags, with its hyper-parameters, and of Agent, with its networks and its
update. What is written here belongs to no algorithm and is the same for all.
"""
import contextlib
import math
from dataclasses import dataclass, field, fields
from typing import Literal

import numpy as np
import torch

from networks import copy_of, soft_update
from utils import Buffer


def flag(default, help, low=None, high=None, role="learning"):
    """A hyper-parameter whose command-line flag is generated: flags.py reads type, default, help and bounds from it.

    Without bounds an integer is at least 1 and a float at least 0. What the flag does to a run is its role:

        role        it changes                                  in a run's name   the same with --resume   --test
        learning    what is learned                             yes               yes                      as it was trained
        measuring   what is written about it                    no                yes                      as it was trained
        machine     what it runs on, and so the last bits       no                yes                      as it was trained
        handling    only where files go and what is kept        no                may differ               as given now
    """
    return field(default=default, metadata={"help": help, "low": low, "high": high, "role": role})


@dataclass
class MemoryFlags:
    """The flags about hidden states, the same for every algorithm. Each algorithm's HyperParameters extend them."""
    recurrent_actor: bool = flag(False, "give the actor a recurrent core (--recurrent: actor and critic)")
    recurrent_critic: bool = flag(False, "give the critic a recurrent core (--recurrent: actor and critic)")
    core: Literal["lstm", "gru", "mingru"] = flag("lstm", "which recurrent core")
    core_size: int = flag(64, "units of the recurrent core")
    memory_input: Literal["obs", "obs_action", "obs_action_reward"] = flag(
        "obs_action", "what the core reads at each step, besides the observation: previous action, previous reward")
    core_lr: float | None = flag(None, "learning rate of the recurrent cores (default: that of their network)")
    seq_len: int | Literal["full"] = flag(
        1, "steps in a training window: back-propagation goes no further; full = whole episodes, or a rollout's part of each")
    hidden_init: Literal["stored", "zero"] = flag("zero", "start state of a training window: as stored while acting, or zero")
    burn_in: int = flag(0, "unroll up to this many steps before each window, without gradient, to warm up its start state", low=0)
    hidden_refresh: bool = flag(False, "after each update (PPO: epoch) write the recomputed hidden states back into the buffer")
    stored_precision: Literal["float32", "float16"] = flag(
        "float32", "numbers that stored hidden states are kept in; float16 halves the buffer and rounds them to three digits")
    critic_hidden: Literal["own", "actor", "zero"] = flag(
        "own", "with stored states, what the critic starts from: its own memory, advanced while acting; the actor's; zero")
    recurrent_defaults = {}                 # the defaults that --recurrent changes
    one_network = False                     # True: actor and critic are one, so that both have a memory or neither
    unused = {}                             # flags of memory that the algorithm refuses: {flag: why}

    @classmethod
    def check(cls, config, given):
        """Refuse combinations of flags that make no sense.

        Args:
            config: all flags of a run, name to value; given: those that the user gave
        Raises:
            ValueError: one line that says what is wrong and what would be right
        """
        def refuse(condition, why):
            if condition:
                raise ValueError(why)
        defaults = {f.name: f.default for f in fields(MemoryFlags)}
        actor, critic = config["recurrent_actor"], config["recurrent_critic"]
        seq_len, start, envs = config["seq_len"], config["hidden_init"], config.get("num_envs", 1)
        refuse(cls.one_network and actor != critic,
               f"{config['policy']} has one network, actor and critic at once; use --recurrent, or neither")
        for name in defaults:
            refuse(name in given and not (actor or critic) and not name.startswith("recurrent_"),
                   f"--{name} needs a memory; add --recurrent, --recurrent_actor or --recurrent_critic")
        for name, why in cls.unused.items():
            refuse(config[name] != defaults[name],
                   f"--{name if config[name] is True else f'{name} {config[name]}'} is of no use to {config['policy']}: {why}")
        if "rollout_steps" in config and not config["test"]:           # a test draws no windows
            rollout, batch = config["rollout_steps"], config.get("batch_size", 0)
            refuse(seq_len != "full" and seq_len > rollout,
                   f"--seq_len {seq_len} is more than a rollout of --rollout_steps {rollout} has; choose a smaller --seq_len or "
                   "a larger --rollout_steps")
            refuse(batch > rollout * envs,
                   f"--batch_size {batch} is more than a rollout of {envs} x {rollout} steps; choose a smaller "
                   "--batch_size, or larger --rollout_steps or --num_envs")
        refuse(config["burn_in"] and seq_len == "full",
               f"--burn_in {config['burn_in']} with --seq_len full: such windows are not burned in; add --burn_in 0, or "
               "--seq_len with a number of steps")
        refuse(config["burn_in"] and start == "stored" and seq_len != "full" and seq_len >= config.get("rollout_steps", math.inf),
               f"--burn_in with --seq_len {seq_len}: a window is all of a rollout of {config.get('rollout_steps')} steps, and "
               "the stored state at its start is used as it is; choose a smaller --seq_len")
        refuse(config["critic_hidden"] != "own" and not critic,
               f"--critic_hidden {config['critic_hidden']} needs a recurrent critic; add --recurrent_critic")
        refuse(config["critic_hidden"] == "actor" and not actor,
               "--critic_hidden actor needs a recurrent actor to take it from; add --recurrent_actor")
        refuse(config["critic_hidden"] != "own" and start == "zero",
               f"--critic_hidden {config['critic_hidden']} needs --hidden_init stored; with zero every window starts from zero")
        for name in ("stored_precision", "hidden_refresh"):
            refuse(config[name] != defaults[name] and start == "zero",
                   f"--{name} needs --hidden_init stored; with zero no stored state is ever read")
        if not config["test"] and not config["record"] and "dataset" not in config:     # random actions may be worth a recording
            batch = config.get("batch_size", 0)
            # `first`: steps until the first update, see the agents' `ready`
            if "rollout_steps" in config:
                name, first = "rollout_steps", config["rollout_steps"] * envs
            elif config.get("replay_ratio"):
                name, first = "start_timesteps", config["start_timesteps"] + batch / config["replay_ratio"]
            else:
                name, first = "batch_size", batch
            decayed = config.get("lr_decay", False) and config["max_timesteps"] <= first   # an update at the last step has rate 0
            why = ", where --lr_decay has reached 0" if decayed else ""
            refuse(decayed or math.ceil(config["max_timesteps"] / envs) * envs < first,
                   f"--max_timesteps {config['max_timesteps']} trains nothing: the first update comes after {first:.0f} steps"
                   f"{why}; choose a larger --max_timesteps, or a smaller --{name}")


class Agent:
    """An agent with an actor and a critic, each with a core (cores.py). One network may be both at once.

    `hidden` is the actor's memory. Where acting advances the critic's, too, that stands beside it. Code elsewhere sees one
    vector of `hidden_dim` numbers.

    A subclass writes `choose` and `train`, and overrides whatever else differs.
    """
    HyperParameters = MemoryFlags           # its flags
    discrete, continuous = False, True      # which actions it can take
    offline = False                         # True: it learns from recorded episodes and never acts while training
    buffer_class = Buffer
    actor_average = None                    # see average_actor
    numbers = ()                            # names of the numbers that belong to a model, besides the networks' weights
    not_state = {"spec", "cfg", "device", "targets"}    # attributes that a checkpoint leaves out: the flags make them anew

    def __init__(self, spec, cfg, seed, device, actor, critic):
        assert actor is critic or type(actor) is not type(critic), "start_hidden tells actor and critic apart by their class"
        self.spec, self.cfg, self.device = spec, cfg, device
        self.actor, self.critic = actor.to(device), critic.to(device)
        self.targets = []                   # (network, its target)
        self.rng = np.random.default_rng(seed)
        self.steps, self.steps_trained = 0, 0           # steps taken in the environment; stored steps trained on
        self.averaged = 0                               # updates that the actor's average has followed
        self.return_scale = 1.0                         # what a learned value of 1 is worth in rewards
        # Does acting advance the critic's memory, too? Only if windows start from it
        self.acting_advances_critic = cfg.hidden_init == "stored" and cfg.critic_hidden == "own" and critic is not actor

    def target_of(self, network):
        """A copy of `network` as it is now, for soft_update to move: a target, or the actor's average."""
        self.targets.append((network, copy_of(network)))
        return self.targets[-1][1]

    # ------------------------------------------------------------------ what differs between algorithms

    def choose(self, features, explore):
        """The action, an array (N, action_dim), from the features (N, feature_size) of the actor's core."""
        raise NotImplementedError

    def train(self, buffer):
        """One update. Returns its losses, a dictionary of numbers."""
        raise NotImplementedError

    def values(self, features, batch):
        """The critic's values of a batch's N steps, (N, n), or (2, N, n) of twins, from its core's features (N, feature_size).

        n is 1, or the number of actions where an algorithm values each of them. Only --staleness asks for them.
        """
        return self.critic.head(features, batch.action)

    def in_rewards(self, values):
        """Values in units of reward, if they are learned in others."""
        return values * self.return_scale

    def ready(self, buffer):
        """Is an update due? For each step taken since the warm-up, `replay_ratio` stored steps are to be trained on."""
        return (self.steps - self.cfg.start_timesteps) * self.cfg.replay_ratio - self.steps_trained >= self.cfg.batch_size

    def buffer_size(self):
        """Rows of the buffer. An episode of T steps takes T + 1, so a step takes at most two."""
        return min(self.cfg.memory_size, 2 * self.cfg.max_timesteps)

    # ------------------------------------------------------------------ memory

    @property
    def remembering(self):
        """The networks whose memories, side by side, are `hidden`."""
        return [self.actor, self.critic] if self.acting_advances_critic else [self.actor]

    @property
    def hidden_dim(self):
        """Width of the memory while acting."""
        return sum(network.core.hidden_dim for network in self.remembering)

    @property
    def stored_hidden_dim(self):
        """Width of the memory that the buffer keeps of each step: 0 where windows never start from a stored state."""
        return self.hidden_dim if self.cfg.hidden_init == "stored" else 0

    def split(self, hidden):
        """The actor's and the critic's part of a memory (N, hidden_dim)."""
        return hidden.tensor_split([self.actor.core.hidden_dim], -1)

    @torch.no_grad()
    def act(self, history, hidden, explore=True):
        """Act in N environments. The memory advances on every step, those with random actions included.

        Args:
            history: array (N, row), the newest row of the history
            hidden: array (N, hidden_dim), the memory before this row is read
        Returns:
            action (N, action_dim) and next_hidden (N, hidden_dim), arrays
        """
        history = torch.as_tensor(history, device=self.device)[:, None]         # (N, 1, row)
        hidden_actor, hidden_critic = self.split(torch.as_tensor(hidden, device=self.device))
        features, next_hidden = self.actor.core(history, hidden_actor)
        if self.acting_advances_critic:
            next_hidden = torch.cat([next_hidden, self.critic.core(history, hidden_critic)[1]], -1)
        action = self.choose(features[:, 0], explore)
        self.steps += explore * len(action)
        return action, next_hidden.cpu().numpy()

    @torch.no_grad()
    def start_hidden(self, batch, network):
        """A network's memory at the first trained step of each window, (B, its core's hidden_dim), without gradient.

        --hidden_init and --critic_hidden choose the start state. With --burn_in it belongs to the first of the steps before the
        window, and the network's own weights carry it through these. A target has its online network's start state.
        """
        # The actor, its target, and a network that is both start from the actor's memory. Their class tells them from a critic
        whose = "actor" if isinstance(network, type(self.actor)) else self.cfg.critic_hidden
        if self.cfg.hidden_init == "zero" or whose == "zero":
            hidden = batch.history.new_zeros(len(batch.history), network.core.hidden_dim)
        else:
            memory_actor, memory_critic = self.split(batch.hidden)
            hidden = memory_critic if whose == "own" else memory_actor
        return network.core.burn_in(batch.past, batch.past_length, hidden)

    @torch.no_grad()
    def refresh_hidden(self, buffer, batch):
        """--hidden_refresh: write the windows' memories back, recomputed with the weights as they are after the update.

        The memory at a window's first row comes from the burn-in. Without one it stays as it was stored.
        """
        if not self.cfg.hidden_refresh:
            return
        states = [network.core.hidden_states(batch.history, self.start_hidden(batch, network)) for network in self.remembering]
        buffer.write_hidden(batch, torch.cat(states, -1))                       # (B, L + 1, hidden_dim)

    # ------------------------------------------------------------------ the pace of learning

    def sample(self, buffer):
        """Draw windows of stored steps, `batch_size` steps together, and count them."""
        batch = buffer.sample(self.cfg.batch_size, self.cfg.seq_len, self.cfg.burn_in)
        self.steps_trained += batch.steps
        return batch

    def decay_lr(self):
        """Before an update. --lr_decay: set each learning rate to its initial one times the share of the run that is left.

        `steps` counts the step just taken, so an update at the run's last step has rate 0.
        """
        if self.cfg.lr_decay:
            remaining = max(0, 1 - self.steps / self.cfg.max_timesteps)
            for optimizer in vars(self).values():
                if isinstance(optimizer, torch.optim.Optimizer):
                    for group in optimizer.param_groups:
                        group["lr"] = group["initial_lr"] * remaining

    @property
    def discount(self):
        """The discount factor now, of an algorithm with --horizon_growth. Its horizon, 1 / (1 - discount) steps, is how far ahead
        rewards count, and grows evenly over max_timesteps.

        A discount that rises while the learning rate falls: François-Lavet, Fonteneau and Ernst, "How to Discount Deep
        Reinforcement Learning: Towards New Dynamic Strategies", 2015.
        """
        longer = 1 + min(1, self.steps / self.cfg.max_timesteps) * (self.cfg.horizon_growth - 1)
        return 1 - (1 - self.cfg.discount) / longer

    # ------------------------------------------------------------------ the policy that is evaluated

    def average_actor(self):
        """Move the actor's average, after an update. It is about the mean actor of the latest updates, with --average 0.02
        of the last fiftieth.

        After update n the average moves a share 1 / (--average * n) of the way to the actor (after Shamir and Zhang, "Stochastic
        Gradient Descent for Non-smooth Optimization", 2013). With --average 0 it is the actor.
        """
        if self.actor_average is not None:
            self.averaged += 1
            soft_update(self.actor, self.actor_average, 1 / max(1, self.cfg.average * self.averaged))

    @contextlib.contextmanager
    def as_evaluated(self):
        """Within, the actor is its average, if there is one. Exploration and training keep the actor itself."""
        trained = self.actor
        self.actor = self.actor_average or trained
        try:
            yield
        finally:
            self.actor = trained

    # ------------------------------------------------------------------ models

    @torch.no_grad()
    def state_dict(self):
        """What a saved model holds: weights and numbers."""
        networks = {"critic": self.critic} if self.actor is self.critic else {"actor": self.actor, "critic": self.critic}
        return {**{name: network.state_dict() for name, network in networks.items()},
                **{name: float(vars(self)[name]) for name in self.numbers}}

    def load_state_dict(self, state):
        """Take a saved model's weights and numbers. Targets become copies: old ones would pull the networks back."""
        if self.actor is not self.critic:
            self.actor.load_state_dict(state["actor"])
        self.critic.load_state_dict(state["critic"])
        for network, target in self.targets:
            target.load_state_dict(network.state_dict())
        for name in self.numbers:
            if torch.is_tensor(vars(self)[name]):
                torch.nn.init.constant_(vars(self)[name], state[name])           # in place: SAC's optimizer holds this tensor
            else:
                vars(self)[name] = state[name]
