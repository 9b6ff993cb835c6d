"""--device cuda: in double precision its numbers are the CPU's, for every algorithm and core; whole runs, resumed and tested.

Skipped where there is no CUDA device.
"""
import importlib

import numpy as np
import pytest
import torch
from conftest import LENGTHS, SPEC, TINY, RandomAgent, Toy, make_agent, make_buffer, spy, weights_of
from test_checkpoint import Run, at, data_sets  # noqa: F401 (data sets are a fixture)

import main
from agent import MemoryFlags
from cores import make_core
from support import staleness

pytestmark = [pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
              pytest.mark.filterwarnings("error:RNN module weights are not part")]       # then cuDNN copies them at every call

MEMORY = dict(recurrent_actor=True, recurrent_critic=True, seq_len=4, burn_in=2, hidden_init="stored", hidden_refresh=True)


class Scripted(RandomAgent):
    """Acts at random in place of an agent, so that two agents see the same steps."""

    def __init__(self, agent):
        super().__init__(agent.spec, agent.hidden_dim)
        self.stored_hidden_dim = agent.stored_hidden_dim

    def act(self, row, hidden):
        action, hidden = super().act(row, hidden)
        if self.spec.discrete:
            action = np.eye(self.spec.action_dim)[action.argmax(-1)]
        return action, hidden


def after_updates(policy, device, on_device=False, **others):
    """Weights and losses after four updates, an action, and the staleness of the next batch's states."""
    module = importlib.import_module(policy)
    agent = make_agent(module, device=device, **others, **dict(n_steps=2) if policy == "R2D1" else {})
    num_envs = 1 if policy == "REINFORCE" else 2                       # it waits until no episode is running
    buffer = make_buffer(agent, 400, num_envs, on_device=on_device)
    game = Toy(Scripted(agent), buffer, LENGTHS[:num_envs])
    losses = []
    for _ in range(4):
        game.play(25)
        while policy == "REINFORCE" and not agent.ready(buffer):
            game.play(1)
        losses.append({name: float(value) for name, value in agent.train(buffer).items()})
    game.play(25)
    row, hidden = game.row, 0.5 * np.ones_like(game.hidden)
    action, next_hidden = agent.act(row, hidden, explore=False)
    assert isinstance(action, np.ndarray) and isinstance(next_hidden, np.ndarray)
    stale = staleness.measure(agent, buffer, np.random.default_rng(0)) if agent.critic.core.hidden_dim else {}
    return [w.cpu() for w in weights_of(agent)], losses, action, next_hidden, stale


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("core", ["lstm", "gru", "mingru", None])
@pytest.mark.parametrize("policy", TINY)
def test_numbers_are_the_cpus(policy, core, on_device, float64, monkeypatch):
    """Windows of different length, burn-in, states written back; what is drawn at random is drawn on the CPU for both."""
    randn = torch.randn
    monkeypatch.setattr(torch, "randn", lambda *shape, device="cpu": randn(*shape).to(device))
    monkeypatch.setattr(torch, "randn_like", lambda x: randn(x.shape).to(x.device))
    others = dict(MEMORY, core=core) if core else {}
    if policy == "BCQ":
        others = {name: value for name, value in others.items() if not name.startswith("hidden")}    # it stores no states
    cpu, cuda = after_updates(policy, "cpu", **others), after_updates(policy, "cuda", on_device, **others)
    assert all(torch.allclose(a, b, rtol=0, atol=1e-7) for a, b in zip(cpu[0], cuda[0], strict=True))
    for ours, theirs in zip(cpu[1], cuda[1], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-6, abs=1e-9)
    assert np.allclose(cpu[2], cuda[2], atol=1e-7) and np.allclose(cpu[3], cuda[3], atol=1e-7)
    stale, theirs = ({name: float(value) for name, value in seen[4].items()} for seen in (cpu, cuda))
    assert stale == pytest.approx(theirs, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("core", ["lstm", "gru", "mingru"])
def test_a_window_is_its_steps(core):
    """In single precision: cuDNN would by itself round to TensorFloat-32, and what is learned from would not be what acted."""
    unit = make_core(True, MemoryFlags(core=core), SPEC).cuda()
    history, hidden = torch.randn(8, 32, 6, device="cuda"), torch.randn(8, unit.hidden_dim, device="cuda")
    window, after = unit(history, hidden)
    for t in range(32):
        step, hidden = unit(history[:, t:t + 1], hidden)
        assert torch.allclose(step[:, 0], window[:, t], rtol=0, atol=1e-5)
    assert torch.allclose(hidden, after, rtol=0, atol=1e-5)


CUE = "CueDiscrete10-v0"
RUNS = ["TD3 --env TestSwing-v0 --staleness", "DDPG --env TestSwing-v0 --core gru", "SAC --env TestSwing-v0 --num_envs 2",
        "PPO --env TestSwing-v0", f"A2C --env {CUE}", f"REINFORCE --env {CUE}", f"R2D1 --env {CUE}", "BCQ --env TestSwing-v0"]


@pytest.mark.parametrize("memory", ["", "--recurrent --seq_len 4 --hidden_init stored --burn_in 2"])
@pytest.mark.parametrize("words", RUNS)
def test_a_run_goes_on_to_the_same_end(words, memory, tmp_path, capsys, monkeypatch):
    """With the buffer on the device; interrupted once; its model, tested, repeats the best evaluation."""
    words = f"--policy {words} {memory} --device {'cuda:0' if 'TD3' in words else 'cuda'} --buffer_on_device --save_model"
    if not memory:
        words = words.replace(" --staleness", "").replace(" --core gru", "")
    if "BCQ" in words:
        words = words.replace(" --hidden_init stored", "")             # it stores no states
    run = Run(words, tmp_path / "1")
    updates = spy(monkeypatch, run.agent, "train")
    run.play()
    expected, half = run.outcome(), -(-len(updates) // 2)

    run = Run(words, tmp_path / "2")
    run.crash(at(half, thing=run.agent, name="train"))
    run.goes_on(expected)
    assert run.info()["resumed"]

    for device in ("cuda", "cpu"):                                     # a model from a GPU opens on a machine without one
        main.main(["--test", "--load_model", run.path + ".best.pt", "--eval_episodes", "2", "--device", device])
    assert "return" in capsys.readouterr().out
