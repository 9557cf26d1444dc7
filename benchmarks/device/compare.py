"""Two profiles of one network, again and again: how often they are called different, and how much medians vary from run to run.

    python benchmarks/device/compare.py --repetitions 20 --out benchmarks/device/compare.json

Each profile is what `vsparse profile` measures, in a process of its own. A second network, with one layer more of four, says whether a
difference is still seen. Ends with 1 where more than one in twenty comparisons of a network with itself find a difference.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from vsparse.artifact.document import write_document
from vsparse.artifact.latency import Latency
from vsparse.stages.profile import describe_machine, profile_onnx
from vsparse.stages.profile.difference import BETWEEN_NOISY_RUNS, BETWEEN_RUNS, median_ratio, read_profile


def network(path: Path, layers: int, width: int = 256) -> Path:
    """Writes a network of `layers` matrix products."""
    rng = np.random.default_rng(0)
    weights = [numpy_helper.from_array((rng.normal(size=(width, width)) / 16).astype(np.float32), f"w{i}") for i in range(layers)]
    nodes = [helper.make_node("MatMul", [f"t{i}", f"w{i}"], [f"t{i + 1}"]) for i in range(layers)]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, width]) for name in ("t0", f"t{layers}")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString())
    return path


def profiled(model: Path, seconds: float) -> Latency:
    """Times a network in a process of its own, which keeps it in memory of its own."""
    saved = model.with_suffix(".json")
    child = os.fork()
    if child == 0:
        code = 1
        try:
            write_document(saved, profile_onnx(model, seconds=seconds))
            code = 0
        finally:
            os._exit(code)
    if os.waitpid(child, 0)[1] != 0:
        raise RuntimeError(f"{model} was not timed")
    return read_profile(saved)["packed"]


def row(one: Latency, other: Latency) -> dict[str, Any]:
    """One comparison, and what made its two runs noisy."""
    found = median_ratio("network", one, other).as_dict()
    noise = sorted({reason.name for latency in (one, other) for reason in latency.noise or ()})
    return {key: found[key] for key in ("ratio", "ratio_low", "ratio_high", "different", "verdict")} | {"noise": noise}


def main() -> int:
    """Measures, writes the file, and says what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each profile")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    same: list[dict[str, Any]] = []
    longer: list[dict[str, Any]] = []
    medians: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        model, other = network(Path(folder) / "a.onnx", 4), network(Path(folder) / "b.onnx", 5)
        for number in range(given.repetitions):
            first, second, more = profiled(model, given.seconds), profiled(model, given.seconds), profiled(other, given.seconds)
            same.append(row(first, second))
            longer.append(row(more, second))
            medians += [first.p50, second.p50]
            print(f"{number + 1}: {same[-1]['verdict']}; with a fifth layer: {longer[-1]['verdict']}", file=sys.stderr, flush=True)
    found = {
        "schema_version": 1,
        "machine": describe_machine(),
        "repetitions": given.repetitions,
        "seconds": given.seconds,
        "between_runs_allowed": BETWEEN_RUNS,
        "between_noisy_runs_allowed": BETWEEN_NOISY_RUNS,
        "log_median_standard_deviation": statistics.stdev(map(math.log, medians)),
        "no_difference": sum(not one["different"] for one in same),
        "longer_network_called_different": sum(one["different"] for one in longer),
        "same_network": same,
        "longer_network": longer,
    }
    given.out.write_text(json.dumps(found, indent=1) + "\n")
    told = "{no_difference} of {repetitions} say no difference; medians vary by {log_median_standard_deviation:.2%} from run to run; "
    print((told + "with a fifth layer {longer_network_called_different} say different").format(**found))
    return 0 if found["no_difference"] >= 0.95 * given.repetitions else 1


if __name__ == "__main__":
    sys.exit(main())
