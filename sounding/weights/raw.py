"""Tensors of a checkpoint as plain memory: NumPy arrays and the names of their formats."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

# The array dtype of each safetensors format; those that NumPy lacks are integers of their size.
ARRAY_DTYPES = {
    "U64": np.uint64, "I64": np.int64, "F64": np.float64, "F32": np.float32, "U32": np.uint32,
    "I32": np.int32, "BF16": np.uint16, "F16": np.float16, "U16": np.uint16, "I16": np.int16,
    "F8_E8M0": np.uint8, "F8_E4M3": np.uint8, "F8_E5M2": np.uint8, "I8": np.int8, "U8": np.uint8,
    "BOOL": np.bool_,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class RawTensor:
    """A C-contiguous array of the bits of a tensor, and the format they are in.

    `dtype` is safetensors' name, such as "BF16", whose array holds uint16.
    """

    array: NDArray[Any]
    dtype: str

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def address(self) -> int:
        """Address of the first number; valid while the array lives."""
        return self.array.ctypes.data

    @property
    def nbytes(self) -> int:
        return self.array.nbytes

    def __getitem__(self, index: Any) -> "RawTensor":
        return RawTensor(self.array[index], self.dtype)


class ParameterSize(NamedTuple):
    """The size of a stored tensor."""

    nbytes: int
    numbers: int
    is_matrix: bool
    """True if it is a matrix that inputs are multiplied by: no vector, scales or group bias."""


def parameter_size(name: str, tensor: RawTensor) -> ParameterSize:
    """Return a tensor's size; a byte of I8 holds two FP4 numbers."""
    packed = 2 if tensor.dtype == "I8" else 1
    matrix = len(tensor.shape) > 1 and not name.endswith((".scale", ".ape"))
    return ParameterSize(tensor.nbytes, tensor.array.size * packed, matrix)


def to_float32(tensor: RawTensor) -> NDArray[np.float32]:
    """The numbers of an F32 or BF16 tensor."""
    if tensor.dtype == "BF16":
        return (tensor.array.astype(np.uint32) << 16).view(np.float32)
    if tensor.dtype != "F32":
        raise ValueError(f"a tensor of {tensor.dtype} is not read as plain numbers")
    return tensor.array
