"""Checkpoint tensors as PyTorch tensors, and the safetensors names of PyTorch dtypes."""

import torch
from torch import Tensor

from sounding.weights.raw import RawTensor

TORCH_DTYPES = {
    "U64": torch.uint64, "I64": torch.int64, "F64": torch.float64, "F32": torch.float32,
    "U32": torch.uint32, "I32": torch.int32, "BF16": torch.bfloat16, "F16": torch.float16,
    "U16": torch.uint16, "I16": torch.int16, "F8_E8M0": torch.float8_e8m0fnu,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
DTYPE_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}


def to_torch(raw: RawTensor) -> Tensor:
    """View the memory as a tensor of the same shape and format."""
    return torch.from_numpy(raw.array).view(TORCH_DTYPES[raw.dtype])


def from_torch(tensor: Tensor) -> RawTensor:
    """View a tensor's memory as an array; copies it if it is not contiguous."""
    dtype = DTYPE_NAMES[tensor.dtype]
    plain = tensor.detach().cpu().contiguous()
    if dtype == "BF16":
        plain = plain.view(torch.uint16)
    elif dtype.startswith("F8"):
        plain = plain.view(torch.uint8)
    return RawTensor(plain.numpy(), dtype)
