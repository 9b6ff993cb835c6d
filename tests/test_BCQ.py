"""BCQ against the paper's equations, written a second time; data sets, from recording to training; what bad input gets."""
import copy
import glob
import importlib
import json
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import gymnasium as gym
import h5py
import minari
import numpy as np
import pytest
import test_memory
import torch
from conftest import (
    RECURRENT,
    SPEC,
    Plain,
    make_agent,
    make_off_policy,
    spy,
    weights_of,
)

import BCQ
import envs
import main
from agent import Agent
from support import data
from utils import Buffer

HERE = os.path.dirname(os.path.abspath(main.__file__))


# ---------------------------------------------------------------------- the algorithm

class PlainActor(Plain):
    """Core, encoder and decoder: the generative model."""

    def __init__(self, actor):
        super().__init__(actor, actor.encoder, actor.decoder)

    def decode(self, feature, latent):
        return torch.tanh(self.heads[1](torch.cat([feature, latent], -1)))


def plain_perturbation(mlp):
    return Plain(SimpleNamespace(core=SimpleNamespace(hidden_dim=0, state_dim=0)), mlp).heads[0]


def largest(parameters, others):
    return max((a - b).abs().max().item() for a, b in zip(parameters, others, strict=True))


class PlainBCQ:
    """BCQ as in the paper, on a copy of an agent's weights: one window after the other, one step and one action at a time."""

    def __init__(self, agent):
        self.agent, self.cfg = agent, agent.cfg
        self.vae, self.critic = PlainActor(agent.actor), Plain(agent.critic)
        self.perturbation = plain_perturbation(agent.actor.perturbation)
        self.perturbation_target, self.critic_target = copy.deepcopy(self.perturbation), copy.deepcopy(self.critic)
        self.optimizers = [torch.optim.Adam(net.parameters(), lr=self.cfg.lr)
                           for net in (self.vae, self.critic, self.perturbation)]

    def step(self, which, loss):
        self.optimizers[which].zero_grad()
        loss.backward()
        self.optimizers[which].step()
        return loss.item()

    def perturb(self, net, feature, action):
        return (action + self.cfg.phi * torch.tanh(net(torch.cat([feature, action], -1)))).clamp(-1, 1)

    def update(self, windows, noise):
        """noise: of the standard normal, (steps, latent_dim) for each window: for the reconstruction, for each candidate of the
        next action, for the perturbation."""
        cfg, starts = self.cfg, []
        for past, _ in windows:
            with torch.no_grad():
                starts.append({net: net.unroll([step.row for step in past], torch.zeros(1, net.hidden_dim))[1]
                               for net in (self.vae, self.critic, self.critic_target)})
        losses = []
        for (_, steps), start, eps in zip(windows, starts, noise[0]):
            features, _ = self.vae.unroll([step.row for step in steps], start[self.vae])
            for t, step in enumerate(steps):
                a = torch.as_tensor(step.action)
                mean, log_std = self.vae.heads[0](torch.cat([features[t], a[None]], -1))[0].chunk(2)
                normal = torch.distributions.Normal(mean, log_std.clamp(-4, 15).exp())
                rebuilt = self.vae.decode(features[t], (normal.mean + normal.stddev * eps[t])[None])[0]
                kl = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0., 1.))
                losses.append(((rebuilt - a) ** 2).mean() + cfg.kl_weight * kl.mean())
        vae_loss = self.step(0, sum(losses) / len(losses))

        errors, kept = [], []
        for b, ((_, steps), start) in enumerate(zip(windows, starts)):
            rows = [step.row for step in steps] + [steps[-1].next_row]
            with torch.no_grad():
                actor_features, _ = self.vae.unroll(rows, start[self.vae])
                next_critic, _ = self.critic_target.unroll(rows, start[self.critic_target])
            features, _ = self.critic.unroll(rows[:-1], start[self.critic])
            for t, step in enumerate(steps):
                with torch.no_grad():
                    values = []
                    for i in range(cfg.target_candidates):
                        z = noise[1][i][b][t].clamp(-0.5, 0.5)[None]
                        feature = actor_features[t + 1]
                        action = self.perturb(self.perturbation_target, feature, self.vae.decode(feature, z))
                        q = [head(torch.cat([next_critic[t + 1], action], -1)).item() for head in self.critic_target.heads]
                        values.append(cfg.min_weight * min(q) + (1 - cfg.min_weight) * max(q))
                    y = step.reward + (0 if step.terminated else cfg.discount * max(values))
                joined = torch.cat([features[t], torch.as_tensor(step.action)[None]], -1)
                errors.append(sum((y - head(joined)) ** 2 for head in self.critic.heads))
                kept.append((b, t, actor_features[t]))
        critic_loss = self.step(1, sum(errors) / len(errors))

        values = []
        with torch.no_grad():
            features = [self.critic.unroll([step.row for step in steps], start[self.critic])[0]
                        for (_, steps), start in zip(windows, starts)]
        for b, t, actor_feature in kept:
            with torch.no_grad():
                generated = self.vae.decode(actor_feature, noise[2][b][t].clamp(-0.5, 0.5)[None])
            action = self.perturb(self.perturbation, actor_feature, generated)
            values.append(self.critic.heads[0](torch.cat([features[b][t], action], -1)))
        actor_loss = self.step(2, -sum(values) / len(values))
        for net, target in ((self.critic, self.critic_target), (self.perturbation, self.perturbation_target)):
            for p, q in zip(net.parameters(), target.parameters()):
                q.detach().mul_(1 - cfg.tau).add_(cfg.tau * p.detach())
        return {"vae_loss": vae_loss, "critic_loss": critic_loss, "actor_loss": actor_loss}

    def distances(self):
        agent = self.agent
        return {"vae": largest(self.vae.parameters(), PlainActor(agent.actor).parameters()),
                "critic": self.critic.distance(agent.critic), "critic_target": self.critic_target.distance(agent.critic_target),
                **{name: largest(getattr(self, name).parameters(), plain_perturbation(mlp).parameters()) for name, mlp in
                   (("perturbation", agent.actor.perturbation), ("perturbation_target", agent.perturbation_target))}}


@pytest.mark.parametrize("flags", [
    dict(hidden_layers=0), dict(hidden_layers=2, min_weight=0.3, phi=0.5, kl_weight=0.1),
    dict(**RECURRENT, seq_len=5), dict(**RECURRENT, seq_len=5, burn_in=3, core="gru"),
    dict(**RECURRENT, seq_len="full", memory_input="obs_action_reward"), dict(recurrent_actor=True, seq_len=5, burn_in=2),
    dict(recurrent_critic=True, seq_len=4)], ids=lambda flags: "-".join(str(v) for v in flags.values()))
def test_update_is_plain_bcq(float64, monkeypatch, flags):
    """Feed-forward at L = 1 the textbook algorithm, recurrent window by window: over four updates."""
    agent, buffer, game = make_off_policy(BCQ, tau=0.1, lr=3e-3, target_candidates=3, act_candidates=4,
                                          **{"batch_size": 16, "phi": 0.2, **flags})
    plain = PlainBCQ(agent)
    before, batches = weights_of(agent), spy(monkeypatch, buffer, "sample")
    for k in range(4):
        torch.manual_seed(k)
        losses = agent.train(buffer)
        windows = game.windows(batches[-1], agent.cfg.burn_in)
        lengths = [len(steps) for _, steps in windows]
        torch.manual_seed(k)
        once, candidates, again = (torch.randn(n * sum(lengths), 2 * SPEC.action_dim) for n in (1, 3, 1))
        candidates = [drawn.split(lengths) for drawn in candidates.chunk(3)]
        expected = plain.update(windows, [once.split(lengths), candidates, again.split(lengths)])
        assert losses.keys() == expected.keys()
        for name, loss in expected.items():
            assert losses[name].item() == pytest.approx(loss, abs=1e-6), name
        assert all(distance < 1e-6 for distance in plain.distances().values()), plain.distances()
    assert all((a - b).abs().max() > 1e-4 for a, b in zip(before, weights_of(agent), strict=True))     # each has learned


def test_acts_by_the_best_of_its_candidates():
    """Perturbed actions of one set of latents, the first twin's favourite; both memories advance; nothing is random."""
    agent = make_agent(BCQ, act_candidates=7, **RECURRENT)
    with torch.no_grad():                                              # else candidates are hardly different
        agent.actor.decoder.weights[0].mul_(5)
        agent.critic.mlp.weights[-1][1].neg_()                         # and the second twin would choose another
    vae, critic, perturbation = PlainActor(agent.actor), Plain(agent.critic), plain_perturbation(agent.actor.perturbation)
    rng, size = np.random.default_rng(0), agent.actor.core.hidden_dim
    row = rng.normal(size=(5, 6)).astype(np.float32)
    hidden = rng.normal(size=(5, agent.hidden_dim)).astype(np.float32)
    state = torch.get_rng_state()
    action, next_hidden = agent.act(row, hidden)
    again, _ = agent.act(row, hidden, explore=False)
    assert torch.equal(state, torch.get_rng_state()) and np.array_equal(action, again) and action.dtype == np.float32
    chosen = set()
    with torch.no_grad():
        for k in range(5):
            r, h = torch.as_tensor(row[k:k + 1]), torch.as_tensor(hidden[k:k + 1])
            feature, next_actor = vae.remember(r, h[:, :size])
            critic_feature, next_critic = critic.remember(r, h[:, size:])
            candidates = [vae.decode(feature, z[0]) for z in agent.actor.act_latent]
            moved = [(a + agent.cfg.phi * torch.tanh(perturbation(torch.cat([feature, a], -1)))).clamp(-1, 1) for a in candidates]
            values = [critic.heads[0](torch.cat([critic_feature, a], -1)).item() for a in moved]
            assert np.allclose(action[k], moved[int(np.argmax(values))], atol=1e-5)
            assert np.allclose(next_hidden[k], torch.cat([next_actor, next_critic], -1), atol=1e-5)
            chosen.add(int(np.argmax(values)))
    assert len(chosen) > 1 and agent.actor.act_latent.abs().max() == 0.5


def test_bounds_of_the_latents_spread():
    """Of the encoder's: exp(log_std) neither overflows nor vanishes, and between the bounds nothing is changed."""
    agent = make_agent(BCQ, hidden_layers=0)
    features, action = torch.zeros(4, SPEC.state_dim), torch.zeros(4, SPEC.action_dim)
    for output, expected in ((50.0, 15), (5.0, 5), (-3.0, -3), (-50.0, -4)):
        with torch.no_grad():
            agent.actor.encoder.biases[0][..., agent.actor.latent_dim:] = output
        assert (agent.actor.encode(features, action)[1] == expected).all()


def test_each_loss_reaches_its_own_weights_only(monkeypatch):
    """Generative model: the actor's core, encoder and decoder. Critic: the critic. Perturbation: its own layers."""
    agent, buffer, _ = make_off_policy(BCQ, **RECURRENT, seq_len=4, burn_in=2)
    actor, seen, critic_grads = agent.actor, [], []
    parts = {"core": actor.core, "encoder": actor.encoder, "decoder": actor.decoder, "perturbation": actor.perturbation,
             "critic": agent.critic, "critic_target": agent.critic_target, "perturbation_target": agent.perturbation_target}

    def watch(optimizer, name):
        step = optimizer.step

        def watched():
            reached = {part for part, net in parts.items() if any(p.grad is not None for p in net.parameters())}
            for part in reached:
                assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in parts[part].parameters()), part
            before = {part: [p.clone() for p in net.parameters()] for part, net in parts.items()}
            step()
            moved = {part for part, net in parts.items()
                     if not all(torch.equal(a, b) for a, b in zip(before[part], net.parameters(), strict=True))}
            seen.append((name, reached, moved))
            critic_grads.append([p.grad.clone() for p in agent.critic.parameters() if p.grad is not None])
        monkeypatch.setattr(optimizer, "step", watched)
    watch(agent.actor_optimizer, "actor")
    watch(agent.critic_optimizer, "critic")
    agent.train(buffer)
    (one, vae, vae_moved), (two, critic, critic_moved), (three, perturbation, perturbation_moved) = seen
    assert (one, two, three) == ("actor", "critic", "actor")
    assert vae == vae_moved == {"core", "encoder", "decoder"}
    assert critic == vae | {"critic"} and critic_moved == {"critic"}   # what is left of the step before
    assert perturbation == {"perturbation", "critic"} and perturbation_moved == {"perturbation"}
    assert all(torch.equal(a, b) for a, b in zip(critic_grads[1], critic_grads[2], strict=True))   # not added to


# ---------------------------------------------------------------------- recording and loading

class Mixed(gym.Env):
    """Random observations, all in one array; some episodes terminate, the others run into the time limit. Counts all steps
    ever taken."""
    steps = 0

    def __init__(self):
        self.seen = np.zeros(4, np.float32)
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (4,), np.float32)
        self.action_space = gym.spaces.Box(np.array([-1, 10], np.float32), np.array([3, 20], np.float32))

    def observe(self):
        self.seen[:] = self.np_random.normal(size=4)
        return self.seen

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        return self.observe(), {}

    def step(self, action):
        assert self.action_space.contains(action)
        Mixed.steps += 1
        return self.observe(), self.np_random.normal() + float(action[0]), self.np_random.random() < 0.1, False, {}


gym.register("TestMixed-v0", "test_BCQ:Mixed", max_episode_steps=8, disable_env_checker=True)    # it would warn of the one array
ONLINE = ["--policy", "TD3", "--env", "TestMixed-v0", "--start_timesteps", "40", "--batch_size", "8", "--replay_ratio", "1",
          "--max_timesteps", "150", "--eval_freq", "100", "--eval_episodes", "2", "--hidden_size", "8"]
OFFLINE = ["--policy", "BCQ", "--env", "TestMixed-v0", "--batch_size", "8", "--max_timesteps", "30", "--eval_freq", "20",
           "--eval_episodes", "2", "--hidden_size", "8"]


@pytest.fixture
def world(tmp_path, monkeypatch):
    """An empty Minari folder (not even made), and a mask for the environment above. A function that runs a command line."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.setitem(envs.KEEP, "TestMixed-v0", ([0, 2], [1, 3]))
    return lambda *argv, results="results": main.main([*argv, "--results_dir", str(tmp_path / results)])


def buffers(monkeypatch):
    """All buffers that agents are given from now on, by main.py."""
    made = []

    class Kept(Buffer):
        def __init__(self, *args):
            super().__init__(*args)
            made.append(self)
    monkeypatch.setattr(Agent, "buffer_class", Kept)
    return made


@pytest.mark.parametrize("observe", ["full", "positions"])
def test_what_is_loaded_is_what_was_lived_through(world, observe, monkeypatch):
    """The buffer of an offline run holds the rows of the online run that recorded the data set: observations, rewards, flags
    and where episodes begin exactly, actions up to the rounding of their scaling. The last episode is cut off."""
    made = buffers(monkeypatch)
    world(*ONLINE, "--record", "mixed/td3-v0", "--observe", observe)
    world(*OFFLINE, "--dataset", "mixed/td3-v0", "--observe", observe)
    (lived, loaded), A = made, slice(-4, -2)
    n = len(lived.rows[:lived.head[0] + 1])
    assert len(loaded.rows) == n == loaded.head[0] + 1 and len(loaded) == len(lived) == 150
    assert lived.running[0] and not loaded.running[0]
    a, b = lived.rows[:n], loaded.rows
    assert torch.allclose(a[:, A], b[:, A], atol=1e-6) and (a[:, A].abs() > 0.9).any()
    a[:, A] = b[:, A] = 0
    assert torch.equal(a, b)
    episodes = lived.newest[0] + 1
    assert np.array_equal(lived.first[0, :episodes], loaded.first[0, :episodes]) and loaded.newest[0] + 1 == episodes
    ends = lived.rows[lived.last[0, :episodes - 1], -1]
    assert 2 < ends.sum() < len(ends) - 2                              # terminated and truncated ones
    assert minari.load_dataset("mixed/td3-v0")[-1].truncations[-1]


def test_a_data_set_holds_what_the_environment_said(world, monkeypatch):
    """Minari opens it: all observations, whatever the agent saw, the environment's own actions, both kinds of end."""
    made = buffers(monkeypatch)
    world(*ONLINE, "--record", "mixed/td3-v0", "--observe", "positions", "--flicker", "0.5")
    dataset = minari.load_dataset("mixed/td3-v0")
    assert dataset.total_steps == 150 and dataset.env_spec.id == "TestMixed-v0"
    env = dataset.recover_environment()
    assert env.spec.max_episode_steps == 8 and env.observation_space == dataset.observation_space
    assert env.action_space == dataset.action_space
    episodes, returns, t = list(dataset), [], 0
    for k, episode in enumerate(episodes):
        T = len(episode)
        assert episode.observations.shape == (T + 1, 4) and episode.observations.dtype == np.float32
        assert all(env.action_space.contains(a) for a in episode.actions)
        assert not (episode.terminations[:-1] | episode.truncations[:-1]).any()
        assert episode.truncations[-1] == (T == 8 or k == len(episodes) - 1 and not episode.terminations[-1])
        assert episode.terminations[-1] or episode.truncations[-1]
        rows = made[0].rows[t:t + T + 1]                               # flickers: zero, or what the environment said
        seen = rows[:, 0] != 0
        assert np.array_equal(rows[seen, :2], episode.observations[seen][:, [0, 2]])
        assert np.allclose(rows[1:, -2], episode.rewards)
        t += T + 1
        returns.append(episode.rewards.sum())
    assert (made[0].rows[:t, 0] == 0).any()
    said = dataset.storage.metadata
    assert said["algorithm_name"] == "TD3" and "--record mixed/td3-v0" in said["description"]
    assert f"{len(episodes)} episodes, 150 steps, mean return {np.mean(returns):.1f}." in said["description"]


def test_recording_does_not_change_the_run(world, tmp_path):
    results = []
    for name, flags in (("1", []), ("2", ["--record", "mixed/td3-v0"])):
        world(*ONLINE, *flags, results=name)
        path, = glob.glob(str(tmp_path / name / "*.csv"))
        results.append((os.path.basename(path), [line.split(",")[:4] for line in open(path)]))
    assert results[0] == results[1]


def record(env_id, name, steps, seed=0):
    """A data set of random actions."""
    env = envs.make_env(env_id, data.Recorder)
    rng = np.random.default_rng(seed)
    env.reset(seed=seed)
    for _ in range(steps):
        _, _, terminated, truncated, _ = env.step(rng.uniform(-1, 1, env.action_space.shape).astype(np.float32))
        if terminated or truncated:
            env.reset()
    data.save(env, name, "random", "by hand")
    return env


@pytest.mark.parametrize("env_id", ["Pendulum-v1", "CartPole-v1", "InvertedPendulumBulletEnv-v0", "Cue10-v0"])
def test_environments_are_recovered(env_id, world):
    env = record(env_id, "toys/random-v3", 50)
    dataset = minari.load_dataset("toys/random-v3")
    again = dataset.recover_environment()
    assert again.spec.id == env_id and again.action_space == env.env.env.action_space == dataset.action_space
    again.reset(seed=0)
    episode = dataset[0]
    _, reward, *_ = again.step(episode.actions[0])
    assert again.observation_space.contains(episode.observations[1]) and np.isfinite(reward)
    assert dataset.total_steps == 50 and "toys/random-v3" in minari.list_local_datasets()


class Symbols(Mixed):
    """What it observes is a number of 0 to 4, or two such."""

    def __init__(self, parts=1):
        super().__init__()
        number = gym.spaces.Discrete(5)
        self.observation_space = number if parts == 1 else gym.spaces.Tuple([number] * parts)

    def observe(self):
        return self.observation_space.sample()


gym.register("TestNumbers-v0", "test_BCQ:Symbols", max_episode_steps=8)
gym.register("TestNumberPairs-v0", "test_BCQ:Symbols", max_episode_steps=8, kwargs=dict(parts=2))


def test_discrete_observations_are_kept_raw_and_seen_one_hot(world):
    env = record("TestNumbers-v0", "symbols/random-v0", 60)
    raw = [episode.observations for episode in minari.load_dataset("symbols/random-v0")]
    assert {int(x) for x in np.concatenate(raw)} == set(range(5))
    for observations, episode in zip(raw, data.load("symbols/random-v0", env, 0)):
        assert np.array_equal(episode.state, np.eye(5, dtype=np.float32)[observations])
    world(*OFFLINE, "--env", "TestNumbers-v0", "--dataset", "symbols/random-v0")


class Bounded(Mixed):
    """Its last two actions are a whole number and one that has no choice; or all are whole numbers."""

    def __init__(self, dtype=np.float32):
        super().__init__()
        self.action_space = gym.spaces.Box(np.array([-3, 0, 7], dtype), np.array([3, 255, 7], dtype), dtype=dtype)


gym.register("TestNoChoice-v1", "test_BCQ:Bounded", max_episode_steps=8)
gym.register("TestWhole-v1", "test_BCQ:Bounded", max_episode_steps=8, kwargs=dict(dtype="int64"))


@pytest.mark.parametrize("env_id", ["TestNoChoice-v1", "TestWhole-v1"])
def test_an_own_recording_of_any_actions_is_learnt_from(env_id, world, tmp_path):
    """Equal bounds in a dimension, and whole numbers: what was recorded are the environment's actions, what is read are the
    agent's, all of them finite."""
    env = record(env_id, "toys/random-v0", 60)
    recorded = [episode.actions for episode in minari.load_dataset("toys/random-v0")]
    for actions, episode in zip(recorded, data.load("toys/random-v0", env, 0)):
        assert actions.dtype == env.unwrapped.action_space.dtype and (actions[:, 2] == 7).all()
        assert np.isfinite(episode.action).all() and (abs(episode.action) <= 1).all() and (episode.action[:, 2] == 0).all()
        np.testing.assert_allclose(env.env.action(episode.action), actions, rtol=1e-5, atol=1e-5)
    world(*OFFLINE, "--env", env_id, "--dataset", "toys/random-v0")


def test_observations_of_several_parts_are_not_recorded(world, capsys, tmp_path):
    with pytest.raises(SystemExit) as stop:
        world(*ONLINE, "--env", "TestNumberPairs-v0", "--record", "pairs/td3-v0")
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1
    assert "--record: TestNumberPairs-v0 has observations of several parts" in error
    assert not os.listdir(tmp_path)


def test_an_episode_without_an_end_is_truncated(world):
    """In a data set from elsewhere, also in its middle."""
    env = record("TestMixed-v0", "x-v0", 60)

    def edit(file):
        file["episode_1"]["terminations"][-1] = file["episode_1"]["truncations"][-1] = False
    change("x-v0", edit)
    episodes = data.load("x-v0", env, 0)
    assert not episodes[1].terminated.any() and episodes[1].truncated.tolist() == [False] * (len(episodes[1].reward) - 1) + [True]


def test_noise_on_a_data_set_is_seeded(world):
    env = record("Pendulum-v1", "x-v0", 300)
    env = envs.make_env("Pendulum-v1", obs_noise=0.1, flicker=0.2)
    one, same, other = [np.concatenate([e.state for e in data.load("x-v0", env, seed)]) for seed in (0, 0, 1)]
    plain = np.concatenate([e.state for e in data.load("x-v0", envs.make_env("Pendulum-v1"), 0)])
    assert np.array_equal(one, same) and not np.array_equal(one, other)
    dark = ~one.any(1)
    assert 0.1 < dark.mean() < 0.3 and (one - plain)[~dark].std() == pytest.approx(0.1, abs=0.02)


@pytest.mark.parametrize("explore", [False, True])
def test_a_saved_policy_is_recorded(world, explore, tmp_path, capsys):
    """--test --record: as many episodes as --eval_episodes. With --explore its actions are noisy, but never those of the
    random start."""
    world(*ONLINE, "--save_model", "--start_timesteps", "120", "--expl_noise", "0.05", "--record", "mixed/td3-v0")
    model, = glob.glob(str(tmp_path / "results" / "*.best.pt"))
    before = sorted(os.listdir(tmp_path / "results"))
    capsys.readouterr()
    world("--test", "--load_model", model, "--eval_episodes", "20", "--record", "mixed/saved-v0", *["--explore"] * explore)
    out, err = capsys.readouterr()
    assert err == "" and re.search(r"over 20 episodes", out) and "data set mixed/saved-v0 written: 20 episodes" in out
    assert sorted(os.listdir(tmp_path / "results")) == before
    env = envs.make_env("TestMixed-v0")
    episodes = data.load("mixed/saved-v0", env, 0)
    run, cfg, algorithm, checkpoint = main.parse(["--test", "--load_model", model])
    agent = algorithm(main.env_spec(env), cfg)
    agent.load_state_dict(checkpoint["agent"])
    away = np.concatenate([e.action - agent.act(np.pad(e.state[:-1], ((0, 0), (0, 3))), np.zeros((len(e.action), 0)), False)[0]
                           for e in episodes])
    assert len(episodes) == 20 and np.abs(away).max() < (0.3 if explore else 1e-5)
    assert not explore or away.std() == pytest.approx(0.05, abs=0.02)
    world("--test", "--load_model", model)                             # is not recorded because its training was
    assert list(minari.list_local_datasets()) == ["mixed/saved-v0", "mixed/td3-v0"]


def test_training_never_steps_the_environment(world, tmp_path, monkeypatch, capsys):
    """All steps but the one that make_env tries are those of the evaluations; what was trained from is in the JSON."""
    world(*ONLINE, "--record", "mixed/td3-v0")
    Mixed.steps, made = 0, buffers(monkeypatch)
    monkeypatch.setattr(main, "make_vector_env", None)
    capsys.readouterr()
    world(*OFFLINE, "--dataset", "mixed/td3-v0", "--recurrent", "--core_size", "4", "--seq_len", "4", results="offline")
    path, = glob.glob(str(tmp_path / "offline" / "*.csv"))
    assert os.path.basename(path).startswith("TestMixed-v0_BCQ_lstm_") and "dataset=mixed-td3-v0" in path
    rows = [line.strip().split(",") for line in open(path)][1:]
    assert [int(row[0]) for row in rows] == [0, 0, 20, 20, 30, 30]
    assert Mixed.steps == 1 + sum(int(row[3]) for row in rows) and len(made[0]) == 150
    info = json.load(open(path.replace(".csv", ".json")))
    description = minari.load_dataset("mixed/td3-v0").storage.metadata["description"]
    assert info["data"]["steps"] == 150 and info["finished"] and info["config"]["dataset"] == "mixed/td3-v0"
    assert f"{info['data']['episodes']} episodes, 150 steps, mean return {info['data']['mean return']}." in description
    assert "update 20 of 30: return" in capsys.readouterr().out


def test_an_interrupted_run_keeps_what_it_recorded(world, monkeypatch):
    train = importlib.import_module("TD3").TD3.train

    def interrupt(self, buffer):
        if self.steps == 100:
            raise KeyboardInterrupt
        return train(self, buffer)
    monkeypatch.setattr(importlib.import_module("TD3").TD3, "train", interrupt)
    with pytest.raises(SystemExit) as stop:
        world(*ONLINE, "--record", "mixed/td3-v0", "--replay_ratio", "8")
    assert stop.value.code == 130 and minari.load_dataset("mixed/td3-v0").total_steps == 100


def test_a_name_that_is_taken_meanwhile(world, monkeypatch, capsys):
    """By another run that records: nothing is lost, the data set gets the next free version."""
    record("TestMixed-v0", "mixed/td3-v0", 20)
    record("TestMixed-v0", "mixed/td3-v1", 20)
    monkeypatch.setattr(data, "check_free", lambda name: None)
    world(*ONLINE, "--record", "mixed/td3-v0")
    assert "data set mixed/td3-v2 written" in capsys.readouterr().out
    assert minari.load_dataset("mixed/td3-v0").total_steps == 20 < minari.load_dataset("mixed/td3-v2").total_steps


def test_a_data_set_that_cannot_be_written(world, monkeypatch, capsys, tmp_path):
    """One line, exit code 1, the run's results are there, and no half of a data set."""
    def full(name, *args, **kwargs):
        os.makedirs(tmp_path / "minari" / name / "data")
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(minari, "create_dataset_from_buffers", full)
    with pytest.raises(SystemExit) as stop:
        world(*ONLINE, "--record", "mixed/td3-v0")
    out, err = capsys.readouterr()
    assert stop.value.code == 1 and err.count("\n") == 1 and "mixed/td3-v0 could not be written: [Errno 28] No space" in err
    assert "no checkpoints: --record" in out and glob.glob(str(tmp_path / "results" / "*.csv"))
    assert not (tmp_path / "minari" / "mixed" / "td3-v0").exists()


# ---------------------------------------------------------------------- bad input

@pytest.fixture
def refused(world, capsys, tmp_path):
    """A function that runs a command line which must be refused: exit code 2, one line on stderr, nothing written."""
    def refused(argv, says):
        before = {path: os.path.getmtime(path) for path in glob.glob(str(tmp_path / "**"), recursive=True)}
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            world(*argv)
        error = capsys.readouterr().err
        assert stop.value.code == 2 and re.fullmatch(r"error: [^\n]+\n", error), error
        for words in says:
            assert words in error, (words, error)
        assert {path: os.path.getmtime(path) for path in glob.glob(str(tmp_path / "**"), recursive=True)} == before
    return refused


BAD_FLAGS = [
    ("--policy BCQ", ["BCQ trains from a recorded data set", "--dataset NAME"]),
    ("--policy BCQ --dataset no/such-v0", ["no data set 'no/such-v0'", "minari download no/such-v0", "--record no/such-v0"]),
    ("--policy BCQ --dataset ../x-v0", ["'../x-v0' is no name", "such as hopper/td3-v0"]),
    ("--policy BCQ --dataset noversion", ["'noversion' is no name", "version"]),
    ("--policy BCQ --dataset x-v0 --env CartPole-v1", ["BCQ needs continuous actions", "discrete ones", "--policy PPO"]),
    ("--policy TD3 --dataset x-v0", ["--dataset is a flag of BCQ", "TD3 does not use it"]),
    ("--policy TD3 --record td3", ["--record: 'td3' is no name", "such as hopper/td3-v0"]),
    ("--policy TD3 --record x-v0 --num_envs 2", ["--record", "2 environments", "--num_envs 1"]),
    ("--policy PPO --record x-v0 --num_envs 8", ["--record", "8 environments", "--num_envs 1"]),
    ("--policy BCQ --dataset x-v0 --record y-v0", ["--record: BCQ trains without stepping", "--test"]),
    ("--policy TD3 --explore", ["--explore is for --test"]),
    ("--policy BCQ --num_envs 2", ["--num_envs is a flag of TD3", "BCQ does not use it"]),
    *[(f"--policy BCQ --dataset x-v0 --recurrent {flag}", [flag, "no use to BCQ", "no hidden states", "--burn_in"])
      for flag in ("--hidden_init stored", "--hidden_refresh", "--stored_precision float16", "--critic_hidden zero")],
]


@pytest.mark.parametrize("argv, says", BAD_FLAGS)
def test_bad_flags(argv, says, refused):
    refused(["--env", "Pendulum-v1", *argv.split()], says)


def test_bad_flags_of_a_test(world, refused, tmp_path):
    world(*ONLINE, "--record", "mixed/td3-v0")
    world(*OFFLINE, "--dataset", "mixed/td3-v0", "--save_model", results="offline")
    model, = glob.glob(str(tmp_path / "offline" / "*.best.pt"))
    for flags, says in (("--explore", ["BCQ has no exploration"]), ("--dataset mixed/td3-v0", ["--test trains nothing"]),
                        ("--record mixed/td3-v0", ["'mixed/td3-v0' already", "another name or version"])):
        refused(["--test", "--load_model", model, *flags.split()], says)
    world("--test", "--load_model", model)                             # needs no data set any more


def test_what_cannot_be_recorded(world, refused, tmp_path):
    record("TestMixed-v0", "mixed/random-v0", 20)
    refused([*ONLINE, "--record", "mixed/random-v0"], ["data set 'mixed/random-v0' already", "another name or version"])
    for name in ("mixed/random-v0/more-v0", "mixed/random-v0/data/more-v0"):
        refused([*ONLINE, "--record", name], ["is a data set itself", "choose another name"])
    record("TestMixed-v0", "data/random-v0", 20)                       # a folder of that name is none
    data.check_free("other/random-v0")
    (tmp_path / "data").mkdir(exist_ok=True)                           # nor is one above Minari's, which need not be there
    os.environ["MINARI_DATASETS_PATH"] = str(tmp_path / "new" / "minari")
    data.check_free("other/random-v0")
    os.environ["MINARI_DATASETS_PATH"] = str(tmp_path / "minari")
    (tmp_path / "minari" / "file").write_text("mine")
    refused([*ONLINE, "--record", "file/random-v0"], ["cannot be written", "MINARI_DATASETS_PATH"])


def change(name, edit):
    """Open a data set's file to write to it: HDF5, as Minari has it."""
    path = os.path.join(os.environ["MINARI_DATASETS_PATH"], name, "data")
    with h5py.File(os.path.join(path, "main_data.hdf5"), "a") as file:
        edit(file)
    return path


@pytest.mark.parametrize("what, value", [("observations", np.nan), ("actions", np.inf), ("rewards", np.nan)])
def test_a_data_set_with_nan(what, value, refused):
    record("TestMixed-v0", "x-v0", 60)

    def edit(file):
        file["episode_2"][what][-1] = value
    change("x-v0", edit)
    refused([*OFFLINE, "--dataset", "x-v0"], ["'x-v0' has NaN or infinity", what, "episode 2", "without that episode"])


def test_a_data_set_of_another_environment(refused):
    record("Pendulum-v1", "x-v0", 30)
    refused([*OFFLINE, "--dataset", "x-v0"],
            ["recorded in Pendulum-v1, not in TestMixed-v0", "--env Pendulum-v1", "MODULE:Pendulum-v1"])


@pytest.mark.parametrize("what, shown", [("observation_space", "observations in Box(-inf, inf, (4,)"),
                                         ("action_space", "actions in Box([")])
def test_a_data_set_with_other_spaces(what, shown, refused):
    """Also where it does not say which environment it is from."""
    record("TestMixed-v0", "x-v0", 30)
    path = os.path.join(change("x-v0", lambda file: None), "metadata.json")
    info = json.load(open(path))
    other = json.loads(info[what])
    other["high"][1] = 70.5
    info[what] = json.dumps(other)
    for _ in range(2):
        json.dump(info, open(path, "w"))
        refused([*OFFLINE, "--dataset", "x-v0"], ["'x-v0' has " + what.split("_")[0], "TestMixed-v0 has them in Box", "70.5"])
        info.pop("env_spec", None)


@pytest.mark.filterwarnings("ignore")
def test_an_empty_data_set(refused):
    minari.create_dataset_from_buffers("x-v0", [], envs.make_env("TestMixed-v0").env.env)
    refused([*OFFLINE, "--dataset", "x-v0"], ["'x-v0' is empty", "another"])
    with open(os.path.join(change("x-v0", lambda file: None), "main_data.hdf5"), "w"):
        pass                                                           # as a collector leaves it that never stepped
    refused([*OFFLINE, "--dataset", "x-v0"], ["'x-v0' is empty", "another"])


def test_a_damaged_data_set(refused):
    record("TestMixed-v0", "x-v0", 60)

    def edit(file):
        del file["episode_1"]["rewards"]
    path = change("x-v0", edit)
    refused([*OFFLINE, "--dataset", "x-v0"], ["'x-v0' cannot be read", "KeyError"])
    with open(os.path.join(path, "main_data.hdf5"), "r+b") as file:
        file.truncate(100)
    refused([*OFFLINE, "--dataset", "x-v0"], ["'x-v0' cannot be read", "record or download it again"])
    os.remove(os.path.join(path, "metadata.json"))
    refused([*OFFLINE, "--dataset", "x-v0"], ["'x-v0' cannot be read"])


def test_a_data_set_that_lacks_a_step(refused):
    record("TestMixed-v0", "x-v0", 60)

    def edit(file):
        file["episode_1"]["observations"].resize(len(file["episode_1"]["rewards"]), 0)
    change("x-v0", edit)
    refused([*OFFLINE, "--dataset", "x-v0"], ["observations of shape", "in episode 1 of", "steps"])


def swap(name, what, make):
    """Replace an array of the second episode by what `make` makes of it."""
    def edit(file):
        values = make(file["episode_1"][what][()])
        del file["episode_1"][what]
        file["episode_1"][what] = values
    change(name, edit)


WRONG = {
    "another rank": lambda x: x[..., None], "shorter": lambda x: x[:-1], "longer": lambda x: np.concatenate([x, x[:1]]),
    "a single number": lambda x: x.flat[0], "text": lambda x: x.astype("S9"), "complex": lambda x: x.astype(complex),
    "beyond float32": lambda x: np.full(x.shape, 1e39), "neither 0 nor 1": lambda x: np.full(x.shape, 2),
}


@pytest.mark.parametrize("what", ["observations", "actions", "rewards", "terminations", "truncations"])
@pytest.mark.parametrize("wrong", WRONG)
def test_arrays_of_another_kind_than_declared(what, wrong, refused):
    """Nothing is read as if it were right, or ends in a traceback."""
    if wrong == "neither 0 nor 1" and what not in ("terminations", "truncations"):
        return                                                         # a good number
    record("TestMixed-v0", "x-v0", 60)
    swap("x-v0", what, WRONG[wrong])
    named = [what, "in episode 1"] if what != "rewards" and wrong != "a single number" else []     # Minari may notice first
    refused([*OFFLINE, "--dataset", "x-v0"], ["'x-v0'", "record or download it again", *named])


@pytest.mark.parametrize("value, says", [(7, "outside Discrete"), (-1, "outside Discrete"), (0.5, "of type float64")])
def test_discrete_observations_that_do_not_exist(value, says, refused):
    """A 7 of a Discrete(5) has no place in a one-hot vector, and a -1 would be taken for the last."""
    record("TestNumbers-v0", "x-v0", 30)
    swap("x-v0", "observations", lambda x: np.array([*x[:-1], value]))
    refused([*OFFLINE, "--dataset", "x-v0", "--env", "TestNumbers-v0"], ["observations", says, "in episode 1"])


@pytest.mark.parametrize("name, states", [("total_episodes", "episodes"), ("total_steps", "steps")])
@pytest.mark.parametrize("number", [1, 10 ** 12])
def test_a_data_set_that_states_another_size(name, states, number, refused):
    record("TestMixed-v0", "x-v0", 60)
    edit_metadata("x-v0", lambda info: info.update({name: number}))
    refused([*OFFLINE, "--dataset", "x-v0"], [f"states {number} {states} and has"])


# ---------------------------------------------------------------------- hostile data sets

def edit_metadata(name, edit):
    path = os.path.join(change(name, lambda file: None), "metadata.json")
    info = json.load(open(path))
    edit(info)
    json.dump(info, open(path, "w"))


def place(kind, file, folder):
    """Let the rewards of the second episode lie elsewhere, with the same numbers, so that only the place is wrong."""
    rewards, group = file["episode_1"]["rewards"][()], file["episode_1"]
    del group["rewards"]
    with h5py.File(folder / "other.hdf5", "w") as other:
        other["rewards"] = rewards
    rewards.tofile(folder / "other.bin")
    file["episode_0"]["kept"] = rewards
    if kind == "virtual array":
        layout = h5py.VirtualLayout(rewards.shape, rewards.dtype)
        layout[:] = h5py.VirtualSource(str(folder / "other.hdf5"), "rewards", rewards.shape)
        group.create_virtual_dataset("rewards", layout)
    elif kind == "external storage":
        group.create_dataset("rewards", rewards.shape, rewards.dtype, external=[(str(folder / "other.bin"), 0, rewards.nbytes)])
    else:
        group["rewards"] = h5py.SoftLink("/episode_0/kept") if kind == "soft link" else \
            h5py.ExternalLink(str(folder / "other.hdf5"), "rewards")


@pytest.mark.parametrize("kind", ["soft link", "external link", "external storage", "virtual array"])
def test_a_data_set_holds_its_own_numbers(kind, world, refused, tmp_path):
    """Else it could hand on any file of the machine."""
    record("TestMixed-v0", "x-v0", 60)
    change("x-v0", lambda file: place(kind, file, tmp_path))
    assert len(minari.load_dataset("x-v0")[1].rewards) > 0             # Minari follows it
    refused([*OFFLINE, "--dataset", "x-v0"], ["refers to another place at episode_1/rewards"])


def test_a_data_set_runs_no_code(refused, monkeypatch):
    """Minari makes the environment, by any function that the data set names, if it does not state its spaces."""
    record("TestMixed-v0", "x-v0", 60)
    called = []
    monkeypatch.setattr(test_memory, "trap", lambda **_: called.append(1), raising=False)

    def edit(info):
        spec = json.loads(info["env_spec"]) | {"entry_point": "test_memory:trap", "id": "TestTrap-v0"}
        info["env_spec"] = json.dumps(spec)
    edit_metadata("x-v0", edit)
    refused([*OFFLINE, "--dataset", "x-v0"], ["recorded in TestTrap-v0"])
    edit_metadata("x-v0", lambda info: info.pop("action_space"))
    refused([*OFFLINE, "--dataset", "x-v0"], ["does not state its spaces"])
    assert not called
    with pytest.raises(TypeError):                                     # it returned no environment
        minari.load_dataset("x-v0")
    assert called                                                      # the trap is a real one


@pytest.mark.parametrize("name", ["metadata.json", "main_data.hdf5"])
def test_a_pipe_in_the_place_of_a_file(name, refused):
    """To open one is to wait for ever."""
    record("TestMixed-v0", "x-v0", 60)
    path = os.path.join(change("x-v0", lambda file: None), name)
    os.remove(path)
    os.mkfifo(path)
    refused([*OFFLINE, "--dataset", "x-v0"], ["cannot be read", f"{name} is no file"])


@pytest.mark.parametrize("package", ["minari", "h5py"])
@pytest.mark.parametrize("argv", [[*ONLINE, "--record", "x-v0"], [*OFFLINE, "--dataset", "x-v0"]])
def test_without_minari(package, argv, refused, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    refused(argv, ["needs Minari", 'pip install "minari[hdf5]"'])


def test_from_a_shell(tmp_path):
    """In a process of its own: no traceback and nothing written; Minari is only imported where it is needed."""
    environment = {**os.environ, "MINARI_DATASETS_PATH": str(tmp_path / "minari")}
    script = ("import sys, main\n"
              "for argv in sys.argv[1:]:\n"
              "    try: main.main(argv.split())\n"
              "    except SystemExit as stop: print(stop.code, 'minari' in sys.modules)\n")
    results = f"--results_dir {tmp_path / 'results'}"
    lines = [f"--policy TD3 --env Pendulum-v1 --max_timesteps 5 --eval_episodes 1 --explore {results}",
             f"--policy BCQ --env Pendulum-v1 --dataset no/such-v0 {results}"]
    done = subprocess.run([sys.executable, "-c", script, *lines], capture_output=True, text=True, cwd=HERE, env=environment)
    assert done.stdout.split("\n") == ["2 False", "2 True", ""] and done.stderr.count("\n") == 2, done.stderr
    assert all(line.startswith("error: ") for line in done.stderr.splitlines()) and os.listdir(tmp_path) == []


# ---------------------------------------------------------------------- a task that only memory can solve

@pytest.mark.parametrize("recurrent", [True, False])
def test_the_cue_is_recalled_from_random_data(world, recurrent, tmp_path, monkeypatch):
    """From the episodes of a policy that is right by chance: with a memory every choice is right, without one it cannot be."""
    record("Cue-v0", "cue/random-v0", 2400)
    run, cfg, algorithm, _ = main.parse([
        "--policy", "BCQ", "--env", "Cue-v0", "--dataset", "cue/random-v0", "--hidden_size", "32", "--batch_size", "64",
        "--target_candidates", "4", "--act_candidates", "20", "--lr", "5e-3", "--tau", "0.02", "--eval_freq", "100",
        "--eval_episodes", "16", "--results_dir", str(tmp_path / "r"),
        *(["--recurrent", "--core_size", "16", "--max_timesteps", "3000"] if recurrent else ["--max_timesteps", "300"])])
    main.seed_everything(run)
    env = main.make_env("Cue-v0")
    spec = main.env_spec(env)
    agent = algorithm(spec, cfg, run.seed)
    episodes = data.load("cue/random-v0", env, run.seed)
    assert 0.3 < np.mean([e.reward.sum() for e in episodes]) < 0.5
    evaluate = main.evaluate

    def stop_when_solved(*args):
        returns, lengths = evaluate(*args)
        if min(returns) == 1:
            raise test_memory.Solved
        return returns, lengths
    monkeypatch.setattr(main, "evaluate", stop_when_solved)
    try:
        main.train(run, cfg, algorithm, agent, None, env, spec, episodes)
    except test_memory.Solved:
        pass
    returns, _ = evaluate(agent, env, spec, 200, seed=123)
    success, actions = test_memory.choices(agent, env, spec)
    if recurrent:
        assert np.mean(returns) >= 0.95 and success >= 0.95
        success, actions = test_memory.choices(agent, env, spec, wipe=True)
    assert np.mean(returns) <= 0.6 or recurrent
    assert success <= 0.65 and np.all(actions == actions[0])
