"""--tensorboard and --wandb: each number against one computed by hand, an undisturbed run, resume, what cannot be written."""
import copy
import errno
import importlib
import math
import os
import sys
import threading
import types

import numpy as np
import pytest
import torch
from conftest import in_windows
from test_main import POLICIES, RECURRENT, SHORT, data_sets, evaluations, name_of, same_weights, tiny  # noqa: F401
from test_main import weights as weights_of_file

import main
import plot
from support.staleness import windows_of

OFFLINE = ["BCQ"]
STORED = [*RECURRENT, "--hidden_init", "stored"]


def flags_of(policy, *more):
    """A recurrent run that takes a second, with entries every 60 steps."""
    stored = RECURRENT if policy == "BCQ" else STORED
    return tiny(policy, SHORT.get(policy, "Pendulum-v1"), *stored, "--log_freq", "60", *more)


def run(folder, argv):
    """Run main.py in this process; returns the path of its results, without ending."""
    main.main([*argv, "--results_dir", str(folder)])
    name, = (name for name in os.listdir(folder) if name.endswith(".json"))
    return os.path.join(folder, name.removesuffix(".json"))


def unlogged(argv):
    """The same run without a log."""
    return [flag for flag in argv if flag not in ("--log_freq", "60", "--tensorboard", "--wandb")]


def events(path):
    """All scalars of a run as TensorBoard shows them: {name: [(step, value), ...]}."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    folder, name = os.path.split(path)
    read = accumulator.EventAccumulator(os.path.join(folder, "tensorboard", name), {accumulator.SCALARS: 0})
    read.Reload()
    return {tag: [(e.step, e.value) for e in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


@pytest.fixture(autouse=True)
def hook(monkeypatch):
    """A run with --tensorboard changes it."""
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)


@pytest.fixture
def spied(monkeypatch):
    """A function that lets an algorithm note what each of its updates gets and returns."""
    def spied(policy):
        cls = getattr(importlib.import_module(policy), policy)
        train, updates = cls.train, []

        def noted(agent, buffer):
            losses = train(agent, buffer)
            step = len(updates) + 1 if agent.offline else agent.steps
            updates.append((step, {name: float(loss) for name, loss in losses.items()}))
            return losses
        monkeypatch.setattr(cls, "train", noted)
        return updates
    return spied


# ---------------------------------------------------------------------- numbers

@pytest.mark.parametrize("policy", POLICIES)
def test_numbers_and_an_undisturbed_run(policy, tmp_path, spied):
    """Losses are the means over the updates since the last entry; with and without a log a run is the same, to the bit."""
    pytest.importorskip("tensorboard")
    offline = policy in OFFLINE
    argv = flags_of(policy, "--save_model") + ([] if offline else ["--staleness"])
    plain = run(tmp_path / "1", unlogged(argv))
    updates = spied(policy)
    path = run(tmp_path / "2", [*argv, "--tensorboard"])
    assert evaluations(plain) == evaluations(path)
    assert same_weights(weights_of_file(plain + ".last.pt"), weights_of_file(path + ".last.pt"))

    log, rows = events(path), evaluations(path)
    for name, number in {"return_mean": lambda rows: np.mean([float(row[2]) for row in rows]),
                         "return_std": lambda rows: np.std([float(row[2]) for row in rows]),
                         "episode_length": lambda rows: np.mean([int(row[3]) for row in rows])}.items():
        steps = sorted({int(row[0]) for row in rows})
        assert [step for step, _ in log[f"evaluation/{name}"]] == steps
        for step, value in log[f"evaluation/{name}"]:
            assert value == pytest.approx(number([row for row in rows if int(row[0]) == step]), abs=1e-3, rel=1e-5)

    written, pending, due = {}, {}, 60
    for step, losses in updates:
        for name, loss in losses.items():
            pending.setdefault(name, []).append(loss)
        if step >= due:
            for name, values in pending.items():
                written.setdefault(f"train/{name}", []).append((step, np.mean(values)))
            pending, due = {}, step - step % 60 + 60
    assert len(written) >= 1 + (policy != "R2D1") and len(written["train/critic_loss"]) >= 2
    for name, entries in written.items():
        assert [step for step, _ in log[name]] == [step for step, _ in entries]
        np.testing.assert_allclose([value for _, value in log[name]], [value for _, value in entries], rtol=1e-5)

    steps = [step for step, _ in log["train/critic_loss"]]
    parts = [] if offline else ["hidden/actor"] if policy == "R2D1" else ["hidden/actor", "hidden/critic"]
    assert [name for name in log if name.startswith("hidden/")] == parts
    for name in ["train/q_mean", "train/steps_per_second", *parts]:
        assert [step for step, _ in log[name]] == steps and all(math.isfinite(value) for _, value in log[name])
    assert all(value > 0 for name in ["train/steps_per_second", *parts] for _, value in log[name])
    if not offline:
        with open(path + ".staleness.csv") as file:
            head, *lines = [line.strip().split(",") for line in file]
        for name, *column in zip(head[1:], *(line[1:] for line in lines)):
            entries = [(int(line[0]), float(value)) for line, value in zip(lines, column) if value]
            assert [step for step, _ in log.get(f"staleness/{name}", [])] == [step for step, _ in entries]
            np.testing.assert_allclose([v for _, v in log.get(f"staleness/{name}", [])], [v for _, v in entries], rtol=1e-5)


def test_what_is_measured(tmp_path, monkeypatch):
    """q_mean: twins over windows of stored steps, padding left out. hidden: the memory that the last action was taken from."""
    pytest.importorskip("tensorboard")
    seen, acted = {}, {}

    class Spy(main.Logger):
        @torch.no_grad()
        def before_update(self, step):
            super().before_update(step)
            if self.entry is not None:
                steps = self.agent.steps
                critic, total, count = self.agent.critic, 0.0, 0
                batch = windows_of(self.agent, self.buffer, np.random.default_rng(step))
                actions = in_windows(batch, batch.action)
                for k, mask in enumerate(batch.mask):
                    hidden = batch.hidden[k:k + 1, self.agent.actor.core.hidden_dim:]
                    for t in range(int(mask.sum())):
                        features, hidden = critic.core(batch.history[k:k + 1, t:t + 1], hidden)
                        twins = critic.head(features[:, 0], actions[k, t:t + 1])
                        total, count = total + float(twins.sum()), count + twins.numel()
                seen[steps] = total / count

    cls = importlib.import_module("TD3").TD3
    act = cls.act

    def noted(agent, row, hidden, explore=True):
        if explore:
            acted[agent.steps + len(row)] = hidden.copy()
        return act(agent, row, hidden, explore)
    monkeypatch.setattr(cls, "act", noted)
    monkeypatch.setattr(main, "Logger", Spy)
    # Episodes of 5 steps, entries every 10: the memory is then empty again after the action
    path = run(tmp_path, tiny("TD3", "TestCounter-v0", *STORED, "--num_envs", "2", "--log_freq", "10", "--tensorboard"))
    log = events(path)
    assert len(seen) > 10 and [step for step, _ in log["train/q_mean"]] == list(seen)
    np.testing.assert_allclose([value for _, value in log["train/q_mean"]], list(seen.values()), rtol=1e-4)
    assert {value for _, value in log["train/episode_return"]} == {15}         # rewards 1 to 5
    for name, part in (("hidden/actor", slice(0, 8)), ("hidden/critic", slice(8, 16))):
        for step, value in log[name]:
            norms = [math.sqrt(sum(x * x for x in hidden)) for hidden in acted[step][:, part].astype(float)]
            assert value == pytest.approx(sum(norms) / 2, rel=1e-5)
        assert max(value for _, value in log[name]) > 0


def test_values_are_in_units_of_return(tmp_path, monkeypatch):
    """PPO's critic learns returns divided by a scale."""
    pytest.importorskip("tensorboard")
    scales = []

    class Spy(main.Logger):
        def before_update(self, step):
            before, self.agent.return_scale = self.agent.return_scale, 1.0
            super().before_update(step)
            one = self.entry and float(self.entry["q_mean"])
            self.agent.return_scale = before
            super().before_update(step)
            if self.entry:
                scales.append((float(self.entry["q_mean"]), one * before, before))
    monkeypatch.setattr(main, "Logger", Spy)
    run(tmp_path, flags_of("PPO", "--tensorboard"))
    assert len(scales) > 1 and any(before != 1 for *_, before in scales)
    assert all(value == pytest.approx(expected) for value, expected, _ in scales)


def test_values_of_r2d1_are_not_squashed(tmp_path, monkeypatch):
    """It learns h(return): a last layer that says h(100) whatever it sees means 100."""
    pytest.importorskip("tensorboard")
    R2D1, values = importlib.import_module("R2D1"), []

    class Spy(main.Logger):
        def before_update(self, step):
            head = self.agent.critic.value
            before = copy.deepcopy(self.agent.critic.state_dict())
            with torch.no_grad():
                for weight in [head.weights[-1], self.agent.critic.advantage.weights[-1], self.agent.critic.advantage.biases[-1]]:
                    weight.zero_()
                head.biases[-1].fill_(float(R2D1.squash(torch.tensor(100.0))))
            super().before_update(step)
            self.agent.critic.load_state_dict(before)
            if self.entry:
                values.append(float(self.entry["q_mean"]))
    monkeypatch.setattr(main, "Logger", Spy)
    run(tmp_path, flags_of("R2D1", "--tensorboard"))
    assert values and values == pytest.approx([100] * len(values), rel=1e-3)


def test_a_critic_that_learns_nothing_has_no_q_mean(tmp_path):
    pytest.importorskip("tensorboard")
    path = run(tmp_path, tiny("REINFORCE", "CartPole-v1", "--no-baseline", "--log_freq", "60", "--tensorboard"))
    log = events(path)
    assert "train/actor_loss" in log and "train/q_mean" not in log and "hidden/actor" not in log


# ---------------------------------------------------------------------- resume, overwriting

def interrupt(policy, folder, argv):
    """Run until step 190, and no further."""
    cls = getattr(importlib.import_module(policy), policy)
    train = cls.train

    def stop(agent, buffer):
        if agent.steps >= 190:
            raise KeyboardInterrupt
        return train(agent, buffer)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(cls, "train", stop)
        run(folder, argv)


@pytest.mark.parametrize("policy", ["TD3", "PPO"])
def test_a_resumed_run_has_no_step_twice(policy, tmp_path):
    """Stopped at 190, when an entry and an evaluation have come after the checkpoint of 100. All else is as without a stop."""
    pytest.importorskip("tensorboard")
    argv = flags_of(policy, "--tensorboard", "--checkpoint_freq", "100", "--eval_freq", "50")
    whole = run(tmp_path / "whole", argv)
    interrupt(policy, tmp_path / "parts", argv)
    path = os.path.join(tmp_path, "parts", os.path.basename(whole))
    half = events(path)
    assert half["evaluation/return_mean"][-1][0] >= 150 and half["train/q_mean"][-1][0] > 120
    run(tmp_path / "parts", [*argv, "--resume"])
    log, expected = events(path), events(whole)
    assert log.keys() == expected.keys() and len(os.listdir(tmp_path / "parts" / "tensorboard" / os.path.basename(path))) == 2
    for name, entries in log.items():
        assert [step for step, _ in entries] == [step for step, _ in expected[name]], name
        assert entries == expected[name] or name == "train/steps_per_second", name


def test_a_log_may_begin_at_a_resume(tmp_path):
    """And other flags of it be given then."""
    pytest.importorskip("tensorboard")
    argv = [*unlogged(flags_of("TD3")), "--checkpoint_freq", "100", "--eval_freq", "50"]
    interrupt("TD3", tmp_path, argv)
    path = run(tmp_path, [*argv, "--resume", "--tensorboard", "--log_freq", "30"])
    log = events(path)
    assert [step for step, _ in log["evaluation/return_mean"]] == [150, 200, 240]
    assert 100 < log["train/q_mean"][0][0] < 110 and len(log["train/q_mean"]) == 6


def test_a_run_that_replaces_another_leaves_nothing_of_its_curves(tmp_path):
    pytest.importorskip("tensorboard")
    path = run(tmp_path, tiny("TD3", "Pendulum-v1", "--tensorboard"))
    folder = tmp_path / "tensorboard" / os.path.basename(path)
    before = os.listdir(folder)
    run(tmp_path, tiny("TD3", "Pendulum-v1", "--tensorboard", "--overwrite"))
    assert len(before) == len(os.listdir(folder)) == 1 and before != os.listdir(folder)
    run(tmp_path, tiny("TD3", "Pendulum-v1", "--overwrite"))
    assert not folder.exists()


def test_names_and_figures_know_nothing_of_it():
    names = {"tensorboard", "wandb", "log_freq"}
    assert name_of(["--tensorboard", "--log_freq", "7"] if importlib.util.find_spec("tensorboard") else []) == name_of([])
    assert names <= plot.BOOKKEEPING


# ---------------------------------------------------------------------- what cannot be written

def test_a_folder_that_cannot_be_written(tmp_path, capsys):
    pytest.importorskip("tensorboard")
    plain = run(tmp_path / "plain", unlogged(flags_of("TD3")))
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "tensorboard").write_text("mine")
    capsys.readouterr()
    path = run(tmp_path / "results", flags_of("TD3", "--tensorboard"))
    warnings = capsys.readouterr().err.splitlines()
    assert warnings and all(line.startswith("warning: the event file of TensorBoard could not be written") for line in warnings)
    assert evaluations(path) == evaluations(plain) and (tmp_path / "results" / "tensorboard").read_text() == "mine"


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_disk_that_is_full_for_a_while(tmp_path, capfd, monkeypatch):
    """The thread that writes dies of it: a line is said, not its traceback, and later entries are in a new file."""
    gfile = pytest.importorskip("tensorboard.compat.tensorflow_stub.io.gfile")
    write, calls = gfile.LocalFileSystem._write, []

    def full(self, filename, content, mode):
        calls.append(content)
        if 10 < len(calls) < 13:
            with open(filename, mode) as file:                         # half an entry gets there
                file.write(content[:len(content) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(self, filename, content, mode)
    monkeypatch.setattr(gfile.LocalFileSystem, "_write", full)
    capfd.readouterr()
    path = run(tmp_path, flags_of("TD3", "--tensorboard"))
    error = capfd.readouterr().err.splitlines()
    assert error and all(line == "warning: the event file of TensorBoard could not be written (No space left on device); "
                         "training goes on" for line in error)
    log = events(path)
    assert log["evaluation/return_mean"][0][0] == 0 and log["evaluation/return_mean"][-1][0] == 240


@pytest.mark.parametrize("flag,module", [("--tensorboard", "torch.utils.tensorboard"), ("--wandb", "wandb")])
def test_packages_that_are_missing(flag, module, refused, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    refused([*tiny("TD3"), flag], [f"{flag}: it needs a package; pip install {flag[2:]}"])


def test_flags_that_do_nothing(refused):
    refused([*tiny("TD3"), "--log_freq", "5"], ["--log_freq is for --tensorboard and --wandb"])


def test_a_test_writes_no_log(tmp_path, refused):
    """Neither if the model was trained with one."""
    pytest.importorskip("tensorboard")
    path = run(tmp_path / "1", tiny("TD3", "Pendulum-v1", "--tensorboard", "--save_model"))
    refused(["--test", "--load_model", path + ".last.pt", "--tensorboard"], ["--test trains nothing", "leave them out"])
    before = sorted(os.walk(tmp_path))
    main.main(["--test", "--load_model", path + ".last.pt"])
    assert sorted(os.walk(tmp_path)) == before


# ---------------------------------------------------------------------- Weights & Biases

class FakeRun:
    def __init__(self, options):
        self.options, self.id, self.logged, self.finished = options, options["id"] or "new", [], False

    def log(self, values, step):
        assert all(type(value) is float for value in values.values())
        self.logged += [(step, name, value) for name, value in values.items()]

    def finish(self):
        self.finished = True


@pytest.fixture
def fake(monkeypatch):
    """A module `wandb` that remembers its runs."""
    module = types.ModuleType("wandb")
    module.runs, module.error = [], None

    def init(**options):
        if module.error:
            raise module.error
        module.runs.append(FakeRun(options))
        return module.runs[-1]
    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_wandb_gets_what_tensorboard_gets(fake, tmp_path):
    pytest.importorskip("tensorboard")
    argv = flags_of("TD3", "--tensorboard", "--wandb", "--checkpoint_freq", "120")
    path = run(tmp_path, argv)
    (wandb,) = fake.runs
    assert wandb.options["project"] == "memory-in-rl" and wandb.options["name"] == os.path.basename(path)
    assert wandb.options["config"]["core_size"] == 4 and wandb.options["dir"] == str(tmp_path) and wandb.finished
    log = events(path)
    assert sorted((step, name) for step, name, _ in wandb.logged) == sorted((s, name) for name in log for s, _ in log[name])
    assert [step for step, *_ in wandb.logged] == sorted(step for step, *_ in wandb.logged)     # it refuses earlier ones

    interrupt("TD3", tmp_path / "parts", argv)
    fake.runs[-1].id = "mine"                                          # too late for the checkpoint, which has "new"
    run(tmp_path / "parts", [*argv, "--resume"])
    assert [wandb.options["id"] for wandb in fake.runs] == [None, None, "new"]
    assert fake.runs[-1].options["resume"] == "allow" and min(step for step, *_ in fake.runs[-1].logged) > 120


def test_wandb_that_cannot_be_had(fake, refused, tmp_path):
    path = run(tmp_path / "results", tiny("TD3"))
    with open(path + ".csv") as file:
        before = file.read()
    fake.error = RuntimeError("api_key not configured\n(no-tty)")
    refused([*tiny("TD3"), "--wandb", "--overwrite"], ["--wandb: api_key not configured (no-tty)", "WANDB_MODE=offline"])
    with open(path + ".csv") as file:
        assert file.read() == before


def test_wandb_itself_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    for name, value in dict(MODE="offline", SILENT="true", CONFIG_DIR=str(tmp_path), CACHE_DIR=str(tmp_path)).items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    plain = run(tmp_path / "1", unlogged(flags_of("TD3")))
    path = run(tmp_path / "2", flags_of("TD3", "--wandb"))
    assert evaluations(plain) == evaluations(path)
    files = [name for _, _, names in os.walk(tmp_path / "2" / "wandb") for name in names]
    assert any(name.endswith(".wandb") for name in files)
