"""What does each algorithm's policy do with its memory? A policy of each algorithm learns to recall a cue of 10 steps ago. It is
tested with --lookback and --memory_steps. What is right is known here: it must look at the cue, and nowhere else.

    python studies/lookback.py                    (all; a few minutes)
    python studies/lookback.py R2D1 BCQ           (some)

Flags are those of docs/results.md ("The cue"), but cores read the observation alone. Seed 0, the model at the end of training,
100 episodes a test. Writes results/policies/cue-ALGORITHM-recurrent.lookback.csv and .memory_steps.csv, which plot.py draws.
"""
import glob
import os
import shutil
import sys
import tempfile

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, HERE)
import main  # noqa: E402

OFF_POLICY = "--env Cue10-v0 --core_size 32 --hidden_size 64 --batch_size 64 --lr 1e-3 --tau 0.02"
ACTING = "--start_timesteps 1000 --replay_ratio 32 --max_timesteps 15000 --no-lr_decay --horizon_growth 1 --average 0"
DISCRETE = "--env CueDiscrete10-v0"
FLAGS = {
    "TD3": f"{OFF_POLICY} {ACTING} --expl_noise 0.5",
    "DDPG": f"{OFF_POLICY} {ACTING} --expl_noise 0.5",
    "SAC": f"{OFF_POLICY} {ACTING}",
    "A2C": "--env Cue10-v0 --hidden_size 64 --num_envs 32 --rollout_steps 22 --lr 3e-3 --entropy_coef 0.01 --max_timesteps 3e5",
    "REINFORCE": f"{DISCRETE} --hidden_layers 1 --batch_size 352 --lr 2e-3 --entropy_coef 0.01 --max_timesteps 200000",
    "R2D1": f"{DISCRETE} --core_size 16 --hidden_size 32 --start_timesteps 300 --expl_timesteps 3000 --batch_size 64 "
            "--replay_ratio 32 --lr 5e-3 --target_freq 50 --n_steps 1 --max_timesteps 10000",
    "BCQ": f"{OFF_POLICY} --dataset cue/random-v0 --target_candidates 4 --act_candidates 20 --max_timesteps 5000"}
TRAIN = "--recurrent --memory_input obs --checkpoint_freq 0 --save_model"
TEST = "--test --eval_episodes 100 --lookback 10 --memory_steps 1 2 4 8 10 11 all"
RANDOM = "--policy TD3 --env Cue10-v0 --start_timesteps 20000 --max_timesteps 20001 --record cue/random-v0"    # for BCQ


def train_and_test(policy, folder):
    """Train one policy, test it, and copy what the test wrote."""
    place = f"--results_dir={folder}"
    if policy == "BCQ":
        os.environ["MINARI_DATASETS_PATH"] = folder
        main.run(f"{RANDOM} {place}".split())
    trained = main.run(f"--policy {policy} {FLAGS[policy]} {TRAIN} {place}".split())
    main.run(f"{TEST} --load_model {trained.path}.last.pt {place}".split())
    for kind in ("lookback", "memory_steps"):
        [written] = glob.glob(os.path.join(folder, f"*.{kind}.csv"))
        shutil.copy(written, os.path.join(HERE, "results", "policies", f"cue-{policy.lower()}-recurrent.{kind}.csv"))


if __name__ == "__main__":
    for name in sys.argv[1:] or FLAGS:
        with tempfile.TemporaryDirectory() as temporary:
            train_and_test(name, temporary)
