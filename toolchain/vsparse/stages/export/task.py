"""The stage: writes the deployed ONNX files, and checks that the runtime executes the graph that will be verified."""

from __future__ import annotations

from pathlib import Path

from vsparse.artifact import DENSE_MODEL, MODEL
from vsparse.artifact.stage_files import PACKED, TRAINED
from vsparse.data import Dataset
from vsparse.files import write_json
from vsparse.graph.from_onnx import read_onnx
from vsparse.graph.ir import Graph
from vsparse.reading import FILE as READING
from vsparse.reading import check_reading, check_written
from vsparse.recipe import Recipe
from vsparse.stages.export.c_source.stage import write_c
from vsparse.stages.export.onnx_file import write_onnx
from vsparse.stages.export.precisions import write_precision
from vsparse.stages.export.runtime_graph import check_runtime_graph


def export_models(packed: Path, dense: Path | None, output: Path, recipe: Recipe, training: Dataset, c_source: bool = False) -> None:
    """Writes the deployed ONNX files, with `c_source` also the C one, and checks that the runtime executes the graph that is verified.

    What is read and what is written is executed and compared with its reading; reading.json keeps the evidence.
    `training` samples calibrate the quantised model, where the recipe wants one.
    """
    metadata = {"recipe": recipe.name, "contract": recipe.verify.contract}
    model = output / Path(MODEL).name
    graph = _read(packed / PACKED)
    write_onnx(graph, model, recipe.export.opset, metadata)
    write_json(output / READING, check_written(model, graph, source=graph, exact=True).as_dict())
    write_json(output / "runtime_graph.json", {"schema_version": 1, **check_runtime_graph(model).as_dict()})
    if c_source:
        write_c(model, recipe.name)
    for precision in recipe.export.precisions:
        write_precision(model, precision, recipe.export.opset, metadata, training)
    if dense is not None:
        parent = output / Path(DENSE_MODEL).name
        graph = _read(dense / TRAINED)
        write_onnx(graph, parent, recipe.export.opset, {**metadata, "role": "dense parent"})
        check_runtime_graph(parent)
        check_written(parent, graph, source=graph, exact=True)


def _read(path: Path) -> Graph:
    """Returns the graph of an earlier stage's file, once the file was executed and compared with its reading."""
    reading = read_onnx(path)
    check_reading(path, reading)
    return reading.graph
