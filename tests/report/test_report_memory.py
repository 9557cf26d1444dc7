"""The section on a microcontroller's memory: each number from the record that it names, with its gate, and what is not known said."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from test_report_page import render
from test_report_sections import on_a_microcontroller

from report_artifact import write_manifest
from vsparse.artifact.document import read_document, write_document
from vsparse.artifact.facts import gather
from vsparse.artifact.models import CSourceRecord
from vsparse.errors import InputError
from vsparse.stages.report import memory, write_report


@pytest.fixture
def board(tmp_path: Path) -> Path:
    on_a_microcontroller(tmp_path / "a")
    return tmp_path / "a"


def written(directory: Path, name: str, **changes: object) -> None:
    path = directory / "model" / name
    record = read_document(CSourceRecord, directory / "model" / "c_source.json")
    write_document(path, record.model_copy(update=changes))
    write_manifest(directory)


def test_flash_ram_and_stack_stand_with_their_gates_and_where_they_come_from(board: Path) -> None:
    page, facts, _ = render(board)
    taken = facts["c_source"]["footprint"]
    assert taken["flash_bytes"] == 42_086
    assert "profile DIR --host" not in page.text
    for words in (
        "a microcontroller is measured by its own harness, docs/how-to-microcontroller.md",
        "model/model.c 41.1 KiB36.8 KiB4.3 KiB1.4 KiB328 bytes",
        "flash512 KiB (datasheet) at most 512 KiB, target cortex-m4f41.1 KiBpassed",
        "RAM128 KiB (datasheet; 112 and 16 KiB, one after the other) at most 1 KiB, gates.ram_kib1.4 KiBFAILED",
        "no gate: your firmware decides how much of RAM is stack",
        "by the linker's map of arm-none-eabi-gcc 12.2 (-mcpu=cortex-m4 -O2)",
    ):
        assert words in page.text, words
    assert page.text.count("by the linker's map of") == 1
    assert "the gates are about this one" not in page.text


def test_of_two_files_the_gates_are_about_the_int8_one(board: Path) -> None:
    found = read_document(CSourceRecord, board / "model" / "c_source.json").footprint
    assert found is not None
    written(
        board, "c_source.int8.json", files=("model.int8.c",), contract="int8", footprint=found.model_copy(update={"flash_bytes": 20_480})
    )
    page, facts, _ = render(board)
    assert facts["c_int8"]["footprint"]["flash_bytes"] == 20_480
    assert "model/model.int8.cthe gates are about this one 20.0 KiB" in page.text
    assert page.text.count("the gates are about this one") == 1
    assert [row.judged for row in memory.files(gather(board))] == [False, True]


def test_what_takes_a_compiler_is_said_not_to_be_known_without_one(board: Path) -> None:
    written(board, "c_source.json", footprint=None)
    page, _, _ = render(board)
    assert "model/model.c not measured36.8 KiBnot measured1.4 KiBnot measured" in page.text
    assert "arm-none-eabi-gcc was not at hand when this was built" in page.text
    assert "by the linker's map of" not in page.text


def test_a_stack_without_a_bound_and_a_file_that_there_is_not(board: Path) -> None:
    found = read_document(CSourceRecord, board / "model" / "c_source.json").footprint
    assert found is not None
    written(board, "c_source.json", footprint=found.model_copy(update={"stack_bytes": None}))
    absent = CSourceRecord(written=False, reason="the operator Tanh has no C form")
    write_document(board / "model" / "c_source.int8.json", absent)
    write_manifest(board)
    page, _, _ = render(board)
    assert "no bound" in page.text
    assert "there is none: the operator Tanh has no C form" in page.text


def test_other_targets_have_no_such_section_and_a_damaged_one_is_a_sentence(board: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(board, tmp_path / "other"))
    (other / "target.toml").write_text('name = "local"\n')
    write_manifest(other)
    assert memory.files(gather(other)) == memory.gates(gather(other)) == ()
    assert "Memory of the microcontroller" not in render(other)[0].text
    text = (board / "target.toml").read_text()
    (board / "target.toml").write_text(text.replace("value = 512.0", 'value = "much"'))
    write_manifest(board)
    with pytest.raises(InputError, match=r"target\.toml: device\.facts\.flash\.value"):
        write_report(board)
