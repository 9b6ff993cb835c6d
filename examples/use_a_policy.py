"""Run a saved policy, in one environment and in several at once:

    python examples/use_a_policy.py
"""
import sys
from pathlib import Path

from gymnasium.vector import AutoresetMode, SyncVectorEnv

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))                                             # not needed after pip install .
from policy import load  # noqa: E402

policy = load(ROOT / "results" / "policies" / "hopper-positions-ppo-recurrent")    # or a file of --save_model
env = policy.make_env()

observation, _ = env.reset(seed=0)
policy.reset()                                                         # an episode begins with an empty memory
total, done = 0.0, False
while not done:
    observation, reward, terminated, truncated, _ = env.step(policy(observation))
    total, done = total + reward, terminated or truncated
print(f"one episode: return {total:.1f}")

envs = SyncVectorEnv([policy.make_env] * 3, autoreset_mode=AutoresetMode.SAME_STEP)
observations, _ = envs.reset(seed=0)
policy.reset()
rewards = 0.0
for _ in range(100):
    observations, reward, terminated, truncated, _ = envs.step(policy(observations))
    policy.reset(terminated | truncated)                               # the environments that begin a new episode
    rewards = rewards + reward
print(f"three environments, 100 steps: rewards {rewards.round(1)}")
