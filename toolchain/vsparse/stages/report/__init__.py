"""The report: report.html for people and report.json for programs, from what an artifact directory holds."""

from vsparse.stages.report.render import write_report

__all__ = ["write_report"]
