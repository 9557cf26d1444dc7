"""The small IR: torch in and out, ONNX in and out, execution, batch-norm folding, cost."""

from vsparse.graph.cost import LayerCost, layer_table, macs, parameter_bytes, parameter_count, weight_count
from vsparse.graph.execute import apply, channel_affine, run
from vsparse.graph.fold import fold_batch_norm
from vsparse.graph.from_onnx import from_onnx
from vsparse.graph.from_torch import from_torch
from vsparse.graph.ir import (
    Add,
    AddConstant,
    Affine,
    AveragePool,
    BatchNorm,
    Conv,
    Gemm,
    Graph,
    MaxPool,
    MulConstant,
    Node,
    Relu,
    Reshape,
    Shape,
)
from vsparse.graph.to_onnx import to_onnx
from vsparse.graph.to_torch import to_torch
from vsparse.graph.validate import validate

__all__ = [
    "Add",
    "AddConstant",
    "Affine",
    "AveragePool",
    "BatchNorm",
    "Conv",
    "Gemm",
    "Graph",
    "LayerCost",
    "MaxPool",
    "MulConstant",
    "Node",
    "Relu",
    "Reshape",
    "Shape",
    "apply",
    "channel_affine",
    "fold_batch_norm",
    "from_onnx",
    "from_torch",
    "layer_table",
    "macs",
    "parameter_bytes",
    "parameter_count",
    "run",
    "to_onnx",
    "to_torch",
    "validate",
    "weight_count",
]
