"""Stochastic gradient descent, learning-rate schedules, and clipping of the gradient.

With weight decay wd the gradient of a weight w is g = dL/dw + wd w, the gradient of L + wd/2 |w|^2. Momentum m keeps a
velocity v, and the learning rate lr scales the step (He et al. 2016, section 3.4; the form is PyTorch's):

    v = m v + g          w = w - lr v                    Nesterov:   w = w - lr (g + m v)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from minires import kernels
from minires.backend import Array, array_module
from minires.parallel import over_elements
from minires.tensor import Tensor, check_tensors

Schedule = Callable[[int], float]  # step, counted from 0 -> learning rate


class SGD:
    """SGD with momentum and weight decay.

    params: the tensors to change. lr: learning rate, may be changed between steps. decay_bias_and_norm: whether weight
    decay also applies to parameters of one axis, biases and batch norm's gamma and beta, as in the paper.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        decay_bias_and_norm: bool = True,
    ):
        if isinstance(params, Tensor):
            raise TypeError("SGD: expected a list of tensors, got one tensor; write [tensor]")
        self.params = list(params)
        _check_sgd(self.params, lr, momentum, weight_decay, nesterov)
        self.lr, self.momentum, self.weight_decay = lr, momentum, weight_decay
        self.nesterov, self.decay_bias_and_norm = nesterov, decay_bias_and_norm
        self.velocity: list[Array] = [array_module(p.data).zeros_like(p.data) for p in self.params]

    def step(self) -> None:
        """Change every parameter that has a gradient, in place."""
        for p, v in zip(self.params, self.velocity, strict=True):
            if p.grad is None:
                continue
            decay = self.weight_decay if self.decay_bias_and_norm or p.ndim > 1 else 0.0
            self._update(p.data, v, p.grad, decay or None)

    def _update(self, p: Array, v: Array, g: Array, decay: float | None) -> None:
        lr, momentum, nesterov = float(self.lr), self.momentum, self.nesterov or None

        def update(p: Array, v: Array, g: Array) -> None:
            kernels.sgd(p, v, g, lr, momentum, decay, nesterov)

        over_elements(update, p, v, g)

    def zero_grad(self) -> None:
        """Forget the gradients, so that the next backward pass starts from zero."""
        for p in self.params:
            p.zero_grad()


def clip_grad_norm(params: Iterable[Tensor], max_norm: float) -> Array:
    """Scale all gradients together so that their norm, sqrt(sum of all squares), is at most `max_norm`.

    Returns the norm before, a device scalar: reading it synchronises, clipping does not.
    """
    if not max_norm > 0:
        raise ValueError(f"clip_grad_norm: max_norm must be above 0, got {max_norm}")
    with_grad = [p for p in params if p.grad is not None]
    if not with_grad:
        raise ValueError("clip_grad_norm: no parameter has a gradient; call backward() first")
    xp = array_module(with_grad[0].grad)
    norm = xp.sqrt(sum((p.grad * p.grad).sum() for p in with_grad))
    scale = xp.minimum(1, max_norm / (norm + 1e-12))
    for p in with_grad:
        p.grad = p.grad * scale  # a new array: the old one may be shared
    return norm


# ---- schedules: functions from the step to the learning rate


def multistep(lr: float, milestones: Iterable[int], factor: float = 0.1) -> Schedule:
    """`lr`, multiplied by `factor` at each step of `milestones`."""
    marks = sorted(milestones)
    return lambda step: lr * factor ** sum(step >= mark for mark in marks)


def cosine(lr: float, total: int) -> Schedule:
    """Half a cosine from `lr` at step 0 down to 0 at step `total`."""
    return lambda step: lr * 0.5 * (1 + math.cos(math.pi * min(step / total, 1)))


def one_cycle(lr: float, total: int, pct_start: float = 0.25, start_factor: float = 0.04) -> Schedule:
    """Linear warm-up from `start_factor` * lr to `lr` over the first `pct_start` of the steps, then linear decay to 0
    at step `total` (after Smith and Topin 2018, https://arxiv.org/abs/1708.07120)."""
    top = max(1, round(pct_start * total))
    fall = max(1, total - top)
    return lambda step: (
        lr * (start_factor + (1 - start_factor) * step / top if step < top else max(0, total - step) / fall)
    )


def warmup(schedule: Schedule, steps: int, lr: float) -> Schedule:
    """A constant `lr` for the first `steps` steps, then `schedule`, whose steps count the warm-up (section 4.2)."""
    return lambda step: lr if step < steps else schedule(step)


def _check_sgd(params: list[Tensor], lr: float, momentum: float, weight_decay: float, nesterov: bool) -> None:
    if not params:
        raise ValueError("SGD: params is empty; pass net.parameters()")
    for p in params:
        check_tensors("SGD", params=p)
        if not p.is_parameter:
            raise ValueError(f"SGD: expected parameters, tensors made with requires_grad=True, got {p!r:.60}")
    if len({id(p) for p in params}) < len(params):
        raise ValueError("SGD: params holds a tensor twice, which would take two steps at once")
    for name, value in (("lr", lr), ("weight_decay", weight_decay)):
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"SGD: expected {name} >= 0, got {value}")
    if not 0 <= momentum < 1:
        raise ValueError(f"SGD: expected 0 <= momentum < 1, got {momentum}")
    if nesterov and momentum == 0:
        raise ValueError("SGD: nesterov needs a momentum above 0")
