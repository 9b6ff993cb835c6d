"""Recurrent cores: LSTM, GRU, minGRU and none behind one interface. Only this file knows what a hidden state looks like.

A core turns a history into features. Everywhere else a hidden state is one opaque vector of `core.hidden_dim` numbers:

    core    remembers          hidden_dim   features
    lstm    [h, c], packed     2 * size      [h, observation]
    gru     h                  size          [h, observation]
    mingru  h                  size          [h, observation]     (a linear recurrence: the fastest over long windows)
    none    nothing            0             observation          (feed-forward: the textbook algorithm)

A *history row* is what an agent perceives at time t: the observation, the previous action and the previous reward,
side by side. At the first step of an episode the last two are zero. A recurrent core reads as much of the row as
`--memory_input` says, and `none` reads the observation alone. The *current* action is never part of the row. It joins after
the core, in the critic's head. So an action that the actor tries now changes no memory of the critic.
`hidden[t]` is the memory before it reads row t.
"""
import torch
import torch.nn as nn

torch.backends.cudnn.rnn.fp32_precision = "ieee"                       # else a GPU unrolls windows in TF32, unlike single steps


class NoCore(nn.Module):
    """Feed-forward: passes the observation on and remembers nothing."""
    hidden_dim = 0

    def __init__(self, state_dim):
        super().__init__()
        self.state_dim = self.feature_size = state_dim

    def forward(self, history, hidden):
        return history[..., :self.state_dim], hidden

    def burn_in(self, past, past_length, hidden):
        return hidden

    def hidden_states(self, history, hidden):
        return hidden[:, None].expand(-1, history.shape[1], -1)


class RecurrentCore(nn.Module):
    """What all recurrent cores share. Each has its own `unroll`. The burn_in and hidden_states here suit cores whose output is
    their memory (GRU, minGRU). The LSTM has its own.

    Args:
        state_dim, action_dim: widths of the observation and of the action in a history row
        size: units H of the recurrent layer
        memory_input: how much of a history row it reads, see MemoryFlags
    """

    def __init__(self, state_dim, action_dim, size, memory_input):
        super().__init__()
        self.state_dim = state_dim
        self.in_size = state_dim + {"obs": 0, "obs_action": action_dim, "obs_action_reward": action_dim + 1}[memory_input]
        self.size = self.hidden_dim = size
        self.feature_size = size + state_dim

    def unroll(self, x, hidden):
        """x (B, L, in), hidden (B, hidden_dim), the memory before the first step -> output (B, L, H), next_hidden."""
        raise NotImplementedError

    def forward(self, history, hidden):
        """Unroll over a window.

        Args:
            history: (B, L, state_dim + action_dim + 1)
            hidden: (B, hidden_dim), the memory before the first row
        Returns:
            features (B, L, feature_size) and next_hidden (B, hidden_dim), the memory after the last row
        """
        B, L = history.shape[:2]
        assert hidden.shape == (B, self.hidden_dim), (hidden.shape, (B, self.hidden_dim))
        output, hidden = self.unroll(history[..., :self.in_size], hidden)      # (B, L, H)
        return torch.cat([output, history[..., :self.state_dim]], -1), hidden

    @torch.no_grad()
    def burn_in(self, past, past_length, hidden):
        """Bring a start state forward over the steps before a window, without gradient.

        Args:
            past: (B, K, row), the history rows before each window, left-aligned
            past_length: (B,) how many of the K steps are real; 0 where the window starts with its episode
            hidden: (B, hidden_dim), the memory before the first real step of `past`
        Returns:
            (B, hidden_dim), the memory before the window's first step
        """
        if past.shape[1] == 0:
            return hidden
        output, _ = self.unroll(past[..., :self.in_size], hidden)
        # The padding after a past's own end does not influence the outputs before it
        last = output[torch.arange(len(past)), past_length.clamp(min=1) - 1]
        return torch.where(past_length[:, None] > 0, last, hidden)

    @torch.no_grad()
    def hidden_states(self, history, hidden):
        """The memory before each of the window's L rows: (B, L, hidden_dim). For --hidden_refresh."""
        if history.shape[1] == 1:
            return hidden[:, None]
        output, _ = self.unroll(history[:, :-1, :self.in_size], hidden)
        return torch.cat([hidden[:, None], output], 1)


class LSTMCore(RecurrentCore):
    """Long short-term memory (Hochreiter & Schmidhuber 1997). Its hidden vector is [h, c]."""

    def __init__(self, *args):
        super().__init__(*args)
        self.hidden_dim = 2 * self.size
        self.rnn = nn.LSTM(self.in_size, self.size, batch_first=True)

    def unroll(self, x, hidden):
        L = x.shape[1]
        if L > 2:
            output, state = self.rnn(x, self.unpack(hidden))           # (B, L, H)
            return output, self.pack(state)
        outputs = []                                                   # single cells: oneDNN's LSTM is slow to start up
        for t in range(L):
            output, hidden = self.cell(x[:, t], hidden)                # (B, H), (B, 2H)
            outputs.append(output)
        return outputs[0][:, None] if L == 1 else torch.stack(outputs, 1), hidden

    def unpack(self, hidden):
        h, c = hidden.split(self.size, -1)
        return h[None].contiguous(), c[None].contiguous()              # (1, B, H) each, as nn.LSTM wants them

    def pack(self, state):
        return torch.cat([state[0][0], state[1][0]], -1)               # (B, 2H)

    def cell(self, x, hidden):
        h, c = torch.lstm_cell(x, hidden.split(self.size, -1), *self.rnn.all_weights[0])
        return h, torch.cat([h, c], -1)

    @torch.no_grad()
    def burn_in(self, past, past_length, hidden):
        if past.shape[1] == 0:
            return hidden
        # Sequences of different length: a PackedSequence returns each one's state after its own last step
        packed = nn.utils.rnn.pack_padded_sequence(past[..., :self.in_size], past_length.clamp(min=1).cpu(),
                                                   batch_first=True, enforce_sorted=False)
        _, state = self.rnn(packed, self.unpack(hidden))
        return torch.where(past_length[:, None] > 0, self.pack(state), hidden)

    @torch.no_grad()
    def hidden_states(self, history, hidden):
        states = [hidden]                                              # nn.LSTM returns no c but the last
        for t in range(history.shape[1] - 1):
            states.append(self.cell(history[:, t, :self.in_size], states[-1])[1])
        return torch.stack(states, 1)


class GRUCore(RecurrentCore):
    """Gated recurrent unit (Cho et al. 2014). Its hidden vector is its output h. The weights are nn.GRU's."""

    def __init__(self, *args):
        super().__init__(*args)
        self.rnn = nn.GRU(self.in_size, self.size, batch_first=True)

    def unroll(self, x, hidden):
        weight_x, weight_h, bias_x, bias_h = self.rnn.all_weights[0]
        if x.shape[1] == 1:                                            # acting
            h = torch.gru_cell(x[:, 0], hidden, weight_x, weight_h, bias_x, bias_h)
            return h[:, None], h
        if x.is_cuda:                                                  # cuDNN's GRU is fast, PyTorch's on a CPU is not
            output, h = self.rnn(x, hidden[None].contiguous())
            return output, h[0]
        gates_x = nn.functional.linear(x.transpose(0, 1), weight_x, bias_x)     # (L, B, 3H)
        output = GRUWindow.apply(gates_x, hidden, weight_h, bias_h)    # (L, B, H)
        return output.transpose(0, 1), output[-1]


class GRUWindow(torch.autograd.Function):
    """A GRU over a window, its back-propagation through time written out: 2.5 x as fast as autograd's (8 windows x 32, H 64).

        reset, update = sigmoid(x's gates + h's gates),   new = tanh(x's gate + reset * h's gate)
        h = (1 - update) * new + update * h               (nn.GRU's convention: update = 1 keeps the memory)

    Backwards, every gate's gradient is dh times a factor that is known from the forward pass. So all factors are computed
    at once, and only four small operations a step are left in the loop.
    """

    @staticmethod
    def forward(ctx, gates_x, start, weight, bias):
        """gates_x (L, B, 3H) what x adds to the gates; start (B, H); weight (3H, H), bias (3H,) of h -> (L, B, H)."""
        H = start.shape[1]
        reset_update, new = gates_x[..., :2 * H].contiguous(), gates_x[..., 2 * H:].contiguous()
        gates_h, output = torch.empty_like(gates_x), torch.empty_like(new)
        h, weight_t = start, weight.t()
        for gate_h, ru, r, u, n, gate_h_ru, gate_h_n, out in zip(
                gates_h, reset_update, reset_update[..., :H], reset_update[..., H:], new,
                gates_h[..., :2 * H], gates_h[..., 2 * H:], output):
            torch.addmm(bias, h, weight_t, out=gate_h)                 # (B, 3H)
            ru.add_(gate_h_ru).sigmoid_()                              # r and u are views of ru
            n.addcmul_(r, gate_h_n).tanh_()
            h = torch.lerp(n, h, u, out=out)                           # (B, H)
        ctx.save_for_backward(start, weight, reset_update, new, gates_h[..., 2 * H:], output)
        return output

    @staticmethod
    def backward(ctx, grad_output):
        start, weight, reset_update, new, gate_h_n, output = ctx.saved_tensors
        L, B, H = output.shape
        reset, update = reset_update.split(H, -1)
        before = torch.cat([start[None], output[:-1]])                 # h before each step
        # d h / d gate, for the three gates' parts from h. The third gate's part from x has no reset before it: to_new
        to_new = (1 - update) * (1 - new * new)
        factors = torch.stack([to_new * gate_h_n * reset * (1 - reset), (before - new) * update * (1 - update),
                               to_new * reset], 2)                     # (L, B, 3, H)
        grad_gates, grad_h = torch.empty_like(factors), grad_output.clone()
        flat_gates = grad_gates.view(L, B, 3 * H)
        carry = torch.zeros_like(start)                                # gradient from the following step
        for t in reversed(range(L)):
            dh = grad_h[t].add_(carry)                                 # (B, H)
            torch.mul(factors[t], dh[:, None], out=grad_gates[t])
            carry = torch.addmm(dh * update[t], flat_gates[t], weight)
        grad_gates_x = torch.cat([flat_gates[..., :2 * H], grad_h * to_new], -1)
        grad_weight = flat_gates.view(L * B, 3 * H).t() @ before.view(L * B, H)
        return grad_gates_x, carry, grad_weight, flat_gates.sum((0, 1))


class MinGRUCore(RecurrentCore):
    """minGRU (Feng et al. 2024, "Were RNNs All We Needed?"): a GRU whose gates read the input alone.

        keep = sigmoid(W x),   h = keep * h + (1 - keep) * (V x)

    The recurrence is elementwise and linear, so a window is one matrix product and L multiply-adds. It forgets and stores
    by what it sees, never by what it remembers. Deliberate differences from the paper: it has one layer, since the head
    sees the observation anyway. Its gates are biased so that at first its units remember for 2 to 33 steps (Tallec &
    Ollivier 2018) instead of two.
    """

    def __init__(self, *args):
        super().__init__(*args)
        self.gates = nn.Linear(self.in_size, 2 * self.size)
        with torch.no_grad():
            self.gates.bias[:self.size] = torch.empty(self.size).uniform_(1, 32).log()

    def unroll(self, x, hidden):
        keep, value = self.gates(x.transpose(0, 1)).chunk(2, -1)       # (L, B, H)
        keep = torch.sigmoid(keep)
        output = LinearScan.apply(keep, (1 - keep) * value, hidden)
        return output.transpose(0, 1), output[-1]


class LinearScan(torch.autograd.Function):
    """h[t] = keep[t] * h[t - 1] + add[t] over a window: one operation a step, forwards and backwards."""

    @staticmethod
    def forward(ctx, keep, add, start):
        """keep, add (L, B, H), start (B, H) -> h (L, B, H)."""
        output, h = torch.empty_like(add), start
        for k, a, out in zip(keep, add, output):
            h = torch.addcmul(a, k, h, out=out)
        ctx.save_for_backward(keep, output, start)
        return output

    @staticmethod
    def backward(ctx, grad_output):
        keep, output, start = ctx.saved_tensors
        grad_h = grad_output.clone()                                   # (L, B, H), completed in place from the end on
        steps, keeps = grad_h.unbind(), keep.unbind()
        for t in reversed(range(len(steps) - 1)):
            steps[t].addcmul_(keeps[t + 1], steps[t + 1])
        before = torch.cat([start[None], output[:-1]])
        return grad_h * before, grad_h, keep[0] * grad_h[0]


CORES = {"lstm": LSTMCore, "gru": GRUCore, "mingru": MinGRUCore}       # a new core: see docs/extending.md


def make_core(recurrent, cfg, spec):
    """The core of one network: `cfg.core` if it is to be recurrent, else none."""
    if not recurrent:
        return NoCore(spec.state_dim)
    return CORES[cfg.core](spec.state_dim, spec.action_dim, cfg.core_size, cfg.memory_input)
