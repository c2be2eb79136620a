"""The real CuPy, without a GPU: does it have everything that minires uses, and do the fused kernels compile?

pip install cupy-cuda12x nvidia-cuda-nvrtc-cu12 nvidia-cuda-runtime-cu12
pytest -m cupy
"""

import ast
import ctypes
import importlib
import itertools
import json
import math
import re
import shutil
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import minires
from minires import kernels
from minires.backend import to_device
from minires.devices import strict
from minires.functional import cross_entropy, dropout
from minires.nn import LayerNorm
from minires.optim import SGD, clip_grad_norm
from minires.resnet import build
from minires.tensor import Tensor, concatenate, pad

SOURCE = Path(minires.__file__).parent

pytestmark = pytest.mark.cupy


@pytest.fixture(scope="module")
def cupy():
    return pytest.importorskip("cupy", reason="CuPy is not installed: pip install cupy-cuda12x")


@pytest.fixture(scope="module")
def recorder(cupy):
    return importlib.import_module("record_cupy")


def test_the_record_is_what_the_package_has(recorder):
    recorded, found = strict.names(), recorder.record()
    if recorded["cupy"] != found["cupy"]:
        pytest.skip(f"the record is of CuPy {recorded['cupy']}, installed is {found['cupy']}")
    assert recorded == json.loads(json.dumps(found))


# ---- every name and keyword in the source


def dotted(node):
    """("lib", "stride_tricks", "as_strided") for xp.lib.stride_tricks.as_strided; None if it is not part of `xp`."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    of_call = isinstance(node, ast.Call) and getattr(node.func, "id", "") == "array_module"
    return tuple(reversed(parts)) if of_call or getattr(node, "id", "") == "xp" else None


def uses():
    """Where minires uses xp.something: file and line, the dotted name, and the keywords if it is called."""
    for path in sorted(SOURCE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        called = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
        inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and id(node) not in inner and (name := dotted(node)):
                call = called.get(id(node))
                yield f"{path.name}:{node.lineno}", name, [k.arg for k in call.keywords] if call else []


def test_every_name_and_keyword_in_the_source_is_in_the_package(cupy, recorder):
    found = list(uses())
    assert len(found) > 60 and {("add", "at"), ("lib", "stride_tricks", "as_strided")} <= {name for _, name, _ in found}
    for place, name, keywords in found:
        thing = cupy
        for part in name:
            assert hasattr(thing, part), f"{place}: cupy has no {'.'.join(name)}"
            thing = getattr(thing, part)
        if not keywords:
            continue
        if isinstance(thing, cupy.ufunc) or thing is cupy.matmul:
            allowed = strict.names()["ufunc_keywords"]
        else:
            allowed = [word.rstrip("=") for word in recorder.parameters(thing).split(", ")]
        assert "**kwargs" in allowed or set(keywords) <= set(allowed), f"{place}: {name} with {keywords}"


# ---- every call of a training step


class Stub:
    """Stands for an array of the device in a recorded call."""

    def __init__(self, array):
        self.shape, self.dtype, self.strides = array.shape, array.dtype, array.strides


def recorded(x):
    if isinstance(x, strict.StrictArray):
        return Stub(x)
    return type(x)(recorded(part) for part in x) if isinstance(x, list | tuple) else x


@pytest.fixture
def calls(monkeypatch):
    """Every call on the pretend GPU while nets train: name, arguments, keywords."""
    made, compute = [], strict._compute

    def record(name, function, arguments, keywords):
        if not strict._tracing():
            made.append((name, [*map(recorded, arguments)], {key: recorded(value) for key, value in keywords.items()}))
        return compute(name, function, arguments, keywords)

    monkeypatch.setattr(strict, "_compute", record)
    rng = np.random.default_rng(0)
    for name in ("resnet8", "bottleneck11", "preresnet8", "resnet18"):
        net = build(name, width=4).to("strict")
        opt = SGD(net.parameters(), 0.1, 0.9, 1e-4, nesterov=True)
        x = Tensor(to_device(rng.standard_normal((2, 32, 32, 3), np.float32), "strict"))
        cross_entropy(dropout(net(x), 0.1, rng), np.array([1, 2]), 0.1).backward()
        clip_grad_norm(opt.params, 1.0)
        opt.step()
        net.eval()(x)
    x = Tensor(x.data[:, :4, :3, 0], requires_grad=True)
    rest = pad(concatenate([x, x]), [(0, 1), (0, 0), (2, 0)]).exp().log().sqrt().max((0, 1)) ** 2.0 / 3.0
    (LayerNorm(5).to("strict")(rest.reshape(1, 5)).sum() + x[np.array([1, 1])].mean() - x.T[0].sum()).backward()
    return made


def test_the_package_takes_every_call_of_training_as_far_as_that_shows_without_a_gpu(cupy, recorder, calls):
    """Arguments of a wrong number, name or type raise TypeError; a correct call gets as far as asking for the GPU."""

    def real(x):
        if isinstance(x, Stub):
            array = recorder.device_array(np.prod(x.shape, dtype=int), x.dtype)
            return cupy.lib.stride_tricks.as_strided(array, x.shape, x.strides)
        return type(x)(real(part) for part in x) if isinstance(x, list | tuple) else x

    assert len({name for name, _, _ in calls}) > 30
    for name, arguments, keywords in calls:
        if name.endswith(".at"):  # its index is not recorded
            continue
        (first, *rest), keywords = real(arguments), {key: real(value) for key, value in keywords.items()}
        function = getattr(first, name[2:]) if name.startswith("x.") else cupy
        for part in () if name.startswith("x.") else name.split("."):
            function = getattr(function, part)
        try:
            function(*rest, **keywords) if name.startswith("x.") else function(first, *rest, **keywords)
        except (cupy.cuda.runtime.CUDARuntimeError, ImportError):  # no GPU; and a product needs cuBLAS first
            pass


# ---- fused kernels: CuPy's own trace of the functions, and compilers for the source that it generates

ROWS, ROW, C, W = (6, 8), (8,), (4,), (3, 3, 2, 4)
FUSED: dict[str, tuple[Any, list[Any]]] = {  # a function, and the shapes of its arrays, or numbers
    "SGD": (kernels.sgd, [W, W, W, 0.1, 0.9, None, None]),
    "SGD, Nesterov, decay": (kernels.sgd, [W, W, W, 0.1, 0.9, 1e-4, True]),
    "SGD of a vector": (kernels.sgd, [C, C, C, 0.1, 0.0, 0.1, None]),
    "ReLU gradient": (kernels.relu_gradient, [ROWS, ROWS, ROWS]),
    "mean and variance": (kernels.mean_and_variance, [C, C, C, 24]),
    "running statistics": (kernels.update_running_statistics, [C, C, C, C, 0.1, 1.25]),
    "scale and shift of the channels": (kernels.fold_into_scale_and_shift, [C, C, C, C, 1e-5]),
    "batch norm": (kernels.scale_and_shift, [ROWS, ROW, ROW, ROWS]),
    "gradient terms": (kernels.gradient_terms, [C, C, C, C, 24]),
    "input gradient": (kernels.input_gradient, [ROWS, ROWS, ROW, ROW, ROW, ROWS]),
}


def traced(cupy, recorder, name, dtype):
    """The kernel that CuPy makes of a function."""
    function, arguments = FUSED[name]
    arguments = [recorder.device_array(a, dtype) if isinstance(a, tuple) else a for a in arguments]
    fused = cupy.fuse(kernel_name="fused")(partial(function.__wrapped__, cupy))
    try:
        fused(*arguments)
    except cupy.cuda.runtime.CUDARuntimeError:  # traced, and ready to be launched
        pass
    assert fused.new_fusion is None, "expected the older of CuPy's tracers, which makes a single kernel"
    ((kernel, options),) = fused._memo.values()
    assert isinstance(kernel, cupy.ElementwiseKernel) and options == {}
    assert {p.dtype for p in kernel.out_params} <= {np.dtype(dtype)}
    return kernel, [a for a in arguments if a is not None]


def test_every_fused_function_is_tested():
    fused = {name for name, f in vars(kernels).items() if hasattr(f, "__wrapped__")}
    assert {function.__name__ for function, _ in FUSED.values()} == fused


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", FUSED)
def test_cupy_traces_a_fused_function_and_nvrtc_compiles_the_kernel(name, dtype, cupy, recorder):
    pytest.importorskip("nvidia.cuda_nvrtc", reason="NVRTC is not installed: pip install nvidia-cuda-nvrtc-cu12")
    from cupy._core import _kernel
    from cupy.cuda import compiler

    kernel, arguments = traced(cupy, recorder, name, dtype)
    array, loop, scalar = 1, 2, 3  # kinds of arguments, as CuPy numbers them
    shape = np.broadcast_shapes(*(a.shape for a in arguments if isinstance(a, cupy.ndarray)))
    infos = [
        _kernel._ArgInfo(array, cupy.ndarray, a.dtype, len(shape), a.shape == shape, True)
        if isinstance(a, cupy.ndarray)
        else _kernel._ArgInfo(scalar, float, np.dtype(type(a)), 0, True, True)
        for a in arguments
    ]
    infos += [_kernel._ArgInfo(array, cupy.ndarray, p.dtype, len(shape), True, True) for p in kernel.out_params]
    infos.append(_kernel._ArgInfo(loop, int, None, len(shape), True, True))
    source = _kernel._get_elementwise_kernel_code(
        tuple(infos), _kernel._TypeMap(()), kernel.params, kernel.operation, kernel.name, kernel.preamble
    )
    headers = Path(cupy.__file__).parent / "_core" / "include"
    runtime = Path(importlib.import_module("nvidia.cuda_runtime").__path__[0]) / "include"
    folders = [headers, *(headers / "cupy" / "_cccl").iterdir(), runtime]
    program = compiler._NVRTCProgram(
        "#include <cupy/complex.cuh>\n#include <cupy/carray.cuh>\n" + source, "fused.cu", (), (), method="cubin"
    )
    binary, _ = program.compile(("-arch=sm_80", "--std=c++17", "-default-device", *(f"-I{f}" for f in folders)))
    assert len(binary) > 1000


@pytest.fixture(scope="module")
def on_the_cpu(cupy, recorder, tmp_path_factory):
    """CuPy's kernels by (name, dtype), compiled for this processor, with a loop in place of the GPU's threads."""
    if not shutil.which("g++"):
        pytest.skip("there is no C++ compiler")
    source, kernels = ["#include <cmath>\n#include <algorithm>\nusing namespace std;\n#define __device__ static\n"], {}
    for i, (name, dtype) in enumerate(itertools.product(FUSED, ("float32", "float64"))):
        kernel, _ = traced(cupy, recorder, name, dtype)
        given = [isinstance(a, tuple) for a in FUSED[name][1] if a is not None] + [True] * len(kernel.out_params)
        params = list(zip(kernel.in_params + kernel.out_params, given, strict=True))
        heads = [f"{p.ctype} {'*_' if is_array else ''}{p.name}" for p, is_array in params]
        entries = [f"{p.ctype} &{p.name} = _{p.name}[_i];" for p, is_array in params if is_array]
        preamble = re.sub(r"#(include|ifndef NAN|define NAN|endif).*", "", kernel.preamble)
        source.append(
            f'namespace n{i} {{ {preamble}\nextern "C" void k{i}(long long _n, {", ".join(heads)}) {{\n'
            f"for (long long _i = 0; _i < _n; _i++) {{ {' '.join(entries)}\n{kernel.operation}; }} }} }}\n"
        )
        kernels[name, dtype] = f"k{i}", kernel
    code = tmp_path_factory.mktemp("fused") / "fused.cpp"
    code.write_text("".join(source), encoding="utf-8")
    options = ["-O1", "-ffp-contract=off", "-shared", "-fPIC", "-o", code.with_suffix(".so")]
    subprocess.run(["g++", *options, code], check=True)
    library = ctypes.CDLL(str(code.with_suffix(".so")))
    return {key: (getattr(library, function), kernel) for key, (function, kernel) in kernels.items()}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", FUSED)
def test_a_kernel_computes_what_numpy_does(name, dtype, on_the_cpu):
    rng = np.random.default_rng(0)
    function, arguments = FUSED[name]
    arguments = [
        rng.uniform(0.2, 2, a).astype(dtype) * (1 if a == C else rng.choice([-1, 1], a).astype(dtype))
        if isinstance(a, tuple)
        else a
        for a in arguments
    ]
    shape = np.broadcast_shapes(*(a.shape for a in arguments if isinstance(a, np.ndarray)))
    here = [np.broadcast_to(a, shape).copy() if isinstance(a, np.ndarray) else a for a in arguments if a is not None]
    kernel_function, kernel = on_the_cpu[name, dtype]
    here += [np.empty(shape, dtype) for _ in kernel.out_params]
    kinds = {bool: ctypes.c_bool, int: ctypes.c_longlong, float: ctypes.c_double}
    kernel_function(
        ctypes.c_longlong(math.prod(shape)),
        *(ctypes.c_void_p(a.ctypes.data) if isinstance(a, np.ndarray) else kinds[type(a)](a) for a in here),
    )
    returned = function(*arguments) or ()
    expected = [a for a in arguments if isinstance(a, np.ndarray)] + list(returned)
    for a, b in zip(expected, [a for a in here if isinstance(a, np.ndarray)], strict=True):
        np.testing.assert_allclose(b, np.broadcast_to(a, shape), rtol=1e-5 if dtype == "float32" else 1e-13, atol=1e-30)
