"""What all tests share: a cache of their own, and the shared data where it is present."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tiny_build import TINY


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


@pytest.fixture(scope="session")
def tiny_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact of a very small build; tests copy it before they change anything."""
    from vsparse.pipeline.build import build

    folder = tmp_path_factory.mktemp("tiny")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VSPARSE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        result = build("digits", settings=list(TINY), out=folder / "artifact")
    assert result.passed, [gate for gate in result.gates if not gate.passed]
    return result.directory
