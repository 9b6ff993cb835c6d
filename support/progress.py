"""What a run says while it goes: a bar on a terminal, in a file a line per evaluation."""
import sys
import time

import numpy as np
from tqdm import tqdm

from support.system import Listener


class Progress(Listener):
    """Progress towards `total` steps, in a unit such as "step" or "update"."""
    key = "progress"

    def __init__(self, total, unit):
        self.total, self.unit = total, unit
        self.begun = None                                              # step and time of the first update

    def begin(self, step, saved):
        self.bar = tqdm(total=self.total, initial=step, unit=self.unit, disable=not sys.stderr.isatty(), dynamic_ncols=True)

    def before_update(self, step):
        self.begun = self.begun or (step, time.monotonic())            # the steps before cost next to nothing

    def stepped(self, step):
        self.bar.update(step - self.bar.n)

    def evaluated(self, step, returns, lengths):
        report = f"return {np.mean(returns):.1f}"
        self.bar.set_postfix_str(report)
        if self.bar.disable:
            steps, seconds = (step - self.begun[0], time.monotonic() - self.begun[1]) if self.begun else (0, 0)
            pace = ""
            if steps and seconds:
                left = max(0, self.total - step) / steps * seconds / 60
                pace = f", {steps / seconds:.0f} {self.unit}s/s, {left:.1f} min left"
            print(f"{self.unit} {step:,} of {self.total:,}: {report} +- {np.std(returns):.1f}{pace}", flush=True)

    def close(self):
        self.bar.close()
