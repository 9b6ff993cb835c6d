"""Why does TD3 hop for a thousand steps with one set of weights, and fall with the next? Measurements beside every evaluation.

    python studies/swings.py NAME FLAGS OF main.py ...
    python studies/swings.py NAME@100000:discount=0.99 FLAGS OF main.py ...     (another value of a flag from step 100,000 on)
    python studies/swings.py draw                                               (the figure, from the committed rows)

Writes results/history/swings/NAME.csv, a row per evaluation of one training:

    return, low, length    of its episodes: mean return, the lowest, mean length
    averaged, slower       mean return of the same episodes, with the actor's weights averaged over training, at rates 0.001
                           and 0.0002 an update
    noisy                  mean return with the exploration noise
    earlier                mean returns of three earlier sets of the actor's weights, 300 steps apart: how fast it swings
    Q, G                   the critic's value of the action taken, and the discounted return that followed: means over the
                           steps of the evaluation's episodes (those less than 200 steps before a time limit are left out)
    Q_start, G_start       the same at the episodes' first ten steps
    saturated              share of the actions' entries beyond 0.97
    stored_length          mean length of the training episodes that ended since the evaluation before
    change                 root mean square change of the actions since the last evaluation, at that evaluation's states
    alike                  how much the actor's gradients of 48 minibatches agree: the mean cosine of two of them
    alike_spread           the same, when the same steps are dealt out anew, so that a minibatch's steps come from many windows

The training is the one that main.py does: nothing here draws from its random numbers. Its JSON in --results_dir has all flags and
the commit; a copy of it lies beside the CSV.
"""
import copy
import csv
import os
import sys
from dataclasses import replace

import matplotlib.style
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, HERE)
import main  # noqa: E402
from networks import soft_update  # noqa: E402
from support.drawing import COLOURS, INK, STYLE  # noqa: E402
from support.lookback import Watched  # noqa: E402
from utils import Buffer  # noqa: E402

COLUMNS = ["step", "return", "low", "length", "averaged", "slower", "noisy", "earlier", "Q", "G", "Q_start", "G_start",
           "saturated", "stored_length", "change", "alike", "alike_spread"]
RATES = dict(averaged=0.001, slower=0.0002)


class Swings:
    """Takes the place of main.evaluate, calls it, and measures beside it."""

    def __init__(self, path):
        self.evaluate, self.path, self.rows = main.evaluate, path, []
        self.averages, self.kept, self.last, self.lengths, self.running, self.buffer = {}, [], None, [], 0, None

    def updated(self, agent, buffer):
        """After every update: average the weights, keep some."""
        self.buffer = buffer
        if not self.averages:
            self.averages = {name: copy.deepcopy(agent.actor) for name in RATES}
        for name, average in self.averages.items():
            soft_update(agent.actor, average, RATES[name])
        if agent.steps % 300 == 0:
            self.kept = [*self.kept[-2:], copy.deepcopy(agent.actor)]

    def with_actor(self, agent, actor, *args):
        own, agent.actor = agent.actor, actor
        try:
            return float(np.mean(self.evaluate(agent, *args)[0]))
        finally:
            agent.actor = own

    @torch.no_grad()
    def __call__(self, agent, env, spec, episodes, seed, explore=False):
        args = (env, spec, episodes, seed)
        watched = Watched(agent)
        returns, lengths = self.evaluate(watched, *args)
        row = dict(step=agent.steps, low=min(returns), length=np.mean(lengths))
        row["return"] = np.mean(returns)
        if agent.steps:
            state, counted = agent.rng.bit_generator.state, agent.steps
            row["noisy"] = np.mean(self.evaluate(agent, *args, explore=True)[0])
            agent.rng.bit_generator.state, agent.steps = state, counted
            if self.averages:
                row.update({name: self.with_actor(agent, average, *args) for name, average in self.averages.items()})
                row["earlier"] = " ".join(f"{self.with_actor(agent, actor, *args):.0f}" for actor in self.kept)
        row.update(self.of_critic(agent, watched, returns, lengths, env))
        if self.buffer is not None:
            row["alike"], row["alike_spread"] = gradients_agree(agent, self.buffer)
        row["stored_length"] = np.mean(self.lengths) if self.lengths else ""
        self.lengths = []
        self.rows.append(row)
        with open(self.path, "w", newline="") as file:
            table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            table.writeheader()
            table.writerows({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()} for row in self.rows)
        return returns, lengths

    def of_critic(self, agent, watched, returns, lengths, env):
        """The critic's values along the episodes, beside the returns that followed."""
        bounds, limit = np.cumsum(lengths)[:-1], env.spec.max_episode_steps
        rows, actions = (np.split(np.array(kept), bounds) for kept in (watched.rows, watched.actions))
        Q, G, Q_start, G_start = [], [], [], []
        for history, action, total, T in zip(rows, actions, returns, lengths):
            x = torch.as_tensor(history)[None]                         # (1, T, row)
            features, _ = agent.critic.core(x, x.new_zeros(1, agent.critic.core.hidden_dim))
            value = agent.critic.head(features[0], torch.as_tensor(action))
            value = value.min(0).values if value.ndim == 3 else value
            reward = np.append(history[1:, -1], total - history[1:, -1].sum())     # a row holds the reward before it
            after, following = np.zeros(T), 0.0
            for t in reversed(range(T)):
                after[t] = following = reward[t] + agent.discount * following
            counts = T if T < limit else T - 200
            Q.append(value[:counts, 0].numpy())
            G.append(after[:counts])
            Q_start.append(Q[-1][:10])
            G_start.append(G[-1][:10])
        every = np.array(watched.actions)
        change = {}
        if self.last is not None:
            before, was = self.last
            change = dict(change=float(np.sqrt(np.mean((act_again(agent, before) - was) ** 2))))
        states = rows[0][:300]
        self.last = (states, act_again(agent, states))
        return dict(Q=float(np.mean(np.concatenate(Q))), G=float(np.mean(np.concatenate(G))),
                    Q_start=float(np.mean(np.concatenate(Q_start))), G_start=float(np.mean(np.concatenate(G_start))),
                    saturated=float((abs(every) > 0.97).mean()), **change)


def act_again(agent, rows):
    """The actor's actions along an episode's rows (T, row), its memory from zero."""
    x = torch.as_tensor(rows)[None]
    features, _ = agent.actor.core(x, x.new_zeros(1, agent.actor.core.hidden_dim))
    return agent.choose(features[0], explore=False)


@torch.enable_grad()
def gradients_agree(agent, buffer, minibatches=48):
    """Mean cosine between the actor's gradients of two minibatches: as an update draws them, and of steps from many windows."""
    state, size = buffer.rng.bit_generator.state, agent.cfg.batch_size
    batch = buffer.sample(minibatches * size, agent.cfg.seq_len, agent.cfg.burn_in)
    buffer.rng.bit_generator.state = state
    features = [batch.pick(network.core(batch.history[:, :-1], agent.start_hidden(batch, network))[0])
                for network in (agent.actor, agent.critic)]
    Q = agent.critic.Q1(features[1].detach(), agent.actor.head(features[0]))[:, 0]     # (N,)
    cosines = []
    for steps in (np.arange(batch.steps), np.random.default_rng(0).permutation(batch.steps)):
        gradients = []
        for minibatch in np.array_split(steps, minibatches):
            gradient = torch.autograd.grad(Q[minibatch].mean(), agent.actor.parameters(), retain_graph=True)
            gradients.append(torch.cat([part.flatten() for part in gradient]))
        unit = torch.nn.functional.normalize(torch.stack(gradients), dim=1)            # (minibatches, weights)
        cosines.append(float(((unit @ unit.T).sum() - minibatches) / (minibatches * (minibatches - 1))))
    return cosines


def run(name, argv):
    name, _, later = name.partition("@")
    start, _, change = later.partition(":")
    flag, _, value = change.partition("=")
    folder = os.path.join(HERE, "results", "history", "swings")
    os.makedirs(folder, exist_ok=True)
    swings = Swings(os.path.join(folder, name + ".csv"))
    *_, algorithm, _ = main.parse(argv)
    train, add = algorithm.train, Buffer.add

    def train_and_keep(agent, buffer):
        if later and agent.steps >= int(start):
            agent.cfg = replace(agent.cfg, **{flag: type(vars(agent.cfg)[flag])(value)})
            if flag == "lr":
                for group in agent.actor_optimizer.param_groups + agent.critic_optimizer.param_groups:
                    group["lr"] = agent.cfg.lr
        losses = train(agent, buffer)
        swings.updated(agent, buffer)
        return losses

    def add_and_count(buffer, *step):
        add(buffer, *step)
        swings.running += 1
        if step[4][0] or step[5][0]:
            swings.lengths.append(swings.running)
            swings.running = 0
    algorithm.train, Buffer.add = train_and_keep, add_and_count
    main.evaluate = swings
    main.run([*argv, "--average", "0"])                               # averages are measured beside the weights themselves


def draw():
    """What the swings are: returns over training, and what a hop gains by being fast and loses by falling."""
    folder = os.path.join(HERE, "results", "history", "swings")
    runs = {"positions only, with memory": ("default_20", COLOURS["LSTM"]),
            "fully observed, no memory": ("ff_full_20", COLOURS["none"])}
    with matplotlib.style.context(STYLE):
        figure = Figure(figsize=(14, 4.2), layout="constrained")
        left, right, mended = figure.subplots(1, 3)
        for label, (name, colour) in runs.items():
            table = pd.read_csv(os.path.join(folder, name + ".csv"))
            left.plot(table["step"] / 1000, table["return"], color=colour, label=label)
            late = table[table["step"] >= 90_000]
            right.scatter(late["return"] / late["length"], late["length"], color=colour, label=label)
        for name, seeds, label, dashes in (("decay300", (20, 21), "discount 0.98, two seeds", ":"),
                                           ("grow", (20, 21, 22), "growing horizon, three seeds", "-")):
            for seed in seeds:
                table = pd.read_csv(os.path.join(folder, f"{name}_{seed}.csv"))
                mended.plot(table["step"] / 1000, table["slower"], dashes, color=COLOURS["LSTM"],
                            label=label if seed == seeds[0] else None)
        mended.set(title="Averaged weights, 300k steps with --lr_decay", xlabel="steps, thousands", ylabel="return",
                   ylim=(None, 2800))
        mended.legend(frameon=False)
        T = np.linspace(80, 1000, 200)                                 # steps until a fall, on average
        for discount, dashes in ((0.98, "-"), (0.99, "--")):
            worth = 1 - discount * (1 - 1 / T)                         # a reward r each step is worth r / worth, discounted
            right.plot(1.75 * worth / worth[-1], T, dashes, color=INK, linewidth=1, label=f"worth the same, discount {discount}")
        left.set(title="Return of five episodes, seed 20", xlabel="steps, thousands", ylabel="return")
        right.set(title="From 90k steps on: a faster hop pays for falls", xlabel="reward per step", xlim=(1.4, 2.6),
                  ylabel="steps until it falls, 1000 at most")
        figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
        figure.savefig(os.path.join(folder, "swings.png"), dpi=150)


if __name__ == "__main__":
    draw() if sys.argv[1:] == ["draw"] else run(sys.argv[1], sys.argv[2:])
