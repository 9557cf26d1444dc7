"""Frama-C's Eva over the C: no undefined behaviour, and no number that is not finite, for any input of the data range.

Networks of the shipped recipes have untrained weights, pruned at random to what the recipe keeps; where the recipe's own size takes hours,
they are narrower, which changes how often a loop turns and not what it does.
"""

import json
import re
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from c_nets import Builder, networks
from c_recipes import architectures, recipe_network

from vsparse.cli.results import analysis_line
from vsparse.errors import UnavailableError
from vsparse.graph import Relu, to_onnx
from vsparse.stages.export.c_int8 import emit_int8_c
from vsparse.stages.export.c_live import emit_live_c, emit_live_int8_c
from vsparse.stages.export.c_source import emit_c
from vsparse.stages.export.c_source.eva import EvaRequest, analyse, find_eva, read_summary
from vsparse.stages.export.c_source.stage import CRequest, write_c
from vsparse.stages.export.quantise import quantise


@pytest.fixture
def eva():
    try:
        return find_eva()
    except UnavailableError as error:
        pytest.skip(str(error))


def _float32(graph, emit=emit_c, **asked):
    return analyse(emit(graph, weights="text").files(), "model.c", "vsparse", EvaRequest(**asked))


def _int8(graph, emit=emit_int8_c, **asked):
    points = np.random.default_rng(0).random((16, *graph.input_shape), dtype=np.float32)
    source = emit(quantise(graph, points), weights="text")
    return analyse(source.files(), "model.int8.c", "vsparse_int8", EvaRequest(**asked))


def _clean(found):
    assert found.finished, found.reason
    assert found.alarms == 0, found.found
    # What is left are returns for logits that are not finite.
    assert found.statements - 8 <= found.reached <= found.statements


def _small():
    b = Builder(np.random.default_rng(0), 1, 4, 4)
    b.conv(4, (3, 3), pads=(1, 1, 1, 1))
    b.add(Relu)
    b.flatten()
    b.gemm(3)
    return b.graph()


@pytest.mark.usefixtures("eva")
def test_a_small_network_has_no_alarm():
    found = _float32(_small())
    _clean(found)
    assert found.tool.startswith("Frama-C ")
    assert found.inputs == (0.0, 1.0)


@pytest.mark.usefixtures("eva")
def test_the_live_certificate_has_no_alarm_for_any_finite_input_and_any_radius():
    plain, live = _float32(_small()), _float32(_small(), emit_live_c)
    _clean(live)
    assert live.reached > 2 * plain.reached
    _clean(_int8(_small(), emit_live_int8_c))


@pytest.mark.usefixtures("eva")
def test_the_second_tier_has_no_alarm_for_any_finite_input_radius_and_budget():
    live, both = _float32(_tiny(), emit_live_c), _float32(_tiny(), partial(emit_live_c, second=True))
    _clean(both)
    assert both.reached > 2 * live.reached
    _clean(_int8(_tiny(), partial(emit_live_int8_c, second=True)))


def _tiny():
    b = Builder(np.random.default_rng(0), 1, 3, 3)
    b.conv(2, (2, 2))
    b.add(Relu)
    b.flatten()
    b.gemm(2)
    return b.graph()


@pytest.mark.usefixtures("eva")
def test_the_radius_has_no_alarm_for_any_finite_input():
    plain, live = _float32(_tiny(), emit_live_c), _float32(_tiny(), emit_live_c, radius=True)
    _clean(live)
    assert live.reached > 1.5 * plain.reached


@pytest.mark.usefixtures("eva")
def test_what_is_wrong_in_the_radius_is_found():
    files, text = emit_live_c(_tiny(), weights="text").files(), "    step = found;"
    changed = {**files, "model.c": files["model.c"].replace(text, "    step = input[99999];")}
    assert changed != files
    assert analyse(changed, "model.c", "vsparse", EvaRequest()).alarms == 0
    found = analyse(changed, "model.c", "vsparse", EvaRequest(radius=True))
    assert not found.finished or found.alarms > 0


@pytest.mark.slow
@pytest.mark.timeout(3700)
@pytest.mark.usefixtures("eva")
@pytest.mark.parametrize(("run", "emit"), [(_float32, emit_live_c), (_int8, emit_live_int8_c)], ids=["fp32", "int8"])
def test_the_radius_of_a_small_network_has_no_alarm(run, emit):
    _clean(run(_small(), emit, seconds=3600, radius=True))


@pytest.mark.usefixtures("eva")
@pytest.mark.parametrize("text", ["        spread[i] = 0.0f;", "    beyond |= !(x[i] >= lowest && x[i] <= highest);"])
def test_what_is_wrong_in_the_live_certificate_is_found(text):
    files = emit_live_c(_small(), weights="text").files()
    changed = {**files, "model.c": files["model.c"].replace(text, text.partition("=")[0].replace("|", "").strip() + " = r[99999];")}
    assert changed != files
    found = analyse(changed, "model.c", "vsparse", EvaRequest())
    assert not found.finished or found.alarms > 0


@pytest.mark.slow
@pytest.mark.timeout(3700)
@pytest.mark.usefixtures("eva")
@pytest.mark.parametrize(("run", "emit"), [(_float32, emit_live_c), (_int8, emit_live_int8_c)], ids=["fp32", "int8"])
def test_the_live_certificate_of_the_digits_has_no_alarm(run, emit):
    _clean(run(recipe_network(ARCHITECTURES["digits"]), emit, seconds=3600))


@pytest.mark.slow
@pytest.mark.timeout(3700)
@pytest.mark.usefixtures("eva")
@pytest.mark.parametrize(("run", "emit"), [(_float32, emit_live_c), (_int8, emit_live_int8_c)], ids=["fp32", "int8"])
def test_the_second_tier_of_a_small_network_has_no_alarm(run, emit):
    _clean(run(_small(), partial(emit, second=True), seconds=3600))


@pytest.mark.usefixtures("eva")
@pytest.mark.parametrize("text", ["    int open = 0, at = 0;", "        margin[at] = found > margin[at] ? found : margin[at];"])
def test_what_is_wrong_in_the_second_tier_is_found(text):
    files = emit_live_c(_tiny(), weights="text", second=True).files()
    other = {"    int open = 0, at = 0;": "    int open, at = 0;"}.get(text, text.replace("margin[at] =", "margin[at + 9999] ="))
    changed = {**files, "model.c": files["model.c"].replace(text, other)}
    assert changed != files
    found = analyse(changed, "model.c", "vsparse", EvaRequest())
    assert not found.finished or found.alarms > 0


@pytest.mark.usefixtures("eva")
def test_what_is_wrong_is_found():
    graph = _small()
    large = {name: value * np.float32(1e30) for name, value in graph.params.items()}
    found = _float32(replace(graph, params=large))
    assert found.alarms > 0
    assert any("finite" in one for one in found.found)
    files = emit_c(graph, weights="text").files()
    floats = re.compile(r"(#else\n#define VSPARSE_VECTORS 0\n#define VSPARSE_ARENA_FLOATS) \d+")
    for name, pattern, other, words in (
        ("model.h", floats, r"\1 9", "out of bounds|pointer"),
        ("model.c", re.compile(r"memset\([^;]*;"), "", "uninit|initial"),
        ("model.c", re.compile(r"bias\[0\]"), "bias[99]", "out of bounds|pointer"),
    ):
        changed = {**files, name: pattern.sub(other, str(files[name]))}
        assert changed != files
        found = analyse(changed, "model.c", "vsparse", EvaRequest())
        assert not found.finished or found.alarms > 0
        assert re.search(words, found.reason + " ".join(found.found)), found


@pytest.mark.usefixtures("eva")
def test_what_takes_too_long_is_ended_and_says_so():
    found = _float32(_small(), seconds=0.01)
    assert not found.finished
    assert found.alarms is None
    assert "0.01 s" in found.reason


def test_a_summary_that_says_too_little_is_no_result():
    about = {"tool": "Frama-C", "options": (), "inputs": (0.0, 1.0)}
    summary = (
        "  In these functions, 9 statements reached (out of 10): 90% coverage.\n"
        "    by the Eva analyzer:      0 errors    0 warnings\n  0 alarms generated by the analysis.\n"
        "    Preconditions     7 valid     0 unknown     0 invalid      7 total\n"
    )
    assert read_summary(summary, about).alarms == 0
    assert read_summary(summary.replace("0 unknown", "2 unknown"), about).alarms == 2
    for broken in ("", summary.replace("0 errors", "1 errors"), summary + "[eva] NON TERMINATING FUNCTION", summary.replace("alarms", "")):
        found = read_summary(broken, about)
        assert not found.finished
        assert found.alarms is None
    one = "[eva:alarm] model.c:3: Warning: \n  out of bounds read.\n  assert x;\n[eva] done\n" + summary.replace("0 alarms", "1 alarm")
    assert read_summary(one, about).found == ("model.c:3: out of bounds read. assert x;",)


@pytest.mark.slow
@pytest.mark.timeout(3700)
@pytest.mark.usefixtures("eva")
@pytest.mark.parametrize("number", range(4))
def test_every_operator_has_no_alarm(number):
    graph = list(networks())[number]
    _clean(_float32(graph))
    _clean(_int8(graph))


ARCHITECTURES = architectures()


@pytest.mark.slow
@pytest.mark.timeout(3700)
@pytest.mark.usefixtures("eva")
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_c_of_each_shipped_recipe_has_no_alarm(name):
    _clean(_float32(recipe_network(ARCHITECTURES[name]), seconds=3600))


@pytest.mark.slow
@pytest.mark.timeout(3700)
@pytest.mark.usefixtures("eva")
@pytest.mark.parametrize("name", ["digits", *[name for name, key in ARCHITECTURES.items() if key[-1]]])
def test_so_has_the_c_of_8_bit_integers(name):
    _clean(_int8(recipe_network(ARCHITECTURES[name]), seconds=3600))


@pytest.mark.usefixtures("eva")
def test_the_record_of_the_c_has_it_where_it_is_asked_for(tmp_path, monkeypatch):
    path = tmp_path / "model.fp32.onnx"
    path.write_bytes(to_onnx(_small()).SerializeToString())
    record = tmp_path / "c_source.json"
    assert write_c(path, "net", CRequest(eva=EvaRequest(seconds=100)))
    found = json.loads(record.read_text())["analysis"]
    assert found["finished"]
    assert found["alarms"] == 0
    line = analysis_line(found, "model.c")
    assert line.startswith("model.c: 0 alarms for inputs in [0, 1], ")
    assert "Frama-C" in line
    monkeypatch.setenv("PATH", "")
    assert write_c(path, "net", CRequest(eva=EvaRequest(seconds=100)))
    assert "analysis" not in json.loads(record.read_text())
