"""The types of arrays that the service computes with."""

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
"""Float64 of any shape."""
