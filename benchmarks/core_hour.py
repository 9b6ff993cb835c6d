"""What a core-hour buys: return against core-minutes on the hopper with positions only, here and with sb3-contrib.

    python benchmarks/core_hour.py PPO --seed 0             this project's PPO
    python benchmarks/core_hour.py TD3 --until 50000        what TD3 or SAC costs; their returns are those of results/reference/
    python benchmarks/core_hour.py zoo --seed 0             sb3-contrib's RecurrentPPO with rl-zoo's flags for the hopper
    python benchmarks/core_hour.py same --seed 0            RecurrentPPO with the flags of this project's PPO
    python benchmarks/core_hour.py draw                     the figure and the table of all that has been run

Writes benchmarks/core_hour/NAME_seed=N.csv, a row per evaluation: step, core_minutes, return. Core-minutes are CPU time of
training, acting and the environment; evaluations do not count. Each evaluation has ten episodes, with the same starts for all. A
run ends when its last three evaluations are all above 2,000, after its steps, or after 60 core-minutes, whichever comes first.
Decided before the first run: seeds 0 to 2, all flags as they are here. Decided later: the committed runs of TD3 and SAC are the
same trainings, so only the first 50,000 steps are run again, for their time. Later steps take as long as the last 30,000.
"""
import argparse
import csv
import glob
import json
import os
import sys
import tempfile
import time

import matplotlib.style
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(HERE))
import main  # noqa: E402
from support import drawing  # noqa: E402
from support.results import commit, mean_returns, processor, versions  # noqa: E402
from support.words import ALGORITHMS  # noqa: E402

ENV, OBSERVE, ENOUGH, MINUTES = "HopperBulletEnv-v0", "positions", 2000, 60
STEPS = dict(PPO=500_000, TD3=300_000, SAC=300_000, zoo=2_000_000, same=500_000)
NAMES = {"PPO": "PPO, here", "TD3": "TD3, here", "SAC": "SAC, here", "zoo": "RecurrentPPO, sb3-contrib, rl-zoo's flags",
         "same": "RecurrentPPO, sb3-contrib, flags as here"}
COLOURS = {**ALGORITHMS, "zoo": "#d55e00", "same": "#e69f00"}


class Enough(Exception):
    """The last three evaluations are all above ENOUGH, or the time is up, or the steps that were asked for are done."""


class Curve:
    """Keeps and writes the evaluations of one training, and how long it had trained before each."""

    def __init__(self, name, seed, until):
        self.until = until                                             # steps
        os.makedirs(os.path.join(HERE, "core_hour"), exist_ok=True)
        self.path, self.rows = os.path.join(HERE, "core_hour", f"{name}_seed={seed}.csv"), []
        self.trained, self.since = 0.0, time.process_time()            # CPU seconds
        self.head = json.dumps(dict(command=" ".join(sys.argv), commit=commit(), versions=versions(), machine=processor()))

    def pause(self):
        self.trained += time.process_time() - self.since

    def resume(self):
        self.since = time.process_time()

    def add(self, step, returns):
        self.rows.append((step, f"{self.trained / 60:.3f}", f"{np.mean(returns):.1f}"))
        with open(self.path, "w", newline="") as file:
            file.write(f"# {self.head}\n")
            csv.writer(file, lineterminator="\n").writerows([("step", "core_minutes", "return"), *self.rows])
        reached = len(self.rows) > 2 and min(float(row[2]) for row in self.rows[-3:]) > ENOUGH
        if reached or self.trained > 60 * MINUTES or step >= self.until:
            raise Enough


def ours(policy, seed, until):
    """A training by main.py, whose evaluations stop the clock."""
    curve, evaluate = Curve(policy, seed, until), main.evaluate

    def stop_the_clock(agent, *args, **options):
        curve.pause()
        returns, lengths = evaluate(agent, *args, **options)
        curve.add(agent.steps, returns)
        curve.resume()
        return returns, lengths
    main.evaluate = stop_the_clock
    with tempfile.TemporaryDirectory() as folder:
        main.run(f"--policy {policy} --env {ENV} --observe {OBSERVE} --recurrent --seed {seed} --max_timesteps {STEPS[policy]} "
                 f"--eval_freq 10000 --checkpoint_freq 0 --results_dir {folder}".split())


def theirs(name, seed, until):
    """A training by sb3-contrib's RecurrentPPO, evaluated in an environment of its own."""
    from sb3_contrib import RecurrentPPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    zoo, cfg = name == "zoo", main.parse(["--policy", "PPO", "--recurrent"])[1]
    n, gamma = (16, 0.99) if zoo else (cfg.num_envs, cfg.discount)
    envs = DummyVecEnv([lambda: main.make_env(ENV, observe=OBSERVE)] * n)
    envs.seed(seed)
    if zoo:
        envs = VecNormalize(envs, gamma=gamma)
        network = dict(ortho_init=False, net_arch=dict(pi=[], vf=[]), enable_critic_lstm=True, lstm_hidden_size=128)
        flags = dict(n_steps=256, batch_size=128, n_epochs=10, gae_lambda=0.9, clip_range=lambda left: 0.4 * left)
    else:
        layers = [cfg.hidden_size] * cfg.hidden_layers
        network = dict(net_arch=dict(pi=layers, vf=layers), lstm_hidden_size=cfg.core_size, log_std_init=cfg.init_log_std)
        flags = dict(n_steps=cfg.rollout_steps, batch_size=cfg.batch_size, n_epochs=cfg.epochs, gae_lambda=cfg.gae_lambda,
                     clip_range=cfg.clip, learning_rate=lambda left: cfg.lr * left, ent_coef=cfg.entropy_coef,
                     max_grad_norm=cfg.max_grad_norm)
    network["activation_fn"] = torch.nn.ReLU
    model = RecurrentPPO("MlpLstmPolicy", envs, gamma=gamma, seed=seed, device="cpu", policy_kwargs=network, **flags)
    curve, env = Curve(name, seed, until), main.make_env(ENV, observe=OBSERVE)

    class Evaluate(BaseCallback):
        """Evaluates every 10,000 steps, as `ours` does."""
        last = -1

        def _on_step(self):
            if self.num_timesteps // 10_000 > self.last:
                self.last = self.num_timesteps // 10_000
                curve.pause()
                curve.add(self.num_timesteps, [play(model, env, envs, seed + 10_000 if k == 0 else None) for k in range(10)])
                curve.resume()
            return True
    curve.resume()
    model.learn(STEPS[name], callback=Evaluate())


def play(model, env, envs, seed):
    """The return of one episode without exploration."""
    observation, _ = env.reset(seed=seed)
    state, start, total, done = None, np.ones(1, bool), 0.0, False
    while not done:
        seen = envs.normalize_obs(observation[None]) if hasattr(envs, "normalize_obs") else observation[None]
        action, state = model.predict(seen, state, start, deterministic=True)
        observation, reward, terminated, truncated, _ = env.step(action[0])
        total, start, done = total + reward, np.zeros(1, bool), terminated or truncated
    return total


def reached(curve, bound):
    """Core-minutes until the first of three evaluations running that are all at `bound` or above; NaN if there are none."""
    stays = curve["return"].rolling(3).min().shift(-2) >= bound
    return curve.core_minutes[stays].min()


def curves(name):
    """The curves of a contender, one per seed: step, core_minutes, return."""
    paths = sorted(glob.glob(os.path.join(glob.escape(HERE), "core_hour", f"{name}_seed=*.csv")))
    found = [pd.read_csv(path, comment="#") for path in paths]
    if name not in ("TD3", "SAC") or not found:
        return found
    clock = found[0].set_index("step").core_minutes                    # of the first 50,000 steps
    pace = (clock[50_000] - clock[20_000]) / 30_000                    # core-minutes a step, after the random first ones
    committed = (os.path.join(os.path.dirname(HERE), "results", "reference", f"{ENV}_{name}_lstm_observe={OBSERVE}_seed={seed}")
                 for seed in (0, 1, 2))
    found = []
    for path in committed:
        if os.path.exists(path + ".csv"):
            rows = [(step, clock[20_000] + pace * (step - 20_000), value) for step, value in mean_returns(path).items()
                    if step >= 20_000 and step % 10_000 == 0]
            curve = pd.DataFrame(rows, columns=["step", "core_minutes", "return"])
            found.append(curve[curve.core_minutes <= MINUTES])
    return found


def draw():
    """A thin line per seed, and its core-minutes until it stays at 1000, 1500 and 2000."""
    with matplotlib.style.context(drawing.STYLE):
        fig = Figure(figsize=(9, 4.6), dpi=150, layout="constrained")
        ax = fig.subplots()
        for name, label in NAMES.items():
            for k, curve in enumerate(curves(name)):
                ax.plot(curve.core_minutes, curve["return"], color=COLOURS[name], lw=1.2, alpha=0.9, label=None if k else label)
                minutes = [f"{reached(curve, bound):.1f}" for bound in (1000, 1500, 2000)]
                print(f"{name} {k}: minutes to 1000, 1500, 2000: {', '.join(minutes)}; "
                      f"{curve.step.iloc[-1]} steps in {curve.core_minutes.iloc[-1]:.1f}")
        ax.set_xscale("symlog", linthresh=1)
        ax.set_xlim(0, MINUTES * 1.05)
        ax.xaxis.set_major_formatter("{x:g}")
        ax.set(xticks=[0, 1, 2, 5, 10, 20, 60], xlabel="core-minutes of training", ylabel="return")
        ax.legend(loc="upper left", frameon=False)
        drawing.finish(fig, "What a core-hour buys on the hopper with positions only",
                       "A line is one seed: the mean return of ten evaluation episodes against the CPU time of training. It ends "
                       f"when three evaluations running are above {ENOUGH}, after its steps, or after {MINUTES} minutes.")
        fig.savefig(os.path.join(HERE, "core_hour.png"), metadata={"Software": None})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=[*STEPS, "draw"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--until", type=int, default=float("inf"), help="end after this many steps")
    args = parser.parse_args()
    try:
        if args.name == "draw":
            draw()
        elif args.name in ("zoo", "same"):
            theirs(args.name, args.seed, args.until)
        else:
            ours(args.name, args.seed, args.until)
    except Enough:
        print("enough")
