"""What optimised slopes and branch and bound add on a network that was trained against an attack, not for its bounds.

Trains a small convolutional network on MNIST with projected gradient descent (Madry et al., ICLR 2018), certifies the first test samples
with more and more methods, and lets `vsparse_check` confirm the last certificate.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from collections import Counter
from pathlib import Path
from time import perf_counter, process_time

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from vsparse.artifact import CERTIFICATE, MODEL, write_manifest
from vsparse.artifact.counterexamples import npz_bytes
from vsparse.contract import CONTRACTS
from vsparse.data import load
from vsparse.files import write_json
from vsparse.graph import from_torch, to_onnx
from vsparse.recipe import Data, Property, Verify
from vsparse.stages.verify import certify, write_certificate
from vsparse_check.artifact import check

STEPS = (
    ("interval",),
    ("interval", "crown-ibp"),
    ("interval", "crown-ibp", "crown"),
    ("interval", "crown-ibp", "crown", "alpha-crown"),
    ("interval", "crown-ibp", "crown", "alpha-crown", "branch-and-bound"),
)


def network() -> nn.Sequential:
    """Returns the network, untrained."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 4, 2, 1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 4, 2, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 7 * 7, 100),
        nn.ReLU(),
        nn.Linear(100, 10),
    )


def train(net: nn.Sequential, x: torch.Tensor, y: torch.Tensor, radius: float, epochs: int) -> None:
    """Trains on points that five steps of gradient ascent find in the ball."""
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for epoch in range(epochs):
        for batch in torch.randperm(len(x), generator=torch.Generator().manual_seed(epoch)).split(128):
            clean, labels = x[batch], y[batch]
            point = (clean + torch.empty_like(clean).uniform_(-radius, radius)).clamp(0, 1)
            for _ in range(5):
                point.requires_grad_()
                (gradient,) = torch.autograd.grad(F.cross_entropy(net(point), labels), point)
                point = point.detach() + radius / 2 * gradient.sign()
                point = torch.minimum(torch.maximum(point, clean - radius), clean + radius).clamp(0, 1)
            optimizer.zero_grad()
            F.cross_entropy(net(point), labels).backward()
            optimizer.step()
        schedule.step()


def main() -> int:
    """Runs it and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--epsilon", default="0.1")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--domains", type=int, default=256)
    parser.add_argument("--model", type=Path, help="a file to keep the trained network in, and to take it from where it is there")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results.json"))
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    data = load(Data(name="mnist"), Path(os.environ["VSPARSE_DATA"]), 0)
    net, started = network(), process_time()
    if options.model and options.model.exists():
        net.load_state_dict(load_file(options.model))
    else:
        train(net, torch.from_numpy(data.train.inputs()), torch.from_numpy(data.train.labels), float(options.epsilon), options.epochs)
        if options.model:
            save_file(net.state_dict(), options.model)
    result = {
        "network": "conv 16 4x4 s2, conv 32 4x4 s2, fc 100, fc 10, trained by PGD",
        "epsilon": options.epsilon,
        "epochs": options.epochs,
        "samples": options.samples,
        "contract": "fp32",
        "branch_domains": options.domains,
        "training_cpu_seconds": round(process_time() - started, 1),
        "machine": platform.machine(),
        "steps": [],
    }
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name in ("model", "certificate"):
            (root / name).mkdir()
        (root / MODEL).write_bytes(to_onnx(from_torch(net, (1, 28, 28))).SerializeToString())
        for methods in STEPS:
            started = process_time()
            asked = Property(epsilon=options.epsilon, samples=options.samples)
            settings = Verify(methods=methods, branch_domains=options.domains)
            certificate = certify(root / MODEL, data.test, asked, CONTRACTS["fp32"], settings, file=MODEL, data_name="mnist")
            searched = [claim for claim in certificate.claims if claim.verdict == "certified" and claim.proof == "proofs.npz"]
            result["steps"].append(
                {
                    "last_method": methods[-1],
                    "certified": certificate.summary.certified,
                    "falsified": certificate.summary.falsified,
                    "unknown": certificate.summary.unknown,
                    "certified_by": dict(Counter(claim.method for claim in certificate.claims if claim.verdict == "certified")),
                    "cpu_seconds": round(process_time() - started, 1),
                    "proofs_bytes": certificate.proofs_bytes,
                    "bytes_per_searched_claim": round(certificate.bytes_per_proof()) if searched else 0,
                }
            )
            print(json.dumps(result["steps"][-1]), file=sys.stderr, flush=True)
        write_certificate(root / CERTIFICATE, certificate)
        ids = np.array([claim.id for claim in certificate.claims if claim.verdict == "certified"], dtype=np.int64)
        inputs = data.test.inputs(slice(0, options.samples))[ids]
        (root / CERTIFICATE).with_name("inputs.npz").write_bytes(npz_bytes({"ids": ids, "inputs": inputs}))
        write_manifest(root, seed=0, until="verify", road_key="0" * 64, lineage=[])
        started, wall = process_time(), perf_counter()
        found = check(root)
        result["check"] = {
            "confirmed": found.confirmed,
            "certified": found.certified,
            "problem": found.problem,
            "cpu_seconds": round(process_time() - started, 1),
            "seconds": round(perf_counter() - wall, 1),
        }
    write_json(options.out, result)
    print(json.dumps(result["check"]))
    return found.status


if __name__ == "__main__":
    sys.exit(main())
