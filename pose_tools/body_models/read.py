"""Reads MANO and SMPL model files without running anything in them.

The published files are pickles of Python 2 that hold NumPy arrays, one SciPy matrix and chumpy objects; labels of hand paths hold SciPy
curves, too. Here every one of these is stood in for by a plain record (NumPy's own unpickling crashes on bent data types), and the
arrays are made from the records afterwards, checked. Every other name in the file stops the reading (`UnsafePickleError`).
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy import sparse

from pose_tools.user_error import UserError


class UnsafePickleError(UserError):
    """The file asks for code that has no place in a body model; nothing of it was run."""


class _Record:
    """Stands in for a class of the file: keeps what it is given, has no behaviour."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Array(_Record):
    """numpy.ndarray: state (version, shape, dtype, is_fortran, bytes)."""


class _Dtype(_Record):
    """numpy.dtype: arguments (code, align, copy), state (version, byte order, …)."""


class _Scalar(_Record):
    """A NumPy scalar: arguments (dtype, bytes)."""


class _Sparse(_Record):
    """scipy.sparse.csc_matrix: state {data, indices, indptr, _shape}."""


class _Curve(_Record):
    """A SciPy spline, and the function that newer SciPys keep in it. Nothing here evaluates it: it is read as None."""


class _Chumpy(_Record):
    """Any chumpy class: state, a dict."""


def _empty_array(cls: Any, *_: Any) -> _Array:
    if cls is not _Array:
        raise UnsafePickleError(f"the file holds an array of type {cls!r}, expected a plain NumPy array")
    return _Array()


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    array = _Array()
    array.state = (1, shape, dtype, order == "F", data)
    return array


def _encode(text: str, encoding: str = "latin1") -> bytes:
    return text.encode("latin1")


def _reconstruct(cls: type, base: type, state: Any) -> Any:
    # How old pickles make an object; only the records above may be made so.
    if not (isinstance(cls, type) and issubclass(cls, _Record)) or base is not object:
        raise UnsafePickleError(f"the file makes an object of {cls!r}, which a body model does not hold")
    return cls()


_ALLOWED: dict[tuple[str, str], Any] = {("_codecs", "encode"): _encode, ("numpy", "ndarray"): _Array, ("numpy", "dtype"): _Dtype}
for _builtins, _copying in (("__builtin__", "copy_reg"), ("builtins", "copyreg")):  # Python 2's names and Python 3's
    _ALLOWED |= {(_builtins, "set"): set, (_builtins, "object"): object, (_copying, "_reconstructor"): _reconstruct}
for _core in ("numpy.core", "numpy._core"):
    _ALLOWED[_core + ".multiarray", "_reconstruct"] = _empty_array
    _ALLOWED[_core + ".multiarray", "scalar"] = _Scalar
    _ALLOWED[_core + ".numeric", "_frombuffer"] = _from_buffer
for _module in ("scipy.sparse", "scipy.sparse.csc", "scipy.sparse._csc"):
    _ALLOWED[_module, "csc_matrix"] = _Sparse
_ALLOWED["scipy.interpolate._cubic", "CubicHermiteSpline"] = _Curve
_ALLOWED["scipy._lib.array_api_compat.numpy._aliases", "asarray"] = _Curve


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
            return _ALLOWED[module, name]
        if module.split(".")[0] == "chumpy" and "." not in name:
            return type(name, (_Chumpy,), {})
        raise UnsafePickleError(
            f"the file asks for {module}.{name}, which no file of numbers holds; nothing was run. Get the file again from its own site"
        )


def _scan(data: bytes) -> None:
    """Walks through the file's instructions without carrying them out: all there, none that reaches outside, no memory bombs."""
    for op, argument, _ in pickletools.genops(data):
        if op.name in ("PERSID", "BINPERSID", "EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "READONLY_BUFFER"):
            raise UnsafePickleError(f"the file uses {op.name}, which no file of numbers does")
        if op.name in ("PUT", "BINPUT", "LONG_BINPUT") and not (isinstance(argument, int) and 0 <= argument <= len(data)):
            raise ValueError(f"it numbers an object {argument}")  # the unpickler would make a table of that length


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
    return {str(name): value for name, value in read_plain_pickle(path, "MANO or SMPL pickle").items()}


def read_plain_pickle(path: str | Path, what: str, only: Collection[str] | None = None) -> dict[Any, Any]:
    """The contents of a pickled dict of arrays, numbers and texts, in which nothing is ever run; `what` names it in errors.

    `only`: the entries to make; the others may hold what is none of these (arrays of texts, say), and are left out.

    Raises UnsafePickleError when the file asks for any code, or ValueError for a damaged file.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
        _scan(data)
        content = _Reader(io.BytesIO(data), encoding="latin1").load()
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}, expected a dict of arrays")
        return {name: _plain(value, str(name)) for name, value in content.items() if only is None or name in only}
    except UnsafePickleError as error:
        raise UnsafePickleError(f"{path}: {error}") from None
    except Exception as error:  # a damaged file makes pickle and NumPy raise nearly anything
        raise ValueError(f"{path}: not a readable {what}, or damaged: {error}") from error


def _plain(value: Any, name: str, depth: int = 0) -> Any:
    """What a record stands for, as arrays: sparse matrices are checked and rebuilt, chumpy's selections carried out."""
    if depth > 8:
        raise ValueError(f"{name}: nested deeper than any model file's")
    if isinstance(value, _Array):
        _, shape, dtype, fortran, data = value.state
        return _array(data, dtype, shape, "F" if fortran else "C", name)
    if isinstance(value, _Scalar):
        dtype, data = value.arguments
        return _array(data, dtype, (), "C", name)[()]
    if isinstance(value, _Sparse):
        return _sparse({key: _plain(part, name, depth + 1) for key, part in value.state.items()}, name)
    if isinstance(value, _Curve):
        return None
    if isinstance(value, _Chumpy):
        return _selection(value, name, depth)
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(part, name, depth + 1) for part in value)
    if isinstance(value, dict):
        return {key: _plain(part, f"{name}.{key}", depth + 1) for key, part in value.items()}
    if value is None or isinstance(value, (str, bytes, bool, int, float)):
        return value
    raise ValueError(f"{name}: holds a {type(value).__name__}, expected an array or a text")


def _array(data: Any, dtype: Any, shape: Any, order: Literal["C", "F"], name: str) -> np.ndarray:
    """An array of numbers from its bytes."""
    code = dtype.arguments[0] if isinstance(dtype, _Dtype) else None
    if not (isinstance(code, str) and re.fullmatch("[fiu][1248]|b1", code)):
        raise ValueError(f"{name}: an array of data type {code!r}, expected plain numbers")
    byte_order: Any = dtype.state[1] if dtype.state else "="
    if byte_order not in ("<", ">", "=", "|"):
        raise ValueError(f"{name}: byte order {byte_order!r}")
    kind = np.dtype(code).newbyteorder(byte_order)
    shape = tuple(int(n) for n in shape)
    data = data.encode("latin1") if isinstance(data, str) else bytes(data)
    if len(shape) > 8 or min(shape, default=0) < 0 or math.prod(shape) * kind.itemsize != len(data):
        raise ValueError(f"{name}: {len(data)} bytes for an array {shape} of {code}")
    return np.frombuffer(data, kind).reshape(shape, order=order).astype(kind.newbyteorder("="))


def _selection(value: _Chumpy, name: str, depth: int) -> np.ndarray:
    state = value.state if isinstance(value.state, dict) else {}
    if "x" in state:
        return np.asarray(_plain(state["x"], name, depth + 1), dtype=np.float64)
    if {"a", "idxs", "preferred_shape"} <= set(state):
        base = np.asarray(_plain(state["a"], name, depth + 1), dtype=np.float64).ravel()
        chosen = np.asarray(_plain(state["idxs"], name, depth + 1)).astype(np.int64)
        return base[chosen].reshape(tuple(int(n) for n in _plain(state["preferred_shape"], name, depth + 1)))
    raise ValueError(f"{name}: unknown chumpy object {type(value).__name__} with {sorted(map(str, state))}")


def _sparse(state: dict[str, Any], name: str) -> sparse.csc_matrix:
    rows, columns = (int(n) for n in state["_shape"])
    parts = tuple(np.asarray(state[key]) for key in ("data", "indices", "indptr"))
    if any(part.ndim != 1 or part.dtype.hasobject for part in parts) or rows * columns > 10**8:
        raise ValueError(f"{name}: not a sparse matrix of {rows} x {columns} numbers")
    matrix = sparse.csc_matrix(parts, shape=(rows, columns))
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
