"""minires: deep residual learning, built from the ground up on NumPy or CuPy arrays.

    import minires as mr
    net = mr.build("resnet20", seed=0)
    loss = mr.cross_entropy(net(mr.Tensor(x)), y)
    loss.backward()

Read the source in this order: backend, tensor, gradcheck, functional, conv, norm, nn, resnet, optim, summary; then
data, checkpoint, run and train.
"""

from importlib import import_module
from typing import Any

from minires.backend import register_on_first_use, get_num_threads, set_num_threads
from minires.conv import avg_pool2d, conv2d, global_avg_pool, max_pool2d
from minires.functional import cross_entropy, dropout, linear, log_softmax, relu
from minires.gradcheck import GradientError, gradcheck
from minires.norm import batch_norm, layer_norm
from minires.optim import SGD, clip_grad_norm
from minires.resnet import build
from minires.tensor import Tensor, concatenate, no_grad, pad

_ON_FIRST_USE = {  # these need libraries that `import minires` shall not wait for
    "load_torch_weights": "minires.training.checkpoint",
    "load_weights": "minires.training.checkpoint",
    "save_weights": "minires.training.checkpoint",
    "summarise": "minires.summary",
}

__all__ = [
    "GradientError",
    "SGD",
    "Tensor",
    "avg_pool2d",
    "batch_norm",
    "build",
    "clip_grad_norm",
    "concatenate",
    "conv2d",
    "cross_entropy",
    "dropout",
    "global_avg_pool",
    "gradcheck",
    "layer_norm",
    "linear",
    "log_softmax",
    "max_pool2d",
    "no_grad",
    "pad",
    "relu",
    "set_num_threads",
    "get_num_threads",
    *_ON_FIRST_USE,
]


register_on_first_use("strict", lambda: import_module("minires.devices.strict"))


def __getattr__(name: str) -> Any:
    if name not in _ON_FIRST_USE:
        raise AttributeError(f"module 'minires' has no attribute {name!r}")
    return getattr(import_module(_ON_FIRST_USE[name]), name)
