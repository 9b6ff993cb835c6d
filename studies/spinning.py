"""What can be had without memory on Pendulum-v1 with velocities only? A policy that keeps the pendulum spinning.

    python studies/spinning.py          (ten seconds; mean return and 95 % interval over 200 episodes, and of doing nothing)

The torque depends on the angular velocity alone: along it, as strong as TORQUE says at SPEED, linear in between. The numbers come
from a random search over such tables. So the best policy without memory returns at least this much.
"""
import gymnasium as gym
import numpy as np
from scipy import stats

SPEED = [0, 0.5, 1, 2, 3, 4, 5, 6, 8]                                   # rad/s
TORQUE = [0, 2, 0.22, 1.16, 0.25, 0.95, 0.71, 0.51, -2]                 # N m, 2 at most

env = gym.make("Pendulum-v1")
for name, table in (("spinning", TORQUE), ("doing nothing", [0] * len(SPEED))):
    returns = []
    for seed in range(200):
        (_, _, velocity), _ = env.reset(seed=seed)
        total, ended = 0, False
        while not ended:
            torque = np.sign(velocity) * np.interp(abs(velocity), SPEED, table)
            (_, _, velocity), reward, _, ended, _ = env.step(np.array([torque]))
            total += reward
        returns.append(total)
    low, high = stats.t.interval(0.95, len(returns) - 1, np.mean(returns), stats.sem(returns))
    print(f"{name}: {np.mean(returns):.0f} ({low:.0f} to {high:.0f})")
