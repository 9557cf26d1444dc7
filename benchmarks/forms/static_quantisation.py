"""What becomes of the files that onnxruntime.quantization.quantize_static writes: read and compared, refused by a reason, or different?

Usage: python benchmarks/forms/static_quantisation.py [--files 1374] [--seed 0] [--out FILE] [--resume]

Random networks (convolutions, residual additions, concatenations, pools, ReLU, LeakyRelu, Clip) are quantised with random options: QDQ
or operators on integers, uint8 or int8 activations, int8 or uint8 weights, by channel or by tensor, with and without a reduced range,
symmetric or not, float32 biases, some operators alone, with and without pre-processing, three ways to calibrate. What is read is compared
with the runtime: its graph at every level, and its values at every level where the contract is about this processor. A file that differs
ends the run with exit code 1.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import sys
import tempfile
from pathlib import Path
from time import process_time
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "export"))

import numpy as np
import onnxruntime
import torch
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from own_nets import own_net

from vsparse.bounds import Rounding
from vsparse.contract import CONTRACTS
from vsparse.errors import GateError, InputError
from vsparse.files import write_json
from vsparse.graph import to_onnx
from vsparse.graph.from_onnx import read_onnx
from vsparse.graph.quantised import integer_contract
from vsparse.reading import check_reading
from vsparse.stages.export.runtime_graph import check_runtime_graph

AT_ONCE = 25
# What makes the input of an operator that is to read float32.
POOLS = ("MaxPool", "AveragePool", "GlobalAveragePool")
MAKERS = ("Conv", "Gemm", "MatMul", "Add", "Sub", "Neg", "Relu", "Clip", "LeakyRelu", *POOLS, "Concat")


class Samples(CalibrationDataReader):
    """Calibration samples, one at a time."""

    def __init__(self, x: np.ndarray) -> None:
        self.x = iter(x)

    def get_next(self) -> dict[str, np.ndarray] | None:
        one = next(self.x, None)
        return None if one is None else {"input": one[None]}


def options(rng: np.random.Generator) -> dict[str, Any]:
    """Returns the options of one file, as the results name them."""
    signed = bool(rng.random() < 0.5)
    return {
        "format": "QDQ" if rng.random() < 0.85 else "QOperator",
        "activations": "s8" if signed else "u8",
        "weights": "s8" if signed or rng.random() < 0.75 else "u8",
        "per_channel": bool(rng.random() < 0.5),
        "reduce_range": bool(rng.random() < 0.4),
        "symmetric": bool(signed and rng.random() < 0.7),
        "float_biases": bool(rng.random() < 0.15),
        "stored_weights": bool(rng.random() < 0.1),
        "operators": str(rng.choice(["all", "products"], p=[0.8, 0.2])),
        "pre_process": bool(rng.random() < 0.4),
        "calibration": str(rng.choice(["MinMax", "Entropy", "Percentile"], p=[0.7, 0.15, 0.15])),
        "excludes_constants": bool(rng.random() < 0.5),
        "kept_float": [],  # types of operators that nodes_to_exclude names
        "float_outputs": [],  # and of those in OpTypesToExcludeOutputQuantization
    }


def advised(chosen: dict[str, Any], why: str) -> dict[str, Any]:
    """Returns the options with what a refusal advises."""
    changed = dict(chosen)
    if "nodes_to_exclude, and what makes its input" in why:
        kind = next(one for one in ("LeakyRelu", "Sub", "Neg") if f"({one})" in why)
        changed |= {"kept_float": sorted({*chosen["kept_float"], kind}), "float_outputs": list(MAKERS)}
    elif "OpTypesToExcludeOutputQuantization" in why:
        changed["float_outputs"] = sorted({*chosen["float_outputs"], "Conv", "Gemm", "MatMul", "Add", "AveragePool"})
    elif "QuantFormat.QDQ" in why:
        changed["format"] = "QDQ"
    elif "AddQDQPairToWeight" in why:
        changed["stored_weights"] = False
    elif "QuantizeBias" in why:
        changed["float_biases"] = False
    elif "nodes_to_exclude" in why:
        changed |= {"excludes_constants": True, "weights": "s8"}
    return changed


def write(folder: Path, seed: int, i: int, wanted: dict[str, Any] | None = None) -> tuple[Path, dict[str, Any]]:
    """Writes file i of a seed, with options of its own or wanted ones, and returns its path and its options.

    Raises what onnxruntime raises where it cannot quantise.
    """
    rng = np.random.default_rng([seed, i, 3])
    chosen = options(rng)
    chosen = wanted or chosen
    kinds = [("relu",), ("relu", "clip"), ("relu", "leaky"), ("clip",)][int(rng.choice(4, p=[0.55, 0.2, 0.15, 0.1]))]
    graph = own_net(10_000 + i, kinds)
    source, out = folder / "float.onnx", folder / "quantised.onnx"
    model = to_onnx(graph)
    source.write_bytes(model.SerializeToString())
    excluded = [node.name for node in model.graph.node if node.op_type in ("Mul", "Add", "Sub", "Div") and node.input[1] in _stored(model)]
    excluded = excluded if chosen["excludes_constants"] else []
    excluded += [node.name for node in model.graph.node if node.op_type in chosen["kept_float"]]
    if chosen["pre_process"]:
        quant_pre_process(str(source), str(folder / "prepared.onnx"), skip_symbolic_shape=True)
        source = folder / "prepared.onnx"
    extra = {"ActivationSymmetric": chosen["symmetric"], "AddQDQPairToWeight": chosen["stored_weights"]}
    if chosen["float_biases"]:
        extra["QuantizeBias"] = False
    if chosen["float_outputs"]:
        extra["OpTypesToExcludeOutputQuantization"] = chosen["float_outputs"]
    types = {"s8": QuantType.QInt8, "u8": QuantType.QUInt8}
    quantize_static(
        str(source),
        str(out),
        Samples(rng.random((8, *graph.input_shape)).astype(np.float32)),
        quant_format=QuantFormat[chosen["format"]],
        activation_type=types[chosen["activations"]],
        weight_type=types[chosen["weights"]],
        per_channel=chosen["per_channel"],
        reduce_range=chosen["reduce_range"],
        op_types_to_quantize=["Conv", "Gemm", "MatMul"] if chosen["operators"] == "products" else None,
        nodes_to_exclude=excluded,
        calibrate_method=CalibrationMethod[chosen["calibration"]],
        extra_options=extra,
    )
    return out, chosen


def _stored(model: Any) -> set[str]:
    return {tensor.name for tensor in model.graph.initializer}


def outcome(path: Path) -> tuple[str, str]:
    """Returns what became of a file, and why: "int8" or another contract, "refused", or "different"."""
    data = path.read_bytes()
    try:
        reading = read_onnx(data)
        contract = integer_contract(reading.graph)
        Rounding(reading.graph, CONTRACTS[contract])
        check_runtime_graph(path)
        check_reading(data, reading)
        return contract, ""
    except (InputError, GateError) as error:
        text = str(error).replace(str(path), "FILE")
        wrong = "is read as another network" in text or ("differs" in text and isinstance(error, GateError))
        return "different" if wrong else "refused", text


def follow(folder: Path, seed: int, i: int, chosen: dict[str, Any], why: str) -> str:
    """Returns what becomes of a refused file when its advice is followed, and that of the next refusal, as long as there is another."""
    for _ in range(8):
        changed = advised(chosen, why)
        if changed == chosen:
            return f"no other advice: {reason(why)}"
        chosen = changed
        try:
            path, _ = write(folder, seed, i, chosen)
        except Exception as error:  # of onnxruntime.quantization
            return f"not quantised: {type(error).__name__}: {reason(str(error))}"[:160]
        kind, why = outcome(path)
        if kind != "refused":
            return "read" if kind in CONTRACTS else kind
    return f"refused again: {reason(why)}"


def reason(text: str) -> str:
    """Returns a message without names and numbers."""
    text = text.split("cannot be read: ", 1)[-1]
    return re.sub(r'"[^"]*"|[-+]?\d[\d.e+-]*', "#", text)[:330]


def main() -> int:
    """Quantises, reads and counts; returns 1 where a file differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=1374)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="go on after the files that the results on disk count")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results-static-quantisation.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    found: dict[str, Any] = {"schema_version": 1, "onnxruntime": onnxruntime.__version__, "seed": arguments.seed, "files": 0}
    found |= {"outcomes": {}, "with_the_advice": {}, "by_option": {}, "refused_by_reason": {}, "not_quantised": {}, "differences": []}
    found["cpu_seconds"] = 0.0
    if arguments.resume and arguments.out.exists():
        found = json.loads(arguments.out.read_text())
    start, spent = process_time(), found["cpu_seconds"]
    while found["files"] < arguments.files:
        i = found["files"]
        with tempfile.TemporaryDirectory() as folder:
            try:
                path, chosen = write(Path(folder), arguments.seed, i)
            except Exception as error:  # whatever onnxruntime.quantization raises: it is no file of ours
                count(found["not_quantised"], f"{type(error).__name__}: {reason(str(error))}"[:160])
                count(found["outcomes"], "not quantised")
            else:
                kind, why = outcome(path)
                count(found["outcomes"], kind)
                for name, value in ((name, value) for name, value in chosen.items() if not isinstance(value, list)):
                    count(found["by_option"].setdefault(f"{name}={value}", {}), "read" if kind in CONTRACTS else kind)
                if kind == "refused":
                    row = found["refused_by_reason"].setdefault(reason(why), {"files": 0, "first": i})
                    row["files"] += 1
                    after = follow(Path(folder), arguments.seed, i, chosen, why)
                    count(row.setdefault("with_the_advice", {}), after)
                    count(found["with_the_advice"], after)
                elif kind == "different":
                    found["differences"].append(f"file {i}: {why} ({json.dumps(chosen)})")
                    print(found["differences"][-1], file=sys.stderr)
        found["files"] += 1
        if found["files"] % AT_ONCE == 0 or found["files"] == arguments.files:
            found["cpu_seconds"] = round(spent + process_time() - start, 1)
            found["refused_by_reason"] = dict(sorted(found["refused_by_reason"].items(), key=lambda item: -item[1]["files"]))
            write_json(arguments.out, found)
    print(found["outcomes"], found["with_the_advice"], found["cpu_seconds"], "s")
    return 1 if found["differences"] or "different" in found["with_the_advice"] else 0


def count(counts: dict[str, int], key: str) -> None:
    """Adds one."""
    counts[key] = counts.get(key, 0) + 1


if __name__ == "__main__":
    sys.exit(main())
