"""The report: report.html for people and report.json for programs, from what an artifact directory holds; and a page on two of them."""

from vsparse.stages.report.comparison import ArtifactComparison, ShareDifference, ValueDifference, compare_artifacts
from vsparse.stages.report.render import write_comparison, write_report

__all__ = ["ArtifactComparison", "ShareDifference", "ValueDifference", "compare_artifacts", "write_comparison", "write_report"]
