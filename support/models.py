"""The models of a run (--save_model), and a saved policy as a folder for a model hub: --test --load_model X --export FOLDER
writes one, --load_model FOLDER reads it again.

    model.safetensors    all weights
    config.json          the flags it was trained with, the numbers of its state, the test's returns, versions, commit
    README.md            a model card: what it is, what it returned, how to run it

Reading executes no code: the files hold numbers and text. A test of the folder returns what a test of the model file does, to the
bit. Flags that name places on this machine, or a GPU that another may lack (PRIVATE), are left out.
"""
import hashlib
import io
import json
import os
import zipfile

import numpy as np
import torch

from support.system import Listener, can_be_made, keep_going, optional, regular, write_file

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
PRIVATE = {"results_dir", "load_model", "device", "buffer_on_device"}
NOISE = ("flicker", "obs_noise", "sensor_dropout")


def pack_model(agent, config, step):
    """What is needed to rebuild an agent, as the bytes of a file: one dictionary."""
    file = io.BytesIO()
    torch.save({"config": config, "step": step, "agent": agent.state_dict()}, file)
    return file.getvalue()


def largest(state):
    """The largest absolute value in nested dictionaries of numbers; NaN if there is one."""
    numbers = [largest(x) if isinstance(x, dict) else float(torch.as_tensor(x).abs().max()) for x in state.values()]
    return float(np.max([0.0, *numbers]))


def read_model_file(path):
    """Read a model file, which pack_model made, without executing code from it.

    It is a zip archive with a checksum of each part. Torch does not check these, but zipfile does. So zipfile reads the parts,
    and Torch gets a copy of what was read.

    Raises:
        ValueError: with one line that says what is wrong with the file
    """
    if not os.path.isfile(path):
        raise ValueError(f"no model file at '{path}'; --save_model writes <run>.last.pt and <run>.best.pt")
    try:
        checked = io.BytesIO()
        with zipfile.ZipFile(path) as parts, zipfile.ZipFile(checked, "w") as again:
            if sum(part.file_size for part in parts.infolist()) > os.path.getsize(path):
                raise ValueError                                       # compressed, as Torch's files never are: of any size
            for part in parts.infolist():
                again.writestr(part.filename, parts.read(part))
        checked.seek(0)
        model = torch.load(checked, map_location="cpu", weights_only=True)
    except Exception as error:                                         # a damaged file may raise anything
        raise ValueError(f"'{path}' is damaged or not a model of this project ({type(error).__name__}); "
                         "give a file written by --save_model") from None
    if not (isinstance(model, dict) and isinstance(model.get("config"), dict) and type(model.get("step")) is int
            and "agent" in model):
        raise ValueError(f"'{path}' is not a model of this project; give a file written by --save_model")
    return model


class Models(Listener):
    """RUN.last.pt and RUN.best.pt, for --save_model.

    The bytes of both files are held here, so that a full disk loses none. RUN.best.pt is always the model of the best
    evaluation, or it is known to be missing. If --save_model came with --resume, there is none before an evaluation is better
    than all of those before.

    Args:
        path: the run's results, without an ending
        results: the listener that knows the best mean return so far; it is told everything before this one
    """

    key = "models"

    def __init__(self, path, agent, config, results):
        self.path, self.agent, self.config, self.results = path, agent, config, results
        self.best = None                                               # the best mean return
        self.held, self.unwritten = {}, set()                          # "best", "last" -> bytes of the file; those to write

    def name(self, which):
        return f"{self.path}.{which}.pt"

    def begin(self, step, saved):
        if saved:
            self.best, self.held = saved["best"], {**saved["held"]}
            self.unwritten = set(self.held)
        elif step:                                                     # the run has been evaluated, and no model was kept
            self.best = self.results.best

    def evaluated(self, step, returns, lengths):
        content, mean_return = pack_model(self.agent, self.config, step), float(np.mean(returns))
        if self.best is None or mean_return > self.best:
            self.best, self.held["best"] = mean_return, content
            self.unwritten.add("best")
        self.held["last"] = content
        self.unwritten.add("last")
        self.write()

    def write(self):
        """Write the files that are not written yet, or not there any more."""
        with keep_going("the model"):
            for which, content in self.held.items():
                if which in self.unwritten or not os.path.exists(self.name(which)):
                    write_file(self.name(which), content)
                    self.unwritten.discard(which)

    def missing(self):
        self.write()
        return [self.name(which) for which in ("last", "best") if which in self.unwritten or
                which in self.held and not os.path.exists(self.name(which))]

    def save(self):
        return {"best": self.best, "held": {**self.held}}              # also written ones: a longer run has its own files


# ---------------------------------------------------------------------- writing

def check_free(folder, overwrite):
    """Raises ValueError, with one line, if no folder can be written there. Writes nothing."""
    if os.path.lexists(folder) and not os.path.isdir(folder):
        raise ValueError(f"--export: '{folder}' is a file; choose another name")
    if os.path.isdir(folder) and os.listdir(folder) and not overwrite:
        raise ValueError(f"--export: '{folder}' is not empty; add --overwrite to replace the model in it, or choose another name")
    if not can_be_made(folder):
        raise ValueError(f"--export: '{folder}' cannot be written; choose another name")


def save(folder, model, task, returns, lengths, about):
    """Write the three files, config.json last. Raises OSError.

    Args:
        model: the dictionary of load_model
        task: a dictionary of the flags that the test's environment was made with
        returns, lengths: those of the test's episodes
        about: versions and commit
    """
    from safetensors.torch import save as to_bytes
    state = model["agent"]
    tensors = {f"{network}.{name}": tensor.contiguous() for network, weights in state.items() if isinstance(weights, dict)
               for name, tensor in weights.items()}
    weights = to_bytes(tensors)
    test = task | dict(episodes=len(returns), return_mean=float(np.mean(returns)), return_std=float(np.std(returns)),
                       episode_length=float(np.mean(lengths)))
    config = dict(config={name: value for name, value in model["config"].items() if name not in PRIVATE},
                  step=model["step"], agent={name: x for name, x in state.items() if not isinstance(x, dict)},
                  test=test, **about)
    config["sha256"] = checksum(weights, config)
    os.makedirs(folder, exist_ok=True)
    write_file(os.path.join(folder, WEIGHTS), weights)
    write_file(os.path.join(folder, CARD), card(config).encode())
    write_file(os.path.join(folder, CONFIG), json.dumps(config, indent=1).encode())


def checksum(weights, config):
    """The checksum of a whole model: its weights and everything else in its CONFIG."""
    rest = {name: value for name, value in config.items() if name != "sha256"}
    return hashlib.sha256(weights + json.dumps(rest, sort_keys=True).encode()).hexdigest()


def card(config):
    """The model card, with the front matter that model hubs read."""
    flags, test = config["config"], config["test"]
    parts = [part for part in ("actor", "critic") if flags[f"recurrent_{part}"]]
    memory = f"{flags['core'].upper()} in {' and '.join(parts)}" if parts else "feed-forward"
    tags = ["reinforcement-learning", "deep-reinforcement-learning", flags["policy"], test["env"],
            *([flags["core"], "recurrent", "memory", "pomdp"] if parts else [])]
    result = f"{test['return_mean']:.2f} +/- {test['return_std']:.2f}"
    part = test["observe"] if test["observe"] in ("positions", "velocities") else f"entries {test['observe']}"
    seen = ["the whole observation" if test["observe"] == "full" else f"{part} only",
            *(f"{name} {test[name]}" for name in NOISE if test[name])]
    cut = f"\n| truncated after (--max_episode_steps) | {test['max_episode_steps']} |" if test["max_episode_steps"] else ""
    return f"""---
library_name: pytorch
pipeline_tag: reinforcement-learning
tags:
{chr(10).join(f"- {json.dumps(tag)}" for tag in tags)}
model-index:
- name: {json.dumps(f"{flags['policy']} ({memory})")}
  results:
  - task:
      type: reinforcement-learning
      name: reinforcement-learning
    dataset:
      type: {json.dumps(test["env"])}
      name: {json.dumps(test["env"])}
    metrics:
    - type: mean_reward
      name: mean_reward
      value: {json.dumps(result)}
      verified: false
---

# {flags["policy"]} on {test["env"]}{f" ({test['env_kwargs']})" if test["env_kwargs"] else ""}

{memory}; the agent sees {", ".join(seen)}. Trained to step {config["step"]:,}; all flags are in `{CONFIG}`.

| test | |
|---|---|
| mean return | {result} |
| episodes | {test["episodes"]} |
| mean length | {test["episode_length"]:.0f} |{cut}

The deviation is over episodes of this one policy; it says nothing of other seeds.

To run it, in a clone of the repository that it comes from (commit `{config["commit"] or "unknown"}`):

    python main.py --test --load_model FOLDER

where `FOLDER` is this one. The versions it was tested with are in `{CONFIG}`. Reading it executes no code.
"""


# ---------------------------------------------------------------------- reading

def load_model(path):
    """Read a model: a file of Models, or a folder of `save`. Both give the same dictionary.

    Raises:
        ValueError: with one line that says what is wrong with it
    """
    if not os.path.isdir(path):
        return read_model_file(path)
    if not os.path.isfile(os.path.join(path, CONFIG)):
        raise ValueError(f"no model file at '{path}', a folder without {CONFIG}; give a folder written by --export, or a file "
                         "by --save_model")
    from_bytes = optional("safetensors.torch", "safetensors").load
    try:
        with open(os.path.join(path, CONFIG), encoding="utf-8") as file:
            saved = json.load(file)
        config, step, agent, stated = (saved[name] for name in ("config", "step", "agent", "sha256"))
        if not (isinstance(config, dict) and type(step) is int and all(type(x) in (int, float) for x in agent.values())):
            raise TypeError
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError(f"'{path}' is not a model of this project, by its {CONFIG}; give a folder written by --export") from None
    try:
        with open(regular(os.path.join(path, WEIGHTS)), "rb") as file:
            weights = file.read()
        if stated not in (checksum(weights, saved), hashlib.sha256(weights).hexdigest()):  # the second: of older exports
            raise ValueError("the checksum is wrong")
        for name, tensor in from_bytes(weights).items():
            network, name = name.split(".", 1)
            agent.setdefault(network, {})[name] = tensor
    except OSError as error:
        raise ValueError(f"'{path}' has no {WEIGHTS} that can be read ({error.strerror}); export it again") from None
    except Exception as error:                                         # safetensors raises its own kinds
        raise ValueError(f"'{path}' is damaged: {WEIGHTS} or {CONFIG}: {' '.join(str(error).split())}; export it again") from None
    return {"config": config, "step": step, "agent": agent}
