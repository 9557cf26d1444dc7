"""Brings the state of run.sh from one machine to another where only small files travel: one archive in parts, and back.

Usage: python benchmarks/gpu/parts.py pack STATE DIR [--mib 15]      writes DIR/state.tar.xz.000, .001, …
       python benchmarks/gpu/parts.py unpack DIR STATE
"""

from __future__ import annotations

import argparse
import io
import tarfile
from pathlib import Path

STEM = "state.tar.xz"


def pack(state: Path, out: Path, size: int) -> list[Path]:
    """Writes the folder as parts of at most `size` bytes and returns them; parts of an earlier state are removed."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz", preset=1) as archive:
        archive.add(state, arcname=".")
    data = buffer.getvalue()
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob(f"{STEM}.*"):
        old.unlink()
    parts = []
    for index, start in enumerate(range(0, len(data), size)):
        path = out / f"{STEM}.{index:03d}"
        path.write_bytes(data[start : start + size])
        parts.append(path)
    return parts


def unpack(source: Path, state: Path) -> None:
    """Makes the folder again from its parts; SystemExit where there are none."""
    parts = sorted(source.glob(f"{STEM}.*"))
    if not parts:
        raise SystemExit(f"{source} holds no {STEM}.000; pack a state first")
    with tarfile.open(fileobj=io.BytesIO(b"".join(path.read_bytes() for path in parts)), mode="r:xz") as archive:
        archive.extractall(state, filter="data")


def main() -> None:
    """Packs or unpacks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("pack", "unpack"))
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--mib", type=int, default=15)
    arguments = parser.parse_args()
    if arguments.action == "unpack":
        unpack(arguments.source, arguments.target)
        return
    for path in pack(arguments.source, arguments.target, arguments.mib * 2**20):
        print(f"{path}: {path.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
