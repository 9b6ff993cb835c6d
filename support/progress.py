"""What a run says while it goes: a bar on a terminal, or a line per evaluation in a file."""
import sys
import time

import numpy as np
from tqdm import tqdm

from support.system import Listener


class Progress(Listener):
    """Progress towards `total` steps, in a unit such as "step" or "update". steps: main.py's Interaction or Updates."""
    key = "progress"

    def __init__(self, total, unit, steps):
        self.total, self.unit, self.steps = total, unit, steps
        self.begun, self.report = None, ""                             # step and time of the first update; the last evaluation

    def begin(self, step, saved):
        self.bar = tqdm(total=self.total, initial=step, disable=not sys.stderr.isatty(), dynamic_ncols=True,
                        bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]")

    def before_update(self, step):
        self.begun = self.begun or (step, time.monotonic())            # the steps before it cost next to nothing

    def stepped(self, step):
        if not self.bar.disable:
            self.bar.set_postfix_str(self.report + self.pace(step), refresh=False)
            self.bar.update(step - self.bar.n)

    def evaluated(self, step, returns, lengths):
        self.report = f"return {np.mean(returns):.1f}"
        self.bar.set_postfix_str(self.report + self.pace(step))
        if self.bar.disable:
            print(f"{self.unit} {step:,} of {self.total:,}: {self.report} +- {np.std(returns):.1f}{self.pace(step)}", flush=True)

    def pace(self, step):
        """What the last episodes of training returned, and how long the rest will take."""
        news = f", in training {np.mean(self.steps.returns):.1f}" if self.steps.returns else ""
        steps, seconds = (step - self.begun[0], time.monotonic() - self.begun[1]) if self.begun else (0, 0)
        if steps and seconds:
            rate = steps / seconds
            news += f", {rate:.{0 if rate >= 10 else 1}f} {self.unit}s/s, {(self.total - step) / rate / 60:.1f} min left"
        return news

    def close(self):
        self.bar.close()
