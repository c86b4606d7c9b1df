"""Numbers as Tinker sends them: bytes, little endian, and a type."""

from __future__ import annotations

import math
import sys
from array import array
from collections.abc import Iterable, Sequence
from typing import Any

from espalier.tinker import messages_pb2 as pb

# Array's type codes have the sizes that the wire has on every platform of CPython that we run on.
INT32, INT64, FLOAT32 = "i", "q", "f"
_CODES = {pb.DTYPE_INT32: INT32, pb.DTYPE_INT64: INT64, pb.DTYPE_FLOAT32: FLOAT32}
_NAMES = {INT32: "int32", INT64: "int64", FLOAT32: "float32"}


class InputError(ValueError):
    """A request that cannot be applied: the ``field``, what is wrong with it, and the remedy."""

    def __init__(self, field: str, detail: str, remedy: str) -> None:
        super().__init__(f"{field}: {detail}")
        self.field = field
        self.detail = detail
        self.remedy = remedy


def read(data: bytes, code: str, field: str) -> array[Any]:
    """The numbers in ``data``; raises InputError if it ends within one."""
    numbers = array(code)
    if len(data) % numbers.itemsize:
        raise InputError(
            field,
            f"has {len(data)} bytes, no multiple of the {numbers.itemsize} of {_NAMES[code]}",
            "send the values as the SDK packs them",
        )
    numbers.frombytes(data)
    return _little(numbers)


def written(numbers: Iterable[Any], code: str) -> bytes:
    """The inverse of ``read``."""
    return _little(array(code, numbers)).tobytes()


def vector(tensor: pb.Tensor, wanted: Sequence[str], field: str) -> array[Any]:
    """The numbers of a tensor of one dimension and of a ``wanted`` type."""
    if tensor.HasField("sparse_csr") or len(tensor.shape) > 1:
        shape = list(tensor.shape)
        raise InputError(
            field,
            f"has the shape {shape}: soft targets (several candidates a position) are not trained",
            "send one value per position, or compute the loss yourself with "
            "forward_backward_custom",
        )
    code = _CODES.get(tensor.dtype, "")
    if code not in wanted:
        names = " or ".join(_NAMES[code] for code in wanted)
        raise InputError(field, f"is not {names}", f"send it as {names}")
    numbers = read(tensor.dense, code, field)
    if list(tensor.shape) not in ([], [len(numbers)]):
        raise InputError(
            field,
            f"has {len(numbers)} values, and its shape is {list(tensor.shape)}",
            "send the values that the shape names",
        )
    return numbers


def finite(numbers: array[float], field: str) -> None:
    """Raises InputError if a number is none, or infinite."""
    # A sum of float32 cannot overflow in float64, so it is not finite only if one of them is not.
    if not math.isfinite(sum(numbers)):
        at = next(i for i, number in enumerate(numbers) if not math.isfinite(number))
        raise InputError(
            f"{field}[{at}]", f"is {numbers[at]}", "send finite numbers; check their computation"
        )


def _little(numbers: array[Any]) -> array[Any]:
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers
