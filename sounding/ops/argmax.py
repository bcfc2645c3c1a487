"""The largest of many numbers."""

from jaxtyping import Float
from torch import Tensor


def argmax(values: Float[Tensor, " n"]) -> int:
    """Where the largest value is, the first of equals; of NaN the first."""
    if values.device.type == "cpu":  # NumPy's search uses vectors and PyTorch's does not
        return int(values.detach().numpy().argmax())
    return int(values.argmax())
