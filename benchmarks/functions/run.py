"""How far ONNX Runtime's Sigmoid and Tanh are from the exact functions, over every binade of float32 (docs/numerics.md, section 3.2).

Every `--stride`-th bit pattern of the finite float32 numbers is executed, both signs, and compared with float64, whose own error is
below 2^-50. Each function also runs fused behind a Gemm and behind a Conv with the identity as weight, as the runtime's optimiser
arranges it.

    OMP_NUM_THREADS=1 python benchmarks/functions/run.py
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from vsparse.contract import FUNCTION_ERROR

PIECE = 2**20
INFINITY = 0x7F800000
EXACT = {"Sigmoid": lambda x: 1 / (1 + np.exp(-x)), "Tanh": np.tanh}


def session(function: str, behind: str) -> onnxruntime.InferenceSession:
    """Returns a session of x -> function(x), alone or behind an operator with weight 1 that the runtime fuses it with."""
    one = numpy_helper.from_array(np.ones((1, 1) + (1, 1) * (behind == "Conv"), np.float32), "one")
    head = [] if behind == "alone" else [helper.make_node(behind, ["x", "one"], ["z"])]
    nodes = [*head, helper.make_node(function, ["z" if head else "x"], ["y"])]
    shape = ["n", 1] + [1, 1] * (behind == "Conv")
    ends = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)] for name in ("x", "y")]
    graph = helper.make_graph(nodes, "function", *ends, initializer=[one] if head else [])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def points(stride: int) -> Any:
    """Yields pieces of the positive finite float32 numbers, every stride-th bit pattern, and then the same with a minus."""
    for start in range(0, INFINITY, PIECE * stride):
        bits = np.arange(start, min(start + PIECE * stride, INFINITY), stride, dtype=np.uint32)
        yield bits.view(np.float32)
        yield (bits | np.uint32(0x80000000)).view(np.float32)


def measure(function: str, behind: str, stride: int) -> dict[str, Any]:
    """Returns the largest absolute error, where it is reached, and whether the results stay within the function's range."""
    run = session(function, behind)
    worst, where, count, lowest, highest = 0.0, 0.0, 0, np.inf, -np.inf
    for x in points(stride):
        shaped: NDArray[np.float32] = x.reshape(-1, 1, 1, 1) if behind == "Conv" else x.reshape(-1, 1)
        y = run.run(None, {"x": shaped})[0].reshape(-1).astype(np.float64)
        with np.errstate(over="ignore"):
            error = np.abs(y - EXACT[function](x.astype(np.float64)))
        if not np.isfinite(error).all():
            raise SystemExit(f"{function} of a finite number is not finite")
        i = int(error.argmax())
        if error[i] > worst:
            worst, where = float(error[i]), float(x[i])
        count, lowest, highest = count + len(x), min(lowest, float(y.min())), max(highest, float(y.max()))
    allowed = FUNCTION_ERROR["fp32"]
    return {
        "function": function,
        "behind": behind,
        "points": count,
        "largest_error": worst,
        "at": where,
        "allowed": allowed,
        "reserve": allowed / worst,
        "range": [lowest, highest],
    }


def main() -> None:
    """Measures and writes results.json beside this file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stride", type=int, default=127)
    stride = parser.parse_args().stride
    rows = [measure(function, behind, stride) for function in EXACT for behind in ("alone", "Gemm", "Conv")]
    found = {"onnxruntime": onnxruntime.__version__, "machine": platform.processor() or platform.machine(), "stride": stride, "rows": rows}
    Path(__file__).with_name("results.json").write_text(json.dumps(found, indent=1) + "\n")
    for row in rows:
        print(f"{row['function']:8} {row['behind']:6} {row['largest_error']:.3e} at {row['at']:.6g}, reserve {row['reserve']:.1f}")
    if min(row["reserve"] for row in rows) < 4:
        raise SystemExit("less than a factor of 4 is left")


if __name__ == "__main__":
    main()
