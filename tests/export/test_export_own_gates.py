"""Random networks with ReLU, LeakyRelu, Clip, residuals, pools and concatenations: every form that we export passes our own gates."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from own_nets import own_net

from vsparse.artifact.forms import BY_NAME, SPARSE
from vsparse.bounds import Rounding
from vsparse.contract import CONTRACTS
from vsparse.data import Dataset
from vsparse.graph.from_onnx import from_onnx
from vsparse.stages.export.exporters import EXPORTERS, ExportJob

FORMS = {
    "fp16": (("relu", "leaky"), ("fp16", "fp16-accumulate")),
    "bf16": (("relu", "leaky", "clip"), ("fp32",)),
    "int8": (("relu", "clip"), ("int8", "int8-tensorrt")),
}


def export(folder: Path, seed: int, name: str) -> None:
    """Writes one network in a form under each of its contracts; a gate that refuses it raises."""
    kinds, contracts = FORMS[name]
    graph, form = own_net(seed, kinds), BY_NAME[name]
    pixels = np.random.default_rng(seed).random((40, *graph.input_shape), dtype=np.float32)
    data = Dataset(pixels, 1.0, np.zeros(40, np.int64), ("a", "b", "c"), None)
    for contract in contracts:
        job = ExportJob(folder, {"sparse": graph}, data, 17, "r", defaultdict(lambda: "fp32", {form: contract}))
        for one in (SPARSE, form):
            EXPORTERS[one.name](job, one)
        Rounding(from_onnx(job.path(form.model)), CONTRACTS[contract])


# 229: a LeakyRelu that reads zeros alone; 125: a Clip whose end lies half a step inside that of the grid behind it.
@pytest.mark.parametrize(("name", "seeds"), [("fp16", (229, 0, 1, 2)), ("bf16", (0, 1)), ("int8", (125, 0, 1, 2))])
def test_our_exports_pass_our_gates(tmp_path, name, seeds):
    for seed in seeds:
        export(tmp_path, seed, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("part", range(10))
def test_our_exports_pass_our_gates_at_length(tmp_path, name, part):
    for seed in range(3 + part, 260, 10):
        export(tmp_path, seed, name)
