"""Turns Facts into report.html and report.json."""

from __future__ import annotations

from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined

from vsparse.files import write_bytes, write_json
from vsparse.stages.report import charts, training, wording
from vsparse.stages.report.facts import Facts, gather

SCHEMA_VERSION = 1


def as_json(facts: Facts) -> dict[str, Any]:
    """Returns the facts as JSON values: shares from 0 to 1, sizes in bytes; raw samples and images stay in their own files."""
    content = asdict(facts)
    for item in content["latency"]:
        for name in ("dense", "sparse"):
            if item[name]:
                item[name]["runs"] = len(item[name].pop("samples_ms"))
    for item in (content["gallery"] or {"pictures": ()})["pictures"]:
        for name in ("original_png", "perturbed_png", "difference_png"):
            del item[name]
    for holder, name in ((content["cross_check"], "details"), (content["audit"], "details"), (content["compression"], "equality")):
        if holder:
            holder[name] = dict(holder[name])
    for role, outcome in (("sparse", facts.sparse), ("dense", facts.dense)):
        if outcome is not None:
            content[role]["majority_share"] = outcome.majority_share
    for item in content["certificates"]:
        item["certified_by"] = dict(item["certified_by"])
    for item in content["latency"]:
        item["conditions"] = dict(item["conditions"])
    if content["provenance"]:
        content["provenance"].update({name: dict(content["provenance"][name]) for name in ("tools", "files")})
    summary = {"verdict": facts.verdict, "void_reasons": list(facts.void_reasons), "not_measured": list(facts.not_measured)}
    return {"schema_version": SCHEMA_VERSION, **summary, **content}


def _source(name: str) -> str | None:
    resource = files("vsparse.stages.report") / name
    return resource.read_text(encoding="utf-8") if resource.is_file() else None


def html(facts: Facts) -> str:
    """Returns the page: one file with its styles, charts and images inside, without scripts; every value escaped."""
    environment = Environment(
        loader=FunctionLoader(_source), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(wording.FILTERS)
    environment.globals.update(charts=charts, training=training)
    return (
        environment.get_template("template.html").render(facts=facts, figures=wording.key_figures(facts), radii=wording.radii(facts)) + "\n"
    )


def write_report(directory: Path) -> Path:
    """Writes report.html and report.json into an artifact directory from what it holds, and returns the path of report.html.

    The same artifact gives the same bytes. Raises InputError for a directory that is no artifact and for damaged files.
    """
    facts = gather(directory)
    page = html(facts)
    path = directory / "report.html"
    write_json(directory / "report.json", as_json(facts))
    write_bytes(path, page.encode())
    return path
