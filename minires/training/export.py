"""A net as an ONNX file, which programs in many languages and on many devices can run.

The file holds all that a program needs: it takes pictures as they are, uint8 (N, 32, 32, 3), normalises them, and gives
the logits and the probability of each class; the names of the classes are in its metadata. Operators:
https://onnx.ai/onnx/operators/, opset 17, whose images are (N, C, H, W).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from minires.data import Normalise
from minires.files import FileName, write_atomically
from minires.fold import fold_batch_norm
from minires.nn import BatchNorm2d, Conv2d, Linear, MaxPool2d, Module, forward_hook
from minires.resnet import SubsampleAndPad
from minires.tensor import Node, Tensor, topological_order

OPSET = 17


def export_onnx(net: Module, path: FileName, normalise: Normalise, classes: list[str]) -> None:
    """Write `net`, on the CPU, with its normalisation and the names of its classes.

    path: ends in .onnx; its folder is created. Raises RuntimeError if onnx is not installed, ValueError for another
    name, or for a net with an operation that has no counterpart here.
    """
    path, onnx = Path(path), _import_onnx()
    if path.suffix != ".onnx":
        raise ValueError(f"export: expected a name that ends in .onnx, got {path}")
    x = Tensor(normalise.mean[None])
    graph = _Graph()
    graph.add("Cast", ["images"], to=onnx.TensorProto.FLOAT)
    graph.add("Sub", [graph.last, graph.constant(normalise.mean)])
    graph.add("Mul", [graph.last, graph.constant(normalise.scale)])
    images = graph.add("Transpose", [graph.last], perm=[0, 3, 1, 2])
    graph.nodes[graph.add("Identity", [_emit_net(graph, fold_batch_norm(net, x), x, images)])]["outputs"] = ["logits"]
    graph.nodes[graph.add("Softmax", ["logits"], axis=-1)]["outputs"] = ["probabilities"]

    make, float32 = onnx.helper, onnx.TensorProto.FLOAT
    model = make.make_model(
        make.make_graph(
            [make.make_node(n["op"], n["inputs"], n["outputs"], **n["attributes"]) for n in graph.nodes.values()],
            "minires",
            [make.make_tensor_value_info("images", onnx.TensorProto.UINT8, ["N", *normalise.mean.shape])],
            [make.make_tensor_value_info(name, float32, ["N", len(classes)]) for name in ("logits", "probabilities")],
            [onnx.numpy_helper.from_array(np.ascontiguousarray(a), name) for name, a in graph.constants.items()],
        ),
        opset_imports=[make.make_opsetid("", OPSET)],
        ir_version=8,  # that of opset 17, which older programs read
        producer_name="minires",
    )
    make.set_model_props(model, {"classes": json.dumps(classes)})
    onnx.checker.check_model(model, full_check=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, model.SerializeToString())


def _import_onnx() -> Any:
    try:
        import onnx
    except ImportError:
        raise RuntimeError("export needs onnx: pip install onnx") from None
    return onnx


class _Graph:
    """The nodes and constants of a file so far. Values are named after the order in which they were made."""

    def __init__(self) -> None:
        self.nodes: dict[str, dict[str, Any]] = {}  # by the name of the output
        self.constants: dict[str, np.ndarray] = {}
        self.last = ""  # the output of the node that was added last

    def add(self, op: str, inputs: list[str], **attributes: Any) -> str:
        """Add a node. Returns the name of its output."""
        self.last = f"{op.lower()}_{len(self.nodes)}"
        self.nodes[self.last] = {"op": op, "inputs": inputs, "outputs": [self.last], "attributes": attributes}
        return self.last

    def constant(self, array: Any) -> str:
        """Add a constant. Returns its name."""
        name = f"constant_{len(self.constants)}"
        self.constants[name] = np.asarray(array)
        return name


# ---- from the engine's graph to ONNX' ------------------------------------------------------------------------------


def _emit_net(graph: _Graph, net: Module, x: Tensor, images: str) -> str:
    """Add what net(x) computes, operation by operation. Returns the name of its result."""
    modules: dict[Node, Module] = {}

    def note(name: str, module: Module, out: Tensor) -> None:
        if out.node:
            modules.setdefault(out.node, module)  # the innermost comes first

    x = Tensor(x.data, requires_grad=True)
    with forward_hook(net, note):
        result = net(x).node
    assert result and x.node
    names: dict[Node | None, str] = {x.node: images}
    for node in topological_order(result):
        if node.name == "leaf" or node.name == "matmul":  # weights, and the product of a linear layer
            continue
        inputs = [names[parent] for parent in node.parents if parent in names]
        if node.name not in EMIT:
            raise ValueError(f"export: expected operations that ONNX files have a counterpart for, got {node.name}")
        names[node] = EMIT[node.name](graph, inputs, modules.get(node), node, names)
    return names[result]


def _conv(graph: _Graph, inputs: list[str], conv: Any, *_: Any) -> str:
    assert isinstance(conv, Conv2d)
    w = conv.weight.data.transpose(3, 2, 0, 1)  # (F, C, KH, KW)
    arrays = [w] if conv.bias is None else [w, conv.bias.data]
    return graph.add(
        "Conv",
        [*inputs, *map(graph.constant, arrays)],
        kernel_shape=w.shape[2:],
        strides=[conv.stride] * 2,
        pads=[conv.padding] * 4,
    )


def _batch_norm(graph: _Graph, inputs: list[str], norm: Any, *_: Any) -> str:
    assert isinstance(norm, BatchNorm2d)
    arrays = norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var
    return graph.add("BatchNormalization", [*inputs, *map(graph.constant, arrays)], epsilon=norm.eps)


def _add(graph: _Graph, inputs: list[str], module: Any, node: Node, names: dict[Node | None, str]) -> str:
    """A residual add; a plain block's, to which nothing is added; or a linear layer's, with its product."""
    if isinstance(module, Linear):
        product = node.parents[0]
        assert product
        weights = map(graph.constant, (module.weight.data, module.bias.data))
        return graph.add("Gemm", [names[product.parents[0]], *weights])
    return graph.add("Add", inputs) if len(inputs) == 2 else inputs[0]


def _max_pool(graph: _Graph, inputs: list[str], pool: Any, *_: Any) -> str:
    assert isinstance(pool, MaxPool2d)
    sizes = {"kernel_shape": [pool.kernel] * 2, "strides": [pool.stride or pool.kernel] * 2}
    return graph.add("MaxPool", inputs, pads=[pool.padding] * 4, **sizes)


def _subsample_and_pad(graph: _Graph, inputs: list[str], module: Any, node: Node, *_: Any) -> str:
    assert isinstance(module, SubsampleAndPad) and node.parents[0]
    extra = module.c_out - node.parents[0].shape[3]
    pixels = [[0, 0], [2**31 - 1] * 2, [2, 3], [module.stride] * 2]  # starts, ends, axes, steps
    kept = graph.add("Slice", [*inputs, *(graph.constant(np.array(numbers, np.int64)) for numbers in pixels)])
    zeros = np.array([0, extra // 2, 0, 0, 0, extra - extra // 2, 0, 0], np.int64)
    return graph.add("Pad", [kept, graph.constant(zeros)])


def _global_average(graph: _Graph, inputs: list[str], module: Any, node: Node, *_: Any) -> str:
    """`global_avg_pool`: a sum over the pixels, and its product with 1 / (H W)."""
    total = node.parents[0]
    if not (total and total.name == "sum" and len(node.shape) == 2 and total.parents[0]):
        raise ValueError("export: expected a product only in global_avg_pool, got another one")
    return graph.add("Flatten", [graph.add("GlobalAveragePool", inputs)])


def _as_it_is(graph: _Graph, inputs: list[str], *_: Any) -> str:
    return inputs[0]


EMIT: dict[str, Callable[..., str]] = {  # by the name of a node in the engine's graph
    "conv2d": _conv,
    "batch_norm": _batch_norm,
    "relu": lambda graph, inputs, *_: graph.add("Relu", inputs),
    "add": _add,
    "max_pool2d": _max_pool,
    "subsample_and_pad": _subsample_and_pad,
    "sum": _as_it_is,
    "mul": _global_average,
}
