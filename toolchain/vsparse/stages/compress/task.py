"""The stage: packs a trained network and writes it beside the account of every layer."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from vsparse.artifact.stage_files import LAYERS, MASKS, PACKED, TRAINED, read_masks, write_graph
from vsparse.data import Splits
from vsparse.files import write_json
from vsparse.graph.from_onnx import read_onnx
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
    result = compress(reading.graph, read_masks(trained / MASKS), exact=recipe.compress.exact, inputs=data)
    write_graph(result.packed, output / PACKED)
    check_written(output / PACKED, result.packed, asked=Asked(inside=(0.0, 1.0)))
    write_json(output / LAYERS, account(result))


def account(result: Compressed) -> dict[str, Any]:
    """Returns a compression result as the JSON values of layers.json."""
    return {
        "schema_version": 1,
        "rows": [asdict(row) for row in result.rows],
        "totals": asdict(result.total),
        "removed_share": result.removed_share,
        "density": result.density,
        "reductions": [asdict(reduction) for reduction in result.reductions],
        "exactness": result.exactness,
        "proof": result.proof,
        "equality": asdict(result.evidence),
    }
