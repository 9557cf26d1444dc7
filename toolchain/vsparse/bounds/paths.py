"""Which of several equivalent computations of a bound is used. The settings affect its cost, never its value's soundness.

Each can be set so that its path is always or never taken: tests and benchmarks/brute_force do both, and hold the results against the plain
definition and against executions.
"""

import torch

# Receptive fields instead of whole maps (`windows`): where they have less than this fraction of the maps' elements. 0: never, inf: always.
WINDOWS = 0.5
# Units at one position, whose windows are the same, as rows of one problem: windows with at least so many elements. inf: never, 0: always.
TOGETHER = 2**10
# One row instead of two for each unit that it shows to be stable (`both_ends`): windows with at least so many products for each row. inf:
# never, 0: always.
BOTH_ENDS = 2.0**14
# One matrix instead of many small transposed convolutions (`linear`): at least so many rows for each output, at most so many times the
# multiplications, and a matrix of at most so many elements. MATRIX_ELEMENTS 0: never; MATRIX_ROWS 0 and MATRIX_WORK inf: wherever it fits.
MATRIX_ROWS = 4
MATRIX_WORK = 8.0
MATRIX_ELEMENTS = 2**22
# One product of whole matrices for each tap of a kernel instead of columns (`shifted`): for transposed convolutions in float64 with at most
# so many taps. 0: never, inf: always.
SHIFTED_TAPS = 9
# Radius and error of an interval in one float32 sum, rounded up (`wide_sums`): operators with at least so many products for each sample.
# inf: never, 0: always.
WIDE_PRODUCTS = 2.0**20
# Bytes of columns that are made at once there.
WIDE_BYTES = 2**23
# Bytes of a piece of work: such pieces run three to four times faster than pieces of a gibibyte, as they stay near the caches.
WORKING_SET = 2**25
# The same on an accelerator, where a kernel takes as long to start as it takes for millions of elements.
DEVICE_WORKING_SET = 2**29
# Boxes that bounds already known leave as they are, and stable elements, whose relaxation is exact, are not bounded again (`refine`).
ONLY_UNSTABLE = True


def working_set(device: torch.device) -> int:
    """Returns the bytes of a piece of work on a device."""
    return WORKING_SET if device.type == "cpu" else DEVICE_WORKING_SET
