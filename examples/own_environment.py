"""Train an agent with memory in an environment of one's own, corridor.py beside this file:

    python examples/own_environment.py

On the command line, in this folder: python ../main.py --policy PPO --env corridor:Corridor-v0 --recurrent
"""
import sys
import tempfile
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))              # not needed after pip install .
import main  # noqa: E402
from policy import load  # noqa: E402

STEPS = 500                                                            # enough to see that it runs, not to learn
ENV = "corridor:Corridor-v0"                                           # the module, and the id that it registers

with tempfile.TemporaryDirectory() as folder:                          # to keep results, give a folder of your own
    found = main.run(["--policy", "PPO", "--env", ENV, "--recurrent", "--core_size", "16", "--max_timesteps", str(STEPS),
                      "--num_envs", "4", "--rollout_steps", "64", "--eval_freq", str(STEPS), "--save_model",
                      "--results_dir", folder])
    policy = load(found.path + ".best.pt", env=ENV)                    # it imports the module, so its name has to be given again
print(f"mean return at steps {found.steps}: {found.returns}; best {found.best:.2f}")

observation, _ = policy.make_env().reset(seed=0)
print(f"it sees {observation} and goes {['left', 'right'][policy(observation)]}")
