"""What all eight algorithms keep, whatever each of them learns: one contract, each clause tested for all that it binds.

How an update computes its losses is tested beside it, against the paper's equations: test_TD3.py and the others.
"""
import copy
import importlib
from dataclasses import fields

import numpy as np
import pytest
import torch
from conftest import (
    DISCRETE_SPEC,
    RECURRENT,
    SPEC,
    Plain,
    RandomAgent,
    Toy,
    make_agent,
    make_buffer,
    make_off_policy,
    make_on_policy,
    networks_of,
    poison,
    reproduced,
    spy,
    weights_of,
)

import main
from agent import Agent, MemoryFlags
from envs import EnvSpec
from flags import POLICIES
from support import models
from TD3 import TD3

ONLINE = ["TD3", "DDPG", "SAC", "R2D1"]                                # learn from what they do, again and again
ON_POLICY = ["PPO", "A2C", "REINFORCE"]                                # once
STORED = dict(**RECURRENT, hidden_init="stored", seq_len=4)
MEMORIES = {"feed-forward": dict(seq_len=1), "zero": dict(**RECURRENT, seq_len=6), "burned in": dict(**STORED, burn_in=3),
            "full": dict(**STORED | dict(seq_len="full"))}


def of(policies):
    """A test for each of these algorithms."""
    return pytest.mark.parametrize("module", [importlib.import_module(name) for name in policies], ids=policies)


def memories(*names):
    return pytest.mark.parametrize("memory", [MEMORIES[name] for name in names], ids=names)


def test_each_algorithm_is_bound():
    assert {*ONLINE, *ON_POLICY, "BCQ"} == set(POLICIES)


def fit(module, **flags):
    """Of these flags those that the algorithm has and can use."""
    known = {f.name for f in fields(module.HyperParameters)} - module.HyperParameters.unused.keys()
    return {name: value for name, value in flags.items() if name in known}


def make(module, steps=60, size=400, spec=None, seed=0, **flags):
    """An agent with something to learn from, its buffer, and the record of it. Each update is the actor's, too."""
    flags = fit(module, **{"policy_freq": 1, **flags})
    if module.__name__ not in ON_POLICY:
        return make_off_policy(module, steps, size, seed, **flags)
    agent, buffer, game = make_on_policy(module, spec, seed, **flags)
    game.play_until_due()
    return agent, buffer, game


def updated(agent, buffer):
    """Losses, gradients and weights after an update of a copy of both."""
    agent, buffer = copy.deepcopy((agent, buffer))
    torch.manual_seed(0)
    losses = agent.train(buffer)
    gradients = [p.grad for network in (agent.actor, agent.critic) for p in network.parameters() if p.grad is not None]
    return [*losses.values(), *gradients, *weights_of(agent)]


def same(one, other):
    """To the bit, and finite."""
    return all(torch.equal(a, b) and a.isfinite().all() for a, b in zip(one, other, strict=True))


# ---------------------------------------------------------------------- what an update does not see

def fill_padding(batch):
    """A batch with garbage where its windows' padding is, and NaN where that of their pasts is."""
    padding = ~batch.mask[..., None]
    assert padding.any()
    after = torch.cat([torch.zeros_like(padding[:, :1]), padding], 1)  # (B, L + 1, 1): a row is real if the step before it is
    no_past = (torch.arange(batch.past.shape[1]) >= batch.past_length[:, None])[..., None]
    return batch._replace(history=batch.history.masked_fill(after, 1e3), past=batch.past.masked_fill(no_past, torch.nan))


@of(POLICIES)
def test_padding_changes_nothing(module):
    """Garbage in the padding of windows, and NaN in that of their pasts."""
    on_policy = module.__name__ in ON_POLICY
    for spec in (SPEC, DISCRETE_SPEC) if on_policy else (None,):
        agent, buffer, _ = make(module, spec=spec, entropy_coef=0.1, **STORED | dict(seq_len=6, burn_in=3))
        batch, results = buffer.windows(6, 3) if on_policy else buffer.sample(40, 6, 3), []
        for fake in (batch, fill_padding(batch)):
            setattr(buffer, "windows" if on_policy else "sample", lambda *_, fake=fake: fake)
            results.append(updated(agent, buffer))
        assert same(*results)


@of([*ONLINE, "BCQ"])
@memories(*MEMORIES)
@pytest.mark.parametrize("size, steps", [(400, 60), (60, 80)], ids=["not yet full", "wrapped around"])
def test_nan_outside_the_windows_changes_nothing(module, memory, size, steps):
    """In other episodes, other steps, unused rows, the row past the write head."""
    n_steps = 1 if memory["seq_len"] == 1 else 3
    agent, buffer, _ = make(module, steps, size, **memory, n_steps=n_steps, batch_size=12)
    clean, batch = updated(agent, buffer), copy.deepcopy(buffer).sample(12, agent.cfg.seq_len, agent.cfg.burn_in)
    poison(buffer, batch)
    assert buffer.rows.isnan().any() and same(clean, updated(agent, buffer))


@of(ON_POLICY)
@memories(*MEMORIES)
def test_nan_outside_the_rollout_changes_nothing(module, memory):
    """In rows of the rollout before, and in those past the write head."""
    agent, buffer, game = make(module, **memory)
    agent.train(buffer)
    game.play(15)                                                      # fewer than before
    # PPO's old probabilities are those of the states that windows were acted from, burned in or not
    burn_ins = [agent.cfg.burn_in] + [0] * (module.__name__ == "PPO")
    clean = updated(agent, buffer)
    poison(buffer, *(buffer.windows(agent.cfg.seq_len, burn_in) for burn_in in burn_ins))
    assert buffer.rows.isnan().any() and same(clean, updated(agent, buffer))


@of(["TD3", "DDPG", "SAC", *ON_POLICY])                                # R2D1 has one loss; BCQ has three, see test_BCQ.py
@pytest.mark.parametrize("memory", [{}, dict(**STORED, burn_in=2)], ids=["feed-forward", "recurrent"])
def test_each_loss_reaches_its_own_network_only(module, memory, monkeypatch):
    """The critic's loss gives the actor no gradient, the actor's loss gives the critic none, targets never get any."""
    agent, buffer, _ = make(module, **memory, epochs=1)
    agent.cfg.batch_size = 1000                                        # PPO: one minibatch
    seen, step = {}, agent.critic_optimizer.step

    def at_critic_step(*args):
        seen["actor"] = [p.grad for p in agent.actor.parameters()]
        seen["critic"] = [p.grad.clone() for p in agent.critic.parameters()]
        return step(*args)
    monkeypatch.setattr(agent.critic_optimizer, "step", at_critic_step)
    agent.train(buffer)
    assert all(grad is None for grad in seen["actor"])
    assert all(torch.equal(p.grad, grad) for p, grad in zip(agent.critic.parameters(), seen["critic"], strict=True))
    assert all(p.grad.abs().sum() > 0 for p in agent.actor.parameters())
    assert all(p.grad is None for _, target in agent.targets for p in target.parameters())


# ---------------------------------------------------------------------- memory

@of(ONLINE)
@pytest.mark.parametrize("start_timesteps", [0, 1000], ids=["policy", "random warm-up"])
@pytest.mark.parametrize("flags", [dict(), dict(core="gru"), dict(critic_hidden="zero")])
def test_stored_hidden_reproduces_the_next(module, flags, start_timesteps):
    """With unchanged weights, for each stored row, the critic's own memory included; the ring has wrapped around."""
    agent, buffer, game = make(module, 80, 100, start_timesteps=start_timesteps, **STORED, **flags)
    assert reproduced(agent, buffer) == len(buffer) < len(game.record)


@pytest.mark.parametrize("policy, flags", [
    *[(policy, flags) for policy in ON_POLICY for flags in (dict(), dict(core="gru"), dict(critic_hidden="actor"))],
    ("PPO", dict(hidden_init="zero")), ("PPO", dict(hidden_refresh=True))])
def test_stored_hidden_of_a_rollout_reproduces_the_next(policy, flags):
    """From the memory that the agent acted from; an update lies between rollouts, and clear() alone."""
    agent, buffer, game = make_on_policy(importlib.import_module(policy), **STORED | flags)
    for _ in range(3):
        assert len(game.play_until_due()) == len(buffer) == reproduced(agent, buffer)
        agent.train(buffer)
    for steps in (7, 9):
        game.play(steps)
        assert steps * game.num_envs == len(buffer) == reproduced(agent, buffer)
        buffer.clear()


@of(ONLINE)
def test_hidden_refresh_writes_recomputed_states(module, monkeypatch):
    """Windows are whole episodes here: their states are those of the new weights, all others as they were."""
    agent, buffer, _ = make(module, **STORED | dict(seq_len="full"), hidden_refresh=True, batch_size=12, lr=0.01)
    batches, before = spy(monkeypatch, buffer, "sample"), buffer.hidden.clone()
    agent.train(buffer)
    batch, written = batches[-1], torch.zeros(len(buffer.hidden), dtype=torch.bool)
    for index, history, length in zip(batch.index, batch.history, batch.mask.sum(1)):
        written[index[:length + 1]] = True
        for network, part in networks_of(agent):
            plain, hidden = Plain(network), torch.zeros(1, network.core.hidden_dim)
            for t in range(length + 1):
                assert torch.allclose(buffer.hidden[index[t], part], hidden[0], atol=1e-5)
                assert t == 0 or not torch.allclose(before[index[t], part], hidden[0], atol=1e-4)
                hidden = plain.remember(history[t:t + 1], hidden)[1].detach()
    assert torch.equal(buffer.hidden[~written], before[~written]) and not written.all()


@of(ONLINE)
@pytest.mark.parametrize("burn_in", [0, 3])
def test_hidden_refresh_goes_on_from_the_burned_in_state(module, burn_in, monkeypatch):
    """Of one window: burned in, and unrolled, with the weights as they are after the update; its first row included. TD3 does so
    in the updates without one of the actor, too."""
    agent, buffer, _ = make(module, **STORED, burn_in=burn_in, batch_size=1, hidden_refresh=True, lr=0.01, policy_freq=2)
    batches, warm = spy(monkeypatch, buffer, "sample"), 0
    for _ in range(20):
        agent.train(buffer)
        batch, n, k = batches[-1], batches[-1].steps, int(batches[-1].past_length)
        for network, part in networks_of(agent):
            _, first = Plain(network).unroll(batch.past[0, :k], batch.hidden[:, part])
            _, last = Plain(network).unroll(batch.history[0, :n], first)
            assert torch.allclose(buffer.hidden[batch.index[0, 0], part], first[0], atol=1e-6)
            assert torch.allclose(buffer.hidden[batch.index[0, n], part], last[0], atol=1e-6)
        warm += k > 0
    assert warm >= 3 or not burn_in


@of(POLICIES)
@pytest.mark.parametrize("flags, stored", [(dict(critic_hidden="own", hidden_init="stored"), 24),
                                           (dict(critic_hidden="actor", hidden_init="stored"), 12),
                                           (dict(critic_hidden="zero", hidden_init="stored"), 12),
                                           (dict(hidden_init="zero"), 0)])
def test_what_is_stored(module, flags, stored):
    """No number is stored that no window starts from. PPO's old log-probabilities start from the actor's memory, always."""
    stored = {"R2D1": min(stored, 12), "PPO": max(stored, 12), "BCQ": 0}.get(module.__name__, stored)
    agent, buffer, _ = make(module, **RECURRENT, **flags, hidden_refresh=flags["hidden_init"] == "stored")
    assert agent.stored_hidden_dim == buffer.hidden.shape[1] == stored
    agent.train(buffer)                                                # hidden_refresh fits each of them


# ---------------------------------------------------------------------- pace

@of(ONLINE)
@pytest.mark.parametrize("memory", [dict(seq_len=1), dict(seq_len=8, **RECURRENT)], ids=["feed-forward", "recurrent"])
def test_pace(module, memory, monkeypatch):
    """As many stored steps are trained on per environment step as --replay_ratio says, whatever a window holds."""
    agent, buffer, game = make(module, 0, start_timesteps=10, batch_size=16, replay_ratio=4, hidden_layers=0, **memory)
    batches = spy(monkeypatch, buffer, "sample")
    for _ in range(60):
        game.play(1)
        while agent.ready(buffer):
            assert agent.steps > 10
            agent.train(buffer)
    assert agent.steps == 120
    trained = sum(int(batch.mask.sum()) for batch in batches)          # counted here, not by the agent
    assert abs(trained - 4 * (120 - 10)) <= 16 + 8 and len(batches) >= 20


@of(ONLINE + ON_POLICY)
def test_the_buffer_holds_every_step(module):
    """Where --memory_size is not the bound, even if every episode has a single step, over several rollouts."""
    agent = make_agent(module, **fit(module, max_timesteps=50, memory_size=1000))
    buffer = make_buffer(agent, agent.buffer_size(), agent.cfg.num_envs)
    game = Toy(agent, buffer, [[1]] * agent.cfg.num_envs)
    for _ in range(1 if module.__name__ in ONLINE else 3):
        game.play(25)
        assert len(buffer) == 25 * agent.cfg.num_envs
        agent.train(buffer)


@of(["PPO", "A2C"])
def test_the_buffer_holds_the_past_beside_a_rollout(module):
    """Rows to burn in, the end of their episode, and a rollout of episodes of a single step."""
    agent = make_agent(module, **fit(module, **RECURRENT, seq_len=4, hidden_init="zero", burn_in=6))
    steps, num_envs = agent.cfg.rollout_steps, agent.cfg.num_envs
    buffer = make_buffer(agent, agent.buffer_size(), num_envs)
    game = Toy(agent, buffer, [[steps + 1] + [1] * steps] * num_envs)
    game.play(steps)
    agent.train(buffer)
    game.play(steps)
    windows = buffer.windows(4, 6)
    assert len(buffer) == steps * num_envs and windows.past_length.tolist().count(6) == num_envs


@of(POLICIES)
def test_learning_rates_fall_linearly(module):
    """--lr_decay: to zero at max_timesteps, those of cores and temperature too; without it none moves."""
    for decay, expected in ((True, 0.75), (False, 1.0)):
        agent, _, _ = make(module, lr=1e-2, core_lr=1e-3, lr_decay=decay, **RECURRENT)
        agent.steps = agent.steps or 10                                # BCQ's buffer is filled without steps of its own
        agent.cfg.max_timesteps = 4 * agent.steps
        agent.decay_lr()
        optimizers = [x for x in vars(agent).values() if isinstance(x, torch.optim.Optimizer)]
        rates = [group["lr"] / expected for optimizer in optimizers for group in optimizer.param_groups]
        initial = {"R2D1": [1e-2, 1e-3], "SAC": [1e-2, 1e-3, 1e-2, 1e-3, 1e-2]}.get(module.__name__, [1e-2, 1e-3] * 2)
        assert rates == pytest.approx(initial)


def test_a_run_lets_learning_rates_fall(monkeypatch, tmp_path):
    """Before each update, by the step that it is made at."""
    seen = []
    monkeypatch.setattr(TD3, "train", lambda agent, buffer: seen.append(
        (agent.steps, agent.actor_optimizer.param_groups[0]["lr"])) or setattr(agent, "steps_trained", 8 * agent.steps) or {})
    main.run(f"--policy TD3 --env Pendulum-v1 --start_timesteps 0 --batch_size 8 --replay_ratio 8 --max_timesteps 10 --lr 1e-2 "
             f"--lr_decay --hidden_size 4 --eval_episodes 1 --results_dir {tmp_path}".split())
    assert seen == [(step, pytest.approx(1e-2 * (1 - step / 10))) for step in range(1, 11)]


@of(["TD3", "DDPG", "SAC"])
def test_the_horizon_grows_evenly(module):
    """From 50 steps to 200 over max_timesteps, and no further; with a growth of 1 the discount is the flag's to the bit."""
    agent = make_agent(module, discount=0.98, max_timesteps=100)
    for steps, horizon in (0, 50), (50, 125), (100, 200), (101, 200):
        agent.steps = steps
        assert 1 / (1 - agent.discount) == pytest.approx(horizon)
    for discount in 0.98, 0.9, 1.0:
        agent.cfg.horizon_growth, agent.cfg.discount = 1, discount
        assert agent.discount == discount


# ---------------------------------------------------------------------- the actor that is evaluated

@of(["TD3", "DDPG", "SAC"])
@pytest.mark.parametrize("share", [0.4, 0])
def test_the_average_of_the_actor(module, share):
    """The n-th update moves it by 1 / (share * n), the first ones all the way; with 0 it is the actor."""
    agent, buffer, _ = make(module, average=share, lr=1e-2)
    expected = [p.detach().clone() for p in agent.actor.parameters()]
    for n in range(1, 8):
        agent.train(buffer)
        agent.average_actor()
        rate = 1 / (share * n) if share * n > 1 else 1
        expected = [(1 - rate) * mean + rate * p.detach() for mean, p in zip(expected, agent.actor.parameters())]
    for mean, average, p in zip(expected, agent.actor_average.parameters(), agent.actor.parameters(), strict=True):
        assert torch.allclose(average, mean, atol=1e-6) and torch.equal(average, p) == (share == 0)


@of(POLICIES)
def test_as_evaluated_the_actor_is_its_average(module):
    """If it has one, and only within, also when the evaluation fails."""
    agent = make_agent(module)
    trained = agent.actor
    with pytest.raises(KeyError), agent.as_evaluated():
        assert agent.actor is (trained if agent.actor_average is None else agent.actor_average)
        raise KeyError
    assert agent.actor is trained


@pytest.mark.parametrize("share", [0.5, 0])
def test_a_run_evaluates_and_saves_the_average(share, monkeypatch, tmp_path):
    """And trains the actor itself. With 0 they are the same."""
    seen, evaluate = [], main.evaluate
    monkeypatch.setattr(main, "evaluate", lambda agent, *args: seen.append((agent, agent.actor)) or evaluate(agent, *args))
    words = f"--policy TD3 --env Pendulum-v1 --start_timesteps 0 --batch_size 8 --max_timesteps 50 --lr 1e-2 --average {share} " \
        f"--eval_freq 25 --hidden_size 4 --eval_episodes 1 --save_model --results_dir {tmp_path}"
    path = main.run(words.split()).path
    agent = seen[0][0]
    assert len(seen) == 3 and all(actor is agent.actor_average for _, actor in seen)
    saved = list(models.load_model(path + ".last.pt")["agent"]["actor"].values())
    assert same(saved, agent.actor_average.state_dict().values())
    assert same(saved, agent.actor.state_dict().values()) == (share == 0)


# ---------------------------------------------------------------------- what is kept, and what comes again

@of(POLICIES)
def test_same_seed_same_weights(module):
    """To the bit, after acting and training; another seed, other weights."""
    def run(seed):
        agent, buffer, game = make(module, 20, seed=seed, **STORED, burn_in=2, hidden_refresh=True)
        for _ in range(4):
            agent.train(buffer)
            game.play_until_due() if module.__name__ in ON_POLICY else game.play(3)
        return weights_of(agent)
    first, second, other = run(0), run(0), run(1)
    assert same(first, second)
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@of(POLICIES)
def test_a_loaded_agent_is_the_saved_one(module):
    """All that its model holds, scale of returns and temperature included. Targets are what was loaded, not this run's random
    ones: else what is loaded would be forgotten first."""
    saved, buffer, _ = make(module, **RECURRENT)
    saved.train(buffer)
    agent = make(module, seed=1, **RECURRENT)[0]
    agent.load_state_dict(saved.state_dict())
    for name, part in saved.state_dict().items():
        assert name in saved.numbers or same(part.values(), agent.state_dict()[name].values())
    assert all(same(network.state_dict().values(), target.state_dict().values()) for network, target in agent.targets)
    for name in saved.numbers:
        assert getattr(agent, name) == getattr(saved, name) != getattr(make_agent(module), name)


@of([name for name in POLICIES if name != "R2D1"])
@pytest.mark.parametrize("actor, critic", [(True, False), (False, True), (True, True), (False, False)])
def test_memory_is_where_it_was_asked_for(module, actor, critic):
    agent = make_agent(module, recurrent_actor=actor, recurrent_critic=critic)
    assert [network.core.hidden_dim > 0 for network in (agent.actor, agent.critic)] == [actor, critic]


@of(POLICIES)
def test_a_loaded_agent_goes_on_learning(module):
    """All that it learns: its optimizers hold the weights, and SAC's temperature, that were loaded."""
    agent, buffer, _ = make(module, seed=1, **STORED)
    agent.load_state_dict(make(module, **STORED)[0].state_dict())

    def learned():
        temperature = [agent.log_alpha] if module.__name__ == "SAC" else []
        return [p.detach().clone() for p in [*agent.actor.parameters(), *agent.critic.parameters(), *temperature]]
    before = learned()
    agent.train(buffer)
    assert not any(torch.equal(a, b) for a, b in zip(before, learned(), strict=True))


# ---------------------------------------------------------------------- learning

CHAIN = dict(discount=0.9, lr_decay=False, horizon_growth=1)
CHAINS = {                                                             # flags, and updates it needs
    **dict.fromkeys(("TD3", "DDPG"), (dict(start_timesteps=1000, batch_size=32, tau=0.2, lr=3e-3), 400)),
    "SAC": (dict(start_timesteps=1000, batch_size=32, tau=0.2, lr=3e-3, init_alpha=1e-6, target_entropy=-10.0), 400),
    "R2D1": (dict(start_timesteps=1000, batch_size=32, target_freq=5, lr=3e-3, n_steps=1), 400),
    "BCQ": (dict(batch_size=32, tau=0.4, lr=6e-3, min_weight=1, target_candidates=3), 200),
    "PPO": (dict(rollout_steps=25, batch_size=25, epochs=8, lr=5e-3), 30), "A2C": (dict(rollout_steps=25, lr=2e-2), 200),
    "REINFORCE": (dict(discount=0.5, batch_size=20, lr=1e-2), 100),
}


class Chain(Toy):
    """Two states in turn, reward 1, a time limit of 10: worth 1 / (1 - discount) for ever, as nothing ever terminates."""

    def __init__(self, agent, buffer, num_envs):
        super().__init__(agent, buffer, [[10]] * num_envs, only="truncated")

    def observe(self, t):
        return np.eye(2, dtype=np.float32)[t % 2]

    def reward(self):
        return np.float32(1)


CHAIN_SPEC = EnvSpec(2, 1, False)


@of(POLICIES)
@pytest.mark.parametrize("memory", [{}, dict(seq_len=5, burn_in=2, hidden_init="stored", **RECURRENT)],
                         ids=["feed-forward", "recurrent"])
def test_a_time_limit_is_no_end(module, memory):
    """Reward 1 for ever in episodes of 10: a step is worth 1 / (1 - gamma); with truncation taken for termination about half
    as much."""
    flags, updates = CHAINS[module.__name__]
    agent = make_agent(module, EnvSpec(2, 2, True) if module.__name__ == "R2D1" else CHAIN_SPEC,
                       **fit(module, **CHAIN | memory | flags))
    on_policy, num_envs = module.__name__ in ON_POLICY, agent.cfg.num_envs
    buffer = make_buffer(agent, agent.buffer_size() if on_policy else 400, num_envs)
    game = Chain(RandomAgent(agent.spec, 0) if agent.offline else agent, buffer, num_envs)
    if not on_policy:
        game.play(190 // num_envs)
    for _ in range(updates):
        if on_policy:
            game.play_until_due()
        agent.train(buffer)
    if on_policy:
        game.play_until_due()
    steps = buffer.windows("full")
    with torch.no_grad():
        features, _ = agent.critic.core(steps.history[:, :-1], agent.start_hidden(steps, agent.critic))
        values = agent.values(steps.pick(features), steps)
    values = getattr(agent, "unsquash", lambda x: x)(values) * getattr(agent, "return_scale", 1) * (1 - agent.cfg.discount)
    assert 0.9 < values.min() and values.max() < 1.1, (values.min(), values.max())


def test_an_actor_and_a_critic_of_one_class_are_refused():
    """start_hidden would take the one for the other."""
    with pytest.raises(AssertionError, match="by their class"):
        Agent(SPEC, MemoryFlags(), 0, "cpu", torch.nn.Linear(1, 1), torch.nn.Linear(1, 1))
