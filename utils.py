"""Buffers of sequences: rows of steps, windows drawn from them as batches, and the prioritised buffer. See Batch and Buffer."""
from typing import NamedTuple

import numpy as np
import torch
import torch.nn as nn


class Batch(NamedTuple):
    """Windows of steps. A core reads `history`, (B, L + 1, row): B windows of at most L steps, and the row after their last.

    Windows are of different lengths. Padding fills the shorter ones up by repeating their last row. `pick` leaves it behind right
    after a core. action, reward, not_done and end have no padding: they have a row for each of the N real steps, window by
    window, in order of time. The other fields have one for each of the B windows.
    """
    history: torch.Tensor       # (B, L + 1, row)   observation, previous action, previous reward; row t + 1: after step t
    action: torch.Tensor        # (N, action_dim)
    reward: torch.Tensor        # (N, 1)
    not_done: torch.Tensor      # (N, 1)            0 where the episode terminated: do not bootstrap
    end: torch.Tensor           # (N, 1) bool       the last stored step of its episode, terminated or not
    mask: torch.Tensor          # (B, L) bool       a real step, to be trained on
    real: torch.Tensor | None   # (N,)              where the real steps lie in a flattened (B * L); None: there is no padding
    past: torch.Tensor          # (B, K, row)       the steps before the window, for burn-in, left-aligned
    past_length: torch.Tensor   # (B,)              how many of these K are real
    hidden: torch.Tensor        # (B, hidden_dim)   memory before the first row of `past`; without a past, of the window
    index: torch.Tensor         # (B, L + 1)        where in the buffer each row lies; always on the CPU

    @property
    def steps(self):
        """N, the real steps in the batch."""
        return len(self.action)

    @property
    def real_rows(self):
        """(B, L + 1) bool: each window's first row, and the row after each of its steps. A window of l steps has l + 1."""
        return torch.cat([self.mask[:, :1], self.mask], 1)

    def pick(self, x):
        """Leave the padding behind: (B, L, dim) -> (N, dim). No loss depends on what lies there."""
        x = x.flatten(0, 1)
        return x if self.real is None else x.index_select(0, self.real)

    def select(self, windows):
        """A batch of these windows alone, trimmed to the longest, and the places (n,) of its n steps among this batch's N."""
        mask = self.mask[windows]
        L = int(mask.sum(1).max())
        mask = mask[:, :L]
        number = (self.mask.flatten().cumsum(0) - 1).view(self.mask.shape)      # (B, L): which of the N steps each one is
        steps = number[windows, :L][mask]                                       # (n,)
        real = None if len(steps) == mask.numel() else mask.flatten().nonzero()[:, 0]
        there = windows.to(self.index.device)
        return Batch(self.history[windows, :L + 1], self.action[steps], self.reward[steps], self.not_done[steps],
                     self.end[steps], mask, real, self.past[windows], self.past_length[windows], self.hidden[windows],
                     self.index[there, :L + 1]), steps


class Buffer:
    """Sequences of steps with the memory before each, for replay and for on-policy rollouts alike.

    One environment and two episodes, the second still running. The buffer is drawn on its side: a column is one of its rows.

        position       0     1     2     3  |  4     5     6     7     8
        state         s0    s1    s2    s3  | s0    s1    s2    s3    s4        the observation
        action         -    a0    a1    a2  |  -    a0    a1    a2    a3        the action that led here (a reset: zeros)
        reward         -    r0    r1    r2  |  -    r0    r1    r2    r3        the reward for it
        terminated     -     0     0     1  |  -     0     0     0     0        did the episode terminate here?
        hidden        h0    h1    h2    h3  | h0    h1    h2    h3    h4        the memory before this row is read

        step              0     1     2     |     0     1     2     3           step t: the row of its state, and the one after
        a window of 3                       |           [-----------]           rows 5, 6, 7 are its states, row 8 the next one

    - An episode of T steps is T + 1 rows. The first is what the reset gave, the last is the true final state, which no action
      follows. So no state is stored twice, though within an episode each is one step's next state and the next step's state.
    - `terminated` stands in the row after a step. An episode that was cut short (truncated) ends, too, but its last row does
      not say terminated.
    - Each environment has its own ring of rows, called a stream. When it is full, the newest row takes the place of the oldest,
      whose episode then begins a step later.
    - A window never crosses an episode's end. Windows of a batch are filled up with padding, see Batch.

    Every stored step is equally likely to be trained on. A window of L steps may begin at any step, and also up to L - 1 steps
    *before* its episode, of which only the part inside is used. So each step lies in exactly L of the windows that can be
    drawn, the first and the last of an episode included. A draw is one random number below rows + episodes x (L - 1), so no
    list of windows is kept. A window that begins at an episode's last row holds no step, and is dropped.

    Args:
        size: rows of all streams together (one per step, and one more per episode)
        state_dim, action_dim, hidden_dim: widths of a row's parts; hidden_dim is 0 where no hidden state is stored
        num_envs: number of streams
        seed: seeds the generator that draws windows
        device: where batches are delivered
        precision: "float32" or "float16", for the stored hidden states
        on_device: keep a copy of all rows on the device, so that a batch is gathered there
    """

    # Attributes that a checkpoint leaves out: rows are saved apart, and there are copies of them
    not_state = {"device", "rows", "hidden", "_rows", "_hidden", "changed", "device_rows", "device_hidden", "copied"}

    def __init__(self, size, state_dim, action_dim, hidden_dim, num_envs=1, seed=0, device="cpu", precision="float32",
                 on_device=False):
        self.capacity = max(2, -(-size // num_envs))                   # rows per stream
        self.state_dim, self.action_dim, self.num_envs, self.device = state_dim, action_dim, num_envs, device
        self.hidden_dim = hidden_dim
        self.row_size = state_dim + action_dim + 1                     # a history row; `terminated` comes after it
        rows = self.capacity * num_envs
        self.rows = torch.zeros(rows, self.row_size + 1)
        self.hidden = torch.zeros(rows, hidden_dim, dtype=torch.float16 if precision == "float16" else None)
        self.changed = np.zeros(rows, bool)                            # rows written since the last checkpoint
        self._rows, self._hidden = self.rows.numpy(), self.hidden.numpy()  # views, to write without tensor overhead
        self.on_device = on_device
        if on_device:
            self.device_rows, self.device_hidden = self.rows.clone().to(device), self.hidden.clone().to(device)
        self.copied = np.zeros(num_envs, np.int64)                     # position up to which the device has a stream's rows
        # Positions count up for ever within a stream; position p lies in row p % capacity. `episode` leads from a row to its
        # episode's slot, `first` and `last` from a slot to positions
        self.episode = np.zeros((num_envs, self.capacity), np.int32)
        self.max_episodes = self.capacity // 2 + 2
        self.first = np.zeros((num_envs, self.max_episodes), np.int64)
        self.last = np.zeros((num_envs, self.max_episodes), np.int64)
        self.head = np.full(num_envs, -1, np.int64)                    # position of the newest row
        self.tail = np.zeros(num_envs, np.int64)                       # position of the oldest row
        self.oldest = np.zeros(num_envs, np.int64)                     # number of the oldest episode
        self.newest = np.full(num_envs, -1, np.int64)                  # number of the newest episode
        self.running = np.zeros(num_envs, bool)                        # is the newest episode unfinished?
        self.begin = np.zeros(num_envs, np.int64)                      # position of the first step that counts; before it: a past
        # The oldest episode's rows before its first stored one, (n, row), which whole_past needs; None: they are lost
        self.earlier = [self.rows[:0, :-1]] * num_envs
        self.keep_earlier = False                                      # does clear() keep them? For whole_past
        self.rng = np.random.default_rng(seed)

    @staticmethod
    def bytes_needed(size, state_dim, action_dim, hidden_dim, precision="float32"):
        """Bytes of RAM for `size` rows, all included."""
        return size * (4 * (state_dim + action_dim + 2) + (2 if precision == "float16" else 4) * hidden_dim + 4 + 8 + 1)

    def __len__(self):
        """Steps stored, without those that clear() kept as a past."""
        begin = np.maximum(self.tail, self.begin)
        return int((self.head - begin + 1).clip(0).sum() - (self.newest - self.oldest + 1).sum())

    # ------------------------------------------------------------------ writing

    def add(self, state, action, reward, next_state, terminated, truncated, hidden, next_hidden):
        """Store one step of every environment. Arrays of (num_envs, dim); reward and flags (num_envs,).

        At an episode's end `next_state` must be its true last observation, not the next episode's first. `hidden` is the
        memory that was acted from: within an episode the `next_hidden` of the step before, unless that has been refreshed.
        """
        for env in range(self.num_envs):
            if self.running[env]:
                at = env * self.capacity + self.head[env] % self.capacity
                self._hidden[at] = hidden[env, :self.hidden_dim]       # what is acted from: --hidden_refresh may have changed it
                self.changed[at] = True
            else:
                self._begin_episode(env, state[env], hidden[env])
            at = self._append(env)
            row = self._rows[at]
            row[:self.state_dim] = next_state[env]
            row[self.state_dim:-2] = action[env]
            row[-2] = reward[env]
            row[-1] = terminated[env]
            self._hidden[at] = next_hidden[env, :self.hidden_dim]
            self.running[env] = not (terminated[env] or truncated[env])

    def _begin_episode(self, env, state, hidden):
        self.newest[env] += 1
        slot = self.newest[env] % self.max_episodes
        self.first[env, slot] = self.head[env] + 1
        at = self._append(env)
        self._rows[at] = 0
        self._rows[at, :self.state_dim] = state
        self._hidden[at] = hidden[:self.hidden_dim]
        self.running[env] = True

    def _append(self, env):
        """Move the write head on one row, dropping the oldest row if the ring is full; returns where to write."""
        self.head[env] += 1
        position, slot = self.head[env], self.newest[env] % self.max_episodes
        if position - self.tail[env] >= self.capacity:
            self.tail[env] += 1
            self.earlier[env] = None
            oldest_slot = self.oldest[env] % self.max_episodes
            self.first[env, oldest_slot] += 1                          # its episode now begins a step later
            if self.first[env, oldest_slot] >= self.last[env, oldest_slot] and self.oldest[env] < self.newest[env]:
                self.tail[env] = self.last[env, oldest_slot] + 1       # only its final row was left
                self.oldest[env] += 1
                self.earlier[env] = self.rows[:0, :-1]
        self.last[env, slot] = position
        at = position % self.capacity
        self.episode[env, at] = slot
        self.changed[env * self.capacity + at] = True
        return env * self.capacity + at

    def clear(self, keep=0):
        """Forget all steps. Episodes that are still running go on: their newest row stays, to be the first again.

        keep: up to this many rows before it stay too, as a past to burn in; their steps are not in windows() any more
        """
        for env in range(self.num_envs):
            slot, running = self.newest[env] % self.max_episodes, self.running[env]
            first = max(self.head[env] - keep, self.first[env, slot]) if running else self.head[env]
            stays = env * self.capacity + np.arange(first, self.head[env] + 1) % self.capacity
            rows, hidden = self._rows[stays], self._hidden[stays]      # copies
            earlier = self._until(env, slot, first) if self.keep_earlier else None
            self.earlier[env] = earlier if running else self.rows[:0, :-1]
            self.head[env], self.tail[env], self.oldest[env], self.newest[env], self.copied[env] = -1, 0, 0, -1, 0
            self.begin[env] = 0
            if running:
                self.newest[env], self.first[env, 0], self.begin[env] = 0, 0, len(rows) - 1
                for row, memory in zip(rows, hidden):
                    at = self._append(env)
                    self._rows[at], self._hidden[at] = row, memory

    # ------------------------------------------------------------------ reading

    def sample(self, batch_size, seq_len=1, burn_in=0):
        """Draw windows until they hold at least `batch_size` real steps.

        Every stored step is equally likely, in PrioritisedBuffer by priority. Drawing stops at a count of steps, so that updates
        are equally large whatever the episodes' lengths are. Steps stay equally likely (Wald's identity), since windows are
        independent and the stop looks at no later one.

        Args:
            batch_size: steps to be trained on, padding not counted
            seq_len: steps in a window, or "full" for whole episodes
            burn_in: up to this many steps before each window are returned in `past`
        """
        draws, total = [], 0
        while total < batch_size:
            env, start, length, slot = self._draw(batch_size - total, seq_len)
            draws.append(np.stack([env, start, length, slot])[:, length > 0])
            total += int(length.sum())
        windows = np.concatenate(draws, 1)
        enough = np.searchsorted(np.cumsum(windows[2]), batch_size) + 1
        return self._gather(*windows[:, :enough], burn_in)

    def _draw(self, steps, seq_len):
        """Random windows (env, start, length, episode slot). Together they mostly hold `steps` steps; some have length 0."""
        rows = self.head - self.tail + 1                               # (num_envs,)
        episodes = self.newest - self.oldest + 1
        L = seq_len
        if seq_len == "full":                                          # a draw for each episode (L - 1 = 1), none for a row
            rows, L = 0 * rows, 2
        upto = np.cumsum(rows + episodes * (L - 1))
        expected = len(self) / upto[-1] * (L if seq_len != "full" else 1)             # steps in a draw, on average
        draw = self.rng.integers(upto[-1], size=int(1.2 * steps / expected) + 4)      # some to spare: a second round is rare
        env = np.searchsorted(upto, draw, side="right")
        draw = draw - (upto - rows - episodes * (L - 1))[env]
        # Below rows[env] a draw is a window that begins at that row. Above, it is one that begins before its episode does
        begins_inside = draw < rows[env]
        number, before = np.divmod(np.maximum(draw - rows[env], 0), max(L - 1, 1))
        position = self.tail[env] + draw
        slot = np.where(begins_inside, self.episode[env, position % self.capacity],
                        (self.oldest[env] + number) % self.max_episodes)
        first, last = self.first[env, slot], self.last[env, slot]
        if seq_len == "full":
            return env, first, last - first, slot
        position = np.where(begins_inside, position, first - 1 - before)
        start = np.maximum(position, first)
        return env, start, np.minimum(position + L, last) - start, slot

    def windows(self, seq_len, burn_in=0):
        """All steps stored, cut into windows in order of time, one stream after the other. For on-policy learning."""
        cuts = []
        for env in range(self.num_envs):
            for number in range(self.oldest[env], self.newest[env] + 1):
                slot = number % self.max_episodes
                first, last = max(self.first[env, slot], self.begin[env]), self.last[env, slot]
                L = last - first if seq_len == "full" else seq_len
                cuts += [(env, start, min(L, last - start), slot) for start in range(first, last, max(L, 1))]
        return self._gather(*np.array(cuts).T, burn_in)

    def _gather(self, env, start, length, slot, burn_in):
        """Collect windows into a batch. No row outside a window's own episode is read, not even for padding."""
        if self.on_device:
            self._copy_to_device()
        L = int(length.max())
        step = np.arange(L + 1)
        base = env[:, None] * self.capacity
        position = start[:, None] + np.minimum(step, length[:, None])  # (B, L + 1); padding repeats the last row
        index = torch.from_numpy(base + position % self.capacity)
        rows = self._take(self.rows, index)                            # (B, L + 1, row + 1)
        mask = step[:L] < length[:, None]                              # (B, L)
        real = None if mask.all() else torch.from_numpy(np.flatnonzero(mask)).to(self.device)
        end = (position[:, 1:] == self.last[env, slot][:, None])[mask]  # (N,)
        S = self.state_dim

        past_length = np.minimum(burn_in, start - self.first[env, slot])   # (B,); an episode's first steps have no past
        past_start = (start - past_length)[:, None]
        past_step = np.minimum(np.arange(burn_in), np.maximum(past_length[:, None] - 1, 0))
        past_index = torch.from_numpy(base + (past_start + past_step) % self.capacity)
        hidden_index = torch.from_numpy(base + past_start % self.capacity)
        after = rows[:, 1:].flatten(0, 1)                              # a step's action, reward and end stand in the row after it
        after = after if real is None else after.index_select(0, real)     # (N, row + 1)
        return Batch(
            history=rows[..., :-1], action=after[:, S:-2], reward=after[:, -2:-1], not_done=1 - after[:, -1:],
            end=torch.from_numpy(end)[:, None].to(self.device), mask=torch.from_numpy(mask).to(self.device), real=real,
            past=self._take(self.rows, past_index)[..., :-1],
            past_length=torch.from_numpy(past_length).to(self.device),
            hidden=self._take(self.hidden, hidden_index)[:, 0].to(rows.dtype), index=index)

    def whole_past(self, batch):
        """The past of each window of a batch, from its episode's true first step on. For --staleness.

        Returns:
            past (B, K, row) and past_length (B,), as in Batch; known (B,) bool: False, and then no past, where the
            episode's first steps are lost
        """
        pasts = []
        for env, place in zip(*np.divmod(batch.index[:, 0].numpy(), self.capacity)):
            slot = self.episode[env, place]
            first = self.first[env, slot]
            pasts.append(self._until(env, slot, first + (place - first) % self.capacity))
        known = torch.tensor([past is not None for past in pasts])
        pasts = [self.rows[:0, :-1] if past is None else past for past in pasts]
        past_length = torch.tensor([len(past) for past in pasts])
        past = nn.utils.rnn.pad_sequence(pasts, batch_first=True)
        return past.to(self.device), past_length.to(self.device), known.to(self.device)

    def _until(self, env, slot, position):
        """All history rows of an episode before a position, (K, row); None if its first ones are lost."""
        earlier = self.earlier[env] if slot == self.oldest[env] % self.max_episodes else self.rows[:0, :-1]
        if earlier is None:
            return None
        stored = env * self.capacity + np.arange(self.first[env, slot], position) % self.capacity
        return torch.cat([earlier, self.rows[stored, :-1]])

    def _take(self, source, index):
        if self.on_device:
            return (self.device_rows if source is self.rows else self.device_hidden)[index.to(self.device)]
        return source[index].to(self.device)

    def _copy_to_device(self):
        """Copy the rows added since the last time, in one piece. The newest is copied again, as its hidden state may change."""
        index = [env * self.capacity + np.arange(max(self.copied[env], self.tail[env]), self.head[env] + 1) % self.capacity
                 for env in range(self.num_envs)]
        index = torch.from_numpy(np.concatenate(index))
        self.device_rows[index.to(self.device)] = self.rows[index].to(self.device)
        self.device_hidden[index.to(self.device)] = self.hidden[index].to(self.device)
        self.copied = self.head.clip(0)

    def write_hidden(self, batch, states):
        """Replace the stored hidden states of a batch's real rows by recomputed ones (B, L + 1, hidden_dim)."""
        real_rows = batch.real_rows
        index = batch.index[real_rows.cpu()]                           # windows may share rows: of each row one state is kept
        self.hidden[index] = states[real_rows].to(self.hidden.dtype).cpu()
        self.changed[index.numpy()] = True
        if self.on_device:                                             # the one that the CPU kept: a GPU may keep another
            self.device_hidden[index.to(self.device)] = self.hidden[index].to(self.device)


class SumTree:
    """Draws from `size` leaves in proportion to their values, and changes a value, in O(log size)."""

    def __init__(self, size):
        self.base = 1 << (size - 1).bit_length()                       # leaf i is node base + i; a node is its children's sum
        self.nodes = np.zeros(2 * self.base)

    def __getitem__(self, leaves):
        return self.nodes[self.base + leaves]

    def __setitem__(self, leaves, values):
        """Set the values of several leaves. Of a leaf that is named twice, the last value counts."""
        nodes = self.base + np.atleast_1d(leaves)
        self.nodes[nodes] = values
        while nodes[0] > 1:                                            # all nodes lie on one level; go up to the root
            nodes = nodes >> 1
            self.nodes[nodes] = self.nodes[2 * nodes] + self.nodes[2 * nodes + 1]

    @property
    def total(self):
        return self.nodes[1]

    def draw(self, uniform):
        """The leaves (n,) in which n numbers in [0, 1), as shares of the total, fall."""
        mass, nodes = uniform * self.total, np.ones(len(uniform), np.int64)
        while nodes[0] < self.base:
            left = self.nodes[2 * nodes]
            # Rounding must not lead into an empty half
            right = (mass >= left) & (self.nodes[2 * nodes + 1] > 0) | (left == 0)
            mass = mass - right * left
            nodes = 2 * nodes + right
        return nodes - self.base


class PrioritisedBuffer(Buffer):
    """A buffer whose windows are drawn in proportion to a priority (Schaul et al. 2016; of sequences: Kapturowski et al. 2019).

    Episodes are cut into adjoining windows, so each stored step lies in one at most. A window joins when it is complete or its
    episode has ended, with the largest priority ever set, and leaves when its first row is overwritten (the rest of its
    rows is then no longer drawn). Its priority is kept at its first row: a leaf for each row, zero where no window begins.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.priority = SumTree(len(self.rows))
        self.cut = np.zeros(self.num_envs, np.int64)                   # position up to which windows have been cut
        self.count, self.largest = 0, 1.0                              # number of windows; the largest priority ever

    @staticmethod
    def bytes_needed(size, *args, **kwargs):
        """Bytes of RAM for `size` rows, all included."""
        return Buffer.bytes_needed(size, *args, **kwargs) + 16 * (1 << (size - 1).bit_length())

    def _append(self, env):
        at = super()._append(env)
        if self.priority[at] > 0:                                      # a window began in the row that goes
            self.priority[at] = 0
            self.count -= 1
        return at

    def cut_windows(self, seq_len):
        """Cut what has been added since the last time into windows. Returns how many windows can be drawn."""
        starts = []
        for env in range(self.num_envs):
            start = max(self.cut[env], self.tail[env])
            while start < self.head[env]:
                slot = self.episode[env, start % self.capacity]
                last = self.last[env, slot]
                length = min(last - start, np.inf if seq_len == "full" else seq_len)
                if self.running[env] and last == self.head[env] and length != seq_len:
                    break                                              # still growing
                starts.append(env * self.capacity + start % self.capacity)
                start += length
                if start == last and (last < self.head[env] or not self.running[env]):
                    start += 1                                         # an ended episode's final row begins no step
            self.cut[env] = start
        if starts:
            self.priority[np.array(starts)] = self.largest
            self.count += len(starts)
        return self.count

    def _draw(self, steps, seq_len):
        """Windows drawn by priority, as Buffer._draw. First what is new is cut into windows."""
        self.cut_windows(seq_len)
        L = 50 if seq_len == "full" else seq_len                       # full: a guess, `sample` draws more if it is too large
        at = self.priority.draw(self.rng.random(-(-steps // L)))
        env, place = np.divmod(at, self.capacity)
        start = self.head[env] - (self.head[env] - place) % self.capacity          # the newest position in that row
        slot = self.episode[env, place]
        length = np.minimum(self.last[env, slot] - start, np.inf if seq_len == "full" else seq_len).astype(np.int64)
        return env, start, length, slot

    def importance(self, batch, exponent):
        """Weights (B,) that undo the priorities' bias: (count * probability) ^ -exponent, the largest in the batch 1."""
        probability = self.priority[batch.index[:, 0].numpy()] / self.priority.total
        weight = (self.count * probability) ** -exponent
        return torch.as_tensor(weight / weight.max(), dtype=batch.history.dtype, device=self.device)

    def set_priority(self, batch, priority):
        """Give a batch's windows new priorities (B,), positive numbers."""
        priority = priority.cpu().double().numpy()
        self.priority[batch.index[:, 0].numpy()] = priority
        self.largest = max(self.largest, priority.max())
