"""Small artifacts as a build writes them: a random network, its certificate, the certified inputs and a manifest."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from vsparse.artifact import files_of, write_manifest
from vsparse.contract import contract
from vsparse.data import Dataset
from vsparse.graph import from_torch, run
from vsparse.graph.ir import DivConstant, MulConstant
from vsparse.perturbation import PerturbationSet
from vsparse.recipe import Verify
from vsparse.stages.export import write_onnx
from vsparse.stages.verify import certify, write_certificate

CLASSES = 4


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, groups=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.second(torch.relu(self.first(x))) + x)


class Shift(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.25]).view(1, 1, 1, 1))
        self.register_buffer("scale", torch.tensor([3.0]).view(1, 1, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - self.mean) * self.scale


class Between(nn.Module):
    """Two convolutions with ReLU around one function of the maps [4, 6, 6], and two linear layers around another of the vector."""

    def __init__(self, maps: Callable[[torch.Tensor], torch.Tensor], vector: Callable[[torch.Tensor], torch.Tensor] | None = None) -> None:
        super().__init__()
        self.maps, self.vector = maps, vector or (lambda x: x)
        self.first, self.hidden = nn.Conv2d(1, 4, 3, padding=1), nn.LazyLinear(10)
        self.last = nn.LazyLinear(CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = self.maps(self.first(x))
        return self.last(self.vector(self.hidden(torch.flatten(maps, 1))))


# Networks with each operator that a build writes beside those of `plain` and `residual`.
OPERATORS = {
    "leaky": lambda: Between(nn.LeakyReLU(0.1), nn.LeakyReLU(0.01)),
    "clip": lambda: Between(nn.ReLU6(), nn.Hardtanh(-0.3, 0.4)),
    "sigmoid": lambda: Between(nn.Sigmoid(), nn.Sigmoid()),
    "tanh": lambda: Between(nn.Tanh(), nn.Tanh()),
    "concat": lambda: Between(lambda x: torch.cat((torch.relu(x), -x[:, 1:3], torch.tanh(x)), 1), torch.relu),
    "slice": lambda: Between(lambda x: torch.relu(x)[:, 1:, 1:5:2, :4], lambda x: torch.relu(x)[:, 2:9]),
    "gather": lambda: Between(lambda x: torch.relu(x)[:, [2, 0, 2]], lambda x: torch.relu(x)[:, [9, 1, 1, 4]]),
    "transpose": lambda: Between(lambda x: torch.relu(x).permute(0, 3, 1, 2), torch.relu),
    "pad": lambda: Between(lambda x: torch.relu(nn.functional.pad(torch.relu(x), (1, 0, 2, 1), value=0.25)), torch.relu),
    "sub": lambda: Between(lambda x: torch.relu(x) - torch.tanh(x), lambda x: 1 - torch.relu(x)),
    "neg": lambda: Between(lambda x: torch.relu(-x), lambda x: torch.relu(-x)),
    "div": lambda: Between(lambda x: torch.relu(x) / 3.0, lambda x: torch.relu(x) / 0.7),
}


def network(kind: str, seed: int = 0) -> nn.Module:
    """Returns a network on [1, 6, 6]: `plain` with pools and normalisation, `residual` with a grouped convolution, or one of OPERATORS."""
    torch.manual_seed(seed)
    if kind in OPERATORS:
        made = OPERATORS[kind]()
        made(torch.zeros(1, 1, 6, 6))
        return made.eval()
    if kind == "plain":
        body = [
            nn.Conv2d(1, 4, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, 1),
            nn.Conv2d(4, 5, 2, stride=1),
            nn.ReLU(),
            nn.AvgPool2d(2, 1),
        ]
        return nn.Sequential(Shift(), *body, nn.Flatten(), nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, CLASSES)).eval()
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), Residual(), nn.Flatten(), nn.Linear(64, CLASSES)).eval()


def graph_of(kind: str, seed: int = 0):
    graph = from_torch(network(kind, seed), (1, 6, 6))
    if kind == "div":  # torch's divisions become products; files have them
        nodes = [DivConstant(**vars(node)) if isinstance(node, MulConstant) else node for node in graph.nodes]
        graph = replace(graph, nodes=tuple(nodes))
    return graph


def samples(graph, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Returns random inputs and what the network predicts for them."""
    x = np.random.default_rng(seed).random((count, 1, 6, 6)).astype(np.float32)
    return x, run(graph, graph.tensors(), torch.from_numpy(x)).argmax(dim=1).numpy().astype(np.int64)


def build(
    folder: Path, kind: str = "plain", seed: int = 0, epsilon: str = "0.01", rules: str = "fp32", methods=None, count: int = 24
) -> Path:
    """Writes an artifact with a certificate of `count` samples and returns its directory."""
    graph = graph_of(kind, seed)
    model = folder / "model" / "model.fp32.onnx"
    write_onnx(graph, model, 17, {})
    x, labels = samples(graph, count, seed)
    dataset = Dataset(x, 1.0, labels, tuple("abcd"), None)
    settings = Verify(contract=rules, methods=methods or ("interval", "crown-ibp", "crown"), attack_steps=2, attack_restarts=1)
    found = certify(
        model, dataset, PerturbationSet(epsilon=epsilon), contract(rules), settings, file="model/model.fp32.onnx", data_name="random"
    )
    write_certificate(folder / "certificate" / "certificate.json", found)
    ids = np.array([claim.id for claim in found.claims if claim.verdict != "falsified"], dtype=np.int64)
    save_inputs(folder, ids, x[ids])
    return sign(folder)


def save_inputs(folder: Path, ids: np.ndarray, inputs: np.ndarray) -> None:
    stream = io.BytesIO()
    np.savez_compressed(stream, ids=ids, inputs=inputs)
    (folder / "certificate" / "inputs.npz").write_bytes(stream.getvalue())


def sign(folder: Path) -> Path:
    """Writes the manifest again, as a forger who knows the format would."""
    if (folder / "manifest.json").exists():
        content = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps({**content, "files": files_of(folder)}))
    else:
        write_manifest(folder, seed=0, until="report", road_key="0" * 64, lineage=[])
    return folder
