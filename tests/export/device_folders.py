"""What tests of the device folder share: how it times, probes of its model, hashes of its files."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnxruntime

from vsparse.artifact.device_folder import DeviceTiming
from vsparse.stages.export import Probe

QUICK = DeviceTiming(runs=20, seconds=0.05, warmup_ms=10)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def probe_of(model: Path, room: float = 1e-4) -> Probe:
    x = np.random.default_rng(1).random((1, 8, 8), dtype=np.float32)
    logits = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"]).run(None, {"input": x[None]})[0][0].astype(float)
    return Probe(x, logits - room, logits + room)
