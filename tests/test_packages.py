"""The packages of the wheel: each is tried by using it, and they are those that the project declares."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import pytest

from vsparse import environment, second_opinion
from vsparse.environment import examine, is_ready
from vsparse.packages import PACKAGES

PROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"
# Those that the command line itself is made of: without them there is no doctor to ask.
OF_THE_COMMAND_LINE = {"typer", "rich"}


def distributions(requirements: list[str]) -> set[str]:
    return {re.split(r"[<>=~!\[; ]", one, maxsplit=1)[0].lower() for one in requirements}


@pytest.mark.skipif(not PROJECT.exists(), reason="pyproject.toml is not beside the tests")
def test_what_a_build_needs_is_what_the_wheel_brings() -> None:
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    brought = distributions(project["dependencies"])
    needed = set(environment.REQUIRED) - {"python", "memory", "disk"}
    assert needed == brought - OF_THE_COMMAND_LINE
    assert not distributions(project["optional-dependencies"]["cross-check"]) & brought
    assert not any("lirpa" in name for name in brought)


@pytest.mark.parametrize(
    ("name", "module"), [("scikit-learn", "sklearn.datasets"), ("jinja2", "jinja2"), ("safetensors", "safetensors.torch")]
)
def test_one_that_is_missing_means_not_ready(name: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    probe, way_out = next((probe, way_out) for other, probe, way_out in PACKAGES if other == name)
    finding = environment._try(name, probe, way_out)
    assert (finding.status, finding.required) == ("absent", True)
    assert finding.way_out == f"pip install {name}"
    assert not is_ready([finding])


def test_one_that_computes_something_else_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("safetensors.torch.load", lambda data: {"a": __import__("torch").tensor([0.0, 1.0, 9.0])})
    probe = next(probe for name, probe, _ in PACKAGES if name == "safetensors")
    finding = environment._try("safetensors", probe, "x")
    assert finding.status == "broken"
    assert "a tensor that was saved came out as [0.0, 1.0, 9.0]" in finding.detail


def test_the_second_verifier_is_optional_and_its_absence_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "auto_LiRPA", None)
    findings = examine()
    finding = next(one for one in findings if one.name == "auto_LiRPA")
    assert (finding.status, finding.required) == ("absent", False)
    assert "not installed" in finding.detail
    assert finding.way_out.startswith(f"optional: {second_opinion.INSTALL};")
    assert is_ready(findings)
