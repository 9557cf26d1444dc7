"""What `--cluster` says: `tcp://HOST:PORT` or `tls://HOST:PORT` of a Dask scheduler, or `local:N` for N workers of this machine."""

from __future__ import annotations

import re

from vsparse.errors import InputError

MOST_LOCAL = 256


def local_workers(text: str) -> int | None:
    """Returns how many workers `local:N` asks for, None for the address of a scheduler; InputError for anything else."""
    local = re.fullmatch(r"local:([0-9]{1,4})", text)
    if local is not None:
        count = int(local[1])
        if not 1 <= count <= MOST_LOCAL:
            raise InputError(f"--cluster {text}: a machine runs from 1 to {MOST_LOCAL} workers; give local:2")
        return count
    address = re.fullmatch(r"(?:tcp|tls)://(?:\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9_.-]+):([0-9]{1,5})", text)
    if address is None or not 0 < int(address[1]) < 2**16:
        raise InputError(
            f'--cluster "{text[:80]}" is no address; give that of a Dask scheduler, tcp://host:8786 or tls://host:8786, or local:2 for two '
            "workers on this machine"
        )
    return None
