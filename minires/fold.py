"""Batch norm folded into the convolution before it: a net for inference, with one pass over memory less per layer.

In evaluation batch norm is y = scale x + shift, with constants, and x = conv2d(h, w) is linear in w, so

    scale conv2d(h, w) + shift = conv2d(h, scale w, bias=shift)
"""

from __future__ import annotations

from collections import Counter
from copy import deepcopy

from minires.kernels import fold_into_scale_and_shift
from minires.nn import BatchNorm2d, Conv2d, Identity, Module, forward_hook
from minires.tensor import Node, Tensor, grad_mode, topological_order


def fold_batch_norm(net: Module, x: Tensor) -> Module:
    """A copy of `net` for inference: every batch norm that alone reads the output of a convolution is part of it.

    x: a batch that the net accepts, of one image or more. Which batch norm reads which convolution is seen in the graph
    of net(x). The copy is in evaluation mode, and not made to be trained. `net` is unchanged.
    """
    net = deepcopy(net).eval()
    for conv, norm in _pairs(net, x):
        statistics = norm.running_mean, norm.running_var
        _, scale, shift = fold_into_scale_and_shift(norm.weight.data, norm.bias.data, *statistics, norm.eps)
        shift = shift if conv.bias is None else shift + scale * conv.bias.data
        conv.weight = Tensor(conv.weight.data * scale, requires_grad=True)
        conv.bias = Tensor(shift, requires_grad=True)
        vars(norm).clear()
        norm.__class__ = Identity  # type: ignore[assignment]  # in place, wherever the net keeps it
    return net


def _pairs(net: Module, x: Tensor) -> list[tuple[Conv2d, BatchNorm2d]]:
    """Each convolution, and the batch norm that alone reads its output; both are called once in net(x)."""
    made: list[tuple[Module, Node]] = []

    def note(name: str, module: Module, out: Tensor) -> None:
        if out.node:
            made.append((module, out.node))

    with grad_mode(True), forward_hook(net, note):
        out = net(Tensor(x.data, requires_grad=True))
    assert out.node
    readers = Counter(parent for node in topological_order(out.node) for parent in node.parents)
    calls = Counter(module for module, _ in made)
    convs = {node: module for module, node in made if isinstance(module, Conv2d) and calls[module] == 1}
    return [
        (convs[conv_node], module)
        for module, node in made
        if isinstance(module, BatchNorm2d) and calls[module] == 1
        if (conv_node := node.parents[0]) in convs and readers[conv_node] == 1
    ]
