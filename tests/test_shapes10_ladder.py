"""Shapes-10 at its default size is a ladder: softmax regression, then an MLP, then a ResNet, each clearly above.

The last rung, ResNet-20 at 90 % or more, is the default `python -m minires train`.
"""

import numpy as np
import pytest

from minires.data import Loader, Normalise, shapes10
from minires.functional import cross_entropy
from minires.nn import Flatten, Linear, ReLU, Sequential
from minires.optim import SGD, one_cycle
from minires.tensor import Tensor
from minires.training.loop import evaluate

PIXELS = 32 * 32 * 3


def accuracy_of(net, lr, epochs=12):
    data = shapes10()
    normalise = Normalise.channels(data.train_images)
    loader = Loader(data.train_images, data.train_labels, 64, normalise=normalise, shuffle=True)
    rate = one_cycle(lr, epochs * len(loader))
    optimiser, step = SGD(net.parameters(), lr, momentum=0.9), 0
    for epoch in range(epochs):
        for x, y in loader.epoch(epoch):
            optimiser.lr = rate(step)
            cross_entropy(net(Tensor(x)), y).backward()
            optimiser.step()
            optimiser.zero_grad()
            step += 1
    return evaluate(net, data.test_images, data.test_labels, normalise)[1]


@pytest.mark.slow
def test_softmax_regression_stays_low_and_an_mlp_is_clearly_better():
    rng = np.random.default_rng(0)
    linear = accuracy_of(Sequential(Flatten(), Linear(PIXELS, 10, std=0.01, rng=rng)), lr=0.005)
    hidden = Sequential(Flatten(), Linear(PIXELS, 512, rng=rng), ReLU(), Linear(512, 10, std=0.01, rng=rng))
    mlp = accuracy_of(hidden, lr=0.02)
    print(f"softmax regression {linear:.1%}, MLP {mlp:.1%}")
    assert linear < 0.45
    assert mlp > linear + 0.10
