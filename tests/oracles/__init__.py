"""The network's formulas as plain loops over float64 numbers, one small file per part.

They were written from a description of the published network alone, not from `sounding.ops`.
docs/architecture.md states the same mathematics, and every file names its section, so that the two
can be read side by side: no tensors, no batching, nothing of `sounding`. They are slow on purpose
and right by inspection; the check values of docs/architecture.md 15, which come from the published
code, test the oracles themselves.
"""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
