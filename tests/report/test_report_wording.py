"""How numbers become words, and counterexamples pictures."""

from __future__ import annotations

import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tomli_w

from report_artifact import certificate, claims, write
from vsparse.artifact.counterexamples import Counterexamples
from vsparse.artifact.facts import gather
from vsparse.stages.report import wording
from vsparse.stages.report.gallery import make_gallery
from vsparse.stages.report.wording import arrays_in_lines, fraction, milliseconds, size


def test_rounded_fractions_never_claim_all_or_none() -> None:
    assert fraction(1.0) == "100 %"
    assert fraction(0.9999) == "> 99.9 %"
    assert fraction(0.0) == "0 %"
    assert fraction(0.0001) == "< 0.1 %"
    assert fraction(0.9312) == "93.1 %"
    assert (size(812), size(24_600), size(1_320_000)) == ("812 B", "24.6 kB", "1.32 MB")
    assert (milliseconds(0.1234), milliseconds(999.6), milliseconds(180_000)) == ("0.123 ms", "1 s", "3.0 min")


def test_the_gallery_leaves_out_what_is_wrong_undisturbed(tmp_path: Path) -> None:
    rows = claims([1, 1], 1)
    for row in rows:
        row.update(verdict="falsified", margin_lower=None, predicted=row["label"], method="attack", proof="counterexamples.npz")
    rows[0].update(predicted=1, method="clean")
    write(tmp_path / "certificate" / "certificate.json", certificate(rows, ["a", "b"], "0.25"))
    originals = np.linspace(0, 1, 2 * 4, dtype=np.float32).reshape(2, 1, 2, 2)
    changed = originals.copy()
    changed[1, 0, 0, 0] -= 0.25
    ids, labels, predictions = np.array([0, 1]), np.array([0, 1]), np.array([1, 0])
    Counterexamples(ids, changed, originals, labels, predictions).write(tmp_path / "certificate" / "counterexamples.npz")
    found = make_gallery(gather(tmp_path))
    assert found is not None
    assert (found.total, found.magnification, len(found.pictures)) == (1, 2.0, 1)
    assert (found.pictures[0].id, found.pictures[0].label, found.pictures[0].predicted) == (1, "b", "a")
    assert found.pictures[0].largest_change == pytest.approx(0.25)
    assert found.pictures[0].difference_png.startswith("data:image/png;base64,")


def test_a_page_on_rows_of_a_table_speaks_of_samples_and_leaves_code_as_it_is() -> None:
    page = '<p class="image">An image, an image and 2 images; Images. <img src="data:image/png;base64,"></p>'
    told = wording.of_samples(page)
    assert told == '<p class="image">A sample, a sample and 2 samples; Samples. <img src="data:image/png;base64,"></p>'


@pytest.mark.parametrize(
    ("shape", "scales", "classes", "are"),
    [
        ((1, 8, 8), (), 10, True),
        ((3, 1, 64), (), 4, False),
        ((30, 1, 1), (), 2, False),
        ((1, 8, 8), ("1",), 2, False),
        ((1, 8, 8), (), 1, False),
    ],
)
def test_rows_and_windows_are_no_pictures(shape: tuple[int, ...], scales: tuple[str, ...], classes: int, are: bool) -> None:
    outcome = SimpleNamespace(scales=scales)
    facts: Any = SimpleNamespace(sparse=outcome, dense=None, data=SimpleNamespace(shape=shape), classes=classes)
    assert wording.pictures(facts) is are


def test_arrays_stand_on_one_line_and_say_the_same() -> None:
    text = "a = [\n    1,\n]"
    content = {
        "curve": ["0.1", "8/255"],
        "mean": [0.5],
        "none": [],
        "name": text,
        "rows": [["x, y", "]"], ["z"]],
        "table": {"of": [1, 2, 3]},
    }
    shown = arrays_in_lines(tomli_w.dumps(content))
    assert tomllib.loads(shown) == content
    assert 'curve = ["0.1", "8/255"]' in shown
    assert "of = [1, 2, 3]" in shown
