"""Latency: the percentile's definition by hand, and measurements of a small model."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from vsparse.artifact.document import parse, read_document, write_document
from vsparse.artifact.latency import Latency, LatencyFile, side_by_side
from vsparse.artifact.percentile import percentile
from vsparse.errors import InputError
from vsparse.stages.profile import compare, describe_machine, profile_onnx, stated
from vsparse.stages.profile.comparison import alternate
from vsparse.stages.profile.session import open_model

MODEL = helper.make_tensor_value_info


def matmul_model(path: Path, size: int, repeats: int = 1, batch: "int | str" = "batch", kind: int = TensorProto.FLOAT) -> Path:
    weight = numpy_helper.from_array(np.eye(size, dtype=np.float32), "w")
    nodes = [helper.make_node("MatMul", [f"t{i}", "w"], [f"t{i + 1}"]) for i in range(repeats)]
    graph = helper.make_graph(nodes, "g", [MODEL("t0", kind, [batch, size])], [MODEL(f"t{repeats}", kind, [batch, size])], [weight])
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString())
    return path


@pytest.mark.parametrize(
    ("p", "wanted"),
    # n = 10, samples 1..10: index max(9 − int((1 − p/100)·10), 0)
    [(0, 1), (50, 5), (90, 9), (99, 10), (100, 10), (10, 1), (25, 3)],
)
def test_percentile_by_hand(p: float, wanted: float) -> None:
    assert percentile([10, 1, 9, 2, 8, 3, 7, 4, 6, 5], p) == wanted


def test_percentile_is_always_a_sample_and_grows_with_p() -> None:
    rng = np.random.default_rng(0)
    for n in range(1, 60):
        samples = list(rng.random(n))
        values = [percentile(samples, p) for p in range(101)]
        assert values == sorted(values)
        assert set(values) <= set(samples)
        assert values[-1] == max(samples)


def test_nothing_is_derived_from_nothing() -> None:
    with pytest.raises(InputError, match="not defined"):
        percentile([], 50)
    with pytest.raises(InputError, match="not defined"):
        percentile([1.0], 101)
    for bad in ((), (math.nan,), (math.inf,), (-1.0,)):
        with pytest.raises(ValueError, match="samples_ms"):
            Latency(samples_ms=bad)


def test_json_keeps_every_sample_and_its_units(tmp_path: Path) -> None:
    latency = Latency(samples_ms=(3.0, 1.0, 2.0), settings={"runtime": "onnxruntime", "threads_intra_op": 1}, machine={"processor": "x"})
    value = latency.model_dump(mode="json")
    assert value["samples_ms"] == [3.0, 1.0, 2.0]
    assert (value["latency_ms_p50"], value["latency_ms_mean"], value["latency_ms_min"], value["latency_ms_max"]) == (2.0, 2.0, 1.0, 3.0)
    path = tmp_path / "x.json"
    assert parse(LatencyFile, {"packed": value}, path).packed == latency
    value["latency_ms_p50"] = 0.001  # derived numbers are derived again, never believed
    assert parse(LatencyFile, {"packed": value}, path).packed.p50 == 2.0
    for bad in (
        None,
        [],
        {},
        {"samples_ms": "1"},
        {"samples_ms": [True]},
        {"samples_ms": [10**400]},
        {"samples_ms": ["1"]},
        {"samples_ms": []},
        {"samples_ms": [1], "machine": 3},
    ):
        with pytest.raises(InputError):
            parse(LatencyFile, {"packed": bad}, path)


def test_a_model_is_timed_until_both_minima_are_met(tmp_path: Path) -> None:
    path = matmul_model(tmp_path / "m.onnx", 8)
    seen: list[float] = []
    by_count = profile_onnx(path, runs=200, seconds=0, warmup=3, progress=seen.append)
    assert len(by_count.samples_ms) == 200
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
    by_time = profile_onnx(path, runs=1, seconds=0.2, warmup=0)
    # Of very many runs only every n-th is kept.
    assert math.fsum(by_time.samples_ms) * by_time.settings.get("samples_kept_every", 1) > 100
    assert len(by_time.samples_ms) > 1
    stays = {"threads_intra_op": 1, "threads_inter_op": 1, "spinning": False, "batch": 1, "warmup_runs": 0, "denormals_flushed": False}
    assert stays.items() <= by_time.settings.items()
    assert by_time.settings["providers"] == ("CPUExecutionProvider",)
    assert by_time.settings["process_memory_peak_bytes"] > 2**20
    assert "1 thread(s), batch 1" in stated(by_time.settings)
    assert by_time.machine["cores_usable"] >= 1


def test_a_larger_batch_is_really_run(tmp_path: Path) -> None:
    path = matmul_model(tmp_path / "m.onnx", 64, repeats=8)
    one = profile_onnx(path, runs=50, seconds=0, warmup=5)
    many = profile_onnx(path, runs=50, seconds=0, warmup=5, batch=512)
    assert many.settings["batch"] == 512
    assert many.p50 > 3 * one.p50


def test_compare_alternates_and_sees_the_slower_one(tmp_path: Path) -> None:
    dense, packed = matmul_model(tmp_path / "d.onnx", 256, repeats=24), matmul_model(tmp_path / "p.onnx", 256, repeats=4)
    result = compare(dense, packed, runs=60, seconds=0, warmup=3, blocks=6)
    assert result.block_runs == 10
    assert len(result.dense.samples_ms) == len(result.packed.samples_ms) == 60
    assert len(result.block_ratios) == 6
    assert result.ratio < 0.6
    assert result.ratio_of_blocks < 0.6
    write_document(tmp_path / "both.json", result)
    value = json.loads((tmp_path / "both.json").read_text())
    assert read_document(LatencyFile, tmp_path / "both.json") == result
    assert value["ratio_packed_to_dense_of_medians"] == result.ratio
    assert value["packed"]["content_sha256"] != value["dense"]["content_sha256"]


def test_block_ratios_survive_a_machine_that_slows_down() -> None:
    """Dense takes 10 ms and packed 5 ms until the machine becomes three times slower in the middle of a block pair's end."""
    slow = [1, 1, 1, 3, 3]
    dense = tuple(10.0 * s for s in slow for _ in range(4))
    packed = tuple(5.0 * s for s in slow for _ in range(4))
    result = side_by_side(Latency(samples_ms=dense), Latency(samples_ms=packed), 4)
    assert result.block_ratios == (0.5,) * 5
    assert result.ratio_of_blocks == 0.5


def test_a_model_against_itself_is_near_one(tmp_path: Path) -> None:
    path = matmul_model(tmp_path / "m.onnx", 256, repeats=8)
    result = compare(path, path, runs=100, seconds=0.1, warmup=10)
    assert 0.6 < result.ratio_of_blocks < 1.6


def test_what_cannot_be_timed_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not there"):
        profile_onnx(tmp_path / "none.onnx")
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    with pytest.raises(InputError, match="not an ONNX file"):
        profile_onnx(broken)
    fixed = matmul_model(tmp_path / "fixed.onnx", 4, batch=2)
    with pytest.raises(InputError, match="fixed batch 2, not 1"):
        profile_onnx(fixed)
    good = matmul_model(tmp_path / "good.onnx", 4)
    for wrong in ({"runs": 0}, {"seconds": -1.0}, {"warmup": -1}, {"threads": 0}, {"batch": 0}, {"batch": 2**30}):
        with pytest.raises(InputError):
            profile_onnx(good, **{"runs": 1, "seconds": 0.0, "warmup": 0, **wrong})
    with pytest.raises(InputError, match="blocks"):
        compare(good, good, blocks=0)


def test_the_machine_is_described_without_guessing() -> None:
    machine = describe_machine()
    assert machine["architecture"]
    assert machine["memory_bytes"] is None or machine["memory_bytes"] > 2**28
    json.dumps(machine, allow_nan=False)


def test_the_device_script_derives_the_same_numbers() -> None:
    from vsparse.stages.export.device.latency import Thinned, latency_of

    rng = np.random.default_rng(1)
    for n in (1, 2, 7, 10, 99, 100, 101, 1000):
        samples = tuple(float(s) for s in rng.random(n))
        thinned = Thinned()
        for sample in samples:
            thinned.add(sample)
        ours, theirs = Latency(samples_ms=samples).model_dump(mode="json"), latency_of(thinned)
        shared = set(ours) & set(theirs)
        assert {"latency_ms_p50", "latency_ms_p90", "latency_ms_p99", "samples_ms"} <= shared
        assert {key: ours[key] for key in shared} == {key: theirs[key] for key in shared}
        assert theirs["runs_timed"] == n


def test_thinning_keeps_evenly_spaced_samples_of_the_whole_run() -> None:
    from vsparse.stages.export.device.latency import Thinned

    for total in (1, 7, 8, 9, 16, 17, 100, 1000):
        thinned = Thinned(limit=8)
        for i in range(total):
            thinned.add(float(i))
        assert thinned.total == total
        assert thinned.kept == [float(i) for i in range(0, total, thinned.every)]
        assert len(thinned.kept) <= 8
        assert thinned.every == 1 or len(thinned.kept) >= 4


def test_a_comparison_of_very_fast_models_stays_small_and_paired(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vsparse.stages.profile import comparison

    monkeypatch.setattr(comparison, "MAX_SAMPLES", 40)
    path = matmul_model(tmp_path / "m.onnx", 4)
    result = compare(path, path, runs=300, seconds=0, warmup=0, blocks=30)
    assert len(result.dense.samples_ms) == len(result.packed.samples_ms) <= 40
    assert result.dense.settings["runs_timed"] == 300
    assert result.dense.settings["blocks_kept_every"] >= 8
    assert len(result.block_ratios) == len(result.dense.samples_ms) // 10 >= 2


def test_several_models_take_turns_and_compare_block_by_block(tmp_path: Path) -> None:
    opened = {
        name: open_model(matmul_model(tmp_path / f"{name}.onnx", 8, repeats), 1, 1) for name, repeats in (("a", 1), ("b", 2), ("c", 400))
    }
    found = alternate(opened, dict.fromkeys(opened, "0"), runs=60, seconds=0, warmup=1, blocks=6)
    assert {name: len(latency.samples_ms) for name, latency in found.items()} == {"a": 60, "b": 60, "c": 60}
    assert found["a"].settings["alternating_blocks_of"] == ("a", "b", "c")
    ratios = found["c"].block_ratios(found["a"])
    assert len(ratios) == 6
    assert min(ratios) > 1
    # Of another alternation, or of none, blocks are no pairs; and nothing is divided by nothing.
    apart = Latency(samples_ms=found["a"].samples_ms)
    assert found["c"].block_ratios(apart) == apart.block_ratios(apart) == ()
    still = found["a"].model_copy(update={"samples_ms": (0.0,) * 60})
    assert found["c"].block_ratios(still) == ()
    for damaged in (0, -1, 10**9, True, "10"):
        one = found["a"].model_copy(update={"settings": {**found["a"].settings, "block_runs": damaged}})
        assert len(one.block_ratios(one)) in (0, 60)
