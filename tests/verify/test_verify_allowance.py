"""What bounds may take: memory by a setting, work by another, and what is said of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from vsparse.contract import CONTRACTS
from vsparse.data import Dataset
from vsparse.graph import from_torch, to_onnx
from vsparse.perturbation import PerturbationSet
from vsparse.recipe import Verify
from vsparse.stages.verify import Certificate, certify
from vsparse.stages.verify.allowance import MIB, Allowance

MEASURED = """
import sys
from pathlib import Path
import numpy as np, torch
from vsparse.contract import CONTRACTS
from vsparse.perturbation import PerturbationSet
from vsparse.stages.verify.allowance import Allowance
from vsparse.stages.verify.cascade import Cascade, Question
from vsparse.stages.verify.deployed import read_model
torch.set_num_threads(1)
question = Question(PerturbationSet(epsilon="1/1000"), CONTRACTS["fp32"], ("crown",), 0, 1, 1, 0)
cascade = Cascade(read_model(Path(sys.argv[1])), question, allowance=Allowance(int(sys.argv[2]), 1000))
x = np.full((48, 3, 32, 32), 0.5, np.float32)
cascade.bound("crown", x[:1], np.zeros(1, np.int64))
def peak():  # of this program; what getrusage says begins with the size of the process that started it
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
before = peak()
cascade.bound("crown", x, np.zeros(48, np.int64))
print(peak() - before)
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(4096, 3))
    path = tmp_path_factory.mktemp("allowance") / "model.onnx"
    path.write_bytes(to_onnx(from_torch(network.eval(), (3, 32, 32))).SerializeToString())
    return path


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
def test_memory_stays_within_the_setting(model: Path) -> None:
    found = {}
    for memory in (64, 4096):
        done = subprocess.run([sys.executable, "-c", MEASURED, str(model), str(memory)], capture_output=True, text=True, check=True)
        found[memory] = float(done.stdout)
    assert found[64] <= 64
    assert found[4096] > 64, "what is measured does not need so much: nothing is tested"


def test_as_many_samples_at_once_as_the_memory_holds() -> None:
    graph = from_torch(nn.Sequential(nn.Flatten(), nn.Linear(1000, 1000), nn.ReLU(), nn.Linear(1000, 2)), (1, 10, 100))
    parts = Allowance(1, 1).parts(graph, 7)
    assert [index for part in parts for index in range(7)[part]] == list(range(7))
    assert {part.stop - part.start for part in parts[:-1]} == {MIB * 3 // 4 // (128 * 4002)}
    assert Allowance(1, 1).parts(graph, 0) == []
    assert Allowance().parts(graph, 64) == [slice(0, 64)]


def certificate_of(path: Path, **settings: object) -> Certificate:
    dataset = Dataset(np.full((3, 3, 32, 32), 0.5, np.float32), 1.0, np.zeros(3, np.int64), ("0", "1", "2"), None)
    return certify(path, dataset, PerturbationSet(epsilon="1/500"), CONTRACTS["fp32"], Verify.model_validate(settings))


def test_what_is_not_usual_is_stated(model: Path) -> None:
    usual = certificate_of(model, methods=("crown",), attack_steps=1, attack_restarts=1)
    assert not {"memory", "refine_work"} & set(usual.settings)
    other = certificate_of(model, methods=("crown",), attack_steps=1, attack_restarts=1, memory=64, refine_work=0)
    assert (other.settings["memory"], other.settings["refine_work"]) == (64, 0)
    margins = [[claim.margin_lower for claim in one.claims if claim.margin_lower is not None] for one in (usual, other)]
    assert len(margins[0]) == len(margins[1])
    assert all(rough <= refined for refined, rough in zip(*margins, strict=True))
