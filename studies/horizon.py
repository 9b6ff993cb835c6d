"""Does a memory last longer than it was trained for? PPO learns to recall a cue of 10 steps ago, tested with 10, 30 and 100.

    python studies/horizon.py

Decided before the runs: PPO with the flags of its case in studies/memory.toml, three cores, windows of 1, 8 and 32 steps (an
episode of training has 11), seeds 0 to 4; the model at the end of training, 100 episodes a test. Chance is 0.5.

Writes results/horizon/Cue.csv, a row for each training and delay: core, seq_len, seed, delay, return, commit.
"""
import csv
import os
import sys
import tempfile

import numpy as np

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, HERE)
import main  # noqa: E402
from support.results import commit  # noqa: E402

FLAGS = ("--policy PPO --env Cue10-v0 --recurrent --core_size 32 --hidden_size 64 --hidden_layers 2 --rollout_steps 64 --lr 3e-3 "
         "--memory_input obs --max_timesteps 30000 --eval_freq 30000 --checkpoint_freq 0 --save_model")
COLUMNS = ["core", "seq_len", "seed", "delay", "return", "commit"]


def trained_and_tested(core, seq_len, seed):
    """A row of COLUMNS for each delay."""
    with tempfile.TemporaryDirectory() as folder:
        own = f"--core={core} --seq_len={seq_len} --seed={seed} --results_dir={folder}"
        trained = main.run(f"{FLAGS} {own}".split())
        for delay in (10, 30, 100):
            tested = main.run(["--test", f"--load_model={trained.path}.last.pt", f"--env=Cue{delay}-v0", "--eval_episodes=100"])
            yield core, seq_len, seed, delay, np.mean(tested.returns), commit()


if __name__ == "__main__":
    path = os.path.join(HERE, "results", "horizon", "Cue.csv")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(COLUMNS)
        for seed in range(5):
            for core in ("lstm", "gru", "mingru"):
                for seq_len in (1, 8, 32):
                    table.writerows(trained_and_tested(core, seq_len, seed))
                    file.flush()
