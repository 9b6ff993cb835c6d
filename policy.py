"""A saved policy, used from Python.

    from policy import load
    policy = load("results/policies/hopper-td3-recurrent")     # an exported folder, or a model file of --save_model
    env = policy.make_env()
    observation, _ = env.reset()
    policy.reset()                                              # at each episode's start: the memory begins empty
    action = policy(observation)                                # for env.step

The memory is inside. The policy takes the environment's own observation and gives the environment's own action: what the agent
saw of it in training (--observe, noise, one-hot) and how its actions are scaled is done here, by the wrappers of envs.make_env.

It acts in several environments at once, too, when observations have one axis more. Then `policy.reset(which)` says which of
them begin a new episode.

Returns equal those of --test to the bit if Torch has as many threads, and if the agent was trained without noise. --threads is 1
by default. torch.set_num_threads(1) is also the fastest for networks of this size. Loading leaves this setting alone.
"""
import os

import gymnasium as gym
import numpy as np

from envs import Checked, env_spec, make_env, objection
from flags import check_actions, env_options, parse
from main import history_row, make_agent
from support.system import no_exit


def load(path, env=None, device="cpu"):
    """The policy of a model file or an exported folder.

    Args:
        env: the id of its environment, if not the model's own. An id MODULE:ID imports the module, and so runs its code.
            That has to be asked for here: a model's word is not enough.
        device: where it runs, as --device
    Raises:
        ValueError: the one line that --test --load_model PATH would print
    """
    argv = ["--test", f"--load_model={os.fspath(path)}", f"--device={device}", "--eval_episodes=1"]
    with no_exit():
        run, cfg, algorithm, model = parse(argv + ([f"--env={env}"] if env else []))
        made = make_env(run.env, **env_options(run))
        spec = env_spec(made)
        check_actions(run, cfg, spec.discrete)
        return Policy(run, make_agent(run, cfg, algorithm, spec, model), made)


class Policy:
    """Acts in its environment, or in several at once, without exploration. It begins as after `reset`. `load` makes one."""

    def __init__(self, run, agent, env):
        self.run, self.agent = run, agent
        self.wrappers = []                                             # that let the agent see and act, the innermost last
        while not isinstance(env, Checked):
            self.wrappers.append(env)
            env = env.env
        self.space = env.observation_space
        self.reads_reward = agent.cfg.memory_input == "obs_action_reward" and agent.hidden_dim > 0
        self.reset()

    def make_env(self):
        """Its environment without what the agent needs, with the run's --max_episode_steps. `see` and `act` do the rest."""
        env = make_env(self.run.env, **env_options(self.run))
        while not isinstance(env, Checked):
            env = env.env
        return env.env

    def reset(self, which=None):
        """Empty the memory: the next observation begins an episode.

        Args:
            which: a boolean array, True for each environment that begins one; without it all do, and their number may change
        Raises:
            ValueError: it is no boolean array with an entry for each environment
        """
        if which is None:
            self.action = self.hidden = self.begins = None             # each (N, ...), the last action as the agent gave it
        elif self.hidden is not None:                                  # if it is None, all of them begin
            which = np.asarray(which)
            if which.dtype != bool or which.shape != self.begins.shape:
                raise ValueError(f"policy.reset takes a boolean array of the shape {self.begins.shape}, an entry for each "
                                 f"environment, and was given {which.dtype} of the shape {which.shape}")
            self.begins |= which

    def __call__(self, observation, reward=None):
        """The action for one observation, or an array of them for those of several environments. The memory advances.

        Args:
            observation: in the environment's own space, or with one axis more (a tuple of such arrays where it is a tuple)
            reward: the step before's, one number for each environment. Only a memory that was trained with --memory_input
                obs_action_reward reads it, and not at an episode's start.
        Raises:
            ValueError: one line that says what is wrong with them
        """
        several = parts(self.space, observation)
        seen = np.stack([self.see(one) for one in ([observation] if several is None else several)])
        N = len(seen)
        if self.hidden is None:
            self.action, self.hidden = np.zeros((N, self.agent.spec.action_dim)), np.zeros((N, self.agent.hidden_dim), np.float32)
            self.begins = np.ones(N, bool)
        if N != len(self.begins):
            raise ValueError(f"policy: there are {N} observations, and there were {len(self.begins)} before; call policy.reset() "
                             "where the number of environments changes")
        if reward is None and self.reads_reward and not self.begins.all():
            raise ValueError("policy: its memory reads the reward of the step before; call policy(observation, reward)")
        reward = np.zeros(N) if reward is None else np.atleast_1d(np.asarray(reward, float))
        if reward.shape != (N,) or not np.isfinite(reward).all():
            raise ValueError(f"policy: the reward must be {N} finite numbers, one for each environment, not {reward}")
        keep = ~self.begins[:, None]
        self.action, self.hidden = self.agent.act(history_row(seen, self.action, reward, keep),
                                                  self.hidden * keep.astype(np.float32), explore=False)
        self.begins[:] = False
        actions = [self.act(action) for action in self.action]
        return actions[0] if several is None else np.array(actions)

    def see(self, observation):
        """What the agent sees of the environment's observation."""
        wrong = objection(self.space, observation)
        if wrong:
            raise ValueError(f"policy: the observation {wrong}")
        for wrapper in reversed(self.wrappers):
            if isinstance(wrapper, gym.ObservationWrapper):
                observation = wrapper.observation(observation)
        return observation

    def act(self, action):
        """The environment's action for the agent's."""
        for wrapper in self.wrappers:
            if isinstance(wrapper, gym.ActionWrapper):
                action = wrapper.action(action)
        return action


def parts(space, observation):
    """A list of the observations of several environments, which have one axis more than the space; None if there is one."""
    if isinstance(space, gym.spaces.Tuple):
        if not np.iterable(observation):
            return None
        each = [parts(*pair) for pair in zip(space, observation)]
        return None if None in each else list(zip(*each))
    return list(observation) if np.ndim(observation) == len(space.shape) + 1 else None
