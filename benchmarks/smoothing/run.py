"""Trains small networks on MNIST under Gaussian noise and certifies their smoothed classifiers: the share certified at each l2 radius."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from time import perf_counter

import torch
from torch import nn

from vsparse.data import Dataset, load
from vsparse.files import write_json
from vsparse.graph import from_torch, to_onnx
from vsparse.recipe import Data
from vsparse.stages.verify.smoothing import Sampling, smooth

RADII = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25)


def train(data: Dataset, sigma: float, samples: int, epochs: int) -> nn.Module:
    """Returns a network of two convolutions, trained on inputs with noise added."""
    torch.manual_seed(0)
    x, y = torch.from_numpy(data.inputs()[:samples]), torch.from_numpy(data.labels[:samples])
    net = nn.Sequential(
        nn.Conv2d(1, 16, 4, 2, 1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 4, 2, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 49, 100),
        nn.ReLU(),
        nn.Linear(100, 10),
    )
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(128):
            noisy = x[batch] + sigma * torch.randn_like(x[batch])
            loss = nn.functional.cross_entropy(net(noisy), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return net


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results.json")
    parser.add_argument("--train-samples", type=int, default=20_000)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--n", type=int, default=2000)
    parser.add_argument("--alpha", type=float, default=0.001)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    splits = load(Data(name="mnist"), None, 0)
    rows = []
    for sigma in (0.25, 0.5):
        started = perf_counter()
        net = train(splits.train, sigma, arguments.train_samples, arguments.epochs)
        trained = perf_counter() - started
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            path.write_bytes(to_onnx(from_torch(net, (1, 28, 28))).SerializeToString())
            started = perf_counter()
            result = smooth(path, splits.test, Sampling(sigma, n=arguments.n, alpha=arguments.alpha), samples=arguments.samples)
        seconds = perf_counter() - started
        shares = {f"{radius:g}": result.accuracy(radius) for radius in RADII}
        rows.append({"sigma": sigma, "abstained": result.abstained, "certified": shares, "train_s": trained, "certify_s": seconds})
        print(f"sigma {sigma}: abstained {result.abstained}, " + ", ".join(f"r >= {r}: {s:.2f}" for r, s in shares.items()))
        print(f"  trained in {trained:.0f} s, certified in {seconds:.0f} s")
    setting = {name: value for name, value in vars(arguments).items() if name != "out"}
    write_json(arguments.out, {"kind": "probabilistic", "setting": setting, "rows": rows})


if __name__ == "__main__":
    main()
