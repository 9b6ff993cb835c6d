"""BCQ against the paper's equations, written a second time. Its data sets: test_data.py."""
import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import RECURRENT, SPEC, Plain, make_agent, make_off_policy, spy, weights_of

import BCQ


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


def test_a_moved_action_is_an_action():
    """The perturbation leads nowhere that the environment would not go."""
    actor = make_agent(BCQ, phi=0.5).actor
    with torch.no_grad():
        actor.perturbation.biases[-1].fill_(5)                         # up, by all that is allowed
        action = torch.tensor([[-0.9, 0.9]])
        assert torch.allclose(actor.perturb(torch.zeros(1, 3), action), torch.tensor([[-0.4, 1.0]]), atol=1e-2)


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
