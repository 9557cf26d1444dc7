"""docs/reference-artifact.md names every key that the report writes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from report_artifact import make_artifact
from vsparse.stages.report import write_report

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "reference-artifact.md"


@pytest.mark.skipif(not DOCUMENT.exists(), reason="the documents are not beside the tests")
def test_every_key_of_report_json_is_in_the_reference(tmp_path: Path) -> None:
    directory = make_artifact(tmp_path / "a")
    write_report(directory)
    facts = json.loads((directory / "report.json").read_text())
    named = set(re.findall(r"`([a-z_0-9]+)`", DOCUMENT.read_text(encoding="utf-8")))
    keys = {
        *facts,
        *facts["sparse"],
        *facts["curve_sparse"][0],
        *facts["compression"],
        *facts["latency"][0],
        *facts["gallery"],
        *facts["audit"],
    }
    assert keys - named - {"file", "pictures"} == set()
