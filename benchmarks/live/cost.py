"""What a live verdict costs against one inference: `cost.py RECIPE=MODEL.onnx... [--data DIR] [--out cost.json]`.

MODEL is a float32 file of a build, or of a training, of that recipe. In float32 and int8: instructions on Cortex-M4F, Cortex-M7 and
64-bit Arm under QEMU, processor time on this machine, RAM and flash; of frames that are certified at the recipe's radius and of frames
that are not, which take an inference more. Every verdict must have the bits of the simulation, or the run fails.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from vsparse.data import load
from vsparse.files import write_json
from vsparse.graph import Graph, fold_batch_norm, from_onnx
from vsparse.recipe import load_recipe
from vsparse.stages.export.c_int8 import emit_int8_c
from vsparse.stages.export.c_live import Verdicts, emit_live_c, emit_live_int8_c, simulate_live, simulate_live_int8
from vsparse.stages.export.c_source import emit_c, find_compiler
from vsparse.stages.export.c_source.literals import float_literals
from vsparse.stages.export.firmware import BOARDS, emulate, footprint
from vsparse.stages.export.firmware.link import OPTIONS
from vsparse.stages.export.quantise import quantise
from vsparse.stages.verify.live import not_below

HERE = Path(__file__).resolve().parent
ARM, AARCH64, EMULATOR = ("cortex-m4f", "cortex-m7"), "aarch64-linux-gnu-gcc", "qemu-system-aarch64"
NATIVE = ("-O3", "-march=native", "-std=c99", "-ffp-contract=off")
LAYOUT = """ENTRY(_start) SECTIONS { . = 0x40080000; .text : { *(.text.start) *(.text*) *(.rodata*) } .data : { *(.data*) }
.bss : { *(.bss*) *(COMMON) } . = ALIGN(16); . += 0x10000; stack_top = .; /DISCARD/ : { *(.note*) *(.comment) *(.eh_frame) } }"""
SEARCHED, ROUNDS, LEAST_SECONDS = 200, 21, 0.004
# Radii that are tried, in this order, where all frames or none are certified.
SHARES = (1.0, 2.0, 0.5, 3.0, 0.25, 5.0)


Kinds = dict[str, tuple[np.ndarray, float]]


def kinds_of(graph: Graph, x: np.ndarray, base: float, simulated: Callable[..., Verdicts], count: int) -> Kinds:
    """Returns some frames that are certified and some that are not, each with the radius that says so."""
    found: Kinds = {}
    for share in SHARES:
        epsilon = not_below(Fraction(base) * Fraction(share))
        verdict = simulated(graph, x, epsilon)
        for kind, chosen in (("certified", verdict.certified), ("not_certified", ~verdict.certified)):
            if kind not in found and chosen.any():
                found[kind] = (x[np.nonzero(chosen)[0][:count]], epsilon)
        if len(found) == 2:
            break
    return found


def wrapped(folder: Path, stem: str, prefix: str, epsilon: float | None) -> Path:
    """Returns a C file with `call(input, values)`: the inference, or the certificate; three values."""
    calls = f"y[0] = (float){prefix}_classify(x); y[1] = y[2] = 0.0f;"
    if epsilon is not None:
        calls = f"struct {prefix}_verdict v; (void){prefix}_certify(x, {epsilon!r}f, &v); "
        calls += "y[0] = v.label, y[1] = v.certified, y[2] = v.margin;"
    path = folder / "call.c"
    head = "void call(const float *x, float *y)"
    path.write_text(f'#include "{stem}.h"\n{head};\n{head}\n{{\n    {calls}\n}}\n')
    return path


def emulate_aarch64(folder: Path, stem: str, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns three values [n, 3] and instructions [n] of call.c on each input."""
    rows = x.reshape(len(x), -1)
    values = ",\n".join("{" + ",".join(float_literals(row)) + "}" for row in rows)
    (folder / "inputs.h").write_text(f"static const float inputs[{len(rows)}][INPUTS] = {{\n{values}\n}};\n")
    (folder / "layout.ld").write_text(LAYOUT)
    options = ["-O2", "-std=gnu99", "-ffp-contract=off", "-fno-stack-protector", "-fno-pie", "-no-pie"]
    options += ["-static", "-nostdlib", "-ffreestanding"]
    sources = [str(HERE / "aarch64.c"), f"{stem}.c", "call.c", *[path.name for path in folder.glob(f"{stem}*.S")]]
    defines = [f"-DINPUTS={rows.shape[1]}", "-DVALUES=3", "-DCALL=call", "-I."]
    subprocess.run(
        [AARCH64, *options, *defines, *sources, "-T", "layout.ld", "-Wl,--build-id=none", "-o", "virt.elf"],
        cwd=folder,
        check=True,
        capture_output=True,
    )
    command = [EMULATOR, "-M", "virt", "-cpu", "cortex-a53", "-m", "256", "-nographic", "-monitor", "none", "-serial", "null"]
    command += ["-nic", "none", "-icount", "shift=0", "-semihosting-config", "enable=on,target=native", "-kernel", "virt.elf"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600, stdin=subprocess.DEVNULL, check=False)
    words = [[int(word, 16) for word in line.split()] for line in (done.stdout + done.stderr).splitlines() if len(line.split()) == 4]
    assert len(words) == len(rows), done.stderr[-300:]
    found = np.array(words, dtype=np.uint32)
    return np.ascontiguousarray(found[:, :3]).view(np.float32), found[:, 3].astype(np.int64)


def require_bits(values: np.ndarray, stated: Verdicts, where: str) -> None:
    """Exits where a verdict has other bits than the simulation."""
    expected = np.stack([stated.label, stated.certified, stated.margin], axis=1).astype(np.float32)
    if not np.array_equal(values, expected):
        raise SystemExit(f"{where}: other bits than the simulation")


def instructions(folder: Path, stem: str, prefix: str, where: str, x: np.ndarray, epsilon: float, stated: Verdicts) -> dict[str, Any]:
    """Returns the instructions of an inference and of a certificate, and the largest ratio over the frames."""

    def run(radius: float | None) -> tuple[np.ndarray, np.ndarray]:
        call = wrapped(folder, stem, prefix, radius)
        if where == "aarch64":
            return emulate_aarch64(folder, stem, x)
        done = emulate(BOARDS[where], [folder / f"{stem}.c", call], x, 3, "call")
        return done.logits, done.instructions

    _, inference = run(None)
    values, live = run(epsilon)
    require_bits(values, stated, f"{stem} on {where}")
    ratios = live / inference
    return {"inference": int(inference.max()), "certify": int(live.max()), "ratio": round(float(ratios.max()), 3)}


def timed(folder: Path, stem: str, prefix: str, kinds: Kinds) -> dict[str, Any]:
    """Returns microseconds of processor time, medians of rounds in which inference and certificate take turns on every frame."""
    text = [
        "#define _POSIX_C_SOURCE 199309L",
        f'#include "{stem}.h"',
        "#include <stdio.h>",
        "#include <time.h>",
        "static volatile int sink;",
        "static double now(void)",
        "{",
        "    struct timespec at;",
        "    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &at);",
        "    return 1e6 * (double)at.tv_sec + 1e-3 * (double)at.tv_nsec;",
        "}",
    ]
    calls = []
    for kind, (x, epsilon) in kinds.items():
        rows = ",".join("{" + ",".join(float_literals(one.reshape(-1))) + "}" for one in x)
        text.append(f"static const float {kind}[{len(x)}][{prefix.upper()}_INPUTS] = {{{rows}}};")
        for name, call in (
            ("inference", f"sink = {prefix}_classify({kind}[i]);"),
            ("certify", f"(void){prefix}_certify({kind}[i], {epsilon!r}f, &verdict); sink = verdict.label;"),
        ):
            calls += [
                "        began = now(), count = 0;",
                f"        for (; now() - began < {LEAST_SECONDS * 1e6!r}; count++)",
                "            for (int n = 0; n < 8; n++)",
                f"                for (int i = 0; i < {len(x)}; i++) {{ {call} }}",
                f'        printf("{kind} {name} %.6f\\n", (now() - began) / (8.0 * count * {len(x)}));',
            ]
    text += [f"int main(void)\n{{\n    struct {prefix}_verdict verdict;\n    double began;\n    long count;"]
    text += [f"    for (int round = 0; round < {ROUNDS}; round++) {{", *calls, "    }", "    return 0;", "}", ""]
    (folder / "time.c").write_text("\n".join(text))
    sources = [f"{stem}.c", "time.c", *[path.name for path in folder.glob(f"{stem}*.S")]]
    subprocess.run([find_compiler(), *NATIVE, *sources, "-o", "time"], cwd=folder, check=True, capture_output=True)
    said = [line.split() for line in subprocess.run([folder / "time"], check=True, capture_output=True, text=True).stdout.splitlines()]
    found: dict[str, Any] = {}
    for kind in kinds:
        inference, live = (
            statistics.median(float(us) for of, name, us in said if (of, name) == (kind, one)) for one in ("inference", "certify")
        )
        found[kind] = {"inference_us": round(inference, 2), "certify_us": round(live, 2), "ratio": round(live / inference, 3)}
    return found


def measure(recipe_name: str, path: Path, data: Path | None, count: int, quantised: bool) -> dict[str, Any]:
    """Returns everything about one network in one form."""
    recipe, graph = load_recipe(recipe_name), fold_batch_norm(from_onnx(path))
    samples = load(recipe.data, data, 0)
    if quantised:
        graph = quantise(graph, samples.train.inputs(slice(0, 64)))
    emit, live, simulated = (emit_int8_c, emit_live_int8_c, simulate_live_int8) if quantised else (emit_c, emit_live_c, simulate_live)
    prefix, stem = ("vsparse_int8", "model.int8") if quantised else ("vsparse", "model")
    kinds = kinds_of(graph, samples.test.inputs(slice(0, SEARCHED)), float(Fraction(str(recipe.property.epsilon))), simulated, count)
    row: dict[str, Any] = {"recipe": recipe_name, "form": "int8" if quantised else "fp32", "frames": count}
    row["epsilon"] = {kind: epsilon for kind, (_, epsilon) in kinds.items()}
    with tempfile.TemporaryDirectory() as name:
        folder, plain = Path(name), Path(name) / "plain"
        sources = emit(graph), live(graph)
        for source, at in zip(sources, (plain, folder), strict=True):
            at.mkdir(exist_ok=True)
            source.write(at)
        for where in (*ARM, *(["aarch64"] if shutil.which(AARCH64) and shutil.which(EMULATOR) else [])):
            row[where] = {
                kind: instructions(folder, stem, prefix, where, x, epsilon, simulated(graph, x, epsilon))
                for kind, (x, epsilon) in kinds.items()
            }
            if where in ARM:
                both = [footprint(BOARDS[where].options, at / f"{stem}.c", prefix) for at in (plain, folder)]
                for what in ("flash_bytes", "ram_bytes", "stack_bytes"):
                    own, more = (getattr(one, what) for one in both)
                    row[where] |= {what: [own, more], what.replace("bytes", "ratio"): round(more / own, 3)}
            print(f"{recipe_name} {row['form']} {where}: {row[where]}", file=sys.stderr, flush=True)
        row["x86"] = timed(folder, stem, prefix, kinds)
        own_ram, live_ram = (source.memory.arena_bytes if quantised else source.vector.arena_bytes for source in sources)  # type: ignore[union-attr]
        row["x86"]["ram_ratio"] = round(live_ram / own_ram, 3)
        print(f"{recipe_name} {row['form']} x86: {row['x86']}", file=sys.stderr, flush=True)
    return row


def main() -> None:
    """Measures every network in both forms, and writes the rows; those of other networks stay."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("nets", nargs="+", metavar="RECIPE=MODEL")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--frames", type=int, default=3, help="of each kind; ratios are those of the dearest")
    parser.add_argument("--form", choices=("fp32", "int8"), default=None)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    rows: list[dict[str, Any]] = json.loads(given.out.read_text())["rows"] if given.out and given.out.exists() else []
    for one in given.nets:
        recipe, _, path = one.partition("=")
        for form in ("fp32", "int8"):
            if given.form in (None, form):
                rows = [row for row in rows if (row["recipe"], row["form"]) != (recipe, form)]
                rows.append(measure(recipe, Path(path), given.data, given.frames, form == "int8"))
                if given.out:
                    rows.sort(key=lambda row: (row["recipe"], row["form"]))
                    write_json(given.out, {"schema_version": 1, "options": list(OPTIONS), "native": list(NATIVE), "rows": rows})


if __name__ == "__main__":
    main()
