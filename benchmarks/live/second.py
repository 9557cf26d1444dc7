"""Both tiers of live verdicts against the host's CROWN-IBP: `second.py RECIPE MODEL.onnx [--data DIR] [--frames N] [--out RESULTS.json]`.

MODEL is a float32 or a quantised file of a build of that recipe. Every margin that the device tells must be at most the host's in float64
under `sequential` or `int8` (intervals with folded last layers, or one backward pass over them, the larger for each margin); what the host
certifies and the device does not is counted (in int8 the slopes of both may differ, and margins above the host's are only counted).
With --time, the cost of open margins is told in inferences.
"""

from __future__ import annotations

import ctypes
import tempfile
from fractions import Fraction
from functools import partial
from math import prod
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from host import NATIVE, finish, frames_of, host_margins, parser_of, radii_of

from vsparse.bounds import Rounding
from vsparse.contract import CONTRACTS
from vsparse.graph import Graph
from vsparse.stages.export.c_live import UNIT_RANGE, CompiledLive
from vsparse.stages.export.c_live.forms import live_form_of, memory_of
from vsparse.stages.export.c_source import CompiledModel
from vsparse.stages.export.c_source.text import CFiles
from vsparse.stages.export.firmware import BOARDS, emulate, footprint

AT_ONCE = 250  # frames in memory
OPTIONS = {"sse2": ("-O3", "-std=c99", "-ffp-contract=off"), "native": NATIVE}
ROUNDS, REPEATS, FEW, SEARCHED = 60, 200, 3, 200
WIDE = 0.5  # a radius at which next to no coefficient is zero


def compiled(source: CFiles, graph: Graph, folder: Path, options: tuple[str, ...]) -> CompiledModel:
    """Returns the C of a network, compiled."""
    source.write(folder)
    kind = live_form_of(graph)
    name = Path(kind.form.file).name
    return CompiledModel(folder / name, graph.input_shape, prod(graph.shape_of(graph.output)), options, kind.prefix)


def seconds(call: Any) -> float:
    """Returns the least time of a call of several."""
    taken = []
    for _ in range(ROUNDS):
        begin = perf_counter()
        call()
        taken.append(perf_counter() - begin)
    return min(taken)


REPEAT = """
float repeat_logits(const float *x, int n) { float y[VSPARSE_CLASSES]; for (int i = 0; i < n; i++) vsparse_logits(x, y); return y[0]; }
float repeat_budget(const float *x, float epsilon, int budget, int n)
{ struct vsparse_verdict v; for (int i = 0; i < n; i++) vsparse_certify_budget(x, epsilon, budget, &v); return v.margin; }
float repeat_pass(const float *x, float epsilon, int whole, int n)
{ float sum = 0; for (int i = 0; i < n; i++)
    sum += vs_backward(vs_arena, vs_arena + VS_KEPT_AT, i % VSPARSE_CLASSES, (i + 1) % VSPARSE_CLASSES, whole);
  (void)x; (void)epsilon; return sum; }
"""


def costs(graph: Graph, x: np.ndarray, epsilon: float) -> dict[str, dict[str, float]]:
    """Returns, for each set of options, microseconds of an inference, of verdicts with a budget of 0 and 1, and of a pass."""
    found = {}
    for name, options in OPTIONS.items():
        with tempfile.TemporaryDirectory() as folder:
            kind = live_form_of(graph)
            kind.emit(graph, UNIT_RANGE, True).write(Path(folder))
            path = Path(folder) / Path(kind.form.file).name
            path.write_text(path.read_text() + REPEAT.replace("vsparse_", f"{kind.prefix}_").replace("VSPARSE_", f"{kind.prefix.upper()}_"))
            with CompiledModel(path, graph.input_shape, prod(graph.shape_of(graph.output)), options, kind.prefix) as model:
                pointer = x[0].ctypes.data_as(ctypes.POINTER(ctypes.c_float))
                eps, library = ctypes.c_float(epsilon), model.library
                calls = {
                    "inference": partial(library.repeat_logits, pointer, REPEATS),
                    "certify": partial(library.repeat_budget, pointer, eps, 0, REPEATS),
                    "one open": partial(library.repeat_budget, pointer, eps, 1, REPEATS),
                    "last layer": partial(library.repeat_pass, pointer, eps, 0, REPEATS),
                    "pass": partial(library.repeat_pass, pointer, eps, 1, REPEATS),
                }
                found[name] = {key: 1e6 * seconds(call) / REPEATS for key, call in calls.items()}
    return found


CALL = """
void call(const float *x, float *y)
{
    struct vsparse_verdict v = {0, 0, 0};
    DO
    y[0] = v.margin;
}
"""
PASS = "vs_backward(vs_arena, vs_arena + VS_KEPT_AT, v.label, v.label == 0, WHOLE);"
STEPS = {
    "inference": "v.label = vsparse_classify(x);",
    "certify": "(void)vsparse_certify(x, EPSILON, &v);",
    "both": "(void)vsparse_certify_budget(x, EPSILON, BUDGET, &v);",
    "last layer": f"(void)vsparse_certify_budget(x, EPSILON, BUDGET, &v); v.margin = {PASS.replace('WHOLE', '0')}",
    "pass": f"(void)vsparse_certify_budget(x, EPSILON, BUDGET, &v); v.margin = {PASS.replace('WHOLE', '1')}",
}


def instructions(graph: Graph, x: np.ndarray, epsilon: float, budget: int) -> dict[str, Any]:
    """Returns instructions on Cortex-M4F, of the dearest of some frames that intervals leave open: a verdict, and one pass."""
    kind = live_form_of(graph)
    some = x[:SEARCHED]
    opened = np.flatnonzero(~kind.certify(graph, some, epsilon, 0, UNIT_RANGE).certified)[:FEW]
    found: dict[str, Any] = {"epsilon": epsilon, "frames": len(opened)}
    counts: dict[str, np.ndarray] = {}
    for name, step in STEPS.items():
        with tempfile.TemporaryDirectory() as folder:
            kind.emit(graph, UNIT_RANGE, True).write(Path(folder))
            path = Path(folder) / Path(kind.form.file).name
            text = CALL.replace("DO", step.replace("EPSILON", f"{epsilon!r}f").replace("BUDGET", str(budget)))
            text = text.replace("vsparse_", f"{kind.prefix}_")
            path.write_text(path.read_text() + text.replace("void call(", "void call(const float *x, float *y);\nvoid call(", 1))
            counts[name] = emulate(BOARDS["cortex-m4f"], [path], x[opened], 1, "call").instructions
    counts["last layer"], counts["pass"] = counts["last layer"] - counts["both"], counts["pass"] - counts["both"]
    for name, each in counts.items():
        found[name] = int(each.max())
        found[f"{name} / inference"] = round(float((each / counts["inference"]).max()), 2)
    return found


def footprints(graph: Graph) -> dict[str, list[int]]:
    """Returns the bytes of flash, RAM and stack on Cortex-M4F: of inference, with the first tier, and with both."""
    kind, board = live_form_of(graph), BOARDS["cortex-m4f"]
    found: dict[str, list[int]] = {"flash": [], "ram": [], "stack": []}
    for source in (kind.plain(graph), kind.emit(graph, UNIT_RANGE, False), kind.emit(graph, UNIT_RANGE, True)):
        with tempfile.TemporaryDirectory() as folder:
            source.write(Path(folder))
            taken = footprint(board.options, Path(folder) / Path(kind.form.file).name, kind.prefix)
        for name, bytes_taken in zip(found, (taken.flash_bytes, taken.ram_bytes, taken.stack_bytes), strict=True):
            found[name].append(bytes_taken)
    return found


def main() -> None:
    """Compiles the C, asks both about every frame, and writes the counts."""
    parser = parser_of(__doc__)
    parser.add_argument("--time", action="store_true", help="the cost of open margins too, and instructions on Cortex-M4F")
    chosen = parser.parse_args()
    recipe, graph, x = frames_of(chosen)
    kind = live_form_of(graph)
    rounding = Rounding(graph, CONTRACTS[kind.form.contract])
    budget = prod(graph.shape_of(graph.output)) - 1
    plain, first, both = (
        memory_of(source) for source in (kind.plain(graph), kind.emit(graph, UNIT_RANGE, False), kind.emit(graph, UNIT_RANGE, True))
    )
    content: dict[str, Any] = {"schema_version": 1, "recipe": chosen.recipe, "budget": budget}
    content |= {"contract": kind.form.contract} if kind.form.contract != "sequential" else {}
    content["bytes"] = {
        name: [one.constant_bytes, one.arena_bytes] for name, one in (("inference", plain), ("first", first), ("both", both))
    }
    rows: list[dict[str, Any]] = []
    if chosen.time:
        content["microseconds"] = costs(graph, x, float(Fraction(str(recipe.property.epsilon))))
        content["cortex-m4f"] = instructions(graph, x, float(Fraction(str(recipe.property.epsilon))), budget)
        content["cortex-m4f, hardly a unit constant"] = instructions(graph, x, WIDE, budget)
        content["cortex-m4f bytes"] = footprints(graph)
        print(content, flush=True)
    with (
        tempfile.TemporaryDirectory() as folder,
        compiled(kind.emit(graph, UNIT_RANGE, True), graph, Path(folder), OPTIONS["native"]) as model,
    ):
        live = CompiledLive(model, kind.prefix)
        for factor, epsilon in radii_of(recipe):
            counts = dict.fromkeys(("intervals", "both", "host", "both_not_host", "margin_above_host"), 0)
            for start in range(0, len(x), AT_ONCE):
                some = x[start : start + AT_ONCE]
                verdict, alone = live.certify(some, float(epsilon), budget), live.certify(some, float(epsilon))
                margin = host_margins(graph, rounding, some, float(epsilon), np.maximum(verdict.label, 0), linear=True)
                sure = margin > 0
                counts["intervals"] += int(alone.certified.sum())
                counts["both"] += int(verdict.certified.sum())
                counts["host"] += int(sure.sum())
                counts["both_not_host"] += int((verdict.certified & ~sure).sum())
                counts["margin_above_host"] += int((verdict.margin > margin).sum())
            rows.append({"factor": factor, "frames": len(x), **counts})
            print(rows[-1], flush=True)
    content["rows"] = rows
    # In int8 the host may take another slope where a box lies about a bend, so that its margin is no bound of the device's.
    finish(chosen.out, content, "both_not_host", *([] if graph.integers else ["margin_above_host"]))


if __name__ == "__main__":
    main()
