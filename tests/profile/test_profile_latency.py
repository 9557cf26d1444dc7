"""Latency: the percentile's definition by hand, and measurements of a small model."""

import json
import math
import time
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from vsparse.artifact.device_latency import DeviceLatency
from vsparse.artifact.document import parse, read_document, write_document
from vsparse.artifact.latency import Latency, LatencyFile, TimeCounts, side_by_side
from vsparse.artifact.percentile import percentile
from vsparse.errors import InputError
from vsparse.stages.export.device.latency import Counted, Thinned, timed_block, turns_of, warmed_up
from vsparse.stages.profile import compare, comparison, describe_machine, profile_onnx, stated
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
    with pytest.raises(InputError, match="is a text file, and an ONNX file is wanted here"):
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
    rng = np.random.default_rng(1)
    for n in (1, 2, 7, 10, 99, 100, 101, 1000):
        block = [int(ns) for ns in rng.integers(1, 10**6, size=n)]
        counted = Counted()
        for start in range(0, n, 37):
            counted.add(block[start : start + 37])
        ours, theirs = Latency(samples_ms=tuple(ns / 1e6 for ns in block)).model_dump(mode="json"), counted.latency()
        shared = set(ours) & set(theirs)
        assert {"latency_ms_p50", "latency_ms_p99", "latency_ms_max", "latency_ms_jitter", "samples_ms"} <= shared
        for key in shared:
            assert ours[key] == pytest.approx(theirs[key], rel=1e-9, abs=1e-15)
        assert theirs["runs_timed"] == n == sum(theirs["all_runs_ns"]["counts"])
        # What the host derives of the counts of all runs is the same, and what stands beside them is held against both.
        again = DeviceLatency(
            samples_ms=(1.0,), all_runs_ns=TimeCounts(**{key: tuple(found) for key, found in theirs["all_runs_ns"].items()})
        )
        assert (again.p50, again.p99, again.largest) == tuple(theirs[f"latency_ms_{key}"] for key in ("p50", "p99", "max"))
        assert again.jitter == pytest.approx(theirs["latency_ms_jitter"], rel=1e-9, abs=1e-15)


def test_all_of_an_agents_figures_are_of_all_runs_also_where_samples_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Counted()
    counted.thinned = Thinned(limit=8)
    block = [1000] * 98 + [5000, 9_000_000]
    counted.add(block[:50])
    counted.add(block[50:])
    found = counted.latency()
    assert len(found["samples_ms"]) <= 8
    assert max(found["samples_ms"]) < 9
    assert (found["latency_ms_max"], found["latency_ms_mean"]) == (9.0, pytest.approx(math.fsum(block) / 100 / 1e6))
    assert found["latency_ms_p99"] == 0.005
    assert sum(found["block_samples"]) == len(found["samples_ms"])


def test_thinning_keeps_evenly_spaced_samples_of_the_whole_run_however_it_comes() -> None:
    rng = np.random.default_rng(2)
    for total in (1, 7, 8, 9, 16, 17, 100, 1000):
        thinned, at = Thinned(limit=8), 0
        while at < total:
            end = min(total, at + int(rng.integers(1, 30)))
            thinned.extend([float(i) for i in range(at, end)])
            at = end
        assert thinned.total == total == sum(thinned.lengths)
        assert thinned.kept == [float(i) for i in range(0, total, thinned.every)]
        assert len(thinned.kept) <= 8
        assert thinned.every == 1 or len(thinned.kept) >= 4
        ends = np.cumsum(thinned.lengths)
        assert thinned.sizes == [sum(start <= kept < end for kept in thinned.kept) for start, end in zip([0, *ends], ends, strict=False)]


def test_every_form_has_turns_of_the_same_length_and_as_many() -> None:
    for runs, seconds in ((300, 2.0), (300, 10.0), (20, 0.05), (1, 0.0), (10**6, 3600.0)):
        turn_ns, least = turns_of(runs, seconds)
        turns = next(n for n in range(1, 1001) if n * turn_ns >= 1e9 * seconds and n * least >= runs)
        assert turns <= 1000
        assert seconds == 0 or turn_ns <= max(5e7, 1e9 * seconds / 1000) + 1


def test_a_block_goes_on_until_both_its_runs_and_its_time_are_over() -> None:
    calls = []
    assert len(timed_block(lambda: calls.append(1), 25, 0, 0)) == 25
    assert len(calls) == 26  # one before, which is not timed
    took = timed_block(lambda: time.sleep(0.001), 1, 20_000_000, 0)
    assert len(took) < 25
    assert sum(took) >= 15_000_000
    assert min(took) >= 1_000_000


def test_warm_up_goes_on_until_three_pieces_agree() -> None:
    falling = iter([400, 300, 200, 150, 100, 101, 102, 100])
    found = warmed_up(lambda runs, ns: [next(falling)] * 5, 1, 0.0, 60.0)
    assert (found["stable"], found["median_ns"], found["runs"]) == (True, 102, 7 * 6)
    never = iter(range(1, 10**6))
    assert warmed_up(lambda runs, ns: [2 ** (next(never) % 2)], 1, 0.0, 0.02)["stable"] is False


def test_a_comparison_of_very_fast_models_stays_small_and_paired(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "Counted", lambda: small(Counted()))
    path = matmul_model(tmp_path / "m.onnx", 4)
    result = compare(path, path, runs=300, seconds=0, warmup=0, blocks=30)
    assert result.dense is not None
    assert len(result.dense.samples_ms) == len(result.packed.samples_ms) <= 40
    assert result.dense.settings["runs_timed"] == 300
    assert result.dense.settings["samples_kept_every"] == 8
    assert result.dense.all_runs_ns is not None
    assert result.dense.all_runs_ns.total == 300
    assert len(result.block_ratios) == 30


def small(counted: Counted) -> Counted:
    counted.thinned = Thinned(limit=40)
    return counted


def test_older_files_of_equal_blocks_are_paired_as_they_were() -> None:
    settings = {"block_runs": 2, "alternating_blocks_of": ("a", "b")}
    one, other = (Latency(samples_ms=values, settings=settings) for values in ((2.0, 2.0, 6.0, 6.0), (1.0, 1.0, 2.0, 2.0)))
    assert one.block_ratios(other) == (2.0, 3.0)
    assert one.noise is None
    assert "noise" not in one.model_dump(mode="json")


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
    older = {key: value for key, value in found["a"].settings.items() if key != "block_samples"}
    for damaged in (0, -1, 10**9, True, "10"):
        one = found["a"].model_copy(update={"settings": {**older, "block_runs": damaged}})
        assert one.block_ratios(one) == ()
    for sizes in ((61,), (-1, 61), (True,), ("60",), (10.0,)):
        one = found["a"].model_copy(update={"settings": {**older, "block_samples": sizes}})
        assert one.block_ratios(one) == ()
