"""How buffers travel: bytearray, memoryview, array.array, and arrays and scalars of numpy.

The items of a buffer are one block of bytes in the message, or beside it (`wire.blobs`): they are copied as
a whole, and neither walked nor packed one by one. What arrives is a buffer of its own that can be written
to, except for a memoryview, which arrives read-only.

numpy is optional (``pip install 'fleetlm[numpy]'``) and is imported when the first array arrives. Its dtypes
are checked on both sides: numbers, booleans, times and texts of a fixed size. Objects, records and long
doubles are refused, because they hold pointers, have no short name, or differ between machines.
"""

from __future__ import annotations

import math
import re
import sys
from array import array
from collections.abc import Callable, Iterable
from typing import Any

from fleetlm.texts import SHORT, type_name
from fleetlm.wire.extensions import BadData, Refused

_DTYPE = re.compile(r"[<>|][biufcSUmM][0-9]{1,9}(\[[0-9]{0,9}[A-Za-z]{1,2}\])?", re.ASCII)
"""Names of dtypes that may travel. numpy gets no other text of a peer."""
_TYPE_CODES = frozenset("bBhHiIlLqQfd")
"""Numbers; arrays of characters are texts, and have no fixed size."""
_MAX_DIMENSIONS = 32
"""More than numpy 1 allows no array has."""
_IS_BIG_ENDIAN = sys.byteorder == "big"

Buffer = tuple[bytes, memoryview]
"""A packed head, which says what the items are, and the items as plain bytes."""


def check_memoryview(value: memoryview) -> memoryview:
    """Return a memoryview of plain bytes. Raises: Refused if it is another one."""
    if value.format != "B" or value.ndim != 1:
        raise Refused(f"a memoryview of format {value.format!r}; send view.cast('B'), or the object below it")
    return value


def write_array(value: array[Any], pack: Callable[[Any], bytes]) -> Buffer:
    """Return the packed head and the items of an `array.array`; ``pack`` packs the head."""
    if value.typecode not in _TYPE_CODES:
        raise Refused("an array of characters; send a str")
    items = value
    if _IS_BIG_ENDIAN:
        items = array(value.typecode, value)
        items.byteswap()
    return pack([value.typecode, value.itemsize]), memoryview(items).cast("B")


def read_array(head: list[Any], items: Iterable[bytes | memoryview]) -> array[Any]:
    """Rebuild an `array.array` from its head and its items.

    Args:
        head: what `write_array` has packed.
        items: the bytes of the items, in pieces that hold whole ones.

    Raises:
        BadData: malformed.
        ValueError: this machine has another size for the items.
    """
    typecode, item_bytes = head
    if type(typecode) is not str or typecode not in _TYPE_CODES:
        raise BadData("an array without its type code")
    found = array(typecode)
    if found.itemsize != item_bytes:
        raise ValueError(f"an item of array({typecode!r}) has {found.itemsize} bytes here, not {item_bytes}")
    for piece in items:
        found.frombytes(piece)
    if _IS_BIG_ENDIAN:
        found.byteswap()
    return found


def find_numpy_writer(kind: type) -> Callable[[Any, Callable[[Any], bytes]], Buffer] | None:
    """Return the function that takes objects of this type apart, if it is one of numpy's.

    Raises:
        Refused: a subclass of ``numpy.ndarray``, or a scalar that cannot travel.
    """
    numpy = sys.modules.get("numpy")
    if numpy is None or not hasattr(numpy, "ndarray"):
        return None
    if kind is numpy.ndarray:
        return _write_ndarray
    if issubclass(kind, numpy.ndarray):
        raise Refused(f"{type_name(kind)} would arrive as a plain numpy array; send numpy.asarray(...)")
    if issubclass(kind, numpy.generic) and kind.__module__.partition(".")[0] == "numpy":
        return _write_scalar
    return None


def _write_ndarray(value: Any, pack: Callable[[Any], bytes]) -> Buffer:
    name = _name_dtype(value.dtype)
    order = "F" if value.flags.fnc else "C"
    if order == "F":
        value = value.T
    items = sys.modules["numpy"].ascontiguousarray(value).reshape(-1).view("u1").data
    shape = value.shape[::-1] if order == "F" else value.shape
    return pack([name, list(shape), order]), items


def _write_scalar(value: Any, pack: Callable[[Any], bytes]) -> Buffer:
    return pack([_name_dtype(value.dtype), None, "C"]), memoryview(value.tobytes())


def read_numpy(head: list[Any], items: bytearray | memoryview) -> Any:
    """Rebuild an array or a scalar of numpy from its head and its items.

    Args:
        head: what `find_numpy_writer` has packed.
        items: a buffer that can be written to, and that becomes the array's.

    Raises:
        BadData: malformed.
        ImportError, Exception: numpy is not installed here, or has no such dtype.
    """
    name, shape, order = head
    if type(name) is not str or not _DTYPE.fullmatch(name) or order not in ("C", "F"):
        raise BadData("an array without a dtype that may travel")
    sizes = [] if shape is None else shape
    if type(sizes) is not list or len(sizes) > _MAX_DIMENSIONS:
        raise BadData("an array without its shape")
    if not all(type(size) is int and size >= 0 for size in sizes):
        raise BadData("an array with a size that is none")
    import numpy  # noqa: ICN001, PLC0415  # optional, and importing it costs time

    dtype = numpy.dtype(name)
    if dtype.itemsize == 0 or math.prod(sizes) * dtype.itemsize != len(items):
        raise BadData("an array whose shape does not fit its bytes")
    if dtype.kind == "U" and len(items):  # numpy does not look, and makes texts that no Python code expects.
        points = numpy.ndarray(len(items) // 4, f"{name[0]}u4", items)
        if points.max() > sys.maxunicode:
            raise BadData("an array of texts with a character that is none")
    found = numpy.ndarray(tuple(sizes), dtype, buffer=items, order=order)
    return found[()] if shape is None else found


def _name_dtype(dtype: Any) -> str:
    """Return the name of a dtype that may travel. Raises: Refused."""
    name: str = dtype.str
    if dtype.hasobject or dtype.names is not None or not _DTYPE.fullmatch(name):
        raise Refused(f"numpy data of {SHORT.repr(dtype)}; send numbers, times or texts of a fixed size")
    if dtype.char in "gG":
        raise Refused(f"numpy data of dtype {dtype.name}, which differs between machines; use float64")
    if dtype.itemsize == 0:
        raise Refused("numpy data whose items have no bytes")
    return name
