"""Times of layers, in ONNX Runtime and in C, on this machine and by the agent; and what the agent tells of every form's turns."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from loopback import NEEDED

from vsparse.artifact.device import DeviceResults
from vsparse.artifact.document import read_document
from vsparse.errors import InputError
from vsparse.stages.export.device.basics import Stop
from vsparse.stages.export.device.layer_times import marked_source, onnxruntime_rows
from vsparse.stages.profile.layers import c_layers, layer_times, onnx_layers

CALL = re.compile(r"^ *vsparse_agent_layer\(-?\d+\);\n|^void vsparse_agent_layer\(int next\);\n", re.M)


def test_the_text_that_is_timed_is_the_text_with_calls_between_layers(device_folder: Path) -> None:
    text = (device_folder / "model.c").read_text()
    marked, titles = marked_source(text, "vsparse")
    assert CALL.sub("", marked) == text
    assert [title.split()[0] for title in titles[:2]] == ["Gemm", "Gemm"]
    calls = [int(one) for one in re.findall(r"vsparse_agent_layer\((-?\d+)\);", marked)]
    assert [one for one in calls if one >= 0] == list(range(len(titles)))
    assert calls.count(-1) == 2  # the text with vectors, and the one without
    with pytest.raises(Stop, match="names 0 layers"):
        marked_source("int main(void)\n{\n    /* no network */\n}\n", "vsparse")


def test_layers_here_are_those_of_the_network(device_folder: Path) -> None:
    model, source = device_folder.parent / "model.fp32.onnx", device_folder.parent / "model.c"
    in_runtime, in_c = onnx_layers(model), c_layers(source, model, "vsparse")
    assert any("Gemm" in row.operator for row in in_runtime)
    assert [row.name.split()[0] for row in in_c[:2]] == ["Gemm", "Gemm"]
    for rows in (in_runtime, in_c):
        assert sum(row.percentage or 0 for row in rows) == pytest.approx(100)
    assert all((row.average_ms or 0) > 0 for row in in_c)
    assert [row.name for row in layer_times(model, {})[model.name]] == [row.name for row in in_runtime]


@pytest.mark.parametrize("text", ["", "[]", "{}", "[1]", '[{"cat": "Node", "name": "a_kernel_time"}]', "[" * 9999])
def test_a_profile_that_is_none_is_a_sentence(tmp_path: Path, text: str) -> None:
    path = tmp_path / "profile.json"
    path.write_text(text)
    with pytest.raises(Stop, match="ONNX Runtime"):
        onnxruntime_rows(str(path))
    with pytest.raises(InputError):
        onnx_layers(path)


@NEEDED
def test_the_agent_times_every_form_alike_and_its_layers(folder: Path) -> None:
    command = [sys.executable, str(folder / "agent.py"), "--layers", "--seconds", "0.4", "--runs", "50"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    content = json.loads((folder / "results.json").read_text())
    assert content["asked"]["layers"] is True
    assert "others_cores" in content["conditions"]["timed"]
    entries = content["models"] + content["further"]
    assert [one["runtime"]["name"] for one in entries] == ["onnxruntime", "onnxruntime", "c"]
    turns = {len(one["latency"]["block_samples"]) for one in entries}
    assert len(turns) == 1  # every form had as many turns
    for one in entries:
        latency = one["latency"]
        assert latency["runs_timed"] >= 50
        # Reading the clock takes part of a turn, of a network of a few nanoseconds up to half.
        assert latency["timed_s"] * one["settings"].get("runs_per_sample", 1) >= 0.15
        assert sum(latency["block_samples"]) == latency["runs"] == len(latency["samples_ms"])
        assert latency["latency_ms_p50"] <= latency["latency_ms_p90"] <= latency["latency_ms_p99"] <= latency["latency_ms_max"]
        assert isinstance(one["noise"], list)
        assert sum(row["percentage"] for row in one["layer_times"]) == pytest.approx(100)
        for reason in one["noise"]:
            assert reason["detail"] in done.stdout
    in_c = entries[2]
    assert in_c["settings"]["runs_per_sample"] >= 2  # a few dozen products
    assert [row["name"].split()[0] for row in in_c["layer_times"][:2]] == ["Gemm", "Gemm"]
    found = read_document(DeviceResults, folder / "results.json")
    for model in found.measurements:
        latency = model.measured(found.device)
        assert latency is not None
        assert latency.noise is not None
        assert len(latency.blocks) == turns.copy().pop()
    # The shipped text is as it was.
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["c_sources"][0]["file"] == "model.c"
    for change, words in (
        ({"block_samples": (1,)}, "block_samples"),
        ({"runs_timed": 10**9}, "all_runs_ns|counts"),
    ):
        changed = json.loads((folder / "results.json").read_text())
        changed["models"][0]["latency"].update(change)
        (folder / "changed.json").write_text(json.dumps(changed))
        with pytest.raises(InputError, match=words):
            read_document(DeviceResults, folder / "changed.json")
