"""The sections of the report, in order: a section is a line of this table and the template of its name beside it.

A template sees `facts` (vsparse.artifact.facts.Facts), `s` and `d` (the outcome of the sparse and of the dense network, or None), `void`,
`gallery`, `figures` and `radii` (the rows of two tables), `epochs`, the modules `charts`, `devices`, `intervals`, `memory`,
`on_target`, `samples`, `steadiness` and `training`, and the filters of `wording`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vsparse.artifact.facts import Facts
from vsparse.stages.report.memory import files
from vsparse.stages.report.steadiness import layers


def _always(facts: Facts) -> bool:
    return True


def _certified(facts: Facts) -> bool:
    return facts.sparse is not None


def _of_classes(facts: Facts) -> bool:
    return facts.sparse is not None and facts.sparse.regression is None


@dataclass(frozen=True)
class ReportSection:
    """One section: the id of its heading, its title in the contents (empty: not listed there), and whether an artifact has it."""

    id: str
    title: str
    there: Callable[[Facts], object]

    @property
    def template(self) -> str:
        """The name of its template."""
        return f"sections/{self.id}.html"


SECTIONS: tuple[ReportSection, ...] = (
    ReportSection("void", "", lambda facts: facts.verdict == "void"),
    ReportSection("uncertified", "", lambda facts: facts.uncertified),
    ReportSection("exact", "", lambda facts: facts.sparse is not None and facts.sparse.exact),
    ReportSection("verdict", "", _always),
    ReportSection("measured", "", lambda facts: facts.sparse or facts.validation or facts.data),
    ReportSection("is", "", _always),
    ReportSection("key", "", lambda facts: facts.sparse or facts.dense or facts.compression or facts.latency),
    ReportSection("gates", "Gates", lambda facts: facts.gates),
    ReportSection("requirements", "Requirements", lambda facts: facts.requirements),
    ReportSection("target", "On the target", _always),
    ReportSection("memory", "Memory", files),
    ReportSection("forms", "Forms", lambda facts: facts.choice),
    ReportSection("certificates", "Certificates", lambda facts: facts.certificates),
    ReportSection("curve", "Accuracy against ε", lambda facts: facts.curve_sparse or facts.curve_dense),
    ReportSection("live", "On the device", lambda facts: facts.live),
    ReportSection("classes", "Classes", _of_classes),
    ReportSection("mistakes", "Mistakes", _of_classes),
    ReportSection("data", "Data", lambda facts: facts.data),
    ReportSection("methods", "Methods", _certified),
    ReportSection("compression", "Compression", lambda facts: facts.compression),
    ReportSection("latency", "Latency", lambda facts: facts.latency),
    ReportSection("devices", "Host and device", lambda facts: facts.device),
    ReportSection("noise", "Noise", lambda facts: facts.latency or facts.device),
    ReportSection("layers", "Time by layer", layers),
    ReportSection("training", "Training", lambda facts: facts.history_sparse or facts.history_dense),
    ReportSection("gallery", "Counterexamples", lambda facts: facts.counterexamples is not None and facts.classes != 1),
    ReportSection("contract", "Numeric contract", _certified),
    ReportSection("checks", "Cross-check and audit", _always),
    ReportSection("provenance", "Provenance", _always),
    ReportSection("yourself", "Check it yourself", _always),
    ReportSection("glossary", "Glossary", _always),
)
