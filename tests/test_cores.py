"""Recurrent cores: however a history is cut, the memory is the same."""
from types import SimpleNamespace

import pytest
import torch
from conftest import Plain

from agent import Agent, MemoryFlags
from cores import make_core
from envs import EnvSpec
from networks import MLP
from utils import Batch

S, A, ROW = 3, 2, 6
SPEC = EnvSpec(S, A, False)
RECURRENT_CORES = ["lstm", "gru", "mingru"]
CORES = [*RECURRENT_CORES, "none"]


def core_of(name, memory_input="obs_action_reward", size=5):
    flags = MemoryFlags(core="lstm" if name == "none" else name, core_size=size, memory_input=memory_input)
    return make_core(name != "none", flags, SPEC)


def step_by_step(core, history, hidden):
    """Features, the memory before each row, and the memory after the last, one row at a time."""
    features, states = [], []
    for t in range(history.shape[1]):
        states.append(hidden)
        feature, hidden = core(history[:, t:t + 1], hidden)
        features.append(feature)
    return torch.cat(features, 1), torch.stack(states, 1), hidden


def close(a, b):
    assert a.shape == b.shape
    assert torch.allclose(a, b, atol=1e-5), (a - b).abs().max()


@pytest.mark.parametrize("name", CORES)
@pytest.mark.parametrize("L", [1, 2, 3, 9])
def test_one_unroll_is_step_by_step_is_two_chunks(name, L):
    """Features, final memory and gradients agree, from a start state that is not zero."""
    core = core_of(name)
    history, start = torch.randn(4, L, ROW), torch.randn(4, core.hidden_dim, requires_grad=True)
    features, end = core(history, start)
    assert features.shape == (4, L, core.feature_size) and end.shape == (4, core.hidden_dim)

    def gradients(features):
        return torch.autograd.grad(features.square().sum(), [start, *core.parameters()], retain_graph=True)
    stepped, states, stepped_end = step_by_step(core, history, start)
    close(features, stepped)
    close(end, stepped_end)
    close(core.hidden_states(history, start), states)
    if name != "none":
        for a, b in zip(gradients(features), gradients(stepped), strict=True):
            assert torch.allclose(a, b, atol=1e-4, rtol=1e-4)
    for cut in range(1, L):
        first, between = core(history[:, :cut], start)
        second, chunked_end = core(history[:, cut:], between)
        close(features, torch.cat([first, second], 1))
        close(end, chunked_end)


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_core_is_the_textbook_cell(name):
    """Against nn.LSTMCell and nn.GRUCell with the same weights; the observation stands beside the output."""
    core = core_of(name)
    plain = Plain(SimpleNamespace(core=core), MLP(1, core.feature_size, 4, 0, 1))
    history, hidden = torch.randn(4, 6, ROW), torch.randn(4, core.hidden_dim)
    features, end = core(history, hidden)
    for t in range(6):
        feature, hidden = plain.remember(history[:, t], hidden)
        close(features[:, t], feature)
    close(end, hidden)


@pytest.mark.parametrize("name", RECURRENT_CORES)
def test_the_gradient_of_an_unroll(name, float64):
    """Of features and of the final memory, into the weights, the rows and the start state: against finite differences."""
    core = core_of(name, size=3)
    weights = [p.detach().requires_grad_() for p in core.parameters()]

    def unroll(history, start, *weights):
        return torch.func.functional_call(core, dict(zip(dict(core.named_parameters()), weights)), (history, start))
    history = torch.randn(2, 4, ROW, requires_grad=True)
    if name == "lstm":                                                 # oneDNN's has no double precision; PyTorch's own does
        torch.backends.mkldnn.enabled = False
    try:
        assert torch.autograd.gradcheck(unroll, (history, torch.randn(2, core.hidden_dim, requires_grad=True), *weights))
    finally:
        torch.backends.mkldnn.enabled = True


@pytest.mark.parametrize("L", [3, 8])
def test_gru_window_is_nn_gru(L, float64):
    """Outputs and gradients of the unroll that is written out, against PyTorch's own."""
    core = core_of("gru")
    x, hidden = torch.randn(4, L, ROW, requires_grad=True), torch.randn(4, 5, requires_grad=True)
    inputs = [x, hidden, *core.parameters()]
    output, end = core.unroll(x, hidden)
    expected, expected_end = core.rnn(x, hidden[None])
    assert torch.allclose(output, expected, atol=1e-12) and torch.allclose(end, expected_end[0], atol=1e-12)
    weight = torch.randn_like(output)
    for a, b in zip(torch.autograd.grad((output * weight).sum(), inputs), torch.autograd.grad((expected * weight).sum(), inputs)):
        assert torch.allclose(a, b, atol=1e-10)


def test_mingru_is_its_formula():
    """h = keep * h + (1 - keep) * V x, gates from the input alone; at first its units remember for 2 to 33 steps."""
    core = core_of("mingru", size=2000)
    history, h = torch.randn(4, 6, ROW), torch.randn(4, 2000)
    features, end = core(history, h)
    for t in range(6):
        gate, value = core.gates(history[:, t]).chunk(2, -1)
        keep = torch.sigmoid(gate)
        h = keep * h + (1 - keep) * value
        close(features[:, t], torch.cat([h, history[:, t, :S]], -1))
    close(end, h)
    timescale = core.gates.bias[:2000].exp() + 1                       # 1 / (1 - keep) for an input of zero
    assert timescale.min() >= 2 and timescale.max() <= 33 and abs(timescale.mean() - 17.5) < 1


@pytest.mark.parametrize("name", CORES)
def test_burn_in_is_step_by_step_over_ragged_pasts(name):
    """Pasts of different length, 0 included; what lies beyond a past's length, even NaN, is not read."""
    core = core_of(name)
    lengths = torch.tensor([3, 0, 5, 1, 4, 0])
    past, start = torch.randn(6, 5, ROW), torch.randn(6, core.hidden_dim)
    for i, n in enumerate(lengths):
        past[i, n:] = torch.nan
    hidden = core.burn_in(past, lengths, start)
    assert not hidden.requires_grad and hidden.shape == start.shape
    for i, n in enumerate(lengths):
        expected = step_by_step(core, past[i:i + 1, :n], start[i:i + 1])[2] if n else start[i:i + 1]
        close(hidden[i:i + 1], expected.detach())


@pytest.mark.parametrize("name", CORES)
def test_burn_in_over_no_past_at_all(name):
    """K = 0, and K > 0 where no window has a past: the start state, to the bit."""
    core = core_of(name)
    start = torch.randn(3, core.hidden_dim)
    assert torch.equal(core.burn_in(torch.zeros(3, 0, ROW), torch.zeros(3, dtype=torch.int64), start), start)
    assert torch.equal(core.burn_in(torch.randn(3, 4, ROW), torch.zeros(3, dtype=torch.int64), start), start)


@pytest.mark.parametrize("name", CORES)
def test_burn_in_then_unroll_is_one_unroll(name):
    """Burning in over the first steps changes nothing but the gradient, which stops at the cut."""
    core = core_of(name)
    history, start = torch.randn(4, 8, ROW), torch.randn(4, core.hidden_dim)
    features, end = core(history, start)
    warm = core.burn_in(history[:, :5], torch.full((4,), 5), start)
    later, later_end = core(history[:, 5:], warm)
    close(features[:, 5:], later)
    close(end, later_end)


@pytest.mark.parametrize("name", RECURRENT_CORES)
def test_burn_in_and_states_carry_no_gradient(name):
    """Neither into the weights nor into the start state."""
    core = core_of(name)
    history, start = torch.randn(4, 3, ROW), torch.randn(4, core.hidden_dim, requires_grad=True)
    assert not core.burn_in(history, torch.tensor([1, 2, 3, 0]), start).requires_grad
    assert not core.hidden_states(history, start).requires_grad


@pytest.mark.parametrize("name, memory_input, read", [("lstm", "obs", S), ("lstm", "obs_action", S + A), ("gru", "obs", S),
                                                      ("lstm", "obs_action_reward", ROW),
                                                      ("mingru", "obs_action", S + A), ("none", "obs_action_reward", S)])
def test_a_core_reads_what_memory_input_says(name, memory_input, read):
    """Of a history row: the observation alone, with the previous action, with the previous reward as well."""
    core = core_of(name, memory_input)
    history = torch.randn(1, 4, ROW, requires_grad=True)
    features, _ = core(history, torch.zeros(1, core.hidden_dim))
    features.square().sum().backward()
    assert ((history.grad[0, 0] != 0) == (torch.arange(ROW) < read)).all()


def test_no_core_is_the_observation_and_nothing_else():
    """Feed-forward: no weights, no memory, features are the observation."""
    core = core_of("none")
    history = torch.randn(2, 4, ROW)
    features, hidden = core(history, torch.zeros(2, 0))
    assert torch.equal(features, history[..., :S]) and hidden.shape == (2, 0) and not list(core.parameters())


@pytest.mark.parametrize("name, size", [("lstm", 10), ("gru", 5), ("mingru", 5), ("none", 0)])
def test_hidden_size(name, size):
    """[h, c], h, nothing; a hidden state of another width is refused."""
    core = core_of(name)
    assert core.hidden_dim == size
    if size:
        with pytest.raises(AssertionError):
            core(torch.randn(2, 3, ROW), torch.zeros(2, size + 1))


@pytest.mark.parametrize("burn_in", [0, 4])
@pytest.mark.parametrize("hidden_init, critic_hidden", [("stored", "own"), ("stored", "actor"), ("stored", "zero"),
                                                        ("zero", "own")])
def test_start_states(hidden_init, critic_hidden, burn_in):
    """--hidden_init and --critic_hidden choose the start, --burn_in carries it on with each network's own weights."""
    actor, critic = (type(name, (torch.nn.Module,), {})() for name in ("Actor", "Critic"))
    actor.core, critic.core = core_of("lstm"), core_of("lstm")
    flags = MemoryFlags(hidden_init=hidden_init, critic_hidden=critic_hidden, burn_in=burn_in)
    agent = Agent(SPEC, flags, 0, "cpu", actor, critic)
    stored = torch.randn(3, 20)
    lengths = torch.tensor([burn_in, 0, burn_in // 2])
    batch = Batch(*[None] * len(Batch._fields))._replace(history=torch.randn(3, 5, ROW), past=torch.randn(3, burn_in, ROW),
                                                         past_length=lengths, hidden=stored)
    hidden_actor, hidden_critic = agent.start_hidden(batch, actor), agent.start_hidden(batch, critic)
    start_actor = stored[:, :10] if hidden_init == "stored" else torch.zeros(3, 10)
    start_critic = {"own": stored[:, 10:], "actor": stored[:, :10], "zero": torch.zeros(3, 10)}[critic_hidden]
    start_critic = start_critic if hidden_init == "stored" else torch.zeros(3, 10)
    for hidden, core, start in ((hidden_actor, actor.core, start_actor), (hidden_critic, critic.core, start_critic)):
        assert not hidden.requires_grad
        for i, n in enumerate(lengths):
            close(hidden[i:i + 1], step_by_step(core, batch.past[i:i + 1, :n], start[i:i + 1])[2].detach() if n
                  else start[i:i + 1])
