"""Compression: masks to smaller graphs, exact reductions, and the layer table."""

from vsparse.compress.compression import Compressed, compress
from vsparse.compress.evidence import Evidence
from vsparse.compress.liveness import Reduction
from vsparse.compress.table import LayerRow

__all__ = ["Compressed", "Evidence", "LayerRow", "Reduction", "compress"]
