"""The benchmark times the same work: its plain reference computes what this project computes."""
import importlib.util
import os
import subprocess
import sys

import pandas as pd
import pytest

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(HERE, "benchmarks"))

import bench  # noqa: E402
import core_hour  # noqa: E402

SMALL = "--hidden_size 8 --batch_size 20"
RECURRENT = "--recurrent --core_size 4"
NO_PEERS = pytest.mark.skipif(any(map(importlib.util.find_spec, bench.PEERS)), reason="a peer is installed")


@pytest.mark.parametrize("words", ["", f"{RECURRENT} --seq_len 6", f"{RECURRENT} --seq_len 6 --core gru",
                                   f"{RECURRENT} --seq_len 1 --hidden_init stored", f"{RECURRENT} --seq_len 1 --core gru"])
def test_the_plain_reference_is_the_same_update(words):
    agent, buffer = bench.make(f"--policy TD3 {words} {SMALL}", fill=60, episode=15)
    assert bench.check_same(agent, bench.PlainTD3(agent), buffer) < 1e-5


def test_the_plain_reference_sees_a_wrong_update():
    agent, buffer = bench.make(f"--policy TD3 {RECURRENT} --seq_len 6 {SMALL}", fill=60, episode=15)
    plain = bench.PlainTD3(agent)
    agent.cfg.discount = 0.9
    plain.cfg = type("Other", (), {**vars(agent.cfg), "discount": 0.91})
    assert bench.check_same(agent, plain, buffer) > 1e-4


@pytest.mark.parametrize("words", ["", f"{RECURRENT} --seq_len 5", f"{RECURRENT} --seq_len 5 --core gru"])
def test_torchrl_learns(words):
    pytest.importorskip("torchrl")
    agent, buffer = bench.make(f"--policy TD3 {words} {SMALL}", fill=60, episode=15)
    loss, update = bench.torchrl_td3(agent.cfg, buffer.windows("full"))
    before = {name: weight.clone() for name, weight in loss.named_parameters()}
    targets = loss.target_qvalue_network_params.clone()
    update()
    update()
    assert all((weight != before[name]).any() for name, weight in loss.named_parameters())
    assert (loss.target_qvalue_network_params != targets).any()


@pytest.mark.parametrize("core", ["lstm", "gru"])
def test_torchrl_acts(core):
    pytest.importorskip("torchrl")
    _, cfg = bench.make_agent(f"--policy TD3 {RECURRENT} --core {core} {SMALL}")
    action, after = bench.torchrl_act(cfg)()
    assert action.shape == (1, bench.A) and after["actor_h"].any()


def test_race_takes_turns():
    turns = []
    times = bench.race({"a": lambda: turns.append("a"), "b": lambda: turns.append("b")}, 3, budget=0)
    assert [len(t) for t in times.values()] == [3, 3] and "".join(turns[-12:]) == "aabb" * 3


@pytest.mark.parametrize("words, message", [("W99", "unknown work W99"), ("W7 --rounds 0", "at least 1"),
                                            ("W7 --growth", "--growth times no works"), ("--seeds 2", "need --device cuda"),
                                            ("W1 --buffer_on_device", "need --device cuda"),
                                            pytest.param("W7 --peers", "pip install sb3-contrib torchrl", marks=NO_PEERS)])
def test_bad_arguments_are_one_line(words, message):
    result = subprocess.run([sys.executable, os.path.join(HERE, "benchmarks", "bench.py"), *words.split()],
                            capture_output=True, text=True)
    assert result.returncode == 2 and message in result.stderr and "Traceback" not in result.stderr


def test_a_bound_counts_when_three_evaluations_stay_at_it():
    curve = pd.DataFrame({"core_minutes": [0., 1, 2, 3, 4, 5], "return": [0, 1500, 400, 1500, 1600, 1500]})
    assert core_hour.reached(curve, 1500) == 3
    assert pd.isna(core_hour.reached(curve, 1501))


def test_a_committed_run_is_put_on_the_clock_of_its_measured_start(monkeypatch):
    """20,000 steps take 2 minutes, every later 10,000 take 3. It is cut where the next would be after 60 minutes."""
    start = pd.DataFrame({"step": [0, 10_000, 20_000, 30_000, 40_000, 50_000], "core_minutes": [0., 1, 2, 5, 8, 11]})
    monkeypatch.setattr(core_hour.glob, "glob", lambda pattern: ["TD3_seed=0.csv"])
    monkeypatch.setattr(core_hour.pd, "read_csv", lambda path, comment: start)
    curves = core_hour.curves("TD3")
    assert len(curves) == 3
    assert curves[0].step.tolist() == list(range(20_000, 220_000, 10_000))
    assert curves[0].core_minutes.iloc[-1] == pytest.approx(2 + 19 * 3)
    assert curves[0]["return"].iloc[0] == pytest.approx(core_hour.mean_returns(os.path.join(
        HERE, "results", "reference", "HopperBulletEnv-v0_TD3_lstm_observe=positions_seed=0"))[20_000])
