"""A file against its reading: what was read of an ONNX file is compared with what ONNX Runtime executes."""

from vsparse.reading.compare import check_reading
from vsparse.reading.evidence import FILE, ReadingEvidence
from vsparse.reading.points import Asked
from vsparse.reading.written import check_written

__all__ = ["FILE", "Asked", "ReadingEvidence", "check_reading", "check_written"]
