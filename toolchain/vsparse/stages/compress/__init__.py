"""Compression: masks to smaller graphs, exact reductions, and the layer table."""

from vsparse.stages.compress.compression import Compressed, compress
from vsparse.stages.compress.evidence import Evidence
from vsparse.stages.compress.liveness import Removal
from vsparse.stages.compress.operators import FAMILIES
from vsparse.stages.compress.table import LayerRow

__all__ = ["FAMILIES", "Compressed", "Evidence", "LayerRow", "Removal", "compress"]
