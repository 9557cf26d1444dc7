"""The operators, one module for each family: affine, pooling, arithmetic, moves, piecewise linear, sigmoidal, quantised.

Each holds the node types of its family and, for each of them, its shape, how torch executes it, how ONNX operators are read as it and how
it is written, its torch layer, and how torch functions and layers are read as it; `moves` stand in four (what all have in common, Reshape,
Slice, the others), and constants, which become no node, in one of their own. The tables are full once this package is imported.
"""

from vsparse.graph.onnx_context import OPERATORS
from vsparse.graph.operators import constants
from vsparse.graph.operators.affine import Affine, BatchNorm, Conv, Gemm
from vsparse.graph.operators.arithmetic import Add, AddConstant, DivConstant, MulConstant, Neg, Sub
from vsparse.graph.operators.move import Move
from vsparse.graph.operators.moves import Concat, Pad, Transpose
from vsparse.graph.operators.piecewise import Clip, LeakyRelu, Relu
from vsparse.graph.operators.pooling import AveragePool, MaxPool
from vsparse.graph.operators.quantised import FakeQuant
from vsparse.graph.operators.reshape import Reshape
from vsparse.graph.operators.sigmoidal import Sigmoid, Tanh
from vsparse.graph.operators.slices import Slice
from vsparse.graph.torch_context import FUNCTIONS, LAYERS, METHODS

__all__ = [
    "FUNCTIONS",
    "LAYERS",
    "METHODS",
    "OPERATORS",
    "Add",
    "AddConstant",
    "Affine",
    "AveragePool",
    "BatchNorm",
    "Clip",
    "Concat",
    "Conv",
    "DivConstant",
    "FakeQuant",
    "Gemm",
    "LeakyRelu",
    "MaxPool",
    "Move",
    "MulConstant",
    "Neg",
    "Pad",
    "Relu",
    "Reshape",
    "Sigmoid",
    "Slice",
    "Sub",
    "Tanh",
    "Transpose",
    "constants",
]
