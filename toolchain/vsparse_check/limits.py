"""What a check may spend: memory and work, both told from sizes before anything is computed.

Work is counted in units of about a nanosecond: a multiplication and addition of a matrix product
is one unit, an element of an operator that is computed element by element ELEMENT units, and each
call of numpy costs CALL units whatever its size.
"""

from __future__ import annotations

import os
from pathlib import Path

from vsparse_check.refusal import known

CALL, ELEMENT = 20_000, 20
MEMORY = 1_536 * 2**20  # bytes, where half of what is free is not less
# Some 10 s for a small artifact. Large ones have many claims on large networks: their allowance
# grows with the square of their size.
WORK, SMALL = 20_000_000_000, 100_000
# An array may unpack to UNPACKED bytes, and to EXPANSION times its .npz beyond that.
EXPANSION, UNPACKED = 64, 2**27
UNPACKING = 8.0  # work for a byte that is unpacked and hashed


def free_memory() -> int:
    """Returns how many bytes are free, as the system says; twice MEMORY where it does not say."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (OSError, ValueError, AttributeError):
        return 2 * MEMORY


class ResourceBudget:
    """`memory` in bytes, for all that is held at once; `work` in units, for a whole artifact."""

    def __init__(self, memory: int | None = None, work: int | None = None, size: int = 0) -> None:
        """Takes the limits asked for; by default those for `size` bytes of models and claims."""
        self.memory = memory or min(MEMORY, free_memory() // 2)
        self.work = work or int(WORK * (1 + (size / SMALL) ** 2))
        self.spent = self.held = 0.0

    def spend(self, units: float) -> None:
        """Counts work that is about to be done; Unchecked where it is more than allowed."""
        self.spent += units
        known(
            self.spent <= self.work,
            f"it takes more than {self.work / 1e9:.0f} billion operations; "
            f"raise --work (to {2 * self.work / 1e9:.0f}, for example)",
        )

    def release(self) -> None:
        """Forgets what was held: nothing of one certificate is kept for the next."""
        self.held = 0.0

    def hold(self, size: float) -> None:
        """Counts bytes about to be allocated and kept; Unchecked where they are too many."""
        self.held += size
        self.fit(0)

    def fit(self, size: float) -> None:
        """Raises Unchecked where more bytes are needed for a moment than are left."""
        known(
            self.held + size <= self.memory,
            f"it needs about {(self.held + size) / 2**20:.0f} MiB, more than the limit of "
            f"{self.memory / 2**20:.0f} MiB; raise --memory",
        )
