"""Record which names, parameters and ufunc methods CuPy has, for the pretend GPU (minires/devices/strict.py).

    pip install cupy-cuda12x
    python tests/record_cupy.py

Needs the package, but no GPU. tests/test_cupy.py compares the record with the installed package.
"""

import inspect
import json
import re
from pathlib import Path

import cupy

RECORD = Path(__file__).parents[1] / "minires" / "devices" / "cupy_names.json"
MODULES = {"": cupy, "lib.stride_tricks.": cupy.lib.stride_tricks, "linalg.": cupy.linalg}
UFUNC_METHODS = ("accumulate", "at", "outer", "reduce", "reduceat")
UFUNC_KEYWORDS = ("axis", "casting", "dtype", "initial", "keepdims", "order", "out", "subok", "where")


def device_array(shape, dtype="float32"):
    """An array that CuPy believes to be on a GPU; without a GPU its memory does not exist and must not be read."""
    if cupy.is_available():
        return cupy.ones(shape, dtype)
    memory = cupy.cuda.UnownedMemory(1 << 40, 1 << 20, None, 0)
    return cupy.ndarray(shape, dtype, memptr=cupy.cuda.MemoryPointer(memory, 0))


def parameters(function):
    """The parameters as text, "a, axis=, *, out=": names, order, and "=" for a default."""
    try:
        found = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # compiled: in the first line of its help, "name(self, int axis=-1) -> ..."
        inside = re.search(r"\((.*?)\)( ->|$)", (function.__doc__ or "").splitlines()[0])
        parts = [part.split("=") for part in re.sub(r"'[^']*'", "''", inside[1]).split(", ")] if inside else []
        words = [name.split()[-1] + "=" * bool(default) for name, *default in parts if name not in ("", "self", "/")]
        return ", ".join(words)
    words, marked = [], False
    for p in found:
        if p.kind is p.KEYWORD_ONLY and not marked:
            words.append("*")
        marked = marked or p.kind in (p.VAR_POSITIONAL, p.KEYWORD_ONLY)
        if p.kind is p.VAR_KEYWORD and (names := keywords_in_source(function)):
            words += [f"{name}=" for name in names]
            continue
        star = {p.VAR_POSITIONAL: "*", p.VAR_KEYWORD: "**"}.get(p.kind, "")
        words.append(star + p.name + "=" * (p.default is not p.empty))
    return ", ".join(word for word in words if word != "self")


def keywords_in_source(function):
    """The keywords that a function takes from its **kwargs, if it refuses all others."""
    source = inspect.getsource(function)
    return re.findall(r"kwargs\.pop\('(\w+)'", re.sub(r"#.*", "", source)) if "if kwargs:" in source else []


def refused(call, *arguments, **keywords):
    """Whether CuPy refuses the call by itself, before it looks for a GPU."""
    try:
        call(*arguments, **keywords)
    except NotImplementedError:
        return True
    except TypeError as error:
        return "Wrong arguments" in str(error)
    except Exception:  # no GPU
        return False
    return False


def record():
    a = device_array((2, 2))
    functions, ufuncs, values = {}, {}, []
    for prefix, module in MODULES.items():
        for name in sorted(n for n in dir(module) if not n.startswith("_")):
            thing = getattr(module, name)
            if isinstance(thing, cupy.ufunc):
                some = {"at": (a, [0], 1.0), "outer": (a, a), "reduceat": (a, [0])}
                ufuncs[name] = " ".join(m for m in UFUNC_METHODS if not refused(getattr(thing, m), *some.get(m, (a,))))
            elif thing is cupy.matmul:  # a ufunc by another name, without methods
                ufuncs[name] = ""
            elif inspect.isroutine(thing):
                functions[prefix + name] = parameters(thing)
            elif not inspect.ismodule(thing) and not prefix:
                values.append(name)
    functions["random.default_rng"] = parameters(cupy.random.default_rng)
    array = {}
    for name in sorted(n for n in dir(cupy.ndarray) if not n.startswith("_")):
        thing = getattr(cupy.ndarray, name)
        array[name] = None if inspect.isdatadescriptor(thing) else parameters(thing)
    return {
        "cupy": cupy.__version__,
        "functions": functions,
        "ufuncs": ufuncs,
        "ufunc_keywords": [k for k in UFUNC_KEYWORDS if not refused(cupy.add, a, a, **{k: None})],
        "values": values,
        "array": array,
        "generator": [name for name in dir(cupy.random.Generator) if not name.startswith("_")],
    }


if __name__ == "__main__":
    RECORD.write_text(json.dumps(record(), indent=1) + "\n", encoding="utf-8", newline="\n")
    print(RECORD)
