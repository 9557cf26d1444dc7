"""The operators, one module for each family: affine, pooling, arithmetic, moves, piecewise linear, sigmoidal, quantised.

Each holds the node types of its family and, for each of them, its shape, how torch executes it, how ONNX operators are read as it and how
it is written, its torch layer, and how torch functions and layers are read as it; `moves` stand in four (what all have in common, Reshape,
Slice, the others), and constants, which become no node, in one of their own. The tables are full once this package is imported.
"""

from vsparse.graph.onnx_context import OPERATORS as OPERATORS
from vsparse.graph.operators.nodes import *  # noqa: F403
from vsparse.graph.torch_context import FUNCTIONS as FUNCTIONS
from vsparse.graph.torch_context import LAYERS as LAYERS
from vsparse.graph.torch_context import METHODS as METHODS
