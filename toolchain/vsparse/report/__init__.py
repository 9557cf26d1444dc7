"""The report: report.html for people and report.json for programs, from what an artifact directory holds."""

from vsparse.report.facts import Facts, gather
from vsparse.report.render import write_report

__all__ = ["Facts", "gather", "write_report"]
