"""minires: deep residual learning, built from the ground up on NumPy arrays."""
from minires.tensor import Tensor, no_grad
