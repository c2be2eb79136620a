"""minires: deep residual learning, built from the ground up on NumPy or CuPy arrays.

    import minires as mr
    net = mr.build("resnet20", seed=0)
    loss = mr.cross_entropy(net(mr.Tensor(x)), y)
    loss.backward()

`READING_ORDER` below lists the source in the order in which it reads as a book: no file needs a later one.
"""

from importlib import import_module
from typing import Any

from minires.backend import register_on_first_use
from minires.conv import avg_pool2d, conv2d, conv_method, global_avg_pool, max_pool2d
from minires.functional import cross_entropy, dropout, linear, log_softmax, relu
from minires.gradcheck import GradientError, gradcheck
from minires.norm import batch_norm, layer_norm
from minires.optim import SGD, clip_grad_norm
from minires.parallel import get_num_threads, set_num_threads
from minires.resnet import build
from minires.tensor import Tensor, concatenate, no_grad, pad

READING_ORDER = {  # a room may import only from those before it; one with a slash is a folder
    "backend": "array libraries and devices",
    "parallel": "work shared among threads",
    "kernels": "fused inner formulas",
    "tensor": "`Tensor`, the graph, the backward pass",
    "gradcheck": "finite differences, and what a wrong gradient looks like",
    "functional": "ReLU, softmax, cross-entropy, option A",
    "winograd": "3x3 convolution with a quarter of the multiplications",
    "conv": "im2col, convolution, pooling",
    "norm": "batch norm and layer norm",
    "nn": "layers and their parameters",
    "resnet": "residual and plain blocks, and the nets",
    "fold": "batch norm folded into convolutions, for inference",
    "optim": "SGD with momentum, learning-rate schedules",
    "summary": "what a net is made of",
    "files": "output names, atomic writes, digests, rows",
    "data/": "CIFAR-10, Shapes-10, your own pictures, augmentation, batches",
    "devices/": "machine facts, a pretend GPU, self-test, stopwatch",
    "training/": "settings, run folder, checkpoints, the loop, prediction",
    "plots": "pictures of what was measured",
    "paper/": "the paper's experiments and their tables",
    "course/": "exercises, grading, drawings",
    "cli": "the commands",
}

_ON_FIRST_USE = {  # what needs heavier libraries than NumPy
    "Config": "minires.training.config",
    "evaluate": "minires.training.loop",
    "fold_batch_norm": "minires.fold",
    "fit": "minires.training.loop",
    "load_run": "minires.training.run",
    "load_torch_weights": "minires.training.weights",
    "load_weights": "minires.training.weights",
    "open_data": "minires.training.config",
    "predict": "minires.training.predict",
    "read_image": "minires.data",
    "save_weights": "minires.training.weights",
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
    "conv_method",
    "cross_entropy",
    "dropout",
    "get_num_threads",
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
    *_ON_FIRST_USE,
]


register_on_first_use("strict", lambda: import_module("minires.devices.strict"))


def __getattr__(name: str) -> Any:
    if name not in _ON_FIRST_USE:
        raise AttributeError(f"module 'minires' has no attribute {name!r}")
    return getattr(import_module(_ON_FIRST_USE[name]), name)
