"""Packs what a machine without a network needs to run run.sh: a part of CIFAR-10 that fits, beside wheels that are put there by hand.

Usage: python benchmarks/gpu/pack.py DIR [--train 40000] [--test 1000]

DIR holds train.zip and test.zip, JPEG files stored in the official order; their first members are copied to carried/data.
"""

from __future__ import annotations

import argparse
import zipfile
from pathlib import Path

CARRIED = Path(__file__).parent / "carried"


def copy_first(source: Path, target: Path, count: int) -> int:
    """Copies the first `count` members of a zip, stored, and returns the size of the new one in bytes."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as new:
        for member in [entry for entry in old.infolist() if not entry.is_dir()][:count]:
            new.writestr(member, old.read(member))
    return target.stat().st_size


def main() -> None:
    """Packs both parts and prints what they weigh."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--train", type=int, default=40_000)
    parser.add_argument("--test", type=int, default=1000)
    arguments = parser.parse_args()
    for name, count in (("train", arguments.train), ("test", arguments.test)):
        size = copy_first(arguments.directory / f"{name}.zip", CARRIED / "data" / f"{name}.zip", count)
        print(f"{name}.zip: the first {count:,} images, {size / 2**20:.1f} MiB")
    print("wheels of packages that are missing there belong in", (CARRIED / "wheels").relative_to(Path(__file__).parents[2]))


if __name__ == "__main__":
    main()
