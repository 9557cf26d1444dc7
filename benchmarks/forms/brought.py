"""Are the files that people bring from onnxruntime.quantization read and certified? Five networks, s8s8 and u8s8.

Usage: python benchmarks/forms/brought.py [--model FILE --data NAME] [--samples 40] [--out FILE]

A fully connected network, a convolutional one, one with a residual addition, and one with concatenation and pools, all of random weights;
the fifth is a trained float32 file for a dataset, where `--model` names one. Each is quantised by quantize_static to QDQ, with int8 and
with uint8 activations and int8 weights in a reduced range, compared with the runtime's graph at every level, certified under `int8` on
samples that are labelled by the file itself (the trained one: by the dataset), and audited.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "export"))

import numpy as np
import onnx
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from own_nets import OwnNet

from vsparse.contract import contract
from vsparse.data import Dataset, load
from vsparse.files import write_json
from vsparse.graph import Add, AveragePool, Concat, Gemm, Graph, MaxPool, Relu, Reshape, to_onnx, validate
from vsparse.perturbation import PerturbationSet
from vsparse.recipe import Data, Verify
from vsparse.stages.export.runtime_graph import check_runtime_graph
from vsparse.stages.verify.audit import audit
from vsparse.stages.verify.certify import certify
from vsparse.stages.verify.deployed import Runtime


class Samples(CalibrationDataReader):
    """Calibration samples, one at a time."""

    def __init__(self, name: str, x: np.ndarray) -> None:
        self.name, self.x = name, iter(x)

    def get_next(self) -> dict[str, np.ndarray] | None:
        one = next(self.x, None)
        return None if one is None else {self.name: one[None]}


def network(kind: str) -> Graph:
    """Returns one of the four networks of random weights on [1, 8, 8], with three classes."""
    net = OwnNet(np.random.default_rng([len(kind), 5]), ("relu",))
    net.shape = (1, 8, 8)
    if kind != "mlp":
        net.conv(4, 3, same=True)
        net.push(Relu, net.shape)
    if kind == "cnn":
        net.conv(6, 3)
        net.push(Relu, net.shape)
    elif kind == "residual":
        start = net.last
        net.conv(4, 3, same=True)
        net.push(Relu, net.shape)
        net.push(Add, net.shape, (net.last, start))
        net.push(Relu, net.shape)
    elif kind == "concat and pools":
        net.push(MaxPool, (4, 4, 4), kernel=(2, 2), stride=(2, 2))
        start, ends = net.last, []
        for _ in range(2):
            net.last, net.shape = start, (4, 4, 4)
            net.conv(2, 1, same=True)
            net.push(Relu, net.shape)
            ends.append(net.last)
        net.push(Concat, (4, 4, 4), tuple(ends), axis=0)
        net.push(AveragePool, (4, 2, 2), kernel=(2, 2), stride=(2, 2))
    net.push(Reshape, (int(np.prod(net.shape)),))
    for out in (16, 3):
        net.push(Gemm, (out,), weight=net.keep(out, net.shape[0]), bias=net.keep(out))
        if out == 16:
            net.push(Relu, net.shape)
    return validate(Graph("x", (1, 8, 8), tuple(net.nodes), net.last, net.params))


def row(source: bytes, signed: bool, data: Dataset | None, x: np.ndarray, calibration: np.ndarray, epsilon: str) -> dict[str, Any]:
    """Returns what becomes of one file: its operators as optimised, claims about x or the first samples of a dataset, and the audit."""
    with tempfile.TemporaryDirectory() as folder:
        before, path = Path(folder) / "float.onnx", Path(folder) / "quantised.onnx"
        before.write_bytes(source)
        model = onnx.ModelProto.FromString(source)
        quantize_static(
            str(before),
            str(path),
            Samples(model.graph.input[0].name, calibration),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QInt8 if signed else QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
            extra_options={"ActivationSymmetric": signed},
        )
        levels = check_runtime_graph(path).levels
        if data is None:
            labels = Runtime(path.read_bytes()).logits(x).argmax(axis=1).astype(np.int64)
            data = Dataset(x, 1.0, labels, ("a", "b", "c"), None)
        settings = Verify(attack_restarts=1, attack_steps=5, methods=["interval", "crown"])
        made = certify(path, data, PerturbationSet(epsilon=epsilon), contract("int8"), settings, samples=len(x))
        summary = made.summary
        return {
            "operators_at_level_all": levels[-1].operators,
            "samples": len(x),
            "epsilon": epsilon,
            "certified": summary.certified,
            "falsified": summary.falsified,
            "unknown": summary.unknown,
            "audit_passed": audit(path, data, made).passed,
        }


def main() -> int:
    """Quantises, certifies and audits; returns 1 where an audit fails or nothing of a file is certified."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="a trained float32 file, the fifth network")
    parser.add_argument("--data", default="mnist", help="the dataset of --model")
    parser.add_argument("--samples", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results-brought.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    rng = np.random.default_rng(0)
    x = rng.random((arguments.samples, 1, 8, 8)).astype(np.float32)
    jobs: list[tuple[str, bytes, Dataset | None, np.ndarray, str]] = []
    for kind in ("mlp", "cnn", "residual", "concat and pools"):
        jobs.append((kind, to_onnx(network(kind)).SerializeToString(), None, x[:12], "0.001"))
    if arguments.model:
        data = load(Data(name=arguments.data), None, 0).test
        jobs.append((f"trained: {arguments.data}", arguments.model.read_bytes(), data, data.inputs(np.arange(100, 132)), "0.1"))
    rows = {}
    for name, source, data, calibration, epsilon in jobs:
        for signed in (True, False):
            one = rows[f"{name}, {'s8s8' if signed else 'u8s8'}"] = row(source, signed, data, x, calibration, epsilon)
            print(name, "s8s8" if signed else "u8s8", {key: one[key] for key in ("certified", "falsified", "unknown", "audit_passed")})
    write_json(arguments.out, {"schema_version": 1, "files": rows})
    return 0 if all(one["audit_passed"] and one["certified"] for one in rows.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
