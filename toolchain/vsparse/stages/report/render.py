"""Turns Facts into report.html and report.json."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, FunctionLoader, StrictUndefined

from vsparse.artifact.facts import Facts, gather
from vsparse.artifact.layout import REPORT, REPORT_JSON
from vsparse.errors import InputError
from vsparse.files import write_bytes, write_json
from vsparse.stages.report import charts, devices, intervals, memory, on_target, samples, steadiness, training, wording
from vsparse.stages.report.comparison import ArtifactComparison
from vsparse.stages.report.details import conditions, details
from vsparse.stages.report.document import as_json
from vsparse.stages.report.gallery import Gallery, make_gallery
from vsparse.stages.report.sections import SECTIONS

# Control characters, and those that turn the direction of a line, come from devices and files: none reaches a browser as what it is.
KEPT = "\t\n"
TURNS = (*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x2028, 0x2029, 0xFEFF)
CONTROLS = (*range(0x20), *range(0x7F, 0xA0), *TURNS)
SPELLED_OUT = {code: chr(code).encode("unicode_escape").decode() for code in CONTROLS if chr(code) not in KEPT}


def _source(name: str) -> str | None:
    resource = files("vsparse.stages.report") / name
    return resource.read_text(encoding="utf-8") if resource.is_file() else None


def _environment() -> Environment:
    environment = Environment(
        loader=FunctionLoader(_source), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(wording.FILTERS, details=details, conditions=conditions)
    return environment


def html(facts: Facts, gallery: Gallery | None = None) -> str:
    """Returns the page: one file with its styles, charts and images inside, without scripts; every value escaped."""
    environment = _environment()
    environment.globals.update(charts=charts, devices=devices, memory=memory, steadiness=steadiness, training=training)
    environment.globals.update(intervals=intervals, on_target=on_target, samples=samples)
    there = [section for section in SECTIONS if section.there(facts)]
    page = environment.get_template("page.html").render(
        facts=facts,
        pictures=wording.pictures(facts),
        sections=there,
        first_listed=next(section.id for section in there if section.title),
        gallery=gallery if gallery is not None else make_gallery(facts),
        figures=wording.key_figures(facts),
        radii=wording.radii(facts),
        epochs=training.epochs(facts),
    )
    page = page if wording.pictures(facts) else wording.of_samples(page)
    return page.translate(SPELLED_OUT) + "\n"


def comparison_html(found: ArtifactComparison) -> str:
    """Returns the page on two artifacts, made as `html` makes one's own."""
    environment = _environment()
    environment.globals.update(intervals=intervals)
    return environment.get_template("compare.html").render(found=found).translate(SPELLED_OUT) + "\n"


def write_comparison(found: ArtifactComparison, path: Path) -> None:
    """Writes the page on two artifacts to a file, atomically; InputError for a path in one of them, or that is no page."""
    if path.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"--out {path} should end with .html; give the page another name")
    if path.exists() and not path.is_file():
        raise InputError(f"--out {path} is there and is no file; choose another")
    for directory in (found.a, found.b):
        if path.resolve().is_relative_to(directory.resolve()):
            raise InputError(f"--out {path} lies in the artifact {directory}, whose manifest lists its files; choose a path outside")
    write_bytes(path, comparison_html(found).encode())


def write_report(directory: Path) -> Path:
    """Writes report.html and report.json into an artifact directory from what it holds, and returns the path of report.html.

    The same artifact gives the same bytes. Raises InputError for a directory that is no artifact and for damaged files.
    """
    facts = gather(directory)
    gallery = make_gallery(facts)
    page = html(facts, gallery)
    path = directory / REPORT
    write_json(directory / REPORT_JSON, as_json(facts, gallery))
    write_bytes(path, page.encode())
    return path
