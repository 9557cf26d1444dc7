"""Every option that is given to trtexec is one that its version has: names from the sources of 8.5.2 to 11.1."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vsparse.stages.export.device.trtexec import Trtexec

KNOWN = json.loads((Path(__file__).parent / "trtexec_options.json").read_text())["versions"]
TIMING = {"warmup_ms": 500, "seconds": 10.0, "runs": 300, "warmup_runs": 0}


def tool(version: str) -> Trtexec:
    """Returns trtexec of a version without starting one; its help names its options."""
    found = object.__new__(Trtexec)
    found.path, found.help = "trtexec", " ".join(KNOWN[version]["options"])
    numbers = [int(part) for part in version.split(".")]
    found.version = (numbers[0], numbers[1], numbers[2] if len(numbers) > 2 else 0)
    return found


def given(version: str) -> list[str]:
    """Returns all options of all calls, of every precision, with and without sparse weights."""
    trtexec = tool(version)
    calls = [
        trtexec.build_options({"precision": precision, "structured_sparsity": sparse}, "m.onnx", "e", "l.json", "x:1x3", "c")
        for precision in ("fp32", "fp16", "int8")
        for sparse in (False, True)
    ]
    calls += [
        trtexec.info_options("e", "l.json", "x:1x3"),
        trtexec.time_options("e", "t.json", "x:1x3", TIMING),
        trtexec.layer_options("e", "p.json", "x:1x3"),
        trtexec.probe_options("e", "x:1x3", "x:probe.bin", "o.json"),
    ]
    return [option for call in calls for option in call]


@pytest.mark.parametrize("version", KNOWN)
def test_every_option_is_one_of_the_version(version: str) -> None:
    names = {option.split("=")[0] for option in given(version)}
    assert names <= set(KNOWN[version]["options"])
    assert {"--onnx", "--noTF32", "--sparsity", "--timingCacheFile", "--exportLayerInfo", "--profilingVerbosity"} <= names
    assert ("--stronglyTyped" in names) == (not version.startswith("8"))
    assert (version.startswith("8")) == bool({"--fp16", "--int8"} & names)


def test_a_name_that_a_version_lacks_is_noticed() -> None:
    assert "--stronglyTyped" not in KNOWN["8.5.2"]["options"]
    assert not {"--fp16", "--layerPrecisions"} & set(KNOWN["11.1"]["options"])
    assert "--includeDataTransfers" not in KNOWN["10.16"]["options"]


@pytest.mark.parametrize("version", KNOWN)
def test_sparse_kernels_are_allowed_and_never_forced(version: str) -> None:
    asked = [tool(version).build_options({"precision": "fp32", "structured_sparsity": one}, *"oelxc") for one in (False, True)]
    assert [[option for option in call if "sparsity" in option] for call in asked] == [[], ["--sparsity=enable"]]
    assert all("--timingCacheFile=c" in call for call in asked)
