"""The live certificate in C, compiled and executed on a device: what it answers about frames, to the bit."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from emulated import Emulated
from numpy.typing import NDArray

# Reads frames, and writes what the C answers about each: label, verdict, and the bits of margin and radius.
MAIN = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "HEADER.h"
static unsigned bits(float value)
{
    unsigned found;
    memcpy(&found, &value, sizeof found);
    return found;
}
int main(int count, char **given)
{
    static float frame[INPUTS];
    float epsilon = count > 1 ? strtof(given[1], NULL) : 0.f;
    while (fread(frame, sizeof(float), INPUTS, stdin) == INPUTS) {
        struct PREFIX_verdict verdict;
        PREFIX_certify(frame, epsilon, &verdict);
        printf("%d %d %08x %08x\n", verdict.label, verdict.certified, bits(verdict.margin), bits(PREFIX_radius(frame)));
    }
    return 0;
}
"""
Answer = tuple[int, bool, float | None, float]


def answers_there(
    device: Emulated, folder: Path, scratch: Path, name: str, prefix: str, frames: NDArray[Any], *epsilons: float
) -> list[Answer]:
    """Returns label, verdict, margin (None: none was found) and radius of each frame, at one radius after the other."""
    place = Path(shutil.copytree(folder, scratch / "live"))
    flat = np.ascontiguousarray(frames.reshape(len(frames), -1), "<f4")
    text = MAIN.replace("HEADER", name).replace("PREFIX", prefix).replace("INPUTS", str(flat.shape[1]))
    (place / "main.c").write_text(text)
    device.copy_there(place)
    found: list[Answer] = []
    try:
        done = device.ssh(f"cd live && gcc -O3 -std=c99 -ffp-contract=off main.c {name}.c -o main 2>&1")
        assert done.returncode == 0, done.stdout.decode()
        for epsilon in epsilons:
            lines = device.ssh(f"live/main {float(np.float32(epsilon)).hex()}", flat.tobytes()).stdout.decode().splitlines()
            assert len(lines) == len(frames)
            for line in lines:
                label, sure, *bits = line.split()
                margin, radius = (float(np.uint32(int(one, 16)).view(np.float32)) for one in bits)
                found.append((int(label), sure == "1", margin if margin > -3e38 else None, radius))
    finally:
        device.ssh("rm -r live")
    return found
