"""Which form is chosen: the rule against its own statement on random tables, and what moves it in an artifact."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_pipeline_gates import aimed_at, further

from vsparse import cli
from vsparse.artifact.checks import Gate
from vsparse.artifact.choice import FormChoice, FormRow
from vsparse.artifact.device import DEVICE_RESULTS
from vsparse.artifact.facts import gather
from vsparse.artifact.forms import DEPLOYABLE, FORMS
from vsparse.artifact.latency import BLOCK_RUNS, ORDER, Latency
from vsparse.artifact.models import CFootprint
from vsparse.errors import GateError, InputError
from vsparse.files import sha256_file
from vsparse.pipeline.choose import GATE, Times, choice_gate, choose, pick
from vsparse.pipeline.judged import judge_artifact, keep_results
from vsparse.recipe import load_recipe
from vsparse.stages.profile import copied_results, read_results
from vsparse.stages.report import write_report
from vsparse.standalone import profile_results
from vsparse.target import load_target

FREE = "gates={}"
MISSED, OPEN = (Gate(name="bytes", wanted="at most 1", got="2", passed=passed) for passed in (False, None))


def row(name: str, p50: float | None, size: int, certified: float, gates: tuple[Gate, ...] = (), competes: bool = True) -> FormRow:
    return FormRow(
        name=name,
        file="",
        contract="",
        certified_accuracy=certified,
        clean_accuracy=1.0,
        points_lost=0.0,
        bytes=size,
        latency_ms_p50=p50,
        latency_ms_p99=p50,
        latency_ratio=None,
        speed="",
        weights=None,
        gates=gates,
        competes=competes,
        why_not="" if competes else "for comparison",
        chosen=False,
    )


def times(rows: list[FormRow]) -> Times:
    timed = {one.name: Latency(samples_ms=(one.latency_ms_p50,)) for one in rows if one.latency_ms_p50 is not None}
    return Times(timed, "here" if timed else "", "board")


def test_random_tables_follow_the_rule_as_it_is_written() -> None:
    """Among the forms that compete and miss nothing, the fastest; within 5 % fewer bytes; then more certified; then the first."""
    rng = np.random.default_rng(0)
    nothing = 0
    for _ in range(2000):
        rows = [
            row(
                form.name,
                float(rng.integers(95, 112)) / 100,
                int(rng.integers(1, 4)),
                float(rng.integers(1, 4)) / 4,
                tuple(rng.choice([MISSED, OPEN]) for _ in range(rng.integers(0, 2))),
                bool(rng.random() < 0.8),
            )
            for form in DEPLOYABLE
        ]
        chosen, reason = pick(rows, times(rows))
        able = [one for one in rows if one.competes and all(gate.passed is not False for gate in one.gates)]
        if not able:
            nothing += 1
            assert chosen is None
            assert reason.startswith("no form is chosen: ")
            continue
        assert chosen is not None
        assert reason.startswith(f"{chosen.form.label} is chosen: ")
        least = min(one.latency_ms_p50 or 0 for one in able)
        near = [one for one in able if (one.latency_ms_p50 or 0) <= 1.05 * least]
        fewest = [one for one in near if one.bytes == min(other.bytes or 0 for other in near)]
        most = [one for one in fewest if one.certified_accuracy == max(other.certified_accuracy for other in fewest)]
        assert chosen is most[0]
    assert nothing > 10


def test_blocks_that_disagree_make_forms_as_fast() -> None:
    def taken(values: list[float]) -> Latency:
        return Latency(samples_ms=tuple(values), settings={BLOCK_RUNS: 2, ORDER: ("fp32", "fp16")})

    # Its median is 10 % larger, and in three of ten blocks it is the faster one, or in two.
    steady, open_, slower = [1.0] * 20, [0.9] * 6 + [1.1] * 14, [0.9] * 4 + [1.1] * 16
    for samples, as_fast in ((open_, True), (slower, False)):
        found = Times({"sparse": taken(steady), "fp16": taken(samples)}, "here", "local")
        assert found.as_fast("fp16", "sparse") is as_fast
        apart = Latency(samples_ms=tuple(samples))  # without blocks the medians decide
        assert not Times({"sparse": taken(steady), "fp16": apart}, "here", "local").as_fast("fp16", "sparse")


def test_without_latencies_bytes_decide_and_the_way_to_measure_is_said() -> None:
    rows = [row("sparse", None, 30, 1.0), row("int8", None, 10, 0.9), row("fp16", None, 5, 0.9, (MISSED,))]
    chosen, reason = pick(rows, times(rows))
    assert chosen is rows[1]
    assert "latency on board is not measured, and once it is (`vsparse profile ARTIFACT --host user@address`)" in reason


@pytest.fixture
def copied(tiny_artifact: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage, with a certificate and a file of int8."""
    directory = Path(shutil.copytree(tiny_artifact, tmp_path / "copy"))
    further(directory, "int8")
    return directory


def timed(directory: Path, **factors: float) -> None:
    """Makes the forms of an artifact take these times, in ms, in every run."""
    for form in FORMS:
        path = directory / (form.latency or "-")
        if form.name in factors:
            content = json.loads(path.read_text()) if path.exists() else {"packed": {"samples_ms": []}}
            key = "dense" if form.name == "dense" else "packed"
            content[key] |= {"samples_ms": [factors[form.name]] * 20}
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({**content, "schema_version": 1}))


def chosen_in(directory: Path, *settings: str, target: str = "local") -> FormChoice:
    recipe = load_recipe("digits", [FREE, 'export.precisions=["int8"]', *settings])
    return choose(recipe, load_target(target), gather(directory), directory)


def by_name(choice: FormChoice) -> dict[str, FormRow]:
    return {one.name: one for one in choice.rows}


def test_every_form_with_a_certificate_has_a_row_and_the_dense_parent_is_never_chosen(copied: Path) -> None:
    timed(copied, sparse=1.0, dense=0.1, sequential=2.0, int8=1.3)
    choice = chosen_in(copied)
    rows = by_name(choice)
    assert list(rows) == ["sparse", "sequential", "int8", "dense"]
    assert choice.chosen == "sparse"
    assert [one.name for one in choice.rows if one.chosen] == ["sparse"]
    assert (rows["int8"].speed, rows["dense"].why_not) == ("slower than fp32: 1.30 times its time", "for comparison")
    assert rows["dense"].speed == "faster than fp32: 0.10 of its time"
    assert choice_gate(choice).passed is True
    timed(copied, sequential=0.4)
    assert chosen_in(copied).chosen == "sequential"
    assert "it is the fastest (p50 0.4000 ms, 0.40 of fp32's time)" in chosen_in(copied).reason


@pytest.mark.parametrize(
    ("setting", "missed"),
    [
        ("choose.bytes=1000", "bytes"),
        ("choose.latency_ms_p50=0.3", "latency p50"),
        ("choose.latency_ms_p99=0.3", "latency p99"),
        ("gates.latency_ratio=0.001", "ratio to dense"),
        ("gates.certified_accuracy=1.0", "certified accuracy"),
    ],
)
def test_a_gate_that_no_form_meets_leaves_nothing_to_choose(copied: Path, setting: str, missed: str) -> None:
    timed(copied, sparse=1.0, dense=0.9, sequential=0.4, int8=1.3)
    assert chosen_in(copied).chosen == "sequential"
    choice = chosen_in(copied, setting)
    assert choice.chosen == ""
    assert [gate.name for gate in by_name(choice)["int8"].missed] == [missed]
    gate = choice_gate(choice)
    assert gate.passed is False
    assert f"fp32 misses {missed} (" in gate.got


def test_a_form_may_lose_a_point_and_its_own_gate_counts_before_the_common_one(copied: Path) -> None:
    timed(copied, sparse=1.0, dense=0.9, sequential=1.4, int8=0.5)
    facts = gather(copied)
    share = facts.certificates[0].certified_accuracy

    def with_int8(lost: float, *settings: str) -> FormChoice:
        import dataclasses

        changed = tuple(
            one.model_copy(update={"certified_accuracy": share - lost}) if one.name == "int8" else one for one in facts.certificates
        )
        recipe = load_recipe("digits", [FREE, 'export.precisions=["int8"]', *settings])
        return choose(recipe, load_target("local"), dataclasses.replace(facts, certificates=changed), copied)

    assert with_int8(0.01).chosen == "int8"
    assert with_int8(0.011).chosen == "sparse"
    assert by_name(with_int8(0.011))["int8"].judged == "misses points lost"
    assert with_int8(0.3, "choose.certified_loss=0").chosen == "int8"
    assert with_int8(0.01, f"gates.certified_accuracy={share}").chosen == "sparse"
    assert with_int8(0.01, f"gates.certified_accuracy={share}", f"gates.int8_certified_accuracy={share - 0.01}").chosen == "int8"
    assert with_int8(0.01, 'choose.forms=["fp32"]').chosen == "sparse"


@pytest.mark.parametrize("damage", ["audit", "void", "file"])
def test_a_form_whose_certificate_does_not_stand_is_not_chosen(copied: Path, damage: str) -> None:
    timed(copied, sparse=1.0, dense=0.9, sequential=1.4, int8=0.5)
    assert chosen_in(copied).chosen == "int8"
    folder = copied / "certificate" / "int8"
    if damage == "audit":
        audit = folder / "audit.json"
        audit.write_text(json.dumps({**json.loads(audit.read_text()), "passed": False, "reason": "made to fail"}))
    elif damage == "void":
        path = folder / "certificate.json"
        path.write_text(path.read_text().replace('"batch": "1"', '"batch": "2"'))
    else:
        shutil.copyfile(copied / "model" / "dense.fp32.onnx", copied / "model" / "model.int8.onnx")
    choice = chosen_in(copied)
    assert choice.chosen == "sparse"
    assert by_name(choice)["int8"].judged == "misses certificate"


# Results of a device.


def audited(probes: int) -> dict[str, object]:
    """What the agent says of an audit that passed, or of a folder without probes."""
    detail = f"the logits of {probes} probe(s) lie inside their certified enclosures"
    return {"name": "audit", "passed": True if probes else None, "detail": detail if probes else "the folder holds no probes"}


def results(directory: Path, path: Path, **p50: float) -> Path:
    """Writes what run_on_device.py would, with these times by role."""
    manifest = json.loads((directory / "device" / "manifest.json").read_text())
    models = [
        {
            "file": one["file"],
            "role": one["role"],
            "onnx_sha256": one["sha256"],
            "gates": [audited(len(one["probes"]))],
            "latency": {"samples_ms": [p50[one["role"]]]},
        }
        for one in manifest["models"]
    ]
    content = {
        "schema_version": 1,
        "kind": "vsparse-device-results",
        "target": manifest["target"]["name"],
        "device": {"model": "made by hand"},
        "models": models,
        "gates": [{"name": "device", "passed": True, "detail": "this is the target's device"}],
        "manifest_sha256": sha256_file(directory / "device" / "manifest.json"),
        "passed": True,
    }
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def aimed(tiny_artifact: Path, tmp_path: Path) -> Path:
    """An artifact for a Jetson, judged as such: what was measured here is not measured on it."""
    directory = aimed_at(Path(shutil.copytree(tiny_artifact, tmp_path / "jetson")), "jetson-orin-nano")
    recipe = load_recipe(str(directory / "recipe.toml"), ["gates.latency_ratio=0.5"])
    (directory / "recipe.toml").write_text(recipe.to_toml())
    judge_artifact(directory, recipe, load_target("jetson-orin-nano"))
    write_report(directory)
    manifest = json.loads((directory / "manifest.json").read_text())
    for name in ("recipe.toml", "gates.json", "choice.json", "report.html", "report.json"):
        manifest["files"][name] = sha256_file(directory / name)
    (directory / "manifest.json").write_text(json.dumps(manifest))
    return directory


def test_what_the_device_measured_is_shown_and_chosen_by(aimed: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = gather(aimed)
    assert before.choice is not None
    assert (before.choice.chosen, before.choice.measured_on) == ("sparse", "")
    assert by_name(before.choice)["sequential"].why_not == "it competes once it is timed on jetson-orin-nano"
    assert {gate.name: gate.passed for gate in before.gates}[GATE] is None
    assert cli.run(["profile", str(aimed), "--results", str(results(aimed, tmp_path / "r.json", packed=0.4, dense=1.0))]) == 0
    said = capfd.readouterr().out
    after = gather(aimed)
    assert after.choice is not None
    assert after.choice.measured_on == "jetson-orin-nano"
    assert by_name(after.choice)["sparse"].latency_ms_p50 == 0.4
    assert after.choice.reason in said
    gates = {gate.name: gate.passed for gate in after.gates}
    assert (gates[GATE], gates["gates on the device"], gates["packed latency as a fraction of dense"]) == (True, True, True)
    assert (after.not_measured, after.verdict) == ((), "passed")
    # Too slow there: nothing is left to choose, and the command says so.
    assert cli.run(["profile", str(aimed), "--results", str(results(aimed, tmp_path / "r.json", packed=0.6, dense=1.0))]) == 1
    assert "no form is chosen: fp32 misses ratio to dense (0.6, wanted: at most 0.5)" in capfd.readouterr().out
    assert gather(aimed).verdict == "failed"


def test_results_of_other_models_or_devices_are_refused(aimed: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = results(aimed, tmp_path / "r.json", packed=0.4, dense=1.0)
    good = json.loads(path.read_text())
    swapped = [{**one, "role": {"packed": "dense", "dense": "packed"}[one["role"]]} for one in good["models"]]
    for damage in ({"manifest_sha256": "0" * 64}, {"models": swapped}, {"models": good["models"][:1]}):
        path.write_text(json.dumps(good | damage))
        with pytest.raises(InputError, match="is about other models than those in"):
            copied_results(path, aimed)
    path.write_text(json.dumps(good | {"gates": [{"name": "device", "passed": False, "detail": "it is a toaster"}]}))
    with pytest.raises(InputError, match=r"another device than local \(it is a toaster\); run it there, without --any-device"):
        copied_results(path, aimed)
    assert cli.run(["profile", str(aimed), "--results", str(path), "--runs", "20"]) == 2
    assert "--results takes what a device measured, and --runs is for measuring; leave it out" in capfd.readouterr().err
    assert not (aimed / DEVICE_RESULTS).exists()


def test_a_form_that_fails_on_the_device_is_kept_on_record_and_not_chosen(aimed: Path, tmp_path: Path) -> None:
    path = results(aimed, tmp_path / "r.json", packed=0.4, dense=1.0)
    content = json.loads(path.read_text())
    packed = next(one for one in content["models"] if one["role"] == "packed")
    packed["gates"].append({"name": "layers", "passed": False, "detail": "a Winograd kernel"})
    path.write_text(json.dumps(content | {"passed": False}))
    with pytest.raises(GateError, match="a gate failed on the device \\(layers: a Winograd kernel\\)"):
        profile_results(aimed, path)
    facts = gather(aimed)
    assert facts.choice is not None
    assert facts.choice.chosen == ""
    assert facts.verdict == "failed"
    assert "fp32 misses gates on the device (layers: a Winograd kernel" in facts.choice.reason


def test_an_artifact_that_was_not_built_to_the_end_keeps_no_results(aimed: Path, tmp_path: Path) -> None:
    path = results(aimed, tmp_path / "r.json", packed=0.4, dense=1.0)
    manifest = json.loads((aimed / "manifest.json").read_text())
    (aimed / "manifest.json").write_text(json.dumps(manifest | {"until": "export"}))
    assert keep_results(aimed, copied_results(path, aimed)) is None


def test_a_form_without_an_audit_is_not_chosen(copied: Path) -> None:
    timed(copied, sparse=1.0, dense=0.9, sequential=1.4, int8=0.5)
    (copied / "certificate" / "int8" / "audit.json").unlink()
    choice = chosen_in(copied)
    assert choice.chosen == "sparse"
    assert by_name(choice)["int8"].missed[0].got == "its audit is not found"


@pytest.mark.parametrize(
    ("gates", "got", "words"),
    [
        ([], "none is on record", "there is no audit of model.fp32.onnx, and the device folder has 8 probe(s) of it"),
        (
            [{"name": "audit", "passed": None, "detail": "no probes"}],
            "none failed; not examined: audit (no probes)",
            "gates.0.passed: it is null, and the device folder has 8 probe(s) of model.fp32.onnx",
        ),
    ],
)
def test_a_device_that_examined_nothing_is_refused_and_not_said_to_have_passed_all(
    aimed: Path, tmp_path: Path, gates: list[dict[str, object]], got: str, words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = results(aimed, tmp_path / "r.json", packed=0.4, dense=1.0)
    content = json.loads(path.read_text())
    content["models"] = [{**one, "gates": gates} for one in content["models"]]
    path.write_text(json.dumps(content))
    assert cli.run(["profile", str(aimed), "--results", str(path)]) == 2
    assert words in capfd.readouterr().err
    assert keep_results(aimed, read_results(path)) is not None  # as an earlier version did
    facts = gather(aimed)
    assert facts.choice is not None
    assert {gate.name: gate.got for gate in by_name(facts.choice)["sparse"].gates}["gates on the device"] == got


@pytest.mark.parametrize(("packed", "dense"), [(0.4, 0.0), (0.0, 1.0), (5e-324, 1.0), (1e12, 1e-308)])
def test_times_that_no_ratio_can_be_taken_of(aimed: Path, tmp_path: Path, packed: float, dense: float) -> None:
    cli.run(["profile", str(aimed), "--results", str(results(aimed, tmp_path / "r.json", packed=packed, dense=dense))])
    choice = gather(aimed).choice
    assert choice is not None
    row_of_dense = by_name(choice)["dense"]
    assert choice.measured_on == "jetson-orin-nano"
    assert row_of_dense.speed == "no ratio to fp32" if packed in (0.0, 5e-324) else "fp32" in row_of_dense.speed


def test_c_that_a_microcontroller_does_not_hold_is_not_chosen(tiny_artifact: Path) -> None:
    """Flash and RAM are gates of each C source; what no compiler measured is open."""
    target = load_target("cortex-m4f")
    facts = gather(tiny_artifact)
    assert facts.c_source is not None
    chosen = {}
    for flash, ram in ((13_000, 100), (12_000, 3_000), (12_000, 100), (None, None)):
        taken = CFootprint(
            flash_bytes=flash or 0, constant_bytes=0, code_bytes=0, ram_bytes=ram or 0, stack_bytes=None, compiler="gcc", options=()
        )
        source = facts.c_source.model_copy(update={"footprint": None if flash is None else taken})
        limits = load_recipe("digits", [FREE, "gates.flash_kib=12", "gates.ram_kib=2"])
        choice = choose(limits, target, replace(facts, target_toml=target.to_toml(), c_source=source), tiny_artifact)
        row = next(row for row in choice.rows if row.name == "sequential")
        chosen[flash, ram] = (choice.chosen, row.judged, choice_gate(choice).passed)
    assert chosen == {
        (13_000, 100): ("sparse", "misses flash", True),
        (12_000, 3_000): ("sparse", "misses RAM", True),
        (12_000, 100): ("sequential", "meets all", True),
        (None, None): ("sequential", "meets all but flash, RAM, not measured", None),
    }
