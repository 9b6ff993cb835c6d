"""How fast this project learns, beside a plain implementation and other libraries, in one interleaved run on one core.

    python benchmarks/bench.py                     all works: this project and the plain reference
    python benchmarks/bench.py --peers             beside them what is installed (pip install sb3-contrib torchrl)
    python benchmarks/bench.py W1 W4 --rounds 9    some works, more rounds
    python benchmarks/bench.py --growth            against window length, fill of the buffer, environments and threads
    python benchmarks/bench.py --device cuda W1    networks and batches on a GPU; --buffer_on_device: the buffer, too
    python benchmarks/bench.py --device cuda --seeds 1 2 4       so many runs at once on one GPU

Contenders take turns, round by round. A ratio is the median over rounds of the quotient within a round, so that a machine
that slows down slows both. Times are CPU time of this process, so that other processes count little. For an update the
table also gives its number of floating-point operations and its floor: the time that these alone would take at the rate of
a large matrix product, measured in the same run. One thread; Hopper's shapes, 15 observations and 3 actions. On a GPU
times are wall time, to the end of the work there.
"""
import argparse
import copy
import functools
import importlib.util
import logging
import os
import statistics
import sys
import time
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn as nn

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import main  # noqa: E402
from envs import EnvSpec  # noqa: E402
from networks import copy_of  # noqa: E402
from support import results as output  # noqa: E402
from utils import Buffer  # noqa: E402

S, A = 15, 3
ENV = "HopperBulletEnv-v0"
SMALL = "--recurrent --hidden_layers 1 --batch_size 256"
PEERS = ("stable_baselines3", "sb3_contrib", "torchrl")        # as they are imported


# ---------------------------------------------------------------------- what is timed

WHERE = []                                                             # --device and --buffer_on_device, as flags.py reads them


def make_agent(words):
    """An agent as main.py would make it, and its hyper-parameters."""
    if "--policy TD3" in words:
        words += " --horizon_growth 1"                                 # the plain form and torchrl's have one discount
    run, cfg, algorithm, _ = main.parse([*words.split(), *WHERE])
    torch.manual_seed(0)
    return algorithm(EnvSpec(S, A, False), cfg, device=run.device), cfg


def make(words, fill=20_000, episode=1000):
    """An agent, and a buffer filled with random steps in episodes of this length."""
    agent, cfg = make_agent(words)
    agent.steps = cfg.start_timesteps if hasattr(cfg, "start_timesteps") else 0
    return agent, filled(agent, fill, episode)


def filled(agent, fill, episode=1000):
    buffer = Buffer(fill + fill // episode + 2, S, A, agent.stored_hidden_dim, device=agent.device,
                    on_device="--buffer_on_device" in WHERE)
    rng = np.random.default_rng(0)
    hidden = 0.5 * rng.normal(size=(997, 1, agent.hidden_dim)).astype(np.float32)        # used over and over
    state, reward = rng.normal(size=(fill + 1, 1, S)).astype(np.float32), rng.normal(size=(fill, 1))
    action = rng.uniform(-1, 1, (fill, 1, A)).astype(np.float32)
    for t in range(fill):
        end, terminates = np.array([t % episode == episode - 1]), t // episode % 2 == 0        # every other one is truncated
        buffer.add(state[t], action[t], reward[t], state[t + 1], end & terminates, end & (not terminates),
                   hidden[t % 997], hidden[(t + 1) % 997])
    return buffer


class PlainTD3:
    """TD3 as one would first write it down, with the same weights: modules of their own, one optimizer each, autograd's way.

    It is correct: the actor's gradient does not pass through the critic's core, and targets start from the same states.
    """

    def __init__(self, agent):
        self.cfg, self.updates = agent.cfg, 0
        self.actor, self.critics = self.copy(agent.actor).to(agent.device), self.copy(agent.critic).to(agent.device)
        self.actor_target, self.critics_target = copy_of(self.actor), copy_of(self.critics)
        self.actor_optimizer = torch.optim.Adam(self.actor.parameters(), lr=self.cfg.lr)
        self.critic_optimizer = torch.optim.Adam(self.critics.parameters(), lr=self.cfg.lr)

    @staticmethod
    def copy(network):
        core, mlp = network.core, network.mlp
        heads = []
        for k in range(mlp.n):
            layers = []
            for weight, bias in mlp.layers:
                linear = nn.Linear(*weight.shape[1:])
                linear.weight.data.copy_(weight.data[k].t())
                linear.bias.data.copy_(bias.data[k, 0])
                layers += [linear, nn.ReLU()]
            heads.append(nn.Sequential(*layers[:-1]))
        return nn.ModuleDict(dict(heads=nn.ModuleList(heads), **({"rnn": copy.deepcopy(core.rnn)} if core.hidden_dim else {})))

    @staticmethod
    def features(network, history, hidden):
        if "rnn" not in network:
            return history[..., :S]
        rnn = network["rnn"]
        state = tuple(h[None].contiguous() for h in hidden.chunk(2, -1)) if isinstance(rnn, nn.LSTM) else hidden[None]
        return torch.cat([rnn(history[..., :rnn.input_size], state)[0], history[..., :S]], -1)

    def train(self, buffer, sampled=None):
        cfg = self.cfg
        self.updates += 1
        batch = sampled or buffer.sample(cfg.batch_size, cfg.seq_len)
        mask, history = batch.mask, batch.history
        if cfg.hidden_init == "stored":
            hidden_actor, hidden_critic = batch.hidden.chunk(2, -1)
        else:
            hidden_actor = hidden_critic = history.new_zeros(len(mask), cfg.core_size * (1 + (cfg.core == "lstm")))
        with torch.no_grad():
            next_action = torch.tanh(self.actor_target["heads"][0](
                self.features(self.actor_target, history, hidden_actor)[:, 1:][mask]))             # (N, A): real steps alone
            noise = (torch.randn_like(next_action) * cfg.policy_noise).clamp(-cfg.noise_clip, cfg.noise_clip)
            next_action = (next_action + noise).clamp(-1, 1)
            x = torch.cat([self.features(self.critics_target, history, hidden_critic)[:, 1:][mask], next_action], -1)
            target_Q = torch.min(*[head(x) for head in self.critics_target["heads"]])
            target_Q = batch.reward + batch.not_done * cfg.discount * target_Q
        x = torch.cat([self.features(self.critics, history[:, :-1], hidden_critic)[mask], batch.action], -1)
        critic_loss = sum((head(x) - target_Q).square().mean() for head in self.critics["heads"])
        self.critic_optimizer.zero_grad()
        critic_loss.backward()
        self.critic_optimizer.step()
        if self.updates % cfg.policy_freq:
            return critic_loss
        features = self.features(self.critics, history[:, :-1], hidden_critic)[mask].detach()
        action = torch.tanh(self.actor["heads"][0](self.features(self.actor, history[:, :-1], hidden_actor)[mask]))
        Q = self.critics["heads"][0](torch.cat([features, action], -1))
        self.actor_optimizer.zero_grad()
        (-Q.mean()).backward()
        self.actor_optimizer.step()
        with torch.no_grad():
            for network, target in ((self.actor, self.actor_target), (self.critics, self.critics_target)):
                for p, q in zip(network.parameters(), target.parameters()):
                    q.mul_(1 - cfg.tau).add_(cfg.tau * p)
        return critic_loss


def update_flops(agent):
    """Floating-point operations of one TD3 update, about: multiply and add count as two, a backward pass as two forward ones,
    averaged over the delay. Elementwise work and the targets' extra step per window are left out."""
    def core(network):
        return 2 * sum(p.numel() for name, p in network.core.named_parameters() if "weight" in name)

    def head(network, n=None):
        return 2 * sum(w[:n].numel() for w in network.mlp.weights)
    actor, critic, delay = agent.actor, agent.critic, agent.cfg.policy_freq
    per_step = (core(actor) + head(actor) + core(critic) + head(critic)            # targets: forward
                + 3 * (core(critic) + head(critic))                                # critic: forward, backward twice
                + (core(critic) + 3 * (core(actor) + head(actor)) + 2 * head(critic, 1)) / delay)   # actor; Q1 for its input
    return per_step * agent.cfg.batch_size


def check_same(agent, plain, buffer):
    """Largest relative difference of three updates' critic losses, on the same batches with the same noise."""
    worst = 0
    for _ in range(3):
        batch = buffer.sample(agent.cfg.batch_size, agent.cfg.seq_len)
        torch.manual_seed(1)
        ours = agent.train(SimpleNamespace(sample=lambda *_, batch=batch: batch))["critic_loss"]
        torch.manual_seed(1)
        theirs = plain.train(None, batch)
        worst = max(worst, float((ours - theirs.detach()).abs() / theirs.detach()))
    return worst


def update_work(words, peers, **kind):
    agent, buffer = make(f"--policy TD3 {words}", **kind)
    contenders = {"this project": lambda: agent.train(buffer)}
    if not words.count("mingru"):
        plain = PlainTD3(agent)
        difference = check_same(agent, plain, buffer)
        assert difference < 1e-5, difference
        contenders["plain"] = lambda: plain.train(buffer)
    if "stable_baselines3" in peers and "--recurrent" not in words:
        from stable_baselines3 import TD3
        from stable_baselines3.common.logger import configure
        peer = TD3("MlpPolicy", main.make_env(ENV), batch_size=agent.cfg.batch_size, buffer_size=20_000, device="cpu",
                   policy_kwargs=dict(net_arch=[256, 256]))
        peer.set_logger(configure(None, []))
        rng = np.random.default_rng(0)
        for _ in range(20_000):
            peer.replay_buffer.add(rng.normal(size=(1, S)), rng.normal(size=(1, S)), rng.normal(size=(1, A)), np.ones(1),
                                   np.zeros(1), [{}])
        contenders["stable-baselines3"] = lambda: peer.train(gradient_steps=1, batch_size=agent.cfg.batch_size)
    if "torchrl" in peers and agent.cfg.core != "mingru" and agent.cfg.hidden_init == "zero":
        contenders["torchrl"] = torchrl_td3(agent.cfg, buffer.windows("full"))[1]
    return contenders, "ms", update_flops(agent)


def torchrl_network(cfg, name, reads, writes):
    """A network of torchrl's: a core if asked for, an MLP that reads its output and `reads`, a tanh if it writes an action.

    A core reads the previous action beside the observation, as this project's does. The MLP after it then reads it, too.
    """
    from tensordict.nn import TensorDictModule, TensorDictSequential
    from torchrl.modules import MLP, GRUModule, LSTMModule
    observation = S + A * cfg.recurrent_actor
    layers, width = [], observation + A * ("action" in reads)
    if cfg.recurrent_actor:
        module, states = {"lstm": (LSTMModule, "hc"), "gru": (GRUModule, "h")}[cfg.core]
        states = [f"{name}_{state}" for state in states]
        layers = [module(observation, cfg.core_size, in_keys=["observation", *states],
                         out_keys=[f"{name}_memory", *(("next", state) for state in states)])]
        reads, width = [f"{name}_memory", *reads], width + cfg.core_size
    mlp = MLP(width, A if writes == "action" else 1, num_cells=[cfg.hidden_size] * cfg.hidden_layers, activation_class=nn.ReLU)
    layers.append(TensorDictModule(mlp, reads, [writes]))
    if writes == "action":
        layers.append(TensorDictModule(nn.Tanh(), [writes], [writes]))
    return TensorDictSequential(*layers)


def torchrl_td3(cfg, steps):
    """torchrl's TD3 on the steps of a Buffer's whole episodes: its loss module, which holds the weights, and an update.

    Its loss holds two whole critics, so each twin unrolls a core of its own, and it runs the second one in the actor's loss
    too: more arithmetic than this project's update, by about a quarter in W1 and W2 and a tenth in W4. The losses are the same.
    """
    from tensordict import TensorDict
    from torchrl.data import LazyTensorStorage, SliceSampler, TensorDictReplayBuffer
    from torchrl.modules import set_recurrent_mode
    from torchrl.objectives import SoftUpdate, TD3Loss
    logging.getLogger("torchrl").setLevel(logging.WARNING)             # else it prints its storage into the table
    actor = torchrl_network(cfg, "actor", ["observation"], "action")
    critic = torchrl_network(cfg, "critic", ["observation", "action"], "state_action_value")
    loss = TD3Loss(actor, critic, bounds=(-torch.ones(A), torch.ones(A)), policy_noise=cfg.policy_noise,
                   noise_clip=cfg.noise_clip, loss_function="l2", deactivate_vmap=True)    # vmap knows no LSTM and saves no time
    loss.make_value_estimator(gamma=cfg.discount)
    target = SoftUpdate(loss, tau=cfg.tau)
    actor_optimizer = torch.optim.Adam(loss.actor_network_params.flatten_keys().values(), lr=cfg.lr)
    critic_optimizer = torch.optim.Adam(loss.qvalue_network_params.flatten_keys().values(), lr=cfg.lr)
    observation = steps.history[..., :S + A * cfg.recurrent_actor]
    sampler = SliceSampler(slice_len=cfg.seq_len, end_key=("next", "done")) if cfg.recurrent_actor else None
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(steps.steps), sampler=sampler, batch_size=cfg.batch_size)
    buffer.extend(TensorDict(dict(
        observation=steps.pick(observation[:, :-1]), action=steps.action, is_init=steps.end.roll(1, 0),    # ends -> starts
        next=dict(observation=steps.pick(observation[:, 1:]), reward=steps.reward, done=steps.end,
                  terminated=steps.not_done == 0)), [steps.steps]))
    updates = 0

    def descend(optimizer, objective):
        optimizer.zero_grad()
        objective[0].backward()
        optimizer.step()

    def update():
        nonlocal updates
        updates += 1
        batch = buffer.sample()
        if cfg.recurrent_actor:
            batch = batch.reshape(-1, cfg.seq_len)                     # equally long windows spare it cutting and padding
        with set_recurrent_mode(True):
            descend(critic_optimizer, loss.value_loss(batch))
            if updates % cfg.policy_freq == 0:
                descend(actor_optimizer, loss.actor_loss(batch))
                target.step()
    return loss, update


def torchrl_act(cfg):
    """One step of torchrl's recurrent actor, array to array like `act`, but without exploration noise."""
    from tensordict import TensorDict
    actor = torchrl_network(cfg, "actor", ["observation"], "action")
    observation, first = np.zeros((1, S + A), np.float32), torch.zeros(1, 1, dtype=torch.bool)
    states = {key: torch.zeros(1, 1, cfg.core_size) for key in actor.in_keys if key in ("actor_h", "actor_c")}

    @torch.no_grad()
    def act():
        step = actor(TensorDict(dict(observation=torch.as_tensor(observation), is_init=first, **states), [1]))
        return step["action"].numpy(), step["next"]
    return act


def act_work(core, peers):
    agent, _ = make(f"--policy TD3 --recurrent --core {core} --core_size 128 --hidden_layers 2", fill=10)
    row, hidden = np.zeros((1, S + A + 1), np.float32), np.zeros((1, agent.hidden_dim), np.float32)
    contenders = {"this project": lambda: agent.act(row, hidden)}
    if "sb3_contrib" in peers and core == "lstm":
        peer = recurrent_ppo(1, 64)
        state, start = None, np.ones(1, bool)
        observation = np.zeros((1, S), np.float32)
        contenders["sb3-contrib"] = lambda: peer.predict(observation, state, start)
    if "torchrl" in peers and core != "mingru":
        contenders["torchrl"] = torchrl_act(agent.cfg)
    return contenders, "ms", None


def sample_work(fill):
    agent, buffer = make("--policy TD3 --recurrent --core_size 128", fill)
    return {"this project": lambda: buffer.sample(2048, 64)}, "ms", None


def recurrent_ppo(num_envs, batch_size):
    from sb3_contrib import RecurrentPPO
    from stable_baselines3.common.env_util import make_vec_env
    envs = make_vec_env(lambda: main.make_env(ENV), num_envs)
    return RecurrentPPO("MlpLstmPolicy", envs, n_steps=2048 // num_envs, batch_size=batch_size, n_epochs=10, device="cpu",
                        policy_kwargs=dict(lstm_hidden_size=128, net_arch=[256, 256]))


def loop(words):
    """Prepare acting and learning in the real environment. Returns a function that takes a number of further steps."""
    agent, cfg = make_agent(words)
    envs = main.make_vector_env(ENV, cfg.num_envs)
    buffer = Buffer(min(agent.buffer_size(), 100_000), S, A, agent.stored_hidden_dim, cfg.num_envs, device=agent.device,
                    on_device="--buffer_on_device" in WHERE)
    all_steps = iter(main.Interaction(agent, envs, buffer, cfg, agent.spec, seed=0))

    def go(steps):
        for _ in range(steps // cfg.num_envs):
            next(all_steps)
            while agent.ready(buffer):
                agent.train(buffer)
    return go


def ppo_work(num_envs, batch_size, peers):
    go = loop(f"--policy PPO --recurrent --core_size 128 --hidden_layers 2 --num_envs {num_envs} "
              f"--rollout_steps {2048 // num_envs} --batch_size {batch_size}")
    contenders = {"this project": lambda: go(2048)}
    if "sb3_contrib" in peers:
        peer = recurrent_ppo(num_envs, batch_size)
        contenders["sb3-contrib"] = lambda: peer.learn(2048, reset_num_timesteps=False)
    return contenders, "steps/s", 2048


def end_to_end_work():
    go = loop("--policy TD3 --recurrent --core_size 256 --hidden_layers 1 --seq_len 1 --hidden_init stored --batch_size 100 "
              "--replay_ratio 100 --start_timesteps 500")
    go(500)
    return {"this project": lambda: go(200)}, "steps/s", 200


WORKS = {
    "W1": ("recurrent TD3: LSTM 128, 32 windows x 64, 256-256",
           lambda p: update_work("--recurrent --core_size 128 --seq_len 64 --batch_size 2048 --hidden_layers 2", p)),
    "W2": ("the same with GRU 128",
           lambda p: update_work("--recurrent --core gru --core_size 128 --seq_len 64 --batch_size 2048 --hidden_layers 2", p)),
    "W2m": ("the same with minGRU 128",
            lambda p: update_work("--recurrent --core mingru --core_size 128 --seq_len 64 --batch_size 2048 --hidden_layers 2",
                                  p)),
    "W3": ("recurrent TD3: 100 windows x 1, stored states, LSTM 256, 256",
           lambda p: update_work("--recurrent --core_size 256 --hidden_layers 1 --seq_len 1 --hidden_init stored "
                                 "--batch_size 100", p)),
    "W4": ("feed-forward TD3: batch 256, 256-256", lambda p: update_work("--batch_size 256", p)),
    "W5": ("recurrent PPO on Hopper, LSTM 128: 1 environment x 2048, batch 64", lambda p: ppo_work(1, 64, p)),
    "W5b": ("8 environments x 256, batch 128", lambda p: ppo_work(8, 128, p)),
    "W6": ("one recurrent action: LSTM 128", lambda p: act_work("lstm", p)),
    "W6g": ("one recurrent action: GRU 128", lambda p: act_work("gru", p)),
    "W6m": ("one recurrent action: minGRU 128", lambda p: act_work("mingru", p)),
    "W7": ("sampling 32 x 64 from 100k steps", lambda p: sample_work(100_000)),
    "W7b": ("sampling 32 x 64 from 1M steps", lambda p: sample_work(1_000_000)),
    "W8": ("end to end, one update of W3 per step in Hopper", lambda p: end_to_end_work()),
    "W10": ("recurrent TD3, small: LSTM 64, 8 windows x 32, 256", lambda p: update_work(SMALL, p)),
    "W10g": ("the same with GRU 64", lambda p: update_work(SMALL + " --core gru", p)),
    "W10m": ("the same with minGRU 64", lambda p: update_work(SMALL + " --core mingru", p)),
}


# ---------------------------------------------------------------------- timing

def on_gpu():
    return "cuda" in WHERE


def clock():
    """CPU seconds of this process, or, where a GPU works for it, wall seconds to the end of what it was given."""
    if on_gpu():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def seconds(call, repeat):
    start = clock()
    for _ in range(repeat):
        call()
    return (clock() - start) / repeat


def matmul_rate():
    """Floating-point operations per second of a large matrix product, on one thread or a GPU; and its size."""
    n = 8192 if on_gpu() else 512
    a, b = torch.randn(2, n, n, device="cuda" if on_gpu() else "cpu")
    return 2 * n ** 3 / min(seconds(lambda: a @ b, 5) for _ in range(5)), n


def race(contenders, rounds, budget=0.3):
    """Seconds per call of each (see `clock`), a list per contender, taking turns of about `budget` seconds."""
    repeat, times = {}, {name: [] for name in contenders}
    for name, call in contenders.items():
        call()                                                         # the first call may build things
        once = seconds(call, 2)
        repeat[name] = 1 if once > 1 else max(2, 2 * int(budget / once / 2))   # even: policy updates are delayed by two
    for _ in range(rounds):
        for name, call in contenders.items():
            times[name].append(seconds(call, repeat[name]))
    return times


def bench(names, peers, rounds):
    rate, n = matmul_rate()
    where = f"{torch.cuda.get_device_name()} beside {output.processor()}" if on_gpu() else output.processor()
    print(f"{where}, torch {torch.__version__}, one CPU thread, a {n} x {n} product runs at {rate / 1e9:.0f} GFLOP/s\n")
    print("| work | what | this project | floor | beside it | ratio |")
    print("|---|---|---|---|---|---|")
    for name in names:
        what, build = WORKS[name]
        contenders, unit, count = build(peers)
        times = race(contenders, rounds)
        ours = times.pop("this project")

        def show(values, unit=unit, count=count):
            middle = statistics.median(values)
            return f"{1e3 * middle:.3g} ms" if unit == "ms" else f"{count / middle:.0f} steps/s"
        floor = f"{1e3 * count / rate:.2g} ms, {count / 1e6:.0f} MFLOP" if unit == "ms" and count else ""
        beside = ", ".join(f"{peer} {show(values)}" for peer, values in times.items())
        ratios = ", ".join(f"{statistics.median(b / a for a, b in zip(ours, values)):.2f} x" for values in times.values())
        print(f"| {name} | {what} | {show(ours)} | {floor} | {beside} | {ratios} |", flush=True)


def growth(rounds):
    """How cost grows with what a user may turn up."""
    def middle(call):
        return statistics.median(race({"": call}, rounds)[""])
    print("\n| window length, 2048 steps an update, LSTM 64 | ms |\n|---|---|")
    for L in (1, 2, 8, 32, 64, 256, 1000):
        agent, buffer = make(f"--policy TD3 --recurrent --seq_len {L} --batch_size 2048")
        print(f"| {L} | {1e3 * middle(functools.partial(agent.train, buffer)):.3g} |", flush=True)
    print("\n| steps in the buffer | sampling 32 x 64, ms |\n|---|---|")
    for fill in (1_000, 10_000, 100_000, 1_000_000):
        agent, buffer = make("--policy TD3 --recurrent", fill)
        print(f"| {fill:,} | {1e3 * middle(functools.partial(buffer.sample, 2048, 64)):.3g} |", flush=True)
    print("\n| environments, recurrent PPO, rollout 2048 | steps/s |\n|---|---|")
    for n in (1, 2, 4, 8, 16, 32):
        go = loop(f"--policy PPO --recurrent --num_envs {n} --rollout_steps {2048 // n}")
        print(f"| {n} | {2048 / middle(functools.partial(go, 2048)):.0f} |", flush=True)
    print("\n| threads, wall time | W1, ms | W10, ms |\n|---|---|---|")
    for threads in range(1, (os.cpu_count() or 1) + 1):
        torch.set_num_threads(threads)
        row = []
        for work in ("W1", "W10"):
            call = WORKS[work][1](())[0]["this project"]
            call()
            start = time.perf_counter()
            for _ in range(10):
                call()
            row.append(f"{1e2 * (time.perf_counter() - start):.3g}")
        print(f"| {threads} | {' | '.join(row)} |", flush=True)


def run_seed(where, work, start, updates, budget=5):
    """In a process of its own: wait until all are ready, then update for `budget` seconds. updates: gets their rate"""
    WHERE[:] = where
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    call = WORKS[work][1](())[0]["this project"]
    for _ in range(10):
        call()
    start.wait()
    began = clock()
    while clock() - began < budget:
        for _ in range(10):
            call()
        updates.value += 10
    updates.value /= clock() - began


def seeds(counts):
    """How many runs one GPU serves at once: their updates per second, together."""
    print("\n| runs at once on one GPU | W1, updates/s together | W10, updates/s together |\n|---|---|---|")
    for n in counts:
        row = []
        for work in ("W1", "W10"):
            spawn = torch.multiprocessing.get_context("spawn")         # CUDA does not survive a fork
            start, updates = spawn.Barrier(n, timeout=120), [spawn.Value("d") for _ in range(n)]
            processes = [spawn.Process(target=run_seed, args=(WHERE, work, start, count)) for count in updates]
            for process in processes:
                process.start()
            for process in processes:
                process.join()
            if any(process.exitcode for process in processes):
                sys.exit(f"error: of {n} runs at once not all came to their end, see above; try fewer")
            row.append(f"{sum(count.value for count in updates):.0f}")
        print(f"| {n} | {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("works", nargs="*", metavar="WORK", help=f"of {', '.join(WORKS)}; all if none is named")
    parser.add_argument("--peers", action="store_true", help="time other libraries beside it")
    parser.add_argument("--growth", action="store_true", help="time growth instead")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contender")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where networks and batches are")
    parser.add_argument("--buffer_on_device", action="store_true", help="keep a copy of the buffer there, too")
    parser.add_argument("--seeds", type=int, nargs="+", metavar="N", help="time so many runs at once on a GPU instead")
    args = parser.parse_args()
    if unknown := [w for w in args.works if w not in WORKS]:
        parser.error(f"unknown work {unknown[0]}; there are {', '.join(WORKS)}")
    if args.rounds < 1:
        parser.error("--rounds must be at least 1")
    peers = [name for name in PEERS if args.peers and importlib.util.find_spec(name)]
    if args.peers and not peers:
        parser.error("--peers needs sb3-contrib, torchrl or both; pip install sb3-contrib torchrl")
    if args.growth and (args.works or args.peers):
        parser.error("--growth times no works and no peers; leave them out")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: no CUDA device is available to this PyTorch")
    if args.device == "cpu" and (args.buffer_on_device or args.seeds):
        parser.error("--buffer_on_device and --seeds need --device cuda")
    if args.device == "cuda" and (args.peers or args.growth):
        parser.error("--peers and --growth are measured on the CPU alone")
    if args.seeds and (args.works or min(args.seeds) < 1):
        parser.error("--seeds times W1 and W10, for numbers of runs of at least 1; name no works")
    if args.device == "cuda":
        WHERE[:] = ["--device", "cuda", *["--buffer_on_device"] * args.buffer_on_device]
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    if args.seeds:
        seeds(args.seeds)
        sys.exit()
    growth(args.rounds) if args.growth else bench(args.works or list(WORKS), peers, args.rounds)
