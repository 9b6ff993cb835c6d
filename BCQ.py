"""BCQ: batch-constrained deep Q-learning from a recorded data set, recurrent and feed-forward, continuous actions.

Paper: Fujimoto, Meger, Precup, "Off-Policy Deep Reinforcement Learning without Exploration", 2019.
Run:   python main.py --policy TD3 --env HopperBulletEnv-v0 --record hopper/td3-v0
       python main.py --policy BCQ --env HopperBulletEnv-v0 --dataset hopper/td3-v0 --recurrent

A generative model (a conditional variational auto-encoder) proposes actions that the data set's policy might have taken, a
perturbation moves them a little towards larger values, and of several of these the critic's favourite is taken. The
environment is stepped to evaluate only. Here `max_timesteps` and `eval_freq` count updates.

Deliberate differences from the paper and its reference code:
1. The actor is the generative model and the perturbation. They share a recurrent core (cores.py), and the critic has its own.
   Heads read a core's output beside the current observation. Without a core this is the textbook algorithm. The actor's core
   learns from the generative model's loss alone, and the perturbation reads its features without gradient. So the core learns
   features that predict the recorded actions, not ones that please the critic. The twin Q-heads share the critic's core. The
   action joins after the cores, in the heads.
2. A data set holds observations, actions and rewards, but no hidden states: they would be those of whoever recorded it, with
   other weights and maybe without a memory. So windows start from zero, or are burned in, and --hidden_init
   stored, with what depends on it, is an error.
3. An update trains on windows: up to `seq_len` steps of one episode, one step without a recurrent core. `batch_size` counts
   real steps, never padding. The actor's loss needs no gradient through the critic's core.
4. As in the authors' code, the perturbation has a target and the generative model has none. Nor has the actor's core: next
   actions come from their current weights.
5. When acting, the candidates (100, as in the authors' code) come from one set of latents, drawn once and saved with the
   model, not from new ones at each step. So the policy is a function of the history, and an evaluation can be repeated.
   There is no exploration.
6. Set for PyBullet's hopper: discount 0.98 (authors' code: 0.99), learning rates of 6e-4 (1e-3), batches of 128 steps (100), 100k
   updates (1M), two layers of 256 units everywhere (400 and 300; the generative model 750 and 750).
"""
from dataclasses import dataclass

import torch
import torch.nn as nn

from agent import Agent, MemoryFlags, flag
from cores import make_core
from networks import MLP, adam, optimize, soft_update


@dataclass
class HyperParameters(MemoryFlags):
    # Data
    dataset: str = flag("", "name of the data set to train from, as Minari lists it; --record makes one")
    batch_size: int = flag(128, "steps trained on per update, at least: whole windows are drawn until they hold as many")
    # Learning. Discount and learning rate are TD3's at the start of its run. Here they do not change
    lr: float = flag(6e-4, "learning rate of generative model, perturbation and critic")
    lr_decay: bool = flag(False, "the learning rates fall linearly to zero")
    discount: float = flag(0.98, "discount factor gamma", high=1)
    tau: float = flag(0.005, "rate at which the targets follow", high=1)
    # Generative model and perturbation
    kl_weight: float = flag(0.5, "weight of the Kullback-Leibler term in the generative model's loss")
    phi: float = flag(0.05, "the most that the perturbation can add to an action", high=1)
    min_weight: float = flag(0.75, "lambda: the target is lambda * smaller twin + (1 - lambda) * larger twin", high=1)
    target_candidates: int = flag(10, "actions generated for each next state in the target")
    act_candidates: int = flag(100, "actions generated for each state when acting")
    # Networks, and the length of the run
    hidden_size: int = flag(256, "units of each hidden layer after the core")
    hidden_layers: int = flag(2, "hidden layers after the core", low=0)
    max_timesteps: int = flag(100_000, "updates")
    num_envs = 1                                                       # no flag: a data set is one stream of episodes
    # What --recurrent changes
    recurrent_defaults = dict(seq_len=32)
    # Flags of memory that are refused, and why
    unused = dict.fromkeys(("hidden_init", "hidden_refresh", "stored_precision", "critic_hidden"),
                           "a data set holds no hidden states, windows start from zero; use --burn_in")


class Actor(nn.Module):
    """Generates actions that the data set's policy might take, and changes them a little. Its heads read the core's features."""

    def __init__(self, spec, cfg):
        super().__init__()
        self.core = make_core(cfg.recurrent_actor, cfg, spec)
        self.phi, self.latent_dim = cfg.phi, 2 * spec.action_dim
        features, size, layers = self.core.feature_size, cfg.hidden_size, cfg.hidden_layers
        self.encoder = MLP(1, features + spec.action_dim, size, layers, 2 * self.latent_dim)
        self.decoder = MLP(1, features + self.latent_dim, size, layers, spec.action_dim)
        self.perturbation = MLP(1, features + spec.action_dim, size, layers, spec.action_dim)
        self.register_buffer("act_latent", self.draw_latent(cfg.act_candidates, 1, 1))   # (candidates, 1, 1, latent_dim)

    def draw_latent(self, *shape):
        """Latents to generate from, clipped to 0.5 as in the authors' code, so that the actions are likely ones."""
        return torch.randn(*shape, self.latent_dim, device=self.decoder.weights[0].device).clamp(-0.5, 0.5)

    def encode(self, features, action):
        """Mean and logarithm of the standard deviation of an action's latent, (N, latent_dim) each."""
        mean, log_std = self.encoder(torch.cat([features, action], -1))[0].chunk(2, -1)
        return mean, log_std.clamp(-4, 15)                                      # bounds keep exp finite, and above zero

    def decode(self, features, latent):
        return torch.tanh(self.decoder(torch.cat([features, latent], -1))[0])   # (N, action_dim)

    def perturb(self, features, action, mlp=None):
        """The action, moved by at most phi. mlp: the network that moves it, if not the actor's own, such as its target."""
        change = (mlp or self.perturbation)(torch.cat([features, action], -1))[0]
        return (action + self.phi * torch.tanh(change)).clamp(-1, 1)            # (N, action_dim)


class Critic(nn.Module):
    """Q-values of state and action. The core reads the history only, the action joins after it."""

    def __init__(self, spec, cfg):
        super().__init__()
        self.core = make_core(cfg.recurrent_critic, cfg, spec)
        self.mlp = MLP(2, self.core.feature_size + spec.action_dim, cfg.hidden_size, cfg.hidden_layers, 1)

    def head(self, features, action):
        return self.mlp(torch.cat([features, action], -1))                      # (2, N, 1)

    def Q1(self, features, action):
        return self.mlp(torch.cat([features, action], -1), n=1)[0]              # (N, 1)


class BCQ(Agent):
    HyperParameters = HyperParameters
    offline = True

    def __init__(self, spec, cfg, seed=0, device="cpu"):
        super().__init__(spec, cfg, seed, device, Actor(spec, cfg), Critic(spec, cfg))
        self.perturbation_target, self.critic_target = self.target_of(self.actor.perturbation), self.target_of(self.critic)
        self.actor_optimizer = adam(self.actor, cfg.lr, cfg.core_lr)            # for two losses: weights without a gradient stay
        self.critic_optimizer = adam(self.critic, cfg.lr, cfg.core_lr)
        self.acting_advances_critic = True                                      # the critic ranks the candidates
        self.updates = 0

    @torch.no_grad()
    def act(self, history, hidden, explore=True):
        """As Agent.act. There is no exploration: `explore` makes no difference."""
        N, n = len(history), self.cfg.act_candidates
        history = torch.as_tensor(history, device=self.device)[:, None]         # (N, 1, row)
        hidden_actor, hidden_critic = self.split(torch.as_tensor(hidden, device=self.device))
        actor_features, next_hidden_actor = self.actor.core(history, hidden_actor)
        critic_features, next_hidden_critic = self.critic.core(history, hidden_critic)
        # Of n candidates for each environment take the critic's favourite
        actor_features, critic_features = actor_features[:, 0].repeat(n, 1), critic_features[:, 0].repeat(n, 1)
        latent = self.actor.act_latent.expand(n, N, 1, -1).flatten(0, 2)        # (n * N, latent_dim)
        action = self.actor.perturb(actor_features, self.actor.decode(actor_features, latent))
        best = self.critic.Q1(critic_features, action).view(n, N).argmax(0)     # (N,)
        action = action.view(n, N, -1)[best, torch.arange(N)]                   # (N, action_dim)
        return action.cpu().numpy(), torch.cat([next_hidden_actor, next_hidden_critic], -1).cpu().numpy()

    def ready(self, buffer):
        """Is an update due? There is one for each step, as an offline agent's step is only a count."""
        return self.updates < self.steps

    def train(self, buffer):
        """One update: of the critic, the generative model and the perturbation."""
        cfg, actor, n = self.cfg, self.actor, self.cfg.target_candidates
        self.updates += 1

        # Sample B windows of recorded steps, N steps in all. A window of L steps is L + 1 rows: the steps' states, and the next
        # state of the last one. A row is an observation, and the action and the reward before it
        batch = self.sample(buffer)
        N = batch.steps
        history = batch.history                                                 # (B, L + 1, row)

        # Each network's memory at the windows' first step: zero, a data set has none. With --burn_in each network first reads the
        # steps before the window, with its own weights
        hidden_actor = self.start_hidden(batch, actor)                          # (B, core's hidden_dim)
        hidden_critic = self.start_hidden(batch, self.critic)
        target_hidden_critic = self.start_hidden(batch, self.critic_target)

        # Compute the generative model's loss: how well it reconstructs the actions, and how far latents are from N(0, 1)
        actor_features, _ = actor.core(history[:, :-1], hidden_actor)           # (B, L, features)
        actor_features = batch.pick(actor_features)                             # (N, features)
        mean, log_std = actor.encode(actor_features, batch.action)              # (N, latent_dim)
        latent = mean + log_std.exp() * torch.randn_like(mean)
        reconstruction_loss = (actor.decode(actor_features, latent) - batch.action).square().mean()
        kl_divergence = 0.5 * (mean.square() + (2 * log_std).exp() - 2 * log_std - 1).mean()
        vae_loss = reconstruction_loss + cfg.kl_weight * kl_divergence

        # Optimize the generative model
        optimize(self.actor_optimizer, vae_loss)

        with torch.no_grad():
            # Unroll the updated actor and the target critic over all L + 1 rows. hidden_actor is kept: burned in again, it would
            # differ by one step of the optimizer
            new_actor_features, _ = actor.core(history, hidden_actor)           # (B, L + 1, features)
            target_critic_features, _ = self.critic_target.core(history, target_hidden_critic)
            # [:, 1:] belongs to the next states. Pick the real steps, and leave the padding of short windows behind. Repeat all
            # N of them n times, once for each candidate
            next_actor_features = batch.pick(new_actor_features[:, 1:]).repeat(n, 1)    # (n * N, features)
            next_critic_features = batch.pick(target_critic_features[:, 1:]).repeat(n, 1)

            # Generate n next actions, and perturb them by the target perturbation
            next_action = actor.decode(next_actor_features, actor.draw_latent(n * N))   # (n * N, action_dim)
            next_action = actor.perturb(next_actor_features, next_action, self.perturbation_target)

            # Compute the target Q value: between the twins, nearer to the smaller; then the best of the n actions
            target_Q = self.critic_target.head(next_critic_features, next_action)   # (2, n * N, 1)
            target_Q = cfg.min_weight * target_Q.min(0).values + (1 - cfg.min_weight) * target_Q.max(0).values
            target_Q = target_Q.view(n, N, 1).max(0).values
            target_Q = batch.reward + batch.not_done * cfg.discount * target_Q  # (N, 1)

        # Get the current Q estimates: [:, :-1] belongs to the states
        critic_features, _ = self.critic.core(history[:, :-1], hidden_critic)   # (B, L, features)
        current_Q = self.critic.head(batch.pick(critic_features), batch.action)     # (2, N, 1)
        assert current_Q.shape[-2:] == target_Q.shape

        # Compute the critic loss
        critic_loss = (current_Q - target_Q).square().sum(0).mean()

        # Optimize the critic
        optimize(self.critic_optimizer, critic_loss)

        # Compute the actor loss, the perturbation's. The critic has changed, so its features are computed again. They need no
        # gradient: its core reads the past alone, and the actor's new action does not change the past
        with torch.no_grad():
            critic_features, _ = self.critic.core(history[:, :-1], hidden_critic)
            actor_features = batch.pick(new_actor_features[:, :-1])             # (N, features)
            generated = actor.decode(actor_features, actor.draw_latent(N))      # (N, action_dim)
        action = actor.perturb(actor_features, generated)
        actor_loss = -self.critic.Q1(batch.pick(critic_features), action).mean()

        # Optimize the perturbation: no other weight of the actor has a part in this loss
        optimize(self.actor_optimizer, actor_loss)

        # Let the targets follow
        soft_update(self.critic, self.critic_target, cfg.tau)
        soft_update(actor.perturbation, self.perturbation_target, cfg.tau)
        return {"vae_loss": vae_loss.detach(), "critic_loss": critic_loss.detach(), "actor_loss": actor_loss.detach()}
