"""An environment of one's own. own_environment.py trains an agent in it."""
import gymnasium as gym
import numpy as np


class Corridor(gym.Env):
    """Walk to that end of a corridor where a light was. The light is seen at the first step only.

    Observation: [position, light]. Actions: left, right. The reward is 1 at the right end, -1 at the wrong one.
    """
    LENGTH = 5

    def __init__(self):
        self.observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
        self.action_space = gym.spaces.Discrete(2)

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.position, self.light = 0, self.np_random.choice([-1, 1])
        return np.array([0, self.light], np.float32), {}

    def step(self, action):
        self.position += 1 if action == 1 else -1
        ended = abs(self.position) == self.LENGTH
        reward = float(np.sign(self.position) * self.light) if ended else 0.0
        return np.array([self.position / self.LENGTH, 0], np.float32), reward, ended, False, {}


gym.register("Corridor-v0", Corridor, max_episode_steps=50)
