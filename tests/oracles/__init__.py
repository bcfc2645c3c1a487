"""The specification's formulas as plain loops over float64 numbers, one small file per part.

They are written from spec/architecture.md alone, to be read beside it: no tensors, no batching,
nothing of `sounding`. They are slow on purpose and right by inspection; the check values of
section 15 test the oracles themselves.
"""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
