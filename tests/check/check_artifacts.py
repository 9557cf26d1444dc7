"""Small artifacts as a build writes them: a random network, its certificate, the certified inputs and a manifest."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import torch
from torch import nn

from vsparse.artifact import files_of, write_manifest
from vsparse.contract import contract
from vsparse.data import Dataset
from vsparse.graph import from_torch, run
from vsparse.recipe import Property, Verify
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


def network(kind: str, seed: int = 0) -> nn.Module:
    """Returns a network on [1, 6, 6]: `plain` with pools and normalisation, or `residual` with a grouped convolution."""
    torch.manual_seed(seed)
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
    return from_torch(network(kind, seed), (1, 6, 6))


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
    found = certify(model, dataset, Property(epsilon=epsilon), contract(rules), settings, file="model/model.fp32.onnx", data_name="random")
    write_certificate(folder / "certificate" / "certificate.json", found)
    ids = np.array([claim.id for claim in found.claims if claim.verdict == "certified"], dtype=np.int64)
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
