"""What a worker of `local:N` loads when it starts: an interrupt from the keyboard is the client's to handle, which ends its workers."""

from __future__ import annotations

import signal
from typing import Any


def dask_setup(worker: Any) -> None:
    """Called by Dask in the worker's process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
