"""What each kernel of model.c costs on a machine: the constants by which kernels are chosen, and the rooflines that they are held against.

Usage: kernels.py [--cc CC] [--options "…"] [--run "COMMAND"] [--out FILE] [--toml] [--write-c FILE] [--measured FILE]

A C program with the very text that model.c gets is compiled (`--cc`, `--options`), executed (here, or by `--run`, which gets the program's
path as its last argument: `ssh board` after a copy, an emulator), and prints one line for each measurement: its least time of many. With
`--write-c` only the program is written: it needs no Python where it runs, and `--measured` reads what it printed. Costs are in nanoseconds
(vsparse.stages.export.c_source.costs); `--toml` prints them as the table of a target's file.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import tomli_w

from vsparse.stages.export.c_source.tiles import BLOCK, MOST_POINTS, MOST_ROWS, kernel_text

OPTIONS = "-O3 -std=c99 -ffp-contract=off -march=native"
# A layer of 32 channels on 14 × 14 with a 3 × 3 kernel; 48 rows, which every size of tile but five divides; five takes 45.
CHANNELS, SIDE, ROWS = 32, 14, 48

TIMER = """
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static double seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* Prints the least time of a statement over 0.1 s, in nanoseconds divided by `count`. */
#define MEASURE(NAME, COUNT, STATEMENT) \\
    do { \\
        double least = 1e9; \\
        for (double begin = seconds(); seconds() - begin < 0.1;) { \\
            const double from = seconds(); \\
            for (int again = 0; again < 8; again++) { \\
                STATEMENT; \\
                __asm__ volatile("" :: "r"(out) : "memory"); \\
            } \\
            const double took = (seconds() - from) / 8; \\
            if (took < least) \\
                least = took; \\
        } \\
        printf("%s %.6g\\n", NAME, least * 1e9 / (COUNT)); \\
    } while (0)

static float in[1 << 18] VS_ALIGNED, weight[1 << 20] VS_ALIGNED, out[1 << 16] VS_ALIGNED, bias[1 << 10] VS_ALIGNED;
static vs_index offset[1 << 18], row[1 << 10], where[1 << 18];
static uint32_t start[1 << 10];
"""


def program() -> str:
    """Returns the C program."""
    kernels = ["vectors", *(f"positions{r}" for r in range(1, MOST_ROWS + 1)), *(f"channels{p}" for p in range(1, MOST_POINTS + 1))]
    kernels += ["rows", "listed_rows", "sparse_slices"]
    plane = ((SIDE + 2) * SIDE // 16 | 1) * 16
    terms, positions = 9 * CHANNELS, SIDE * SIDE
    body = [
        'printf("lanes %d\\n", VS_LANES);',
        "for (int i = 0; i < 1 << 18; i++) in[i] = (float)(rand() % 1024) / 1024.0f, where[i] = (vs_index)(rand() % 1024);",
        "for (int i = 0; i < 1 << 20; i++) weight[i] = (float)(rand() % 1024 - 512) / 1024.0f;",
        "for (int i = 0; i < 1 << 10; i++) row[i] = (vs_index)i;",
        f"for (int c = 0; c < {CHANNELS}; c++) for (int k = 0; k < 9; k++)",
        f"    offset[9 * c + k] = (vs_index)((3 * c + k % 3) * {plane} + k / 3 * {SIDE});",
        f"const double vectors = ({positions} + VS_LANES - 1) / VS_LANES;",
    ]
    for rows in range(1, MOST_ROWS + 1):
        tiles = ROWS // rows
        call = f"vs_positions{rows}(in, offset, 0, {{}}, weight, bias, row, {tiles}, out, {positions}, 1)"
        body.append(f'MEASURE("position {rows}", vectors * {tiles * terms}, {call.format(terms)});')
        if rows == MOST_ROWS:
            body.append(f'MEASURE("short", vectors * {tiles}, {call.format(4)});')
    for tenths in (1, 2):
        count = terms * tenths // 10
        body += [
            f"for (int i = 0; i <= {ROWS}; i++) start[i] = (uint32_t)(i * {count});",
            f"for (int i = 0; i < {ROWS}; i++) for (int k = 0; k < {count}; k++)",
            f"    where[i * {count} + k] = offset[k * {terms} / {count} + rand() % ({terms} / {count})];",
            f'MEASURE("sparse {tenths}", {float(positions) * ROWS * count}, '
            f"vs_positions1(in, where, start, 0, weight, bias, row, {ROWS}, out, {positions}, 1));",
            f'MEASURE("loads {tenths}", {float(positions) * ROWS * count}, '
            f"vs_loads1(in, where, start, 0, weight, bias, row, {ROWS}, out, {positions}, 1));",
        ]
    body.append('MEASURE("aligned", 8.0 * VS_LANES * 512, vs_aligned(in));')
    for points in range(1, MOST_POINTS + 1):
        body.append(f'MEASURE("point {points}", {points * terms}, vs_channels{points}(in, offset, weight, {terms}, bias, out));')
    body += [
        "for (int i = 0; i < 1 << 18; i++) where[i] = (vs_index)(rand() % 1024);",
        'MEASURE("dense_row", 16.0 * 1024, vs_rows(in, 1024, 64, 64, weight, bias, 256, out, 1));',
        "for (int i = 0; i <= 32; i++) start[i] = (uint32_t)(i * 256);",
        'MEASURE("listed_row", 16.0 * 256, vs_listed_rows(in, where, start, 16, 16, weight, bias, 256, out, 1));',
        'MEASURE("sparse_row", 16.0 * 256, vs_sparse_slices(in, where, start, weight, bias, row, 256, out, 1));',
    ]
    main = "int main(void)\n{\n" + "\n".join(f"    {line}" for line in body) + "\n    return 0;\n}\n"
    return "\n".join(
        [
            "#define _POSIX_C_SOURCE 199309L",
            "#define VS_VECTORS 1",
            kernel_text("prelude"),
            "typedef uint16_t vs_index;",
            *(kernel_text(name) for name in kernels),
            TIMER,
            KEEP,
            loads_alone(),
            ALIGNED,
            main,
        ]
    )


# The register constraint by which a loaded vector is kept without being used.
KEEP = """
#if defined(__x86_64__)
#define VS_KEEP(V) __asm__ volatile("" :: "x"(V))
#else
#define VS_KEEP(V) __asm__ volatile("" :: "w"(V))
#endif
"""
# Aligned loads of one kibibyte at most, over and over: what the ports give.
ALIGNED = """
static void vs_aligned(const float *x)
{
    for (int i = 0; i < 512; i++) {
        const vs_vec a = vs_load(x), b = vs_load(x + VS_LANES), c = vs_load(x + 2 * VS_LANES), d = vs_load(x + 3 * VS_LANES);
        const vs_vec e = vs_load(x + 4 * VS_LANES), f = vs_load(x + 5 * VS_LANES), g = vs_load(x + 6 * VS_LANES);
        const vs_vec h = vs_load(x + 7 * VS_LANES);
        VS_KEEP(a); VS_KEEP(b); VS_KEEP(c); VS_KEEP(d); VS_KEEP(e); VS_KEEP(f); VS_KEEP(g); VS_KEEP(h);
        __asm__ volatile("" ::: "memory");
    }
}
"""


def loads_alone() -> str:
    """Returns the kernel of single rows with its loads and without its arithmetic, as vs_loads1."""
    text = re.sub(r"s0_\d+ \+= v0 \* y;", "VS_KEEP(y);", kernel_text("positions1"))
    text = re.sub(r"const vs_vec v0 = VS_FILL\(weight\[0\]\);", r"\g<0> VS_KEEP(v0);", text)
    return text.replace("vs_tile1x", "vs_load1x").replace("vs_positions1", "vs_loads1")


def printed(compiler: str, options: str, run: str) -> str:
    """Compiles and executes the program, and returns what it printed."""
    with tempfile.TemporaryDirectory() as folder:
        source, binary = Path(folder) / "kernels.c", Path(folder) / "kernels"
        source.write_text(program())
        subprocess.run([compiler, *shlex.split(options), str(source), "-o", str(binary)], check=True)
        return subprocess.run([*shlex.split(run), str(binary)], check=True, capture_output=True, text=True).stdout


def measure(text: str, compiler: str, options: str) -> dict[str, object]:
    """Returns the costs of what the program printed, and the sparse kernel's rates beside the two rooflines."""
    lines = [line.rsplit(" ", 1) for line in text.splitlines()]
    found = {name: float(value) for name, value in lines}
    sixth = found[f"position {MOST_ROWS}"]
    version = compiler  # of another machine, where it is not here
    if shutil.which(compiler):
        version = subprocess.run([compiler, "--version"], check=True, capture_output=True, text=True).stdout.splitlines()[0]
    return {
        "compiler": version,
        "options": options,
        "costs": {
            "lanes": int(found["lanes"]),
            "position": {str(r): round(found[f"position {r}"], 3) for r in range(1, MOST_ROWS + 1)},
            "store": round(max(found["short"] - 4 * sixth, 0.0) / MOST_ROWS, 3),
            "point": {str(p): round(found[f"point {p}"], 3) for p in range(1, MOST_POINTS + 1)},
            "dense_row": round(found["dense_row"], 3),
            "listed_row": round(found["listed_row"], 3),
            "sparse_row": round(found["sparse_row"], 3),
        },
        "sparse_macs_per_ns": {
            f"{10 * tenths} % of the weights": {
                "kernel": round(1 / found[f"sparse {tenths}"], 1),
                "its loads alone": round(1 / found[f"loads {tenths}"], 1),
                "aligned loads of one kibibyte": round(1 / found["aligned"], 1),
            }
            for tenths in (1, 2)
        },
    }


def as_toml(measured: dict[str, Any]) -> str:
    """Returns the table of a target's file."""
    costs = {key: list(value.values()) if isinstance(value, dict) else value for key, value in measured["costs"].items()}
    return tomli_w.dumps({"kernel_costs": {"compiler": measured["compiler"], "options": measured["options"], **costs}})


def main() -> None:
    """Measures and prints, or writes the program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cc", default="cc")
    parser.add_argument("--options", default=OPTIONS)
    parser.add_argument("--run", default="")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--toml", action="store_true")
    parser.add_argument("--write-c", type=Path)
    parser.add_argument("--measured", type=Path)
    given = parser.parse_args()
    if given.write_c:
        given.write_c.write_text(program())
        return
    said = given.measured.read_text() if given.measured else printed(given.cc, given.options, given.run)
    found = measure(said, given.cc, given.options)
    text = json.dumps(found, indent=2) + "\n"
    sys.stdout.write(as_toml(found) if given.toml else text)
    if given.out:
        given.out.write_text(text)


if __name__ == "__main__":
    assert BLOCK == 16
    main()
