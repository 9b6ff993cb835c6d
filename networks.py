"""The pieces that networks are made of and trained with: multi-layer perceptrons, policies, advantages, optimizers, targets.

Shapes: (N, dim), a row for each real step. Padding is gone by then (Batch.pick).
"""
import copy

import numpy as np
import torch
import torch.nn as nn
from torch.distributions import Independent, Normal, OneHotCategorical


class MLP(nn.Module):
    """`n` independent multi-layer perceptrons with ReLU, computed together: (N, in) -> (n, N, out).

    Both Q-networks of a twin critic run in one batched matrix product per layer: half as many operations to launch. The
    weights are initialised as nn.Linear's are, uniform in +-1/sqrt(in).
    """

    def __init__(self, n, in_size, hidden_size, hidden_layers, out_size):
        super().__init__()
        sizes = [in_size] + [hidden_size] * hidden_layers + [out_size]
        bounds = [fan_in ** -0.5 for fan_in in sizes[:-1]]
        self.weights = nn.ParameterList([torch.empty(n, i, o).uniform_(-b, b) for i, o, b in zip(sizes, sizes[1:], bounds)])
        self.biases = nn.ParameterList([torch.empty(n, 1, o).uniform_(-b, b) for o, b in zip(sizes[1:], bounds)])
        self.n = n
        self.layers = list(zip(self.weights, self.biases))             # a ParameterList is slow to go through

    def forward(self, x, n=None):
        """n: compute the first n networks only, such as one of a twin critic."""
        layers = self.layers if n is None else [(weight[:n], bias[:n]) for weight, bias in self.layers]
        x = x.expand(n or self.n, -1, -1)                              # (n, N, in)
        for i, (weight, bias) in enumerate(layers):
            x = x if i == 0 else x.relu_()                             # in place: no gradient needs what it was before
            if weight.shape[-1] == 1:                                  # one by one: batched, a single column is slow on AMD
                x = torch.stack([torch.addmm(*one) for one in zip(bias.unbind(), x.unbind(), weight.unbind())])
            else:
                x = torch.baddbmm(bias, x, weight)
        return x                                                       # (n, N, out)


def begin_near_zero(mlp):
    """Make an MLP's outputs nearly zero at first: Gaussians begin centred, discrete actions about equally likely."""
    with torch.no_grad():
        mlp.weights[-1].mul_(0.01)
        mlp.biases[-1].zero_()


def distribution(output, log_std=None):
    """A policy's distribution over actions (N, action_dim), from its network's output.

    Args:
        output: (N, action_dim), the means of Gaussians, or logits where there is no log_std
        log_std: (action_dim,), the logarithm of the Gaussians' standard deviations, or None: actions are discrete, one-hot
    """
    if log_std is None:
        return OneHotCategorical(logits=output, validate_args=False)
    return Independent(Normal(output, log_std.exp(), validate_args=False), 1, validate_args=False)


def gae(reward, value, next_value, not_done, end, discount, gae_lambda):
    """Generalised advantage estimation over steps in order of time, stream after stream; Schulman et al. 2015, equation 16.

    Args:
        reward, value, next_value, not_done, end: arrays (N,). `not_done` is 0 where the episode terminated, and cuts the
            bootstrap; `end` is True at the last step of an episode or rollout, however it ended, and stops the backward sum
    Returns:
        advantage (N,)
    """
    delta = (reward + discount * not_done * next_value - value).tolist()
    decay = (discount * gae_lambda * (1 - end)).tolist()
    advantage, following = np.empty(len(delta), np.float32), 0.0
    for t in reversed(range(len(delta))):
        advantage[t] = following = delta[t] + decay[t] * following
    return advantage


def to_array(*tensors):
    """Tensors (N, 1) -> float64 arrays (N,), for arithmetic step by step."""
    return [x.detach().cpu().numpy().astype(np.float64)[:, 0] for x in tensors]


def adam(network, lr, core_lr=None):
    """Adam over a network. Its core has its own learning rate if `core_lr` is given. initial_lr: for --lr_decay"""
    core = list(network.core.parameters())
    rest = [p for p in network.parameters() if all(p is not c for c in core)]
    parts = [(rest, lr), (core, core_lr)] if core and core_lr else [(rest + core, lr)]      # a group costs time
    groups = [{"params": parameters, "lr": rate, "initial_lr": rate} for parameters, rate in parts]
    return torch.optim.Adam(groups, fused=True)


def optimize(optimizer, loss, max_grad_norm=None):
    """One gradient step on the optimizer's own parameters alone.

    An actor's loss also passes through the critic. `backward(inputs=...)` leaves out the critic's weights, whose gradients would
    be computed for nothing.

    Args:
        max_grad_norm: if given, the gradient is scaled down to this norm where it is larger
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    optimizer.zero_grad()                                              # to None: Adam skips weights that this loss lacks
    loss.backward(inputs=parameters)
    if max_grad_norm is not None:
        nn.utils.clip_grad_norm_(parameters, max_grad_norm)
    optimizer.step()


def copy_of(network):
    """A copy of a network. soft_update moves it slowly towards the network. It is not frozen: use it under no_grad."""
    target = copy.deepcopy(network)
    for module in target.modules():
        if isinstance(module, nn.RNNBase):
            module.flatten_parameters()                                # cuDNN wants the weights in one piece; a copy has many
    return target


@torch.no_grad()
def soft_update(network, target, tau):
    """target <- tau * network + (1 - tau) * target."""
    torch._foreach_lerp_(list(target.parameters()), list(network.parameters()), tau)
