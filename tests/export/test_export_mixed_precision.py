"""Layers of an int8 file that stay in float32, and networks that are trained on as they round: what is written, refused, and confirmed."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from vsparse.artifact.forms import BY_NAME, SPARSE
from vsparse.bounds import Rounding, ball, interval
from vsparse.contract import contract
from vsparse.data import Dataset
from vsparse.errors import InputError
from vsparse.graph import Conv, FakeQuant, Gemm, Graph, Relu, Reshape, run
from vsparse.graph.from_onnx import from_onnx
from vsparse.graph.grids import STYLES, named_layers
from vsparse.graph.quantised import check_integer_execution
from vsparse.perturbation import PerturbationSet
from vsparse.recipe import load_recipe
from vsparse.stages.export.exporters import EXPORTERS, ExportJob
from vsparse.stages.export.fit import Fitted
from vsparse.stages.export.onnx_file import write_onnx
from vsparse.stages.export.quantise import layers_in_float, quantise, require_quantisable
from vsparse.stages.export.tune import Tuning, better
from vsparse.stages.train.objectives import make_objective
from vsparse.stages.train.objectives.fake_quantisation import FakeQuantised
from vsparse_check.model import Model

CONTRACTS = ("int8", "int8-tensorrt")
PERTURBATION = PerturbationSet(epsilon=Fraction("0.02"))


def network(seed: int = 0) -> Graph:
    """A convolution, two linear layers; every fourth weight of the first linear layer is zero."""
    rng = np.random.default_rng(seed)
    params = {
        "w0": rng.normal(size=(4, 1, 3, 3)) / 3,
        "b0": 0.1 * rng.normal(size=4),
        "w1": rng.normal(size=(6, 64)) / 8,
        "b1": 0.1 * rng.normal(size=6),
        "w2": rng.normal(size=(3, 6)) / 2,
        "b2": 0.1 * rng.normal(size=3),
    }
    params["w1"][:, ::4] = 0
    nodes = (
        Conv(name="c", inputs=("x",), shape=(4, 4, 4), weight="w0", bias="b0"),
        Relu(name="r", inputs=("c",), shape=(4, 4, 4)),
        Reshape(name="f", inputs=("r",), shape=(64,)),
        Gemm(name="z", inputs=("f",), shape=(6,), weight="w1", bias="b1"),
        Relu(name="s", inputs=("z",), shape=(6,)),
        Gemm(name="y", inputs=("s",), shape=(3,), weight="w2", bias="b2"),
    )
    return Graph("x", (1, 6, 6), nodes, "y", {name: value.astype(np.float32) for name, value in params.items()})


def dataset(count: int, seed: int = 1) -> Dataset:
    rng = np.random.default_rng(seed)
    return Dataset(rng.random((count, 1, 6, 6), dtype=np.float32), 1.0, rng.integers(0, 3, count), ("a", "b", "c"), None)


def grids(graph: Graph) -> list[str]:
    return [node.inputs[0] for node in graph.nodes if isinstance(node, FakeQuant)]


@pytest.mark.parametrize("name", CONTRACTS)
@pytest.mark.parametrize(
    ("floats", "read"),
    [((), ["x", "r", "s"]), (("first",), ["r", "s"]), (("last",), ["x", "r"]), (("first", "last"), ["r"]), (("z",), ["x", "s"])],
)
def test_a_float_layer_reads_what_is_not_rounded_with_its_own_weights(name, floats, read, tmp_path: Path):
    graph, data = network(), dataset(64)
    made = quantise(graph, data.inputs(), name, floats=layers_in_float(graph, floats))
    assert grids(made) == read
    check_integer_execution(made, name)
    for node in made.nodes:
        if isinstance(node, Conv | Gemm):
            stays = node.name in named_layers(graph, floats, "k")
            assert (node.weight in made.integers) != stays
            if stays:
                assert np.array_equal(made.params[node.weight], graph.params[node.weight])
    # As written, read and executed: every output lies in its enclosure, and the checker reads the same contract.
    path = tmp_path / "m.onnx"
    write_onnx(made, path, 17, {})
    again = from_onnx(path)
    assert grids(again)
    assert len(grids(again)) == len(read)
    assert Model(onnx.load(path)).tensors.quantised.contract == name
    x = torch.from_numpy(data.inputs())
    rounding = Rounding(again, contract(name))
    low, high = interval(again, rounding.params, ball(x, Fraction(0), (0.0, 1.0)), rounding)[again.output]
    out = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"input": x.numpy()})[0]
    assert ((out >= low.numpy()) & (out <= high.numpy())).all()


def test_names_that_are_no_layers_are_refused_with_those_that_there_are():
    graph = network()
    words = r'export\.float_layers names "logit", and the network has no such layer.*; its layers are c, z, y, and first and last are'
    with pytest.raises(InputError, match=words):
        require_quantisable(graph, "int8", ("logit",))
    with pytest.raises(InputError, match="leaves no layer on integers; name fewer layers"):
        require_quantisable(graph, "int8", ("first", "z", "last"))
    require_quantisable(graph, "int8", ("first", "last"))
    # What compression has merged into another layer is gone; what it left is kept.
    assert layers_in_float(graph, ("merged", "z", "last")) == {"z", "y"}
    with pytest.raises(InputError, match=r'add "int8" to export\.precisions'):
        load_recipe("digits", ['export.float_layers=["last"]'])
    with pytest.raises(InputError, match=r"float_layers names one of them twice"):
        load_recipe("digits", ['export.precisions=["int8"]', 'export.float_layers=["last","last"]'])
    load_recipe("digits", ['export.precisions=["int8"]', 'export.float_layers=["last"]'])


def tuning(epochs: int, *more: str) -> Tuning:
    settings = [f"export.int8_epochs={epochs}", 'export.precisions=["int8"]', "train.epsilon=0.02", "train.batch_size=32", *more]
    return Tuning(load_recipe("digits", settings), dataset(60, 2))


@pytest.mark.parametrize("name", CONTRACTS)
def test_a_network_that_is_trained_on_certifies_more_and_keeps_its_zeros(name):
    graph = network()
    data = dataset(128)
    # Which third of the image is the brightest: what a random network does not know.
    data = replace(data, labels=data.pixels.reshape(-1, 3, 12).mean(2).argmax(1))
    told: list[tuple[int, int]] = []
    how = replace(tuning(3, "train.learning_rate=0.05"), progress=lambda done, total: told.append((done, total)))
    samples = data.inputs()
    start = Fitted(quantise(graph, samples, name), graph, {})
    made = how.trained(start, data, name, frozenset())
    again = how.trained(start, data, name, frozenset())
    assert all(np.array_equal(value, again.params[key]) for key, value in made.params.items())
    assert told == 2 * [(1, 3), (2, 3), (3, 3)]
    assert not made.params["w1"][:, ::4].any()
    assert any(not np.array_equal(value, graph.params[key]) for key, value in made.params.items())
    end = Fitted(quantise(made, samples, name), made, {})
    assert better(graph, [start, end], data, PERTURBATION) is end
    assert better(graph, [start, start], data, PERTURBATION) is start
    with pytest.raises(InputError, match=r"there are none; set export.int8_epochs = 0"):
        better(graph, [start], dataset(0), PERTURBATION)


def test_a_loss_that_is_no_number_leaves_the_last_good_network():
    graph = network()
    graph.params["w2"][0, 0] = np.float32(1e38)
    made = tuning(2).trained(Fitted(graph, graph, {}), dataset(64), "int8", frozenset())
    assert all(np.array_equal(value, graph.params[key]) for key, value in made.params.items())


def test_a_radius_may_be_a_fraction_there_too():
    """5/250 is 0.02 exactly, and trains the same network."""
    graph, data = network(), dataset(64)
    start = Fitted(quantise(graph, data.inputs(), "int8"), graph, {})
    made = [tuning(1, *more).trained(start, data, "int8", frozenset()) for more in ([], ["train.epsilon=5/250"])]
    assert all(np.array_equal(value, made[1].params[key]) for key, value in made[0].params.items())


def test_how_long_follows_from_the_recipe():
    assert tuning(7).epochs == 7
    assert tuning(-1, "train.epochs=24").epochs == 6
    assert tuning(-1, "train.epochs=4000").epochs == 100
    assert tuning(-1, "train.epochs=1").epochs == 0


def test_the_exported_file_is_the_one_that_was_trained_on(tmp_path: Path):
    graph = network()
    write_onnx(graph, tmp_path / Path(SPARSE.model).name, 17, {})
    form = BY_NAME["int8"]
    files = []
    for floats, how in ((("last",), tuning(2)), (("last",), None)):
        job = ExportJob(tmp_path, {"sparse": graph}, dataset(256), 17, "r", {form: "int8"}, PERTURBATION, how, floats)
        EXPORTERS["int8"](job, form)
        files.append(from_onnx(tmp_path / "model.int8.onnx"))
    for file in files:
        assert len(grids(file)) == 2
        check_integer_execution(file, "int8")


@pytest.mark.parametrize("name", CONTRACTS)
@pytest.mark.parametrize("floats", [(), ("last",)])
def test_training_rounds_as_the_file_does(name, floats):
    graph, data = network(3), dataset(64)
    stay = layers_in_float(graph, floats)
    shares = {"r": 0.75}
    params = {key: value.requires_grad_() for key, value in graph.tensors().items()}
    objective = FakeQuantised(tuning(1).recipe.train, graph, params, make_objective, style=STYLES[name], floats=stay, shares=shares)
    x = torch.from_numpy(data.inputs())
    objective.observe(params, x)
    rounded, values = objective.quantised(params)
    made = quantise(graph, data.inputs(), name, shares=shares, floats=stay)
    assert [(n.inputs[0], n.scale, n.steps) for n in rounded.nodes if isinstance(n, FakeQuant)] == [
        (n.inputs[0], n.scale, n.steps) for n in made.nodes if isinstance(n, FakeQuant)
    ]
    assert torch.equal(run(rounded, values, x), run(made, made.tensors(), x))


@pytest.mark.parametrize("name", CONTRACTS)
def test_a_share_narrows_a_grid_also_of_what_is_moved_before_it_is_read(name):
    graph, data = network(3), dataset(64)
    scales = [
        {node.inputs[0]: node.scale for node in quantise(graph, data.inputs(), name, shares=shares).nodes if isinstance(node, FakeQuant)}
        for shares in ({}, {"r": 0.5})
    ]
    assert scales[1] == {**scales[0], "r": pytest.approx(scales[0]["r"] / 2)}
