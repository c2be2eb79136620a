"""Data sets: CIFAR-10, the built-in Shapes-10, pictures of your own, and the loader that feeds them to a net."""

from minires.data.augment import Normalise, augment
from minires.data.cifar10 import data_root, download_cifar10, fetch_cifar10, find_cifar10, load_cifar10, open_cifar10
from minires.data.dataset import DataError, Dataset
from minires.data.loader import Loader
from minires.data.pictures import load_pictures, read_image
from minires.data.shapes10 import shapes10

__all__ = [
    "DataError",
    "Dataset",
    "Loader",
    "Normalise",
    "augment",
    "data_root",
    "download_cifar10",
    "fetch_cifar10",
    "find_cifar10",
    "load_cifar10",
    "load_pictures",
    "open_cifar10",
    "read_image",
    "shapes10",
]
