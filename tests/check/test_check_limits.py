"""What is read costs no more memory than a check may take, whatever sizes files promise."""

from __future__ import annotations

import io
import json
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from bombs import sign, small

from vsparse_check import check
from vsparse_check.files import read_any_json, read_arrays, read_json
from vsparse_check.limits import ResourceBudget
from vsparse_check.refusal import Unchecked

TYPES = {"inputs": "<f4"}


def behind_padding(path: Path, count: int) -> None:
    """Writes zeros behind two megabytes of nothing, which an archive may begin with: so it looks less compressed than it is."""
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.zeros(count, dtype=np.float32), (1, 0))
    path.write_bytes(bytes(2**21))
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inputs.npy", stream.getvalue())


def test_arrays_are_held_before_they_are_unpacked(tmp_path: Path) -> None:
    behind_padding(tmp_path / "inputs.npz", 2**22)
    assert read_arrays(tmp_path / "inputs.npz", TYPES, budget=ResourceBudget(2**26))["inputs"].shape == (2**22,)
    with pytest.raises(Unchecked, match="raise --memory"):
        read_arrays(tmp_path / "inputs.npz", TYPES, budget=ResourceBudget(2**23))
    with pytest.raises(Unchecked, match="raise --work"):
        read_arrays(tmp_path / "inputs.npz", TYPES, budget=ResourceBudget(2**26, 10**6))


@pytest.mark.parametrize("value", ["[]", "{}", '{"":0}', "[0]", '"ab"', "1e5"])
def test_a_document_of_many_values_costs_what_is_counted(tmp_path: Path, value: str) -> None:
    path = tmp_path / "d.json"
    path.write_text(f"[{','.join([value] * 20_000)}]")
    budget = ResourceBudget(2**30)
    tracemalloc.start()
    content = read_any_json(path, budget)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(content) == 20_000
    assert peak <= budget.held + 2**16
    with pytest.raises(Unchecked, match="raise --memory"):
        read_any_json(path, ResourceBudget(2**20))


def test_a_document_of_too_many_values_cannot_be_checked(tmp_path: Path) -> None:
    small(tmp_path / "a")
    path = tmp_path / "a/certificate/certificate.json"
    path.write_text(json.dumps(read_json(path) | {"more": [[]] * 500_000}))
    sign(tmp_path / "a")
    assert check(tmp_path / "a").verdict == "refuted"  # its hash is another one
    found = check(tmp_path / "a", memory=2**25)
    assert (found.verdict, found.status) == ("cannot be checked", 1)
    assert "raise --memory" in found.problem
