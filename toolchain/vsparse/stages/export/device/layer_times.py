"""The time of each layer: of ONNX Runtime by its own profiler, of C by a copy of the text that reads the clock between layers."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from vsparse.stages.export.device.basics import Stop, clean
from vsparse.stages.export.device.latency import percentile

LAYERED_S, LEAST_LAYERED, MOST_LAYERED = 0.3, 20, 1000
MOST_LAYERS = 4096
# The body of a network in C, and the comment before each of its layers.
BODY = r"^[A-Za-z_ ]*void (?:vs_network|{}_logits)\([^;{{]*\)\n\{{\n.*?^\}}"
LAYER = re.compile(r"^    /\* (.{1,200}) \*/$", re.M)
# One row of `times` is a run; what a layer took is added to its column. A reading of the clock is part of each layer.
LAYER_HARNESS = r"""
#define _POSIX_C_SOURCE 199309L
#include <time.h>
void NETWORK(const float *input, float *logits);
static long long *row, last;
static int layer = -1;
static long long now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (long long)t.tv_sec * 1000000000LL + (long long)t.tv_nsec;
}
void vsparse_agent_layer(int next) {
    long long time = now();
    if (row != 0 && layer >= 0) row[layer] += time - last;
    layer = next;
    last = time;
}
void vsparse_agent_layers(const float *input, float *logits, int runs, int layers, long long *times) {
    for (int i = 0; i < runs; i++) {
        row = times + (long long)i * layers;
        NETWORK(input, logits);
    }
    row = 0;
}
"""


def marked_source(text: str, prefix: str) -> tuple[str, list[str]]:
    """Returns a network in C with a call before each layer and after the last, and the layers' titles by their number."""
    titles: list[str] = []

    def mark(found: Any) -> str:
        titles.append(clean(found.group(1), 200))
        return f"    vsparse_agent_layer({len(titles) - 1});\n{found.group(0)}"

    def body(found: Any) -> str:
        marked = LAYER.sub(mark, found.group(0))
        return marked[:-1] + "    vsparse_agent_layer(-1);\n}" if marked != found.group(0) else marked

    made = re.sub(BODY.format(re.escape(prefix)), body, text, flags=re.M | re.S)
    if not titles or len(titles) > MOST_LAYERS:
        raise Stop(1, f"the text names {len(titles)} layers, and none or so many cannot be timed")
    return "void vsparse_agent_layer(int next);\n" + made, titles


def layer_rows(named: list[tuple[str, str, list[float]]]) -> list[dict[str, Any]]:
    """Returns what trtexec tells of layers, of each its name, its operator and its ms in each run; percentages are of the medians' sum."""
    medians = [percentile(times, 50) for _, _, times in named]
    total = math.fsum(medians) or 1.0
    return [
        {
            "name": name,
            **({"operator": operator} if operator else {}),
            "timeMs": math.fsum(times),
            "averageMs": math.fsum(times) / len(times),
            "medianMs": median,
            "percentage": 100 * median / total,
        }
        for (name, operator, times), median in zip(named, medians)  # noqa: B905 - Python 3.8
    ]


def onnxruntime_rows(path: str) -> list[dict[str, Any]]:
    """Reads what ONNX Runtime's profiler wrote, in whole microseconds: the kernels in the order in which they ran first."""
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            events = json.load(stream)
        found: dict[str, tuple[str, list[float]]] = {}
        for event in events:
            if event.get("cat") == "Node" and str(event.get("name")).endswith("_kernel_time"):
                name = clean(event["name"][: -len("_kernel_time")], 200)
                found.setdefault(name, (clean(str(event["args"]["op_name"]), 60), []))[1].append(float(event["dur"]) / 1000)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Stop(1, f"ONNX Runtime wrote no readable profile ({error!r})") from None
    if not found or len(found) > MOST_LAYERS:
        raise Stop(1, f"ONNX Runtime's profile names {len(found)} kernels")
    return layer_rows([(name, operator, times) for name, (operator, times) in found.items()])


def layered_runs(ns: float) -> int:
    """How many runs tell the time of each layer, where one takes so long."""
    return max(LEAST_LAYERED, min(MOST_LAYERED, int(1e9 * LAYERED_S / max(ns, 1))))
