"""Any command line is run, or refused in one line with exit code 2: whole tiny runs, with flags that Hypothesis makes up.

    FUZZ=1000 pytest tests/test_fuzz.py         (more of them)
"""
import contextlib
import io
import os
import re
import shlex
import shutil
import signal
import tempfile
from collections import Counter

import gymnasium as gym
import pytest
import torch
from conftest import record
from hypothesis import given, settings
from hypothesis import strategies as st
from test_main import all_flags

import main
from flags import POLICIES

CODES = Counter()
LINES = int(os.environ.get("FUZZ", 60))
gym.register("FuzzSwing-v0", "gymnasium.envs.classic_control:PendulumEnv", max_episode_steps=7)
ENVS = ["FuzzSwing-v0", "FuzzSwing-v0", "CartPole-v1", "CartPole-v1", "Cue10-v0", "CueDiscrete10-v0", "HopperBulletEnv-v0",
        "Pendulum-v1"]
NO_ENV = ["Nothing-v0", "", "Blackjack-v1", "a b", "../x", "FuzzSwing"]
# What a tiny run of each takes; R2D1 and REINFORCE can be given either kind of environment
OWN = {
    **dict.fromkeys(("TD3", "DDPG", "SAC"), dict(start_timesteps=10, batch_size=8, replay_ratio=4)),
    "R2D1": dict(start_timesteps=10, batch_size=8, replay_ratio=4, n_steps=1, env="CartPole-v1"),
    "PPO": dict(rollout_steps=8, num_envs=2, epochs=2, batch_size=8), "A2C": dict(rollout_steps=8, num_envs=2),
    "REINFORCE": dict(batch_size=8), "BCQ": dict(dataset="test/swing-v0", batch_size=8, target_candidates=2, act_candidates=3),
}
# Values of each kind that are good for something, and others. None is so large that a run takes long, or diverges, which
# ends it with exit code 1
GOOD = {"observe": ["full", "positions", "velocities", "0-1", "1,0", "2", "0-9"], "env_kwargs": ["g=1", "g=x", "a=1 b=2", "g"],
        int: ["1", "2", "3", "5", "1e1", "16"], float: ["0.5", "1", "1e-3", "0", ".9"], bool: [None]}
BAD = ["0", "-1", "abc", "", "nan", "inf", "-inf", "1e400", "2.5", "99999999999999999999", "full", "stored", "None", " ", "é",
       "%s", "--lr", "1_0", "0x10", "\n", "a\nb", "{}", "-", "--"]
PLACES = ["", "x", "a/b", "test/swing-v0", "/dev/null", "/dev/null/x", "x.gif", "x.mp4", "..", "é", "a\nb", "x" * 300,
          "MODEL", "DAMAGED"]


@st.composite
def command_lines(draw):
    """A run that would do, and up to five flags beside or instead of its own."""
    policy = draw(st.sampled_from(POLICIES))
    own = dict(env="FuzzSwing-v0", max_timesteps=30, eval_freq=15, eval_episodes=1, hidden_size=4, checkpoint_freq=10)
    own |= OWN[policy]
    if draw(st.booleans()):
        own["env"] = draw(st.sampled_from(ENVS + NO_ENV))
    argv = [f"--policy={policy}", *(f"--{name}={value}" for name, value in own.items())]
    memory = draw(st.sampled_from([[], ["--recurrent"], ["--recurrent_actor"], ["--recurrent_critic"]]))
    argv += memory + (["--core_size=3", *(["--seq_len=4"] if policy == "PPO" else [])] if memory else [])
    flags = {name: kind for name, kind, *_ in all_flags(policy)}
    for _ in range(draw(st.integers(0, 5))):
        name = draw(st.sampled_from(sorted(flags)))
        kind = flags[name]
        good = GOOD.get(name) or GOOD.get(kind, PLACES if kind is str else kind)
        value = draw(st.sampled_from(BAD)) if draw(st.integers(0, 5)) == 0 else draw(st.sampled_from(good))
        if kind is bool:
            argv.append(draw(st.sampled_from([f"--{name}", f"--{name}", f"--no-{name}"])) + (f"={value}" if value else ""))
        elif name not in ("max_timesteps", "init_log_std", "lr", "core_lr", "results_dir") or value in BAD:
            argv += [f"--{name}={value}"] if draw(st.booleans()) else [f"--{name}", value]
    argv += draw(st.sampled_from([[]] * 8 + [
        ["--test", "--load_model=MODEL"], ["--load_model=MODEL"], ["--help"], ["--lr_actor", "1"], ["--epochs=2"],
        ["--target_freq", "3"], ["x"], ["--policy=TD4"], ["--policy"],
        ["--policy=--"], ["--no-recurrent"]]))
    return argv


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a model of each algorithm, one that is damaged, and a data set."""
    here = tmp_path_factory.mktemp("fuzz")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(here / "data"))
        patch.setenv("WANDB_MODE", "offline")
        record("FuzzSwing-v0", "test/swing-v0", 35)
        for policy in POLICIES:
            own = dict(env="FuzzSwing-v0", max_timesteps=30, eval_episodes=1, hidden_size=4, core_size=3) | OWN[policy]
            main.main([f"--policy={policy}", "--recurrent", "--seq_len=4", "--save_model", f"--results_dir={here / policy}",
                       *(f"--{name}={value}" for name, value in own.items())])
            model, = here.glob(f"{policy}/*.best.pt")
            shutil.copy(model, here / f"{policy}.pt")
        (here / "damaged.pt").write_bytes(model.read_bytes()[:700])
        yield here


class TooLong(BaseException):
    """Nothing in main.py takes it for an error of its own."""


def call(argv):
    """main.py in this process -> exit code, what it said to stderr."""
    def too_long(*_):
        raise TooLong(f"it ran for a minute: {shlex.join(argv)}")
    error, before = io.StringIO(), signal.signal(signal.SIGALRM, too_long)
    signal.alarm(60)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(error):
            main.main(argv)
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        torch.set_num_threads(1)
    return code, error.getvalue()


@settings(max_examples=LINES, deadline=None, derandomize=True, database=None)
@given(argv=command_lines(), again=st.sampled_from([None, None, None, [], ["--resume"], ["--overwrite"]]))
def test_any_command_line(folder, argv, again):
    """The same line is run once more at times, in the same folder, as it is or with a flag."""
    policy = argv[0].removeprefix("--policy=")
    argv = [word.replace("MODEL", str(folder / f"{policy}.pt")).replace("DAMAGED", str(folder / "damaged.pt")) for word in argv]
    home = os.getcwd()
    with tempfile.TemporaryDirectory(dir=folder) as here:
        os.chdir(here)                                                 # where flags that name files leave them
        try:
            for line in [argv] if again is None else [argv, argv + again]:
                code, error = call(line)
                CODES[code] += 1
                said = f"{shlex.join(line)}\nexit code {code}\n{error}"
                lines = [text for text in error.splitlines(keepends=True) if not text.startswith("warning: ")]
                assert code in (0, 2), said
                assert code != 2 or len(lines) == 1 and re.fullmatch(r"error: [^\n]+\n", lines[0]), said
                assert "Traceback" not in error, said
        finally:
            os.chdir(home)


def test_lines_were_of_both_kinds():
    """Else the test above would be one of refusals, or of good flags, alone."""
    if not CODES:
        pytest.skip("the test above was not run")
    assert min(CODES[0], CODES[2]) > 0.1 * CODES.total(), CODES
