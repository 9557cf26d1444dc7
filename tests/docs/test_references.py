"""Every reference resolves: from docstrings and comments to sections of documents, from documents to files, names and options."""

from __future__ import annotations

from pathlib import Path

import pytest
from references import DOCS, ROOT, faults_of_document, faults_of_source, sections, slug

pytestmark = pytest.mark.skipif(not (DOCS.is_dir() and (ROOT / "benchmarks").is_dir()), reason="the documents are not beside the tests")

FOLDERS = ("toolchain", "tests", "benchmarks")
SOURCES = sorted(
    path
    for folder in FOLDERS
    for kind in ("*.py", "*.html", "*.toml", "*.j2")
    for path in (ROOT / folder).rglob(kind)
    if path.parent != Path(__file__).parent
)
DOCUMENTS = sorted(
    [
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
        *DOCS.glob("*.md"),
        *(ROOT / "benchmarks").rglob("README.md"),
    ]
)


def test_sources_cite_sections_that_exist() -> None:
    found = [f"{path.relative_to(ROOT)}: {fault}" for path in SOURCES for fault in faults_of_source(path)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_documents_refer_to_what_exists(document: Path) -> None:
    found = list(faults_of_document(document))
    assert not found, "\n".join(found)


def test_the_numerics_are_numbered_without_gaps() -> None:
    numbers = list(sections(DOCS / "numerics.md"))
    heads = [int(number) for number in numbers if "." not in number]
    assert heads == list(range(1, len(heads) + 1)), heads
    for head in heads:
        parts = [int(number.split(".")[1]) for number in numbers if number.startswith(f"{head}.")]
        assert parts == list(range(1, len(parts) + 1)), (head, parts)


SOURCE_FAULTS = {
    '"""Of NUMERICS 4."""': "NUMERICS 4",
    '"""See docs/numerics.md, section 99."""': "no section 99",
    '"""See docs/numerics.md,\n    sections 2 and 3.99."""': "no section 3.99",
    "# E, as docs/numerics.md\n# says.": "without a section",
    '"""See docs/numerics.md, section 10.3, rule 99."""': "no rule 99",
    "# One more rounding (section 2).": "of which document",
    '"""See docs/absent.md."""': "docs/absent.md does not exist",
    '"""The table (numerics.md, int8)."""': "without its folder",
}


@pytest.mark.parametrize("text", SOURCE_FAULTS)
def test_faults_of_sources_are_found(tmp_path: Path, text: str) -> None:
    path = tmp_path / "module.py"
    path.write_text(text, encoding="utf-8")
    assert any(SOURCE_FAULTS[text] in fault for fault in faults_of_source(path))


DOCUMENT_FAULTS = {
    "[there](absent.md)": "no such file",
    "[there](#absent)\n\n# Here": "no such heading",
    "# Here\n\n## 1. One\n\nSee section 2.": "section 2",
    "`bounds/absent.py` does it": "no such file",
    "`tests/absent/`": "no such file",
    "`vsparse.bounds.absent`": "no such module or attribute",
    "`vsparse absent`": "no such command",
    "    vsparse build digits --absent": "no option --absent",
    "    vsparse build digits \\\n        --absent": "no option --absent",
    "    python benchmarks/builds/absent.py": "no such script",
    "    python benchmarks/builds/run.py digits --absent": "no option --absent",
    "`make absent`": "no such target",
    "    vsparse build digits --set train.absent=1": "no recipe has this key",
    "`train.sparse.absent` says": "no recipe has this key",
    "`absent.py` does it": "absent.py: no such file anywhere",
    "see `absent.md` and `absent.toml`": "absent.toml: no such file anywhere",
    "written to `absent.json`": "absent.json: no such file anywhere",
    "`absent_*.py` do it": "absent_*.py: no such file anywhere",
    "`{absent,fusion}-x.py`": "{absent,fusion}-x.py: no such file anywhere",
    "`--absent-option` ends it": "no program has such an option",
}


@pytest.mark.parametrize("text", DOCUMENT_FAULTS)
def test_faults_of_documents_are_found(tmp_path: Path, text: str) -> None:
    path = tmp_path / "page.md"
    path.write_text(text + "\n", encoding="utf-8")
    assert any(DOCUMENT_FAULTS[text] in fault for fault in faults_of_document(path))


@pytest.mark.parametrize(
    "text",
    [
        "(Zhang et al., arXiv 1811.00866, section 3.3)",
        "(Higham 2002, lemma 3.1 and section 3.1)",
        "`vsparse.bounds.Rounding` and `vsparse.contract.Contract.order`",
        "`bounds/ball.py`, `stages/export/runtime_*.py`",
        "`fusion.py`, `runtime_*.py`, `numerics.md`, `local.toml`, `{ball,fusion}.py`",
        "`certificate.json`, `gates.json` and `run_on_device.py` of an artifact, `my.toml`, `results-NAME.json`",
        "    vsparse --version",
        "`--memory 4GiB`, `--noTF32`",
        "    vsparse build digits --set 'train.sparsity=0.5' --json    # --absent is in a comment",
    ],
)
def test_what_exists_is_no_fault(tmp_path: Path, text: str) -> None:
    path = tmp_path / "page.md"
    path.write_text(text + "\n", encoding="utf-8")
    assert not list(faults_of_document(path))


def test_anchors_are_those_of_markdown_pages() -> None:
    assert slug("3.2 Sigmoid and tanh: an assumption") == "32-sigmoid-and-tanh-an-assumption"
    assert slug("What `vsparse check` says") == "what-vsparse-check-says"
