"""Compression: masks to smaller graphs, exact reductions, and the layer table."""

from vsparse.stages.compress.compression import Compressed, compress
from vsparse.stages.compress.evidence import Evidence
from vsparse.stages.compress.operators import FAMILIES

__all__ = ["FAMILIES", "Compressed", "Evidence", "compress"]
