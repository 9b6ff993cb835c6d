"""Curves of a run while it goes: TensorBoard's event files (--tensorboard) and Weights & Biases (--wandb), beside the CSV.

    pip install tensorboard    python main.py --recurrent --tensorboard     tensorboard --logdir results/tensorboard
    pip install wandb          WANDB_MODE=offline python main.py --wandb    wandb sync results/wandb/offline-run-*

    evaluation/  return_mean, return_std, episode_length       at every evaluation
    train/       every loss that the agent's train() returns, averaged over the updates since it was last written
                 q_mean: the critic's values in units of return, mean over WINDOWS windows that training would draw (over
                 both twins; R2D1: over all actions; PPO, A2C, REINFORCE: values of states)
                 steps_per_second: since it was last written, evaluations included (BCQ: updates)
                 episode_return: mean over the last ten training episodes that have ended, with exploration (BCQ has none)
    hidden/      actor, critic: norm of the memory that the last action was taken from, mean over environments
    staleness/   the columns of --staleness, when it measures

train/ and hidden/ are written at the first update after every --log_freq steps: never while an agent only warms up, and at most
once in an on-policy rollout. The logger draws its own random numbers, so a run is the same to the bit with and without it.

A resumed run goes on in the same folder and in the same W&B run. What was written after its checkpoint is written again.
TensorBoard is told to forget the first copy, W&B keeps the first. Both hold the same numbers, except for speeds.
"""
import os
import threading
import time

import numpy as np
import torch

from support.staleness import values_of, windows_of
from support.system import Listener, events_folder, fail, keep_going

PROJECT = "memory-in-rl"                                               # its name at Weights & Biases


class Logger(Listener):
    """Writes scalars by name and step.

    Args:
        path: the run's results, without an ending
        run: RunFlags
        config: all flags of the run
        agent, buffer: what is measured
        steps: main.py's Interaction or Updates: the memory acted from last, (num_envs, hidden_dim), and returns of episodes
    """

    key = "logger"

    def __init__(self, path, run, config, agent, buffer, steps):
        self.path, self.run, self.config, self.agent, self.buffer, self.steps = path, run, config, agent, buffer, steps
        self.due, self.entry, self.totals, self.counts = run.log_freq, None, {}, {}
        self.events, self.wandb, self.purge_step = None, None, None

    def begin(self, step, saved):
        """Start, or go on after a checkpoint. Exits with 2 if W&B cannot be had."""
        self.last = (step, time.monotonic())                           # step and time of the last entry
        if step:
            self.purge_step = step + 1
        if saved:
            self.due, self.totals, self.counts = saved["due"], saved["totals"], saved["counts"]
        if self.run.tensorboard:                                       # its thread would print a traceback; `write` reports it
            threading.excepthook = quiet_about_files
        if self.run.wandb:
            import wandb
            try:
                self.wandb = wandb.init(project=PROJECT, name=os.path.basename(self.path), config=self.config,
                                        dir=self.run.results_dir, id=saved and saved["wandb"], resume="allow")
            except Exception as error:                                 # W&B's own kinds: no key, no network
                fail(f"--wandb: {' '.join(str(error).split())}; log in with `wandb login`, or set WANDB_MODE=offline")

    def write(self, step, group, values):
        """Write a dictionary of numbers, such as evaluation/return_mean. Values that are None or '' are left out."""
        values = {f"{group}/{name}": float(value) for name, value in values.items() if value not in (None, "")}
        if self.wandb:
            self.wandb.log(values, step=step)
        if self.run.tensorboard:
            with keep_going("the event file of TensorBoard"):
                try:
                    if self.events is None:
                        from torch.utils.tensorboard import SummaryWriter
                        self.events = SummaryWriter(events_folder(self.path), purge_step=self.purge_step)
                    for name, value in values.items():
                        self.events.add_scalar(name, value, step)
                    self.events.flush()
                except OSError:                                        # this file may end in half an entry,
                    self.events, self.purge_step = None, None          # so begin a new one next time
                    raise

    def evaluated(self, step, returns, lengths):
        self.write(step, "evaluation", {"return_mean": np.mean(returns), "return_std": np.std(returns),
                                        "episode_length": np.mean(lengths)})

    @torch.no_grad()
    def before_update(self, step):
        """Begin an entry if one is due, with the Q values, since an on-policy buffer is empty after the update."""
        self.entry = {} if step >= self.due else None
        if self.entry is not None and self.config.get("baseline", True):   # without a baseline there is no critic
            batch = windows_of(self.agent, self.buffer, np.random.default_rng(step))
            q = values_of(self.agent, batch, self.agent.start_hidden(batch, self.agent.critic))
            self.entry["q_mean"] = self.agent.in_rewards(q).mean()

    def after_update(self, step, losses):
        """Add up an update's losses, and finish the entry if there is one."""
        for name, loss in losses.items():                              # adding tensors does not wait for a GPU
            self.totals[name] = self.totals.get(name, 0) + loss
            self.counts[name] = self.counts.get(name, 0) + 1
        if self.entry is None:
            return
        self.entry |= {name: total / self.counts[name] for name, total in self.totals.items()}
        self.entry["steps_per_second"] = (step - self.last[0]) / max(time.monotonic() - self.last[1], 1e-9)
        if self.steps.returns:
            self.entry["episode_return"] = np.mean(self.steps.returns)
        self.write(step, "train", self.entry)
        hidden = self.steps.acted_from
        if hidden is not None and hidden.shape[1]:
            size = self.agent.actor.core.hidden_dim
            parts = {"actor": hidden[:, :size], "critic": hidden[:, size:]}
            self.write(step, "hidden", {name: np.linalg.norm(part, axis=1).mean() for name, part in parts.items()
                                        if part.shape[1]})
        self.due = step - step % self.run.log_freq + self.run.log_freq
        self.totals, self.counts, self.last = {}, {}, (step, time.monotonic())

    def save(self):
        return {"due": self.due, "totals": self.totals, "counts": self.counts, "wandb": self.wandb.id if self.wandb else None}

    def close(self):
        if self.events:
            with keep_going("the event file of TensorBoard"):
                self.events.close()
        if self.wandb:
            self.wandb.finish()


def quiet_about_files(error):
    """A hook for exceptions that end a thread. Those about files are not printed."""
    if not issubclass(error.exc_type, OSError):
        threading.__excepthook__(error)
