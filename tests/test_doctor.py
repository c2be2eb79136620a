"""The doctor: what it says of a machine, the six states of a GPU, and a self-test that finds errors."""

# mypy: disable-error-code="attr-defined, method-assign"

import ast
import ctypes
import inspect
import os
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from minires import backend, conv, functional, norm, parallel, tensor
from minires.backend import device_of, to_device, to_host
from minires.devices import doctor, machine
from minires.devices.doctor import gpu_status
from minires.devices.strict import StrictArray
from minires.nn import Linear
from minires.parallel import set_num_threads
from minires.tensor import Tensor

# ---- the six states of a GPU, with a pretended CuPy


class CUDARuntimeError(RuntimeError):
    def __init__(self, status):
        super().__init__(f"CUDA error {status}")
        self.status = status


class FakeArray:
    """Just enough of a CuPy array; `error` is raised by the product, as when cuBLAS is missing."""

    def __init__(self, array, error=None):
        self.array, self.error = array, error

    def __matmul__(self, other):
        if self.error:
            raise self.error
        return self.array @ other.array


def fake_cupy(driver=12040, devices=1, compute_error=None):
    """A module that answers as CuPy does; `devices` may be the status of the error that counting them raises."""

    def ones(shape, dtype):
        if devices != 1:
            raise CUDARuntimeError(devices or 100)
        return FakeArray(np.ones(shape, dtype), compute_error)

    def count():
        if devices in (35, 100, 999):
            raise CUDARuntimeError(devices)
        return devices

    cupy = ModuleType("cupy")
    cupy.__version__ = "14.2.0"
    cupy.ndarray, cupy.asarray, cupy.asnumpy = FakeArray, lambda x, blocking: FakeArray(x), lambda x: x.array
    cupy.ones = ones
    cupy.cuda = SimpleNamespace(
        runtime=SimpleNamespace(
            CUDARuntimeError=CUDARuntimeError,
            getDeviceCount=count,
            driverGetVersion=lambda: driver,
            runtimeGetVersion=lambda: 12090,
            getDevice=lambda: 0,
            getDeviceProperties=lambda i: {"name": b"NVIDIA T4"},
        )
    )
    return cupy


NO_CUBLAS = ImportError("libcublas.so.12: cannot open shared object file\n\nsee the installation guide")
UNUSABLE = {  # CuPy; the state; what the sentence must contain
    "nothing": (None, "not installed", ["CuPy is not installed", 'pip install -e ".[gpu]"']),
    "no driver": (fake_cupy(0, 35), "no driver", ["no NVIDIA driver", "nvidia-smi", "nvidia.com/drivers"]),
    "old driver": (fake_cupy(11040, 35), "driver too old", ["CUDA 11.4", "needs 12.0", "nvidia.com/drivers"]),
    "no GPU": (fake_cupy(12040, 100), "no device", ["finds no GPU", "CUDA_VISIBLE_DEVICES", "--gpus all"]),
    "zero GPUs": (fake_cupy(12040, 0), "no device", ["finds no GPU"]),
    "no cuBLAS": (
        fake_cupy(compute_error=NO_CUBLAS),
        "broken",
        ["ImportError: libcublas.so.12: cannot open shared object file see", 'pip install -e ".[gpu]"'],
    ),
    "no NVRTC": (fake_cupy(compute_error=RuntimeError("libnvrtc.so.12")), "broken", ["libnvrtc.so.12"]),
    "another error": (fake_cupy(12040, 999), "broken", ["CUDA error 999"]),
}


@pytest.fixture(params=UNUSABLE)
def unusable(request, monkeypatch):
    """A machine whose GPU can't be used: its state, and parts of the sentence about it."""
    cupy, state, parts = UNUSABLE[request.param]
    install(cupy, monkeypatch)
    return state, parts


def install(cupy, monkeypatch):
    """As if no backend for a GPU had been registered yet, and `import cupy` gave `cupy`: None if not installed."""
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(backend, "_backends", {k: v for k, v in backend._backends.items() if k != "gpu"})
    monkeypatch.setattr(backend, "_by_type", dict(backend._by_type))


def test_each_state_has_a_sentence_with_its_fix(unusable):
    state, parts = unusable
    status = gpu_status()
    assert status.state == state
    assert all(part in status.sentence for part in parts) and "\n" not in status.sentence


def test_a_ready_gpu_is_reported_with_its_name_and_versions(monkeypatch):
    install(fake_cupy(), monkeypatch)
    assert gpu_status() == ("ready", "NVIDIA T4 is ready (driver for CUDA 12.4, CuPy 14.2.0)")
    x = to_device(np.ones(2), "gpu")
    assert isinstance(x, FakeArray) and device_of(x) == "gpu"


def test_no_state_lacks_a_test():
    assert {state for _, state, _ in UNUSABLE.values()} | {"ready"} == set(doctor.GPU_STATES)


def test_a_cupy_that_fails_while_it_is_imported_is_broken(monkeypatch, tmp_path):
    (tmp_path / "cupy.py").write_text("import a_library_that_is_missing", encoding="utf-8")
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    status = gpu_status()
    assert status.state == "broken" and "a_library_that_is_missing" in status.sentence
    sys.modules.pop("cupy", None)


def test_the_real_package_without_a_driver():
    cupy = pytest.importorskip("cupy")
    if cupy.cuda.runtime.driverGetVersion():
        pytest.skip("this machine has an NVIDIA driver")
    assert gpu_status().state == "no driver"


REFUSED = r"device 'gpu' can't be used \(\w+: [^\n]*\); how to fix it: python -m minires doctor"


def test_device_gpu_is_refused_with_the_command_that_says_how_to_fix_it(unusable):
    with pytest.raises(RuntimeError, match=f"^{REFUSED}$"):
        to_device(np.ones(2), "gpu")
    with pytest.raises(RuntimeError, match=REFUSED):
        Linear(2, 3, rng=np.random.default_rng(0)).to("gpu")


@pytest.mark.parametrize(
    "command",
    [
        ["train", "--device", "gpu"],
        ["eval", "a-run", "--device", "gpu"],
        ["doctor", "--gpu-selftest"],
    ],
)
def test_commands_stop_with_one_line_and_status_2(command, unusable, capsys, status_of, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert status_of(*command) == 2
    out, err = capsys.readouterr()
    assert out == "" and re.fullmatch(f"minires: {REFUSED}\n", err)
    assert not list(tmp_path.iterdir())


# ---- what this machine has


def test_the_command_reports_everything(monkeypatch, tmp_path, capsys, status_of):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MINIRES_DATA", raising=False)
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert status_of("doctor") == 0
    lines = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines())
    assert list(lines) == ["versions", "processor", "threads", "BLAS", "memory", "CIFAR-10", "Shapes-10", "GPU"]
    assert f"numpy {np.__version__}" in lines["versions"] and "python 3." in lines["versions"]
    assert f"{os.cpu_count()} cores" in lines["processor"]
    assert "GiB" in lines["memory"]
    assert lines["GPU"] == doctor.GPU_STATES["not installed"]


def test_threads_and_why(monkeypatch):
    monkeypatch.setattr(parallel, "_num_threads", 0)
    monkeypatch.delenv("MINIRES_THREADS", raising=False)
    assert doctor.describe_threads() == f"{parallel.get_num_threads()} (one for each available core)"
    monkeypatch.setenv("MINIRES_THREADS", "3")
    assert doctor.describe_threads() == "3 (MINIRES_THREADS=3)"
    set_num_threads(2)
    assert doctor.describe_threads() == "2 (set_num_threads)"
    monkeypatch.setattr(parallel, "_num_threads", 0)
    monkeypatch.setenv("MINIRES_THREADS", "many")
    error = "MINIRES_THREADS: expected a positive integer, got 'many'"
    assert doctor.describe_threads() == error  # and the report continues
    assert error in doctor.describe_machine()


def test_blas_with_and_without_a_library_that_threadpoolctl_knows(monkeypatch):
    libraries = [
        {"user_api": "openmp", "internal_api": "openmp", "version": None, "num_threads": 9},
        {"user_api": "blas", "internal_api": "mkl", "version": "2026.1", "num_threads": 8},
    ]
    monkeypatch.delenv("OPENBLAS_CORETYPE", raising=False)
    for module in (machine, doctor):
        monkeypatch.setattr(module, "threadpool_info", lambda: libraries)
    assert doctor.describe_blas() == "mkl 2026.1"
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    assert doctor.describe_blas() == "mkl 2026.1 (kernels chosen by OPENBLAS_CORETYPE=Haswell)"
    monkeypatch.delenv("OPENBLAS_CORETYPE")
    for module in (machine, doctor):
        monkeypatch.setattr(module, "threadpool_info", lambda: [])
    monkeypatch.setattr(np, "show_config", lambda mode: {"Build Dependencies": {"blas": {"name": "accelerate"}}})
    assert doctor.describe_blas() == "accelerate, whose threads cannot be limited"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/meminfo")
def test_memory_on_linux():
    total, available = machine.memory_bytes()
    assert total == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < available < total


class MemoryStatusEx(ctypes.Structure):
    """MEMORYSTATUSEX as Microsoft documents it."""

    _fields_ = [("length", ctypes.c_uint32), ("load", ctypes.c_uint32)] + [
        (name, ctypes.c_uint64)
        for name in (
            "total",
            "available",
            "total_page_file",
            "available_page_file",
            "total_virtual",
            "available_virtual",
            "available_extended",
        )
    ]


def test_memory_on_windows(monkeypatch, tmp_path):
    def fill(buffer):
        status = ctypes.cast(buffer, ctypes.POINTER(MemoryStatusEx)).contents
        assert status.length == ctypes.sizeof(buffer) == ctypes.sizeof(MemoryStatusEx)
        status.load, status.total, status.available, status.total_page_file = 50, 16 * 2**30, 5 * 2**30, 7
        return 1

    monkeypatch.setattr(machine, "Path", lambda name: tmp_path / "no such file")
    monkeypatch.setattr(sys, "platform", "win32")
    kernel32 = SimpleNamespace(GlobalMemoryStatusEx=fill)
    monkeypatch.setattr(ctypes, "windll", SimpleNamespace(kernel32=kernel32), raising=False)
    assert machine.memory_bytes() == (16 * 2**30, 5 * 2**30)
    assert doctor.describe_memory() == "16.0 GiB, 5.0 GiB available"
    kernel32.GlobalMemoryStatusEx = lambda buffer: 0
    assert doctor.describe_memory() == "unknown"


def test_memory_on_macos_and_where_it_is_unknown(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "Path", lambda name: tmp_path / "no such file")
    monkeypatch.setattr(sys, "platform", "darwin")
    sizes = {"SC_PAGE_SIZE": 16384, "SC_PHYS_PAGES": 2**19}
    monkeypatch.setattr(os, "sysconf", sizes.__getitem__, raising=False)
    assert doctor.describe_memory() == "8.0 GiB"

    def unknown(name):
        raise ValueError("unrecognized configuration name")

    monkeypatch.setattr(os, "sysconf", unknown, raising=False)
    assert doctor.describe_memory() == "unknown"


def test_cifar10_is_found_or_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MINIRES_DATA", raising=False)
    assert (
        doctor.describe_cifar10() == "not found (MINIRES_DATA is not set); to download it: python -m minires data fetch"
    )
    monkeypatch.setenv("MINIRES_DATA", "nowhere")
    assert doctor.describe_cifar10().startswith("not found (MINIRES_DATA=nowhere)")
    (tmp_path / "cifar-10-python.tar.gz").touch()
    monkeypatch.setenv("MINIRES_DATA", ".")
    assert doctor.describe_cifar10() == f"{tmp_path / 'cifar-10-python.tar.gz'} (MINIRES_DATA=.)"


# ---- the self-test knows every operation

OPERATIONS = doctor.operations()
ROOMS = (tensor, functional, conv, norm)
NOT_OPERATIONS = {"from_op", "detach", "retain_grad"}  # of Tensor: they compute nothing


def public_operations():
    """Every public function and method that returns a Tensor; `__add__` as "add"."""
    found = {name.removeprefix("__").removesuffix("__"): f for name, f in vars(Tensor).items()}
    for room in ROOMS:
        found |= {name: f for name, f in vars(room).items() if getattr(f, "__module__", "") == room.__name__}
    return {
        name
        for name, f in found.items()
        if inspect.isfunction(f) and f.__annotations__.get("return") == "Tensor" and name[0] != "_"
    }


def test_the_selftest_has_every_public_operation():
    wanted = public_operations() - NOT_OPERATIONS
    assert {"conv2d", "batch_norm", "relu", "matmul", "radd", "getitem"} <= wanted  # it does find them
    assert {name.split(",")[0] for name in OPERATIONS} == wanted


def test_the_selftest_reaches_every_node_in_the_source():
    """Also an operation that hides in a method or a class: each names its node in a call of Tensor.from_op."""
    written = set()
    for path in Path(tensor.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "from_op":
                written.add(ast.literal_eval(node.args[-1]))
    reached = set()
    for op, arrays in OPERATIONS.values():
        out = op(*[Tensor(a, requires_grad=True) for a in arrays])
        reached |= {node.name for node in tensor.topological_order(out.node) if node.backward}
    assert {"conv2d", "batch_norm", "relu", "slice"} <= written
    assert written == reached


# ---- the self-test passes on a correct device, and says what is wrong with another


def on_device(x):
    return isinstance(x.data, StrictArray)


def plant(monkeypatch, name, mistake):
    """Replace an operation by one whose result goes through `mistake` if it is on the device."""
    method = f"__{name}__" if hasattr(Tensor, f"__{name}__") else name
    owner, name = next((o, n) for o, n in ((doctor, name), (functional, name), (Tensor, method)) if hasattr(o, n))
    right = getattr(owner, name)

    def planted(*arguments, **options):
        out = right(*arguments, **options)
        return mistake(out) if on_device(out) else out

    monkeypatch.setattr(owner, name, planted)


def wrong_output(out):
    out.data = out.data * 1.001
    return out


def wrong_gradient(out):
    backward = out.node.backward
    out.node.backward = lambda grad: tuple(g if g is None else g * 1.001 for g in backward(grad))
    return out


def left_on_the_host(out):
    return Tensor(to_host(out.data), requires_grad=True)


def not_a_number(out):
    out.data = out.data * float("nan")
    return out


def unsupported(out):
    raise TypeError("Unsupported type\n<class 'numpy.ndarray'>")


def small_selftest():
    return doctor.selftest("strict", batch=4, steps=1)


@pytest.fixture
def no_training(monkeypatch):
    monkeypatch.setattr(doctor, "compare_training", lambda device, batch: "")
    monkeypatch.setattr(doctor, "throughput", lambda *arguments: 1.0)


def test_the_selftest_passes_and_reports_everything(capsys):
    passed, text = small_selftest()
    assert passed, text
    assert capsys.readouterr() == ("", "")  # no progress bar if stderr is no terminal
    assert f"operations, forward and backward: {len(OPERATIONS)} of {len(OPERATIONS)} agree with NumPy" in text
    assert "three training steps of resnet20: agree with NumPy" in text
    assert "FAIL" not in text and re.search(r"^PASS in \d+ s$", text, re.MULTILINE)
    for model in ("resnet20", "resnet56"):
        assert re.search(
            rf"^training {model}: [1-9][\d,]* images/s, with NumPy [1-9][\d,]*; peak memory \d+ MiB$",
            text,
            re.MULTILINE,
        )
    assert f"numpy {np.__version__}" in text and gpu_status().sentence in text


@pytest.mark.parametrize("name", sorted(name.split(",")[0] for name in OPERATIONS))
def test_a_mistake_in_any_operation_is_found(name, monkeypatch):
    for mistake, message in (
        (wrong_output, "the output differs by 1"),
        (wrong_gradient, "the gradient of input 0 differs"),
    ):
        with monkeypatch.context() as patch:
            plant(patch, name, mistake)
            assert doctor.compare_operation(doctor.operations()[name], "strict").startswith(message)
    assert doctor.compare_operation(doctor.operations()[name], "strict") == ""


@pytest.mark.parametrize(
    "mistake, message",
    [
        (wrong_output, "the output differs by 1.0e-03 of its largest number"),
        (not_a_number, "the output differs by nan of its largest number"),
        (left_on_the_host, "TypeError: the output: expected on strict, got it on cpu"),
        (unsupported, "TypeError: Unsupported type <class 'numpy.ndarray'>"),
    ],
)
def test_the_selftest_names_the_wrong_operation_and_continues(mistake, message, monkeypatch, no_training):
    plant(monkeypatch, "max_pool2d", mistake)
    passed, text = small_selftest()
    assert not passed and f"FAIL max_pool2d: {message}" in text
    assert text.count("FAIL ") == 2 and "\nFAIL in" in text
    assert f"{len(OPERATIONS) - 1} of {len(OPERATIONS)} agree with NumPy" in text


def test_a_mistake_that_only_training_makes_is_found(monkeypatch):
    class Hasty(doctor.SGD):
        def step(self):
            self.lr = 0.1001 if on_device(self.params[0]) else 0.1
            super().step()

    monkeypatch.setattr(doctor, "SGD", Hasty)
    monkeypatch.setattr(doctor, "throughput", lambda *arguments: 1.0)
    passed, text = small_selftest()
    assert not passed and "three training steps of resnet20: FAIL" in text
    assert re.search("FAIL three training steps: .* differs by", text)


def test_a_device_that_cannot_train_is_reported_without_a_traceback(monkeypatch):
    monkeypatch.setattr(doctor, "build", lambda model: unsupported(model))
    passed, text = small_selftest()
    assert not passed
    for what in ("three training steps", "training resnet20", "training resnet56"):
        assert f"FAIL {what}: TypeError: Unsupported type" in text


@pytest.mark.parametrize("passed, status", [(True, 0), (False, 1)])
def test_the_command_prints_the_text_and_its_status_is_the_result(passed, status, monkeypatch, capsys, status_of):
    monkeypatch.setattr(doctor, "selftest", lambda: (passed, "the text"))
    assert status_of("doctor", "--gpu-selftest") == status
    assert capsys.readouterr() == ("the text\n", "")


def test_peak_memory_is_what_the_pool_grew_to():
    freed = []
    pool = SimpleNamespace(free_all_blocks=lambda: freed.append(1), total_bytes=lambda: 5 * 2**20)
    xp = SimpleNamespace(get_default_memory_pool=lambda: pool)
    doctor.free_pool(xp)
    assert freed == [1] and doctor.pool_bytes(xp) == 5 * 2**20
    doctor.free_pool(np)
    assert doctor.pool_bytes(np) == 0
