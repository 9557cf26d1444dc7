"""A stream of JSON lines: untrusted, and never a traceback; shares over time in bounded memory; drift by its stated statistic."""

from __future__ import annotations

import io
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from live_nets import frames, live_artifact

import vsparse
from vsparse.errors import InputError
from vsparse.monitor import FrameCertifier, MonitorSummary, RadiusDrift, StreamMonitor
from vsparse.monitor.__main__ import bounded, main
from vsparse.monitor.drift import ALLOWANCE, THRESHOLD


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return live_artifact(tmp_path_factory.mktemp("live") / "artifact")


@pytest.fixture(scope="module")
def live(directory: Path) -> Iterator[FrameCertifier]:
    with vsparse.live(directory, compiled=False) as certifier:
        yield certifier


def line(x: np.ndarray, **more: Any) -> str:
    return json.dumps({"pixels": [float(value) for value in x.reshape(-1)], **more})


def test_frames_get_verdicts_and_the_summary_counts_them(live: FrameCertifier) -> None:
    x, monitor = frames(12, seed=9), StreamMonitor(live)
    source = [line(one, id=f"cam-{i}") for i, one in enumerate(x[:11])] + [json.dumps({"pixels": x[11].tolist()}), "  \n"]
    told = [json.loads(one) for one in monitor.lines(source)]
    verdicts = live(x, radius=True)
    assert [one["frame"] for one in told] == [*(f"cam-{i}" for i in range(11)), 12]
    for one, verdict in zip(told, verdicts, strict=True):
        assert (one["class"], one["certified"], one["radius"]) == (verdict.label, verdict.certified, verdict.radius)
        assert one["latency_ms"] > 0
        assert one["drift"] >= 0
    summary = monitor.summary.as_dict()
    assert summary["frames"] == 12
    assert summary["certified"] == sum(one.certified for one in verdicts)
    assert summary["shares"] == [summary["certified"] / 12]
    assert summary["calibration_frames"] == 40


HOSTILE = {
    "no JSON": "{",
    "an empty object": "{}",
    "a list": "[1, 2]",
    "null": "null",
    "no UTF-8": b'{"pixels": [\xff]}',
    "a deep list": '{"pixels": ' + "[" * 1000 + "]" * 1000 + "}",
    "a deeper list": "[" * 2000,
    "pixels that are text": '{"pixels": "0.5"}',
    "pixels that are a number": '{"pixels": 0.5}',
    "pixels that are null": '{"pixels": null}',
    "pixels that are an object": '{"pixels": {"a": 1}}',
    "too few pixels": '{"pixels": [0.1, 0.2]}',
    "values that are text": json.dumps({"pixels": ["0.5"] * 36}),
    "values that are true": json.dumps({"pixels": [True] * 36}),
    "values that are lists": json.dumps({"pixels": [[0.5]] * 36}),
    "a number of a thousand digits": '{"pixels": [' + ", ".join(["9" * 1000] + ["0"] * 35) + "]}",
    "a number of ten thousand digits": '{"pixels": [' + "9" * 10_000 + "]}",
    "several frames": json.dumps({"pixels": frames(2).tolist()}),
    "another key": json.dumps({"pixels": [0.5] * 36, "run": "rm"}),
    "an id that is a list": json.dumps({"pixels": [0.5] * 36, "id": [1]}),
    "an id that is long": json.dumps({"pixels": [0.5] * 36, "id": "a" * 201}),
    "an id that is huge": '{"id": ' + "9" * 100 + ', "pixels": [' + ", ".join(["0.5"] * 36) + "]}",
    "a line that is too long": json.dumps({"pixels": [0.5] * 36}) + " " * 10_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_line_is_refused_in_a_sentence_and_the_stream_goes_on(name: str, live: FrameCertifier) -> None:
    monitor = StreamMonitor(live, radius=False)
    first, second = (json.loads(one) for one in monitor.lines([HOSTILE[name], line(frames(1)[0], id="next")]))
    assert set(first) == {"line", "error"}
    assert "\n" not in first["error"]
    assert len(first["error"]) < 400
    assert second["frame"] == "next"
    assert (monitor.summary.refused, monitor.summary.frames) == (1, 1)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e400", "2", "-0.001"])
def test_a_frame_with_a_value_that_is_none_is_a_frame_that_is_not_certified(value: str, live: FrameCertifier) -> None:
    monitor = StreamMonitor(live)
    (told,) = (json.loads(one) for one in monitor.lines(['{"pixels": [' + ", ".join([value] + ["0.5"] * 35) + "]}"]))
    assert told["certified"] is False
    assert told["radius"] == -1


def test_the_command_ends_with_2_where_a_line_was_none(
    directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = tmp_path / "frames.jsonl"
    given.write_text(line(frames(1)[0]) + "\n")
    assert main([str(directory), "--simulate", "--frames", str(given), "--epsilon", "1/255"]) == 0
    told = [json.loads(one) for one in capsys.readouterr().out.splitlines()]
    assert told[0]["frame"] == 1
    assert told[-1]["kind"] == "vsparse-monitor-summary"
    source = io.TextIOWrapper(io.BytesIO(b"nonsense\n" + b"9" * 100_000 + b"\n" + line(frames(1)[0]).encode()))
    monkeypatch.setattr(sys, "stdin", source)
    summary = tmp_path / "summary.json"
    assert main([str(directory), "--simulate", "--summary", str(summary)]) == 2
    assert json.loads(summary.read_text())["refused"] == 2
    assert len(capsys.readouterr().out.splitlines()) == 3


@pytest.mark.parametrize(
    "arguments", [["none"], ["ARTIFACT", "--frames", "none"], ["ARTIFACT", "--epsilon", "-1"], ["ARTIFACT", "--epsilon", "x"]]
)
def test_bad_arguments_end_with_2_and_a_sentence(arguments: list[str], directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [str(directory) if one == "ARTIFACT" else one for one in arguments]
    try:
        code = main([*given, "--simulate"])
    except SystemExit as stopped:  # argparse's own
        code = int(str(stopped.code))
    assert code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_no_line_is_held_beyond_its_limit() -> None:
    assert [len(one) for one in bounded(io.BytesIO(b"a" * 1000 + b"\nbb\n"), 10)] == [11, 3]
    assert [len(one) for one in bounded(io.BytesIO(b"a" * 1000), 10)] == [11]
    assert list(bounded(io.BytesIO(b""), 10)) == []


def test_shares_over_time_stay_few() -> None:
    summary = MonitorSummary(window=1)
    for i in range(3000):
        summary.count(i % 4 == 0)
    assert (summary.frames, summary.certified) == (3000, 750)
    assert len(summary.windows) <= 256
    assert sum(summary.windows) == 750
    assert (len(summary.windows) - 1) * summary.window + summary.open_frames == 3000
    assert all(0 <= share <= 1 for share in summary.shares())


def test_the_drift_statistic_is_the_stated_sum() -> None:
    calibration = [i / 100 for i in range(100)]
    drift = RadiusDrift(calibration)
    value = 0.0
    for radius in (0.3, 0.9, 0.1, 0.1, -1.0, 0.5, 0.2):
        rank = sum((other < radius) + 0.5 * (other == radius) for other in calibration) / 100
        value = max(0.0, value + 0.5 - rank - 0.125)
        assert drift.add(radius) == pytest.approx(value)


def test_drift_warns_soon_where_radii_fall_and_not_where_they_do_not() -> None:
    rng = np.random.default_rng(0)
    drift = RadiusDrift(rng.random(100).tolist())
    values = [drift.add(float(value)) for value in rng.random(3000)]
    assert drift.warned_at is None
    assert max(values) < THRESHOLD
    for _ in range(14):
        drift.add(-1.0)
    assert drift.warns
    assert drift.warned_at is not None
    assert 3000 <= drift.warned_at < 3014
    with pytest.raises(InputError, match="calibration"):
        RadiusDrift([0.1] * 19)


def test_the_rate_of_false_warnings_is_as_the_page_says() -> None:
    """E exp(θ(½ − U − ⅛)) <= 1 for U uniform and θ = 3.2, so that the mean time to a warning is at least exp(θ·THRESHOLD) frames."""
    theta = 3.2
    assert math.sinh(theta / 2) / (theta / 2) * math.exp(-theta * ALLOWANCE) <= 1
    assert math.exp(theta * THRESHOLD) > 8.8e6
    ties = RadiusDrift([0.0] * 50 + [1.0] * 50)  # of a distribution with ties mid-ranks spread less
    assert (ties.rank(0.0), ties.rank(1.0)) == (0.25, 0.75)
