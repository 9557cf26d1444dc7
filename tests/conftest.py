"""What all tests share: a cache of their own, and the shared data where it is present."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's stage cache."""
    monkeypatch.setenv("VSPARSE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder that VSPARSE_DATA names; tests that need it are skipped without."""
    folder = os.environ.get("VSPARSE_DATA", "")
    if not folder or not Path(folder).is_dir():
        pytest.skip("needs the shared datasets (MNIST, CIFAR-10, GTSRB): set VSPARSE_DATA to their folder")
    return Path(folder)


# A whole build in seconds: few epochs, few samples, and yet better than a constant answer, which is a gate; for tests of what stands
# around the stages.
TINY = (
    "network.architecture=mlp",
    "network.width=0.5",
    "train.epochs=6",
    "train.batch_size=32",
    "train.learning_rate=0.01",
    "property.samples=40",
    "property.curve_samples=10",
    "property.curve=['0.01', '0.02']",
    "property.epsilon='0.01'",
    "verify.cross_check=2",
    "verify.attack_restarts=1",
    "verify.attack_steps=5",
    "profile.runs=20",
    "profile.seconds=0.05",
    "gates.certified_accuracy=0",
    "gates.dense_certified_accuracy=0",
    "gates.certified_loss=0",
    "gates.weights_removed=0",
    "gates.latency_ratio=0",
)


@pytest.fixture(scope="session")
def tiny_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact of a very small build; tests copy it before they change anything."""
    from vsparse.pipeline import build

    folder = tmp_path_factory.mktemp("tiny")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VSPARSE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        result = build("digits", settings=list(TINY), out=folder / "artifact")
    assert result.passed, [gate for gate in result.gates if not gate.passed]
    return result.directory
