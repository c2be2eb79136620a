"""minires: deep residual learning, built from the ground up on NumPy or CuPy arrays.

    import minires as mr
    net = mr.build("resnet20", seed=0)
    loss = mr.cross_entropy(net(mr.Tensor(x)), y)
    loss.backward()

Read the source in this order: backend, tensor, gradcheck, functional, conv, norm, nn, resnet, optim, then data and train.
"""

from minires.backend import set_threads, threads
from minires.conv import avg_pool2d, conv2d, global_avg_pool, max_pool2d
from minires.functional import cross_entropy, dropout, linear, log_softmax, relu
from minires.norm import batch_norm, layer_norm
from minires.optim import SGD, clip_grad_norm
from minires.resnet import build
from minires.tensor import Tensor, concatenate, no_grad, pad
