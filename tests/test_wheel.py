"""A wheel works outside the repository: targets and recipes are inside it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import vsparse

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.slow
def test_wheel_works_outside_the_repository(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        said = archive.read(metadata).decode().splitlines()
        assert archive.read(metadata.replace("METADATA", "licenses/LICENSE")) == (ROOT / "LICENSE").read_bytes()
    assert "License-Expression: Apache-2.0" in said
    assert f"Version: {vsparse.__version__}" in said
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    for command, least in (("targets", 7), ("models", 2)):
        done = subprocess.run(
            [sys.executable, "-m", "vsparse", command, "--json"], cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
        )
        listed = json.loads(done.stdout)
        assert len(listed if command == "targets" else listed["recipes"]) >= least
    where = "import vsparse, vsparse_check; print(vsparse.__file__)"
    done = subprocess.run([sys.executable, "-c", where], cwd=tmp_path, env=environment, check=True, capture_output=True, text=True)
    assert str(tmp_path) in done.stdout
