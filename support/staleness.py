"""How stale are the hidden states that training starts from? R2D2's measure, for every algorithm with a recurrent critic.

Paper: Kapturowski et al., "Recurrent Experience Replay in Distributed Reinforcement Learning", 2019 (R2D2), section 3, figure 1.
Run:   python main.py --policy TD3 --env Pendulum-v1 --observe velocities --recurrent --staleness

Windows are unrolled twice with the present weights. The first time they start from h, the state that training starts them with
(--hidden_init, --critic_hidden, --burn_in). The second time they start from h*, the true state: zero at the episode's start, and
unrolled over all steps before the window. Measured at a window's first and at its last trained step, and averaged over windows:

    Delta-Q        ||q(h) - q(h*)|| / max |q(h*)|       q: the critic's values of a step, as one vector
    delta hidden   ||h - h*|| / ||h*||                  the memory before it reads the step; 0 where both are zero

q holds the (squashed) values of all actions for R2D1, the stored action's value for DDPG, its values by both twins for TD3, SAC
and BCQ, and the state's value for PPO, A2C and REINFORCE.

Deliberate differences from the paper:
1. The paper compares with the states stored while acting, which old weights computed. Here h* is what the present weights would
   have remembered, so stored states, too, have a Delta-Q at the first step.
2. The largest |q| is that of all windows together, not each window's own: values pass through zero, and a window may be a
   single step. It is that of h*, so that the yardstick does not depend on what is measured.
3. The hidden state's own error is measured, too, even where no head may notice it.

Off-policy, windows are drawn from the buffer as training draws them. Where the ring has overwritten an episode's first steps,
its windows have no h* and are left out. On-policy, the windows are the rollout's before its first update, and the buffer keeps
the rows before them. The measurement draws its own random numbers, so a run is the same to the bit with and without it.
"""
import numpy as np
import torch

from support.system import Listener, keep_going, write_file

WINDOWS = 64                                                           # in a measurement, at most
CHUNK = 128                                                            # steps of the past unrolled at once, to bound the RAM
COLUMNS = ["step", "windows", "left_out", "delta_q_first", "delta_q_last", "delta_hidden_first", "delta_hidden_last",
           "delta_hidden_actor_first", "delta_hidden_actor_last"]      # the actor's: empty if it has no memory of its own


class Staleness(Listener):
    """Writes PATH.staleness.csv: a line at the first update after every `freq` steps.

    report: if given, it is called with the step, "staleness" and a dictionary of the line's numbers
    """
    key = "staleness"

    def __init__(self, path, freq, agent, buffer, report=None):
        self.path, self.freq, self.due, self.agent, self.buffer = path + ".staleness.csv", freq, freq, agent, buffer
        self.report = report
        buffer.keep_earlier = True
        self.lines = [",".join(COLUMNS)]

    def begin(self, step, saved):
        if saved:
            self.due, self.lines = saved["due"], saved["lines"]
        self.write()

    def before_update(self, step):
        if step < self.due:
            return
        self.due = step - step % self.freq + self.freq
        row = measure(self.agent, self.buffer, np.random.default_rng(step))
        self.lines.append(",".join([str(step), *[str(row.get(column, "")) for column in COLUMNS[1:]]]))
        self.write()
        if self.report:
            self.report(step, "staleness", row)

    def evaluated(self, step, returns, lengths):
        self.write()                                                   # again, in case the file was lost

    def write(self):
        self.written = False
        with keep_going("the staleness"):
            write_file(self.path, "".join(f"{line}\n" for line in self.lines).encode())
            self.written = True

    def missing(self):
        self.write()
        return [] if self.written else [self.path]

    def save(self):
        return {"due": self.due, "lines": self.lines}


def windows_of(agent, buffer, rng):
    """Some windows, as the agent's next update will get them."""
    cfg = agent.cfg
    if agent.targets:                                                  # only agents that replay have them
        own, buffer.rng = buffer.rng, rng
        batch = buffer.sample(WINDOWS * (32 if cfg.seq_len == "full" else cfg.seq_len), cfg.seq_len, cfg.burn_in)
        buffer.rng = own
    else:
        batch = buffer.windows(cfg.seq_len, cfg.burn_in)
    return batch.select(torch.from_numpy(rng.permutation(len(batch.mask))[:WINDOWS]))[0]


def true_start(core, past, past_length):
    """The memory before each window, (B, hidden_dim), unrolled from zero over the whole episode before it."""
    hidden = past.new_zeros(len(past), core.hidden_dim)
    for k in range(0, past.shape[1], CHUNK):
        hidden = core.burn_in(past[:, k:k + CHUNK], (past_length - k).clamp(0, CHUNK), hidden)
    return hidden


def values_of(agent, batch, hidden):
    """The critic's values of a batch's N steps, (1 or twins, N, n), if its memory is `hidden` at the windows' first steps."""
    features, _ = agent.critic.core(batch.history[:, :-1], hidden)
    q = agent.values(batch.pick(features), batch)
    return q.view(-1, *q.shape[-2:])


@torch.no_grad()
def measure(agent, buffer, rng):
    """One measurement: a dictionary with all COLUMNS but the step."""
    actor, critic = agent.actor, agent.critic
    batch = windows_of(agent, buffer, rng)
    past, past_length, known = buffer.whole_past(batch)                # (B, K, row), (B,), (B,)
    row = {"windows": int(known.sum()), "left_out": int((~known).sum())}
    if not known.any():
        return row
    history = batch.history[:, :-1]                                    # (B, L, row)
    length = batch.mask.sum(1)                                         # (B,)
    end = length.cumsum(0)                                             # windows lie one after the other: where each ends, of N
    first, last = (end - length)[known], (end - 1)[known]              # each window's first and last trained step

    def add(name, distance):                                           # (N,)
        row[f"{name}_first"] = f"{distance[first].mean():.6g}"
        row[f"{name}_last"] = f"{distance[last].mean():.6g}"

    start_actor, start_critic = agent.start_hidden(batch, actor), agent.start_hidden(batch, critic)
    true_critic = true_start(critic.core, past, past_length)

    q, true_q = values_of(agent, batch, start_critic), values_of(agent, batch, true_critic)     # (1 or twins, N, n)
    largest = true_q[:, known.repeat_interleave(length)].abs().max()
    add("delta_q", (q - true_q).norm(dim=(0, 2)) / largest)

    def relative(core, start, true):
        states = batch.pick(core.hidden_states(history, start))                 # (N, hidden_dim)
        true_states = batch.pick(core.hidden_states(history, true))
        return (states - true_states).norm(dim=-1) / true_states.norm(dim=-1).clamp(min=torch.finfo(states.dtype).tiny)
    add("delta_hidden", relative(critic.core, start_critic, true_critic))
    if actor is not critic and actor.core.hidden_dim:
        add("delta_hidden_actor", relative(actor.core, start_actor, true_start(actor.core, past, past_length)))
    return row
