"""The network that a recipe begins with, as a graph: of its architecture, or the very one that the ONNX file of train.start holds."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from math import prod
from pathlib import Path

import numpy as np
from torch import nn

from vsparse.artifact.document import write_document
from vsparse.artifact.history import History, ObjectiveRecord
from vsparse.artifact.stage_files import HISTORY, MASKS, TRAINED, WEIGHTS, write_graph, write_tensors
from vsparse.data import Splits
from vsparse.errors import InputError
from vsparse.file_kind import HEAD_BYTES, WHAT, file_kind
from vsparse.graph import from_torch
from vsparse.graph.fold import fold_batch_norm
from vsparse.graph.from_onnx import read_onnx
from vsparse.graph.ir import Affine, Graph, Node, Reshape, Shape, Transpose
from vsparse.graph.rows import rows_as_maps
from vsparse.graph.shapes import show
from vsparse.graph.validate import validate
from vsparse.networks import Normalise
from vsparse.reading import check_reading, check_written
from vsparse.recipe import Recipe
from vsparse.recipe_train import OF_START
from vsparse.stages.train.answers import answers
from vsparse.stages.train.own import Own, read_own
from vsparse.stages.train.start import network_of, start_content

# Beside the network that was taken as it is: how its file was compared with what was read of it.
READ_START = "start_reading.json"
AS_IT_IS = ObjectiveRecord(
    name="none",
    report="Nothing was trained: the network is that of train.start as it is (train.epochs = 0).",
    certified=False,
    validated_by="interval",
    is_cross_entropy=False,
    uses_epsilon=False,
)


def starting_network(recipe: Recipe, shape: Shape, classes: int) -> tuple[Graph, Own]:
    """Returns the network that a recipe begins with, as a graph on samples of `shape`, and what it says of its training.

    Raises InputError for what cannot be read, does not fit the data, or cannot be trained where train.epochs asks for it.
    """
    if recipe.network.architecture == OF_START:
        return _of_file(recipe, shape, classes), Own()
    module = network_of(recipe, shape, classes)
    graph = from_torch(module, shape)
    return graph, read_own(module, graph, recipe.train)


def _of_file(recipe: Recipe, shape: Shape, classes: int) -> Graph:
    where, data = f"train.start {recipe.train.start}", start_content(recipe)
    kind = file_kind(data[:HEAD_BYTES])
    if kind != "onnx":
        raise InputError(
            f'{where} is {WHAT.get(kind, "no ONNX file")}, and network.architecture = "{OF_START}" is that of an ONNX file; name the '
            "architecture that its weights are of"
        )
    found = read_onnx(data, recipe.train.start).graph
    if found.storage != "fp32" or found.integers:
        raise InputError(f"{where}: its weights are float16 or quantised; give the float32 file that it was made from")
    logits = prod(found.shape_of(found.output))
    if logits != classes:
        raise InputError(
            f"{where} answers with {logits} numbers, and the data have {classes} classes; give the data that it was trained on"
        )
    if recipe.train.epochs:
        _require_untied(found, where)
    return validate(rows_as_maps(_normalised(_fed(found, shape, where), shape, recipe)))


def _require_untied(graph: Graph, where: str) -> None:
    seen: list[Affine] = []
    for node in graph.nodes:
        if not isinstance(node, Affine):
            continue
        other = next((one for one in seen if np.shares_memory(graph.params[one.weight], graph.params[node.weight])), None)
        if other is not None:
            raise InputError(
                f'{where}: its layers "{show(other.name)}" and "{show(node.name)}" are tied: they read one weight, and training treats '
                "each layer alone; untie them before the export, or set train.epochs = 0"
            )
        seen.append(node)


def _fed(graph: Graph, shape: Shape, where: str) -> Graph:
    """Returns the network on samples of another shape with the same elements: flat ones, or [height, width, channels] as Keras has them."""
    own = graph.input_shape
    if own == shape:
        return graph
    name = _free(graph, f"{graph.input}.as-data")
    last = (*shape[1:], shape[0])
    if own == last and len(shape) > 1 and shape[0] > 1:
        back = (len(shape) - 1, *range(len(shape) - 1))
        readers = graph.consumers()[graph.input]
        if readers and all(isinstance(node, Transpose) and node.order == back and node.name != graph.output for node in readers):
            gone = {node.name for node in readers}
            kept = [node for node in graph.nodes if node.name not in gone]
            return replace(graph, input_shape=shape, nodes=_reading(kept, dict.fromkeys(gone, graph.input)))
        move: Node = Transpose(name=name, inputs=(graph.input,), shape=own, order=(*range(1, len(shape)), 0))
    elif prod(own) == prod(shape) and (len(own) == 1 or [n for n in own if n != 1] == [n for n in shape if n != 1]):
        move = Reshape(name=name, inputs=(graph.input,), shape=own)
    else:
        raise InputError(
            f"{where} reads inputs of shape {list(own)}, and the data have {list(shape)}; give the data that it was trained on"
        )
    return replace(graph, input_shape=shape, nodes=(move, *_reading(graph.nodes, {graph.input: name})))


def _normalised(graph: Graph, shape: Shape, recipe: Recipe) -> Graph:
    """Puts the normalisation of data.mean and data.std before the network."""
    mean, std = recipe.data.mean, recipe.data.std
    if not mean:
        return graph
    first = from_torch(nn.Sequential(OrderedDict(normalise=Normalise(mean, std, len(shape)))), shape)
    names = {node.name: _free(graph, f"normalise.{node.name}") for node in first.nodes} | {first.input: graph.input}
    params = {name: _free(graph, f"normalise.{name}") for name in first.params}
    front = tuple(
        replace(node, name=names[node.name], inputs=tuple(names[name] for name in node.inputs), constant=params[node.params[0]])  # type: ignore[call-arg]
        for node in first.nodes
    )
    values = {**graph.params, **{params[name]: value for name, value in first.params.items()}}
    return replace(graph, nodes=(*front, *_reading(graph.nodes, {graph.input: front[-1].name})), params=values)


def _reading(nodes: list[Node] | tuple[Node, ...], renamed: dict[str, str]) -> tuple[Node, ...]:
    return tuple(replace(node, inputs=tuple(renamed.get(name, name) for name in node.inputs)) for node in nodes)


def _free(graph: Graph, name: str) -> str:
    taken = {graph.input, *graph.params, *(node.name for node in graph.nodes)}
    candidate, count = name, 1
    while candidate in taken:
        count += 1
        candidate = f"{name}_{count}"
    return candidate


def write_as_it_is(recipe: Recipe, splits: Splits, output: Path) -> None:
    """Writes what a training writes for the network of train.start without training it: its graph, weights, masks of ones, and history.

    The file is compared with its reading, and the graph that is written, with batch normalisation folded, with the one that was read.
    Raises InputError and GateError as `vsparse.reading.check_reading` and `check_written` do.
    """
    graph, _ = starting_network(recipe, splits.train.pixels.shape[1:], len(splits.train.classes))
    data = start_content(recipe)
    if file_kind(data[:HEAD_BYTES]) == "onnx":
        evidence = check_reading(data, where=f"train.start {recipe.train.start}", optimised=False)
        write_document(output / READ_START, evidence)
    folded = fold_batch_norm(graph, constants=True)
    write_graph(folded, output / TRAINED)
    check_written(output / TRAINED, folded, source=graph)
    write_tensors(output / WEIGHTS, folded.params)
    weights = {node.weight for node in folded.nodes if isinstance(node, Affine)}
    write_tensors(output / MASKS, {name: np.ones(folded.params[name].shape, np.uint8) for name in sorted(weights)})
    found = answers(folded, splits.validation, recipe.train.batch_size)
    write_document(output / HISTORY, History.of("sparse", (), AS_IT_IS, found))
