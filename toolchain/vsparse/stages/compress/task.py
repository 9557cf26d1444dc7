"""The stage: packs a trained network and writes it beside the account of every layer."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from vsparse.artifact.document import write_document
from vsparse.artifact.layers import Equality, LayerTable
from vsparse.artifact.stage_files import LAYERS, MASKS, PACKED, TRAINED, WEIGHTS, read_masks, read_tensors, write_graph
from vsparse.data import Splits
from vsparse.errors import InputError
from vsparse.graph.from_onnx import read_onnx
from vsparse.graph.ir import Graph
from vsparse.reading import Asked, check_reading, check_written
from vsparse.recipe import Recipe
from vsparse.stages.compress.compression import Compressed, compress

# Inputs on which the masked and the packed network are compared.
COMPARED_INPUTS = 512


def compress_trained(trained: Path, output: Path, recipe: Recipe, splits: Splits) -> None:
    """Packs a trained network and writes it beside the account of every layer."""
    data = splits.validation.inputs(slice(0, COMPARED_INPUTS))
    reading = read_onnx(trained / TRAINED)
    check_reading(trained / TRAINED, reading)
    _require_same_weights(trained, reading.graph)
    # The kernels that use 2:4 count inputs in fours from the first on.
    groups = 4 if recipe.train.is_sparse and recipe.train.sparse.granularity == "2:4" else 1
    result = compress(reading.graph, read_masks(trained / MASKS), exact=recipe.compress.exact, inputs=data, input_groups=groups)
    write_graph(result.packed, output / PACKED)
    check_written(output / PACKED, result.packed, asked=Asked(inside=(0.0, 1.0)))
    write_document(output / LAYERS, account(result))


def _require_same_weights(trained: Path, graph: Graph) -> None:
    """Raises InputError unless the weights that training wrote by name are those of the graph that is packed, bit by bit."""
    weights = read_tensors(trained / WEIGHTS)
    if {name: value.tobytes() for name, value in weights.items()} != {name: value.tobytes() for name, value in graph.params.items()}:
        raise InputError(f"{trained / WEIGHTS} holds other weights than {TRAINED} beside it; train again")


def account(result: Compressed) -> LayerTable:
    """Returns a compression result as layers.json holds it."""
    return LayerTable(
        rows=tuple(result.rows),
        totals=result.total,
        removed_share=result.removed_share,
        density=result.density,
        reductions=tuple(result.reductions),
        exactness=result.exactness,
        proof=result.proof,
        equality=Equality(**asdict(result.evidence)),
    )
