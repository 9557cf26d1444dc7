"""Recorded live verdicts are replayed by bounds of the checker's own: what does not follow is refuted."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from check_artifacts import sign
from live_artifacts import changed, live_artifact

from vsparse.artifact.live import LIVE
from vsparse_check import check

CERTIFICATE, CURVE = "certificate/certificate.json", "certificate/curve.json"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return live_artifact(tmp_path_factory.mktemp("live"))


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copy"))


@pytest.mark.parametrize("kind", ["plain", "residual"])
def test_verdicts_as_recorded_are_confirmed(kind: str, whole: Path, tmp_path: Path) -> None:
    folder = whole if kind == "plain" else live_artifact(tmp_path, kind)
    found = check(folder)
    frames = json.loads((folder / LIVE).read_text())["frames"]
    assert found.passed, found.sentence
    assert found.live.frames == len(frames) > 10
    assert found.live.certified == sum(frame["certified"] for frame in frames) > 5
    assert found.live.by_interval == found.live.certified
    assert f"{len(frames)} live verdicts replayed" in found.sentence
    assert found.as_dict()["live"] == found.live._asdict()


def first(content: dict[str, Any]) -> dict[str, Any]:
    return next(frame for frame in content["frames"] if frame["certified"])


def of_first(name: str, value: Callable[[Any], Any]) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        first(content)[name] = value(first(content)[name])

    return change


def of_all(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content.__setitem__(name, value)


def more_by_intervals(content: dict[str, Any]) -> None:
    content["at_epsilon"]["by_intervals"] = content["at_epsilon"]["certified"] + 1


FORGERIES: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "a budget of less than no passes": (of_all("budget", -1), "budget is not the 0 backward passes"),
    "passes that the recipe does not give": (of_all("budget", 9), "budget is not the 0 backward passes"),
    "by intervals, and nothing else": (lambda content: content["curve"][0].update(by_intervals=0), "by_intervals is counted"),
    "more by intervals than certified": (more_by_intervals, "by_intervals is no count"),
    "another label": (of_first("label", lambda label: (label + 1) % 4), "it is not classified as"),
    "no such class": (of_first("label", lambda label: 4), "no such class"),
    "a class that is a fraction": (of_first("label", lambda label: label + 0.0), "other types"),
    "a margin too large": (of_first("margin", lambda margin: 1.5 * margin), "margin"),
    "a margin without bounds": (of_first("margin", lambda margin: 1e30), "its own margin is at most"),
    "a margin that is none": (of_first("margin", lambda margin: float("nan")), "live.json"),
    "a margin that its verdict denies": (of_first("margin", lambda margin: -margin), "not the sign of its verdict"),
    "a larger radius": (of_first("radius", lambda radius: 4 * radius + 0.3), "at its radius"),
    "a radius below all": (of_first("radius", lambda radius: -2.0), "negative"),
    "a larger epsilon": (of_first("epsilon", lambda epsilon: 0.9), "margin"),
    "an epsilon above the data range": (of_first("epsilon", lambda epsilon: 1.5), "above the data range"),
    "a negative epsilon": (of_first("epsilon", lambda epsilon: -0.1), "negative"),
    "a sample whose input is not held": (of_first("id", lambda number: 1000), "does not hold its input"),
    "a certified verdict without a class": (of_first("label", lambda label: -1), "no class told"),
    "another key": (lambda content: first(content).update(more=1), "other keys"),
    "a verdict twice": (lambda content: content["frames"].append(dict(first(content))), "twice"),
    "another network": (of_all("network_sha256", "0" * 64), "another network"),
    "another contract": (of_all("contract", "fp32"), "another contract"),
    "another data range": (of_all("clip", [0.0, 2.0]), "another data range"),
    "more certified than samples": (lambda content: content["at_epsilon"].update(certified=99), "no counts"),
    "other samples than claims": (lambda content: content["at_epsilon"].update(samples=99), "other samples"),
    "counts at a smaller radius": (lambda content: content["at_epsilon"].update(epsilon="1/1000"), "smaller radius"),
    "a device radius below": (lambda content: content["at_epsilon"].update(device_epsilon=0.001), "device_epsilon"),
    "no frames at all": (lambda content: content.pop("frames"), "live.json"),
    "an exponent that takes hours": (lambda content: content["at_epsilon"].update(epsilon="1e20000000"), "at_epsilon.epsilon is no exact"),
    "a small one on the curve": (lambda content: content["curve"][0].update(epsilon="1e-20000000"), "curve[0].epsilon is no exact"),
    "digits without end": (lambda content: content["curve"][1].update(epsilon="0." + "1" * 10_000), "curve[1].epsilon is no exact"),
    "a device radius as text": (lambda content: content["at_epsilon"].update(device_epsilon="1e20000000"), "device_epsilon is no number"),
    "a fraction of nothing": (lambda content: content["at_epsilon"].update(epsilon="1/0"), "live.json"),
    "frames that are no list": (of_all("frames", {}), "no list of verdicts"),
    "an empty list of frames": (of_all("frames", []), "has 0 verdicts"),
    "a frame left out": (lambda content: content["frames"].pop(), "verdicts, and not"),
    "frames out of order": (lambda content: content["frames"].reverse(), "chosen samples"),
    "a smaller radius of a frame": (of_first("epsilon", lambda epsilon: epsilon / 4), "another radius"),
    "fewer certified than frames": (lambda content: content["at_epsilon"].update(certified=1, right=1), "certified disagrees"),
    "fewer right than frames": (lambda content: content["at_epsilon"].update(right=0), "right disagrees"),
    "a curve that is no list": (of_all("curve", {}), "no list of points"),
    "a curve that rises": (lambda content: content["curve"][0].update(certified=1, right=1), "rise with epsilon"),
    "a curve out of order": (lambda content: content["curve"].reverse(), "not in order"),
    "a curve of other samples": (lambda content: content["curve"][0].update(samples=400), "several sets"),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_record_is_refuted(name: str, copy: Path) -> None:
    change, says = FORGERIES[name]
    content = json.loads((copy / LIVE).read_text())
    change(content)
    (copy / LIVE).write_text(json.dumps(content))
    found = check(sign(copy))
    assert not found.passed
    assert found.verdict == "refuted", found.sentence
    assert says in found.problem, found.sentence
    assert found.live.frames == 0


def test_counts_are_within_what_is_falsified_and_what_frames_deny(tmp_path: Path) -> None:
    """A radius at which some samples are falsified, and some of the others not certified."""
    folder = live_artifact(tmp_path, "residual", epsilon="0.03")
    content, claims = json.loads((folder / LIVE).read_text()), json.loads((folder / CERTIFICATE).read_text())["claims"]
    counted, falsified = content["at_epsilon"], sum(claim["verdict"] == "falsified" for claim in claims)
    assert 0 < falsified < len(claims) - counted["certified"]
    for more, says in ((counted["samples"], "falsified samples"), (counted["samples"] - falsified, "disagrees")):
        counted["certified"] = more
        (folder / LIVE).write_text(json.dumps(content))
        found = check(sign(folder))
        assert found.verdict == "refuted"
        assert says in found.problem, found.sentence


def test_no_curve_counts_what_the_certificate_s_curve_calls_broken(copy: Path) -> None:
    points = json.loads((copy / LIVE).read_text())["curve"]
    middle, samples = points[3], points[0]["samples"]
    stated = {"clean_accuracy": 1.0, "attacked_accuracy": middle["right"] / samples, "certified_accuracy": 0.0}
    for epsilon, less, passes in (("0.01", 0, True), ("0.01", 1, False), ("0.5", 1, True)):
        attacked = stated["attacked_accuracy"] - less / samples
        curve = {"schema_version": 1, "samples": samples, "derived": "", "sparse": [{**stated, "attacked_accuracy": attacked}]}
        curve["sparse"][0] |= {"epsilon": epsilon, "epsilon_value": float(epsilon)}
        (copy / CURVE).write_text(json.dumps(curve))
        problem = check(sign(copy)).problem
        assert ("calls broken" in problem) is not passes, problem
    (copy / CURVE).write_text(json.dumps(curve | {"samples": samples + 1}))
    assert "other samples than" in check(sign(copy)).problem


def test_a_margin_that_intervals_miss_is_derived_by_rows(copy: Path) -> None:
    """As a second tier of a device may record it: above what intervals give, and below what linear bounds do."""
    frame = first(json.loads((copy / LIVE).read_text()))
    found = check(changed(copy, margin=frame["margin"] + 2e-5))
    assert found.passed, found.sentence
    assert found.live.by_interval == found.live.certified - 1


def test_a_lower_margin_is_true_too(copy: Path) -> None:
    assert check(changed(copy, margin=1e-6)).passed
