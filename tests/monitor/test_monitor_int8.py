"""`vsparse.live` and the monitor in 8-bit integers: the form that the build chose, or the one that is asked for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from live_nets import EPSILON, frames, live_artifact

import vsparse
from vsparse.artifact import write_manifest
from vsparse.artifact.choice import CHOICE, FormChoice
from vsparse.artifact.document import read_document, write_document
from vsparse.artifact.forms import INT8_C
from vsparse.artifact.live import LIVE, LiveRecord
from vsparse.errors import InputError, UnavailableError
from vsparse.graph.from_onnx import from_onnx
from vsparse.monitor.__main__ import main
from vsparse.stages.export.c_live import simulate_live_int8
from vsparse.stages.export.c_live.int8_backward_simulation import simulate_budget_int8
from vsparse.stages.export.c_source.compile import find_compiler


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return live_artifact(tmp_path_factory.mktemp("live") / "artifact", int8=True)


def chosen(directory: Path, form: str) -> Path:
    """Writes the choice of a form."""
    write_document(directory / CHOICE, FormChoice(chosen=form, reason="", measured_on="", advice="", rows=()))
    write_manifest(directory, seed=0, until="report", road_key="0" * 64, lineage=[])
    return directory


def test_the_record_counts_both_forms(directory: Path) -> None:
    record, x = read_document(LiveRecord, directory / LIVE), frames(40)
    assert record.int8 is not None
    with vsparse.live(directory, form="int8-c", compiled=False) as live:
        verdicts = live(x, EPSILON, radius=True)
        assert (live.form, live.contract) == ("int8-c", "int8")
        np.testing.assert_array_equal(live.reference_radii, [frame.radius for frame in record.int8.frames])
    assert 5 < record.int8.at_epsilon.certified == sum(one.certified for one in verdicts)
    assert [point.certified for point in record.int8.curve][3] == record.int8.at_epsilon.certified
    assert [(frame.label, frame.certified, frame.radius) for frame in record.int8.frames] == [
        (one.label, one.certified, one.radius) for one in verdicts
    ]
    assert record.answers_of("int8-c") is record.int8
    assert record.answers_of("sequential") is record.answers_of("fp32") is record.answers_of("") is record


def test_compiled_c_and_simulation_answer_the_same(directory: Path) -> None:
    try:
        find_compiler()
    except UnavailableError as error:
        pytest.skip(str(error))
    x, graph = frames(20, seed=5), from_onnx(directory / INT8_C.model)
    with vsparse.live(directory, form="C int8") as compiled, vsparse.live(directory, form="C int8", compiled=False) as simulated:
        assert (compiled.by, simulated.by) == ("compiled C", "simulation")
        for epsilon in (0.0, float(np.float32(EPSILON)), 0.1):
            found = compiled(x, epsilon, radius=True)
            assert found == simulated(x, epsilon, radius=True)
            assert [one.certified for one in found] == simulate_live_int8(graph, x, epsilon).certified.tolist()
        for i, one in enumerate(found):
            if one.radius is not None and one.radius >= 0:
                assert compiled(x[i], one.radius)[0].certified


def test_the_form_is_the_one_that_was_chosen(tmp_path: Path) -> None:
    folder = live_artifact(tmp_path / "artifact", count=8, int8=True)
    for form, found in (("int8-c", "int8-c"), ("sequential", "sequential"), ("int8", "sequential"), ("", "sequential")):
        with vsparse.live(chosen(folder, form), compiled=False) as live:
            assert live.form == found
    with vsparse.live(chosen(folder, "int8-c"), form="sequential", compiled=False) as live:
        assert live.contract == "sequential"


def test_a_form_that_is_none_or_not_there_is_refused(directory: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r'"int8" is no form in C.*"sequential" or "int8-c"'):
        vsparse.live(directory, form="int8")
    plain = live_artifact(tmp_path / "artifact", count=3)
    with pytest.raises(InputError, match=r"holds no model/model\.int8\.onnx; build it with int8"):
        vsparse.live(plain, form="int8-c")


def test_the_monitor_watches_in_int8(directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = "".join(json.dumps({"pixels": one.ravel().tolist()}) + "\n" for one in frames(6))
    (tmp_path / "frames.jsonl").write_text(lines)
    told = {}
    for form in ("sequential", "int8-c"):
        assert main([str(directory), "--form", form, "--simulate", "--frames", str(tmp_path / "frames.jsonl")]) == 0
        told[form] = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert told[form][-1]["form"] == form
    assert [one["margin"] for one in told["int8-c"][:-1]] != [one["margin"] for one in told["sequential"][:-1]]
    assert main([str(directory), "--form", "fp16"]) == 2
    assert "is no form in C" in capsys.readouterr().err


def test_a_budget_is_spent_in_both_forms(tmp_path: Path) -> None:
    folder, x = live_artifact(tmp_path / "artifact", int8=True, budget=9), frames(20, seed=5)
    graph = from_onnx(folder / INT8_C.model)
    for epsilon in (0.02, 0.08):
        stated = simulate_budget_int8(graph, x, epsilon, 9)
        for compiled in (True, False):
            with vsparse.live(folder, form="int8-c", compiled=compiled) as live:
                verdicts = live(x, epsilon)
            assert [one.certified for one in verdicts] == stated.certified.tolist()
            assert [one.margin for one in verdicts] == stated.margin.tolist()
    record = read_document(LiveRecord, folder / LIVE)
    assert record.int8 is not None
    assert record.int8.budget == record.budget == 9
