"""The small IR: torch in and out, ONNX in and out, execution, batch-norm folding, cost.

Every node type is exported from here too: `Conv`, `Relu`, … (`graph/operators`).
"""

from vsparse.graph.core import Graph as Graph
from vsparse.graph.core import QuantisedParameter as QuantisedParameter
from vsparse.graph.core import Shape as Shape
from vsparse.graph.cost import LayerCost as LayerCost
from vsparse.graph.cost import layer_table as layer_table
from vsparse.graph.cost import macs as macs
from vsparse.graph.cost import parameter_bytes as parameter_bytes
from vsparse.graph.cost import parameter_count as parameter_count
from vsparse.graph.cost import weight_count as weight_count
from vsparse.graph.execute import apply as apply
from vsparse.graph.execute import channel_affine as channel_affine
from vsparse.graph.execute import run as run
from vsparse.graph.fold import fold_batch_norm as fold_batch_norm
from vsparse.graph.from_onnx import Reading as Reading
from vsparse.graph.from_onnx import Tensor as Tensor
from vsparse.graph.from_onnx import from_onnx as from_onnx
from vsparse.graph.from_onnx import read_onnx as read_onnx
from vsparse.graph.from_torch import from_torch as from_torch
from vsparse.graph.operators.nodes import *  # noqa: F403
from vsparse.graph.to_onnx import to_onnx as to_onnx
from vsparse.graph.to_torch import to_torch as to_torch
from vsparse.graph.validate import validate as validate
