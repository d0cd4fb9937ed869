"""Reads MANO and SMPL model files without running anything in them.

The published files are pickles of Python 2 that hold NumPy arrays, one SciPy matrix and chumpy objects. Here only those are
known; chumpy's are stood in for by plain records, and every other name in the file stops the reading (`UnsafePickleError`).
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse


class UnsafePickleError(ValueError):
    """The file asks for code that has no place in a body model; nothing of it was run."""


class _Record:
    """Stands in for a class of the file: keeps its state, has no behaviour."""

    def __init__(self, *_: Any) -> None:
        self.state: dict[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        self.state = state if isinstance(state, dict) else {}


class _Sparse(_Record):
    """scipy.sparse.csc_matrix."""


class _Chumpy(_Record):
    """Any chumpy class."""


def _empty_array(subtype: type, shape: tuple[int, ...], code: Any) -> np.ndarray:
    if subtype is not np.ndarray:
        raise UnsafePickleError(f"the file holds an array of type {subtype!r}, expected a plain NumPy array")
    return np.ndarray.__new__(np.ndarray, shape, code)


def _scalar(dtype: np.dtype, value: Any = b"") -> Any:
    if dtype.hasobject:
        raise UnsafePickleError("the file holds a NumPy scalar of type object")
    return np.frombuffer(value.encode("latin1") if isinstance(value, str) else value, dtype, count=1)[0]


def _from_buffer(buffer: Any, dtype: np.dtype, shape: tuple[int, ...], order: str) -> np.ndarray:
    if dtype.hasobject:
        raise UnsafePickleError("the file holds a buffer of type object")
    return np.frombuffer(buffer, dtype).reshape(shape, order=order)


def _encode(text: str, encoding: str = "latin1") -> bytes:
    return text.encode("latin1")


def _reconstruct(cls: type, base: type, state: Any) -> Any:
    # How old pickles make an object; only the records above may be made so.
    if not (isinstance(cls, type) and issubclass(cls, _Record)) or base is not object:
        raise UnsafePickleError(f"the file makes an object of {cls!r}, which a body model does not hold")
    return cls()


_ALLOWED = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _encode,
}
for _builtins, _copying in (("__builtin__", "copy_reg"), ("builtins", "copyreg")):  # Python 2's names and Python 3's
    _ALLOWED |= {(_builtins, "set"): set, (_builtins, "object"): object, (_copying, "_reconstructor"): _reconstruct}
for _core in ("numpy.core", "numpy._core"):
    _ALLOWED[_core + ".multiarray", "_reconstruct"] = _empty_array
    _ALLOWED[_core + ".multiarray", "scalar"] = _scalar
    _ALLOWED[_core + ".numeric", "_frombuffer"] = _from_buffer
for _module in ("scipy.sparse", "scipy.sparse.csc", "scipy.sparse._csc"):
    _ALLOWED[_module, "csc_matrix"] = _Sparse


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
            return _ALLOWED[module, name]
        if module.split(".")[0] == "chumpy" and "." not in name:
            return type(name, (_Chumpy,), {})
        raise UnsafePickleError(
            f"the file asks for {module}.{name}, which no MANO or SMPL file holds; nothing was run. "
            "Get the file again from the model's own site"
        )

    def persistent_load(self, pid: Any) -> Any:
        raise UnsafePickleError(f"the file refers to something outside itself ({pid!r})")


def read_body_pickle(path: str | Path) -> dict[str, Any]:
    """The contents of a MANO or SMPL `.pkl`: arrays as NumPy, J_regressor as a SciPy CSC matrix, strings as they are.

    Raises UnsafePickleError when the file holds anything but numbers, FileNotFoundError, or ValueError for a damaged file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file. MANO and SMPL are licensed: get them from mano.is.tue.mpg.de or smpl.is.tue.mpg.de, "
            "or leave the path out to use the stand-in"
        )
    try:
        content = _Reader(io.BytesIO(path.read_bytes()), encoding="latin1").load()
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}, expected a dict of arrays")
        return {str(name): _plain(value, str(name)) for name, value in content.items()}
    except UnsafePickleError as error:
        raise UnsafePickleError(f"{path}: {error}") from None
    except (
        pickle.UnpicklingError,
        EOFError,
        ValueError,
        TypeError,
        AttributeError,
        IndexError,
        KeyError,
        RecursionError,
        MemoryError,
        OverflowError,
        ImportError,
    ) as error:
        raise ValueError(f"{path}: not a readable MANO or SMPL pickle, or damaged: {error}") from error


def _plain(value: Any, name: str, depth: int = 0) -> Any:
    """Records of the file as arrays: sparse matrices are checked and rebuilt, chumpy's selections carried out."""
    if depth > 8:
        raise ValueError(f"{name}: chumpy objects nested deeper than any model file's")
    if isinstance(value, _Sparse):
        return _sparse(value.state, name)
    if isinstance(value, _Chumpy):
        state = value.state
        if "x" in state:
            return np.asarray(_plain(state["x"], name, depth + 1))
        if {"a", "idxs", "preferred_shape"} <= set(state):
            base = np.asarray(_plain(state["a"], name, depth + 1)).ravel()
            return base[np.asarray(state["idxs"], dtype=np.int64)].reshape(tuple(int(n) for n in state["preferred_shape"]))
        raise ValueError(f"{name}: unknown chumpy object {type(value).__name__} with {sorted(state)}")
    return value


def _sparse(state: dict[str, Any], name: str) -> sparse.csc_matrix:
    shape = tuple(int(n) for n in state["_shape"])
    data, indices, starts = np.asarray(state["data"]), np.asarray(state["indices"]), np.asarray(state["indptr"])
    if len(shape) != 2 or data.dtype.hasobject or data.shape != indices.shape:
        raise ValueError(f"{name}: a sparse matrix of shape {shape} with data {data.shape} {data.dtype}")
    matrix = sparse.csc_matrix((data, indices, starts), shape=shape)
    # Indices out of range would make SciPy read foreign memory later on.
    matrix.check_format(full_check=True)
    return matrix


def read_arrays(path: str | Path) -> dict[str, Any]:
    """The arrays of a model file, `.pkl` (restricted reading) or `.npz` (numbers only)."""
    path = Path(path)
    if path.suffix != ".npz" or not path.is_file():
        return read_body_pickle(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (ValueError, OSError, KeyError) as error:
        raise ValueError(f"{path}: not a readable .npz of a MANO or SMPL model: {error}") from error
