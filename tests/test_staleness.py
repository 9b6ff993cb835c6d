"""--staleness: each number against one computed by hand over the whole episode, what has no true state, an undisturbed run."""
import csv
import importlib
import os

import numpy as np
import pytest
import torch
from conftest import LENGTHS, RECURRENT, SPEC, RandomAgent, Toy, make_agent, make_buffer, spy, start_of
from test_main import SHORT, evaluations, same_weights, tiny, weights

import main
from support import staleness
from utils import Buffer

POLICIES = ["TD3", "DDPG", "SAC", "PPO", "A2C", "REINFORCE", "R2D1"]
STORED = dict(**RECURRENT, hidden_init="stored", seq_len=4)


def replays(policy):
    return policy not in ("PPO", "A2C", "REINFORCE")


def play(policy, size=400, steps=60, update=True, **flags):
    """An agent, its buffer, and the record of all it did. On-policy an update lies in between, or at least its forgetting."""
    module = importlib.import_module(policy)
    agent = make_agent(module, **flags)
    buffer = make_buffer(agent, size)
    buffer.keep_earlier = True
    game = Toy(agent, buffer, LENGTHS)
    game.play(steps)
    game.forgotten = 0
    if not replays(policy):
        agent.train(buffer) if update else buffer.clear()
        game.forgotten = len(game.record)                              # steps at its beginning
        game.play(15)
    return agent, buffer, game


@torch.no_grad()
def change(agent):
    """New weights, as after many updates."""
    for weight in [*agent.actor.parameters(), *agent.critic.parameters()]:
        weight.add_(0.3 * torch.randn_like(weight))


def measure(agent, buffer, seed=0):
    """One measurement, as numbers."""
    return {name: float(x) for name, x in staleness.measure(agent, buffer, np.random.default_rng(seed)).items()}


# ---------------------------------------------------------------------- by hand

def step_of(core, row, hidden):
    """One step of a core by its equations: row (row,), hidden (hidden_dim,) -> output (H,), next hidden. Not cores.py's code."""
    x, H = torch.as_tensor(row)[:core.in_size], core.size
    if hasattr(core, "gates"):                                         # minGRU
        gates = core.gates.weight @ x + core.gates.bias
        keep = 1 / (1 + torch.exp(-gates[:H]))
        h = keep * hidden + (1 - keep) * gates[H:]
        return h, h
    rnn = core.rnn
    from_x, from_h = rnn.weight_ih_l0 @ x + rnn.bias_ih_l0, rnn.weight_hh_l0 @ hidden[:H] + rnn.bias_hh_l0
    if len(from_x) == 4 * H:                                           # LSTM
        i, f, g, o = (from_x + from_h).chunk(4)
        c = torch.sigmoid(f) * hidden[H:] + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        return h, torch.cat([h, c])
    reset, update = torch.sigmoid(from_x[:2 * H] + from_h[:2 * H]).chunk(2)      # GRU
    h = torch.tanh(from_x[2 * H:] + reset * from_h[2 * H:])
    h = (1 - update) * h + update * hidden
    return h, h


def head_of(mlp, k, x):
    for i, (weight, bias) in enumerate(zip(mlp.weights, mlp.biases)):
        x = (torch.relu(x) if i else x) @ weight[k] + bias[k, 0]
    return x


def q_of(agent, output, step):
    """The vector of the critic's values at a recorded step."""
    critic, policy = agent.critic, type(agent).__name__
    features = torch.cat([output, torch.as_tensor(step.state)])
    with_action = torch.cat([features, torch.as_tensor(step.action)])
    if policy == "R2D1":
        advantage = head_of(critic.advantage, 0, features)
        return head_of(critic.value, 0, features) + advantage - advantage.sum() / len(advantage)
    if policy in ("TD3", "SAC", "BCQ"):
        return torch.cat([head_of(critic.mlp, k, with_action) for k in (0, 1)])
    return head_of(critic.mlp, 0, with_action if policy == "DDPG" else features)


def unroll(core, steps, hidden):
    """Recorded steps -> outputs (one for each step) and hidden states (before each step, and after the last)."""
    outputs, states = [], [hidden]
    for step in steps:
        output, hidden = step_of(core, step.row, hidden)
        outputs.append(output)
        states.append(hidden)
    return outputs, states


def compare(core, start, past, steps, before):
    """A core's outputs in a window as trained, its true ones, and the relative distance of its states at both ends."""
    outputs, states = unroll(core, steps, unroll(core, past, start)[1][-1])
    true_outputs, true_states = unroll(core, steps, unroll(core, before, torch.zeros(core.hidden_dim))[1][-1])
    off = [norm(states[t] - true_states[t]) for t in (0, len(steps) - 1)]
    return outputs, true_outputs, [x and x / norm(true_states[t]) for x, t in zip(off, (0, len(steps) - 1))]


def norm(x):
    return float(x.square().sum().sqrt())


def places(steps):
    return {(step.env, step.episode, step.t) for step in steps}


@torch.no_grad()
def by_hand(agent, batch, game):
    """What must come out for the windows of a batch."""
    cfg, one_network = agent.cfg, agent.actor is agent.critic
    distances, relative, relative_actor, sizes = [], [], [], []
    stored = places(game.stored()) & places(game.record[game.forgotten:])
    for i, (past, steps) in enumerate(game.windows(batch, cfg.burn_in)):
        first = steps[0]
        if not game.forgotten and (first.env, first.episode, 0) not in stored:  # overwritten; what clear() forgets is known
            continue
        before = [game.at(first.env, first.episode, t) for t in range(first.t)]
        if not (cfg.hidden_init == "zero" and type(agent).__name__ in ("PPO", "A2C")):   # they keep a past for that
            past = [step for step in past if places([step]) <= stored]     # burn-in begins where the rollout or the ring does
        if cfg.hidden_refresh:                                         # then it is not the state that was acted from
            (past or steps)[0] = (past + steps)[0]._replace(hidden=batch.hidden[i].numpy())
        if one_network:
            start = torch.as_tensor((past + steps)[0].hidden) if cfg.hidden_init == "stored" else torch.zeros(agent.hidden_dim)
            starts = start, start
        else:
            starts = [hidden[0] for hidden in start_of(past, steps, agent, cfg)]
        outputs, true_outputs, off = compare(agent.critic.core, starts[1], past, steps, before)
        q, true_q = [[q_of(agent, *x) for x in zip(o, steps)] for o in (outputs, true_outputs)]
        distances.append([norm(q[t] - true_q[t]) for t in (0, len(steps) - 1)])
        sizes.append(max(float(x.abs().max()) for x in true_q))
        relative.append(off)
        if cfg.recurrent_actor and not one_network:
            relative_actor.append(compare(agent.actor.core, starts[0], past, steps, before)[2])
    expected = {"windows": len(distances), "left_out": len(batch.mask) - len(distances)}
    for name, values, unit in (("delta_q", distances, max(sizes)), ("delta_hidden", relative, 1),
                               ("delta_hidden_actor", relative_actor, 1)):
        for end, column in zip(("first", "last"), zip(*values)):
            expected[f"{name}_{end}"] = sum(column) / len(column) / unit
    return expected


def check(agent, buffer, game, monkeypatch):
    """A measurement against the same by hand. Returns it."""
    batches = spy(monkeypatch, staleness, "windows_of")
    monkeypatch.setattr(staleness, "CHUNK", 4)                         # pasts longer than that are unrolled in pieces
    measured = measure(agent, buffer)
    longest, length = int(batches[-1].mask.sum(1).max()), agent.cfg.seq_len
    assert longest == length if length != "full" else longest > 4
    assert measured == pytest.approx(by_hand(agent, batches[-1], game), rel=2e-5, abs=1e-12)
    return measured


CASES = [
    *[(policy, dict(**STORED, core=core)) for policy in POLICIES for core in ("lstm", "gru", "mingru")],
    *[(policy, dict(**RECURRENT, seq_len=4)) for policy in POLICIES],
    *[(policy, dict(**RECURRENT, seq_len=3, burn_in=3, core="gru")) for policy in POLICIES],
    *[(policy, dict(**STORED, burn_in=2)) for policy in POLICIES],
    ("BCQ", dict(**RECURRENT, seq_len=4)),
    ("BCQ", dict(**RECURRENT, seq_len=3, burn_in=3)),
    ("TD3", dict(**STORED, burn_in=2, critic_hidden="actor", memory_input="obs_action_reward")),
    ("PPO", dict(**STORED, critic_hidden="zero")),
    ("PPO", dict(**STORED, hidden_refresh=True, epochs=3)),
    ("SAC", dict(recurrent_critic=True, hidden_init="stored", seq_len=4)),
    ("DDPG", dict(**RECURRENT, hidden_init="stored", seq_len=1)),
    ("A2C", dict(**RECURRENT, hidden_init="stored", seq_len="full")),
]


@pytest.mark.parametrize("policy, flags", CASES)
def test_numbers_are_those_of_a_whole_episode_unrolled_by_hand(policy, flags, float64, monkeypatch):
    agent, buffer, game = play(policy, **flags)
    change(agent)
    measured = check(agent, buffer, game, monkeypatch)
    assert min(measured[f"{name}_first"] for name in ("delta_q", "delta_hidden")) > 1e-4
    assert ("delta_hidden_actor_first" in measured) == (flags.get("recurrent_actor", False) and policy != "R2D1")
    assert measured["left_out"] == 0 and max(step.t for step in game.record) == 11


@pytest.mark.parametrize("policy", [*filter(replays, POLICIES)])
def test_refreshed_states(policy, float64, monkeypatch):
    """Refreshed with the weights of then, which are not those of now, but nearer than those that acted."""
    measured = []
    for refresh in (False, True):
        torch.manual_seed(0)
        agent, buffer, game = play(policy, hidden_refresh=refresh, lr=1e-2, **STORED)
        for _ in range(30):
            agent.train(buffer)
        measured.append(check(agent, buffer, game, monkeypatch))
    assert 1e-3 < measured[1]["delta_hidden_first"] < measured[0]["delta_hidden_first"]


# ---------------------------------------------------------------------- zero where nothing is stale

@pytest.mark.parametrize("policy", POLICIES)
def test_stored_states_of_unchanged_weights_are_not_stale(policy, float64):
    agent, buffer, _ = play(policy, update=False, **STORED)
    measured = measure(agent, buffer)
    assert measured["windows"] > 5
    assert max(x for name, x in measured.items() if name.startswith("delta")) < 1e-12
    change(agent)
    assert min(x for name, x in measure(agent, buffer).items() if name.startswith("delta")) > 1e-4


@pytest.mark.parametrize("policy", [*filter(replays, POLICIES)])
@pytest.mark.parametrize("hidden_init", ["zero", "stored"])
def test_whole_episodes_are_not_stale(policy, hidden_init):
    """They begin at their true zero start, whatever the weights."""
    agent, buffer, _ = play(policy, **RECURRENT, seq_len="full", hidden_init=hidden_init)
    change(agent)
    measured = measure(agent, buffer)
    assert measured["windows"] > 5 and not any(x for name, x in measured.items() if name.startswith("delta"))


# ---------------------------------------------------------------------- what lies before a window

@pytest.mark.parametrize("policy", ["TD3", "R2D1"])
def test_windows_whose_start_was_overwritten_are_left_out(policy, float64, monkeypatch):
    """A ring of 17 rows a stream holds the end of an episode of 12 at most times."""
    agent, buffer, game = play(policy, size=34, steps=40, **STORED)
    change(agent)
    left_out = []
    for _ in range(6):
        game.play(5)
        measured = check(agent, buffer, game, monkeypatch)
        assert measured["windows"] > 5
        left_out.append(measured["left_out"])
    assert max(left_out) > 5


def test_nothing_to_compare_with(tmp_path):
    """All steps stored are of the middle of one episode: a line that says so, and no number."""
    agent, buffer, game = play("TD3", size=20, steps=1, **STORED)
    game.length = [1000, 1000]                                         # these episodes go on and on
    game.play(40)
    measured = staleness.Staleness(str(tmp_path / "run"), 10, agent, buffer)
    measured.before_update(9)                                         # not yet
    measured.before_update(12)
    measured.before_update(19)                                        # not again before 20
    head, row = lines(tmp_path / "run")
    assert head == staleness.COLUMNS and row == ["12", "0", row[2]] + [""] * 6 and int(row[2]) > 5


@pytest.mark.parametrize("size, cleared, keep", [(24, 0, 0), (50, 0, 0), (400, 11, 0), (400, 3, 0), (400, 11, 4), (400, 3, 4)])
def test_whole_past_is_the_episode_before_at_every_single_step(size, cleared, keep):
    """Of a small ring, and of rollouts that are forgotten every `cleared` steps, but for `keep` rows."""
    agent = RandomAgent()
    buffer = Buffer(size, SPEC.state_dim, SPEC.action_dim, 4, num_envs=2)
    buffer.keep_earlier = True
    game = Toy(agent, buffer, LENGTHS)
    known_or_not = set()
    for k in range(80):
        game.play(1)
        if len(buffer):
            batch = buffer.windows(3)
            stored = places(game.stored())
            for (_, steps), past, length, known in zip(game.windows(batch), *buffer.whole_past(batch)):
                first = steps[0]
                before = [game.at(first.env, first.episode, t).row for t in range(first.t)]
                assert known == (bool(cleared) or (first.env, first.episode, 0) in stored)
                assert length == (len(before) if known else 0)
                assert np.array_equal(past[:length].numpy(), np.array(before).reshape(-1, 6)[:length])
                known_or_not.add(bool(known))
        if cleared and k % cleared == 0:
            buffer.clear(keep)
    assert known_or_not == ({True} if cleared else {True, False})


def test_nothing_is_kept_unless_asked_for():
    """Without --staleness a rollout is forgotten whole, and an episode that goes on has no known start."""
    buffer = Buffer(100, SPEC.state_dim, SPEC.action_dim, 4, num_envs=2)
    game = Toy(RandomAgent(), buffer, [[20], [5]])
    game.play(10)
    buffer.clear()
    assert not any(torch.is_tensor(rows) and len(rows) for rows in buffer.earlier)
    game.play(3)
    assert buffer.whole_past(buffer.windows(2))[2].tolist() == [False] * 2 + [True] * 2


# ---------------------------------------------------------------------- the run

def lines(path):
    with open(f"{path}.staleness.csv", newline="") as file:
        return list(csv.reader(file))


def start(folder, argv):
    """Run main.py in this process; returns its results' path, without ending."""
    main.main([*argv, "--results_dir", str(folder)])
    name, = (name for name in os.listdir(folder) if name.endswith(".json"))
    return os.path.join(folder, name.removesuffix(".json"))


@pytest.mark.parametrize("policy", ["TD3", "R2D1", "PPO", "A2C", "REINFORCE"])
def test_a_run_is_not_disturbed(policy, tmp_path):
    """The same evaluations and the same weights in the end, to the bit, and a measurement in every period."""
    argv = tiny(policy, SHORT.get(policy, "Pendulum-v1"), "--recurrent", "--core_size", "4", "--hidden_init", "stored",
                "--seq_len", "4", "--save_model", "--eval_freq", "40", "--eval_episodes", "1")
    without, measured = start(tmp_path / "1", argv), start(tmp_path / "2", [*argv, "--staleness"])
    assert os.path.basename(without) == os.path.basename(measured) and not os.path.exists(without + ".staleness.csv")
    assert evaluations(without) == evaluations(measured)
    assert same_weights(weights(without + ".last.pt"), weights(measured + ".last.pt"))
    head, *rows = lines(measured)
    periods = [int(row[0]) // 40 for row in rows]                      # one in each that has an update
    assert head == staleness.COLUMNS and len(rows) >= 3 and periods[0] > 0 and len(set(periods)) == len(periods)
    assert set(periods) >= {"PPO": {1, 3, 4}, "REINFORCE": set()}.get(policy, {2, 3, 4, 5})
    assert all(int(row[1]) > 0 and float(row[3]) >= 0 and (row[7] == "") == (policy == "R2D1") for row in rows)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_measurement_draws_no_random_number_of_the_runs(policy):
    agent, buffer, _ = play(policy, **STORED)
    if policy == "R2D1":
        buffer.cut_windows(4)                                          # as the loop has asked for already

    def state():
        return str((torch.get_rng_state().tolist(), np.random.get_state(), buffer.rng.bit_generator.state, agent.steps,
                    agent.rng.bit_generator.state if hasattr(agent, "rng") else None, buffer.rows.sum(), buffer.hidden.sum()))
    before, own = state(), buffer.rng
    measure(agent, buffer)
    assert state() == before and buffer.rng is own


def test_old_measurements_are_no_new_runs(refused, tmp_path):
    argv = tiny("TD3", "Pendulum-v1", "--recurrent", "--core_size", "4", "--seq_len", "4", "--max_timesteps", "60")
    path = start(tmp_path, [*argv, "--staleness"])
    for end in (".csv", ".json"):
        os.remove(path + end)
    refused([*argv, "--results_dir", tmp_path], ["staleness.csv exists; add --resume"])
    start(tmp_path, [*argv, "--overwrite"])
    assert not os.path.exists(path + ".staleness.csv")


@pytest.mark.parametrize("argv, says", [
    ("--env Pendulum-v1", "add --recurrent_critic"),
    ("--policy PPO --env Pendulum-v1 --recurrent_actor", "add --recurrent_critic"),
    ("--policy R2D1 --env CartPole-v1", "add --recurrent\n"),
    ("--policy REINFORCE --env CartPole-v1 --recurrent --no-baseline", "add --recurrent_critic and --baseline"),
])
def test_bad_input(argv, says, refused):
    refused([*argv.split(), "--staleness"], ["error: --staleness ", says])
