"""Files of onnxruntime.quantization: five networks in s8s8 and u8s8 are read and certified, and advice that is given works."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from precision_nets import random_net

from vsparse.artifact.certificate import Certificate
from vsparse.bounds import Rounding
from vsparse.contract import CONTRACTS, contract
from vsparse.data import Dataset
from vsparse.errors import InputError
from vsparse.graph import AddConstant, to_onnx
from vsparse.graph.from_onnx import from_onnx, read_onnx
from vsparse.perturbation import PerturbationSet
from vsparse.recipe import Verify
from vsparse.stages.export.runtime_graph import check_runtime_graph
from vsparse.stages.verify.audit import audit
from vsparse.stages.verify.certify import certify
from vsparse.stages.verify.deployed import Runtime


class Samples(CalibrationDataReader):
    def __init__(self, x):
        self.x = iter(x)

    def get_next(self):
        one = next(self.x, None)
        return None if one is None else {"input": one[None]}


def quantised(folder: Path, seed: int, activation: QuantType, **options) -> Path:
    rng = np.random.default_rng(seed)
    source, out = folder / "float.onnx", folder / "quantised.onnx"
    source.write_bytes(to_onnx(random_net(rng)).SerializeToString())
    samples = Samples(rng.random((12, 1, 6, 6)).astype(np.float32))
    settings = {"reduce_range": True, "per_channel": bool(seed % 2)} | options
    if activation == QuantType.QInt8:
        settings["extra_options"] = {"ActivationSymmetric": True}
    quantize_static(
        str(source), str(out), samples, quant_format=QuantFormat.QDQ, activation_type=activation, weight_type=QuantType.QInt8, **settings
    )
    return out


@pytest.mark.parametrize("activation", [QuantType.QInt8, QuantType.QUInt8])
@pytest.mark.parametrize("seed", range(5))
def test_five_networks_are_read_certified_and_audited(tmp_path, seed, activation):
    path = quantised(tmp_path, seed, activation, nodes_to_exclude=["shift", "spread"])
    check_runtime_graph(path)
    x = np.random.default_rng(9).random((4, 1, 6, 6)).astype(np.float32)
    labels = Runtime(path.read_bytes()).logits(x).argmax(axis=1).astype(np.int64)
    data = Dataset(x, 1.0, labels, ("a", "b", "c"), None)
    settings = Verify(attack_restarts=1, attack_steps=2, methods=["interval", "crown"])
    certificate: Certificate = certify(path, data, PerturbationSet(epsilon="0.0001"), contract("int8"), settings)
    assert certificate.summary.certified > 0
    assert audit(path, data, certificate).passed


def test_eight_bits_are_refused_and_the_advice_works(tmp_path):
    with pytest.raises(InputError, match=r"reduce_range=True in onnxruntime\.quantization"):
        Rounding(
            from_onnx(quantised(tmp_path, 1, QuantType.QInt8, reduce_range=False, nodes_to_exclude=["shift", "spread"])), CONTRACTS["int8"]
        )
    Rounding(from_onnx(quantised(tmp_path, 1, QuantType.QInt8, nodes_to_exclude=["shift", "spread"])), CONTRACTS["int8"])


@pytest.mark.parametrize("activation", [QuantType.QInt8, QuantType.QUInt8])
def test_constants_in_integers_are_refused_and_the_advice_works(tmp_path, activation):
    seed = next(i for i in range(20) if isinstance(random_net(np.random.default_rng(i)).nodes[0], AddConstant))
    with pytest.raises(InputError, match=r"nodes_to_exclude in onnxruntime\.quantization"):
        Rounding(read_onnx(quantised(tmp_path, seed, activation)).graph, CONTRACTS["int8"])
    path = quantised(tmp_path, seed, activation, nodes_to_exclude=["shift", "spread"])
    Rounding(from_onnx(path), CONTRACTS["int8"])
