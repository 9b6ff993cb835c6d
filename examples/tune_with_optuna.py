"""Tune two flags with Optuna, which is an extra (pip install optuna):

    python examples/tune_with_optuna.py
"""
import sys
import tempfile
from pathlib import Path

import optuna

sys.path.append(str(Path(__file__).resolve().parents[1]))              # not needed after pip install .
import main  # noqa: E402

TRIALS, STEPS = 3, 300                                                 # enough to see that it runs, not to tune


def objective(trial):
    """The last mean return of a short training."""
    flags = {"lr": trial.suggest_float("lr", 1e-4, 1e-2, log=True), "core_size": trial.suggest_categorical("core_size", [8, 32])}
    with tempfile.TemporaryDirectory() as folder:
        found = main.run(["--policy", "PPO", "--env", "CartPole-v1", "--observe", "positions", "--recurrent",
                          "--max_timesteps", str(STEPS), "--num_envs", "4", "--rollout_steps", "64", "--eval_freq", str(STEPS),
                          "--results_dir", folder, *(f"--{name}={value}" for name, value in flags.items())])
    return found.last


study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=0))
study.optimize(objective, n_trials=TRIALS, catch=main.Failed)          # a run that diverges is a trial that failed
print(f"best return {study.best_value:.1f} with {study.best_params}")
