"""A network and data of one's own: an ONNX file in place of a recipe is built as it is, pruned in one shot, and exported without data."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

import vsparse
from vsparse import artifact
from vsparse.errors import InputError
from vsparse.graph import Conv, Graph, Transpose, from_torch, run
from vsparse.graph.fold import fold_batch_norm
from vsparse.graph.from_onnx import from_onnx
from vsparse.own_network import export_onnx, prune_onnx
from vsparse.pipeline.build import build
from vsparse.pipeline.plan import make_plan
from vsparse.progress import Event
from vsparse.recipe import Recipe, load_recipe
from vsparse.recipe_network import about_data
from vsparse.stages.compress.one_shot import allotted, prune
from vsparse.stages.export import write_onnx
from vsparse.stages.train.start_network import starting_network
from vsparse.target import load_target

FEW = (
    "property.samples=12",
    "property.epsilon='0.01'",
    "property.curve_samples=4",
    "property.curve=['0.02']",
    "verify.cross_check=0",
    "verify.attack_restarts=1",
    "verify.attack_steps=5",
    "profile.runs=10",
    "profile.seconds=0.02",
)


def digits() -> tuple[np.ndarray, np.ndarray]:
    found = load_digits()
    return (found.images / 16).astype(np.float32)[:, None], found.target.astype(np.int64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a trained network, `my.onnx`, its module, and the data that it was trained on under `data/`."""
    directory = tmp_path_factory.mktemp("own-network")
    x, y = digits()
    (directory / "data").mkdir()
    np.savez(directory / "data" / "train.npz", x=x[:600], y=y[:600])
    np.savez(directory / "data" / "test.npz", x=x[600:700], y=y[600:700])
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Dropout(0.1),
        nn.Linear(96, 10),
    )
    optimiser, inputs, labels = torch.optim.Adam(module.parameters(), 0.02), torch.from_numpy(x[:600]), torch.from_numpy(y[:600])
    for _ in range(15):
        for batch in torch.randperm(600).split(60):
            optimiser.zero_grad()
            nn.functional.cross_entropy(module(inputs[batch]), labels[batch]).backward()
            optimiser.step()
    module.eval()
    write_onnx(fold_batch_norm(from_torch(module, (1, 8, 8)), constants=True), directory / "my.onnx", 18, {})
    return directory, module


@pytest.fixture(scope="module")
def built(folder):
    directory, module = folder
    events: list[str] = []
    out = directory / "out"
    result = build(
        str(directory / "my.onnx"), data=directory / "data", out=out, settings=list(FEW), reporter=lambda e: events.append(e.text)
    )
    return result, out, module, events


def executed(path: Path, x: np.ndarray) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    return np.asarray(session.run(None, {session.get_inputs()[0].name: x})[0])


@pytest.mark.slow
def test_the_artifact_is_of_the_network_as_it_is(built, folder):
    result, out, module, events = built
    assert result.passed, result.gates
    x = digits()[0][600:]
    with torch.no_grad():
        expected = module(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(executed(out / artifact.MODEL, x), expected, atol=1e-4, rtol=1e-4)
    assert any("nothing is trained" in text for text in events)
    # Every form of the target, each with its certificate, and what was compared of the file itself.
    assert {"model.fp32.onnx", "model.fp16.onnx", "model.bf16.onnx", "model.int8.onnx", "model.c"} <= {
        p.name for p in (out / "model").iterdir()
    }
    assert (out / "train" / "start_reading.json").is_file()
    recipe = load_recipe(str(out / artifact.RECIPE))
    assert (recipe.network.architecture, recipe.train.epochs, len(recipe.train.start_sha256)) == ("start", 0, 64)
    assert "Nothing was trained" in (out / artifact.REPORT).read_text()


@pytest.mark.slow
def test_check_predict_and_a_second_build_take_it(built, folder):
    _, out, _, _ = built
    assert vsparse.check(out)
    np.savez(folder[0] / "one.npz", x=digits()[0][600:602])
    found = vsparse.predict(out, [folder[0] / "one.npz"])
    assert len(found.predictions) == 2
    events: list[str] = []
    build(str(folder[0] / "my.onnx"), data=folder[0] / "data", out=out, settings=list(FEW), reporter=lambda e: events.append(e.text))
    assert any("up to date" in text for text in events)


def plan_of(recipe: Recipe, data: Path):
    return make_plan(recipe, load_target("local"), data, 1)


def test_a_recipe_with_epochs_0_plans_the_same_network(folder):
    directory, _ = folder
    (directory / "r.toml").write_text('[data]\nname = "data"\n[train]\nstart = "my.onnx"\nepochs = 0\n[property]\nepsilon = "0.01"\n')
    named, data = about_data(directory / "data")
    by_file = plan_of(load_recipe(str(directory / "my.onnx"), [*named, *FEW, "export.precisions=[]"]), data)
    by_recipe = plan_of(load_recipe(str(directory / "r.toml"), [*FEW, "export.precisions=[]"]), directory / "data")
    assert by_recipe.recipe.network.architecture == "start"
    assert by_recipe.architecture_sha256 == by_file.architecture_sha256
    assert [stage.name for stage in by_recipe.stages("train")] == ["train-sparse"]
    read = from_onnx(directory / "my.onnx")
    assert {name: value.tobytes() for name, value in by_file.untrained.params.items()} == {
        name: value.tobytes() for name, value in read.params.items()
    }


def test_training_starts_from_the_file_where_epochs_ask_for_it(folder, tmp_path):
    directory, _ = folder
    settings = [*FEW, "export.precisions=[]", "train.epochs=1", "train.warmup=0", "train.sparsity=0.5", "train.baseline=false"]
    result = build(str(directory / "my.onnx"), data=directory / "data", out=tmp_path / "out", settings=settings, until="train")
    history = json.loads((tmp_path / "out" / "train" / "history.json").read_text())
    assert len(history["sparse"]) == 1
    assert result.figures["sparse"]["clean_accuracy"] > 0.3


def test_a_form_that_cannot_be_written_is_left_out_and_named(folder, tmp_path):
    directory, _ = folder
    x, y = digits()
    few = np.concatenate([np.flatnonzero(y == label)[:2] for label in range(10)])
    (tmp_path / "few").mkdir()
    np.savez(tmp_path / "few" / "train.npz", x=x[few], y=y[few])
    np.savez(tmp_path / "few" / "validation.npz", x=x[few], y=y[few])
    named, data = about_data(tmp_path / "few")
    recipe = load_recipe(str(directory / "my.onnx"), [*named, *FEW, "data.test=0.5", "export.precisions=['fp16', 'int8']"])
    plan = make_plan(recipe, load_target("local"), data, 1, choose_forms=True)
    assert plan.recipe.export.precisions == ("fp16",)
    assert len(plan.left_out) == 1
    assert plan.left_out[0].startswith("int8 is left out: int8 is calibrated on training samples, and there are 10")
    with pytest.raises(InputError, match="int8 is calibrated on training samples"):
        plan_of(recipe, data)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["train.sparsity=0.5"], "train.epochs = 0 trains nothing, and train.sparsity removes weights while training"),
        (["train.start=''"], "train.epochs = 0 takes the network of train.start as it is"),
        (["train.epochs=1", "train.start=''"], 'network.architecture = "start" is that of an ONNX file'),
    ],
)
def test_contradictions_are_refused(folder, settings, says):
    with pytest.raises(InputError) as refusal:
        load_recipe(str(folder[0] / "my.onnx"), settings)
    assert says in str(refusal.value)


# What stands before the network: the shape of the data, and its normalisation --------------------------------------------------------


def started(path: Path, shape: tuple[int, ...], classes: int, settings: tuple[str, ...] = ()) -> Graph:
    return starting_network(load_recipe(str(path), list(settings)), shape, classes)[0]


def channels_last(tmp_path: Path, channels: int) -> tuple[Path, nn.Module]:
    """A network that reads [height, width, channels], as tf2onnx writes those of Keras."""
    torch.manual_seed(1)
    module = nn.Sequential(nn.Conv2d(channels, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 2 * 3, 4)).eval()
    graph = from_torch(module, (channels, 4, 5))
    first = Transpose(name="nchw", inputs=(graph.input,), shape=(channels, 4, 5), order=(2, 0, 1))
    nodes = tuple(
        type(node)(**{**vars(node), "inputs": tuple("nchw" if name == graph.input else name for name in node.inputs)})
        for node in graph.nodes
    )
    write_onnx(Graph(graph.input, (4, 5, channels), (first, *nodes), graph.output, graph.params), tmp_path / "nhwc.onnx", 18, {})
    return tmp_path / "nhwc.onnx", module


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_last_are_fed_from_the_data_and_their_transposes_cancel(tmp_path, channels):
    path, module = channels_last(tmp_path, channels)
    graph = started(path, (channels, 4, 5), 4)
    assert not any(isinstance(node, Transpose) for node in graph.nodes) or channels == 1
    x = torch.rand(6, channels, 4, 5, dtype=torch.float64)
    with torch.no_grad():
        assert torch.allclose(run(graph, graph.tensors(torch.float64), x), module.double()(x), atol=1e-9)


@pytest.mark.parametrize("flat", [False, True])
def test_flat_inputs_and_normalisation_stand_before_the_network(tmp_path, flat):
    torch.manual_seed(2)
    body = nn.Sequential(nn.Flatten(), nn.Linear(18, 3)).eval()
    shape = (18,) if flat else (2, 3, 3)
    write_onnx(from_torch(body, shape), tmp_path / "f.onnx", 18, {})
    graph = started(tmp_path / "f.onnx", (2, 3, 3), 3, ("data.mean=[0.25, 0.5]", "data.std=[0.5, 0.25]"))
    x = torch.rand(5, 2, 3, 3, dtype=torch.float64)
    scaled = (x - torch.tensor([0.25, 0.5]).view(-1, 1, 1)) / torch.tensor([0.5, 0.25]).view(-1, 1, 1)
    with torch.no_grad():
        assert torch.allclose(run(graph, graph.tensors(torch.float64), x), body.double()(scaled), atol=1e-9)


@pytest.mark.parametrize(
    ("shape", "classes", "says"),
    [((1, 8, 8), 6, "answers with 10 numbers, and the data have 6 classes"), ((1, 9, 9), 10, "reads inputs of shape [1, 8, 8]")],
)
def test_data_of_another_kind_are_refused(folder, shape, classes, says):
    with pytest.raises(InputError) as refusal:
        started(folder[0] / "my.onnx", shape, classes)
    assert says in str(refusal.value)


# One shot ------------------------------------------------------------------------------------------------------------


def test_one_shot_pruning_says_what_it_kept_and_what_it_cost(folder, tmp_path):
    directory, _ = folder
    told = prune_onnx(directory / "my.onnx", 0.8, directory / "data", tmp_path / "sparse.onnx")
    graph = from_onnx(tmp_path / "sparse.onnx")
    before = told["pruning"]["clean_accuracy_before"]
    assert told["pruning"]["sparsity"] >= 0.8
    assert before > 0.85
    assert told["pruning"]["clean_accuracy_after"] > before - 0.1
    kept = sum(int(np.count_nonzero(graph.params[node.weight])) for node in graph.nodes if hasattr(node, "weight"))
    assert kept <= sum(layer["kept"] for layer in told["pruning"]["layers"])
    assert told["pruning"]["validation_samples"] == 60
    with pytest.raises(InputError, match="is no fraction between 0 and 1"):
        prune_onnx(directory / "my.onnx", 1.0, directory / "data", tmp_path / "x.onnx")
    with pytest.raises(InputError, match="is the model itself"):
        prune_onnx(directory / "my.onnx", 0.5, directory / "data", directory / "my.onnx")


@pytest.mark.parametrize("groups", [1, 2])
def test_least_squares_beats_magnitude_and_keeps_just_so_many(groups):
    torch.manual_seed(3)
    module = nn.Sequential(nn.Conv2d(2, 8, 3, 2, 1, groups=groups), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 12, bias=False)).eval()
    graph = from_torch(module, (2, 8, 8))
    # Inputs that depend on each other, so that what is left can make up for what goes.
    rng = np.random.default_rng(0)
    samples = (rng.normal(size=(200, 6)) @ rng.normal(size=(6, 128))).reshape(200, 2, 8, 8).astype(np.float32)
    pruned, layers = prune(graph, samples, 0.7)
    counts = allotted([graph.params[name].shape for name in ("0.weight", "3.weight")], 0.7)
    assert [layer.kept for layer in layers] == counts
    assert sum(counts) <= 0.3 * sum(value.size for name, value in graph.params.items() if "weight" in name)
    params = dict(graph.params)
    for name, count in zip(("0.weight", "3.weight"), counts, strict=True):
        least = np.sort(np.abs(params[name]).ravel())[-count]
        params[name] = np.where(np.abs(params[name]) >= least, params[name], np.float32(0))
    x = torch.from_numpy(samples).double()
    whole, ours, by_magnitude = (run(one, one.tensors(torch.float64), x) for one in (graph, pruned, graph.with_params(params)))
    assert (ours - whole).square().sum() < 0.7 * (by_magnitude - whole).square().sum()
    assert isinstance(pruned.nodes[0], Conv)
    told = float((ours - whole).square().sum() / whole.square().sum())
    assert layers[-1].error == pytest.approx(told, rel=1e-3)


# Export without data -------------------------------------------------------------------------------------------------


def test_an_export_without_data_is_an_artifact_without_certificate(folder, tmp_path):
    directory, _ = folder
    export_onnx(directory / "my.onnx", "local", tmp_path / "out")
    manifest = artifact.require_intact(tmp_path / "out")
    assert manifest.until == "export"
    assert vsparse.report(tmp_path / "out").is_file()
    assert not vsparse.check(tmp_path / "out")
    vsparse.profile(tmp_path / "out", runs=5, seconds=0.01)


def test_dropout_in_training_mode_is_refused_by_name(tmp_path):
    value = onnx.helper.make_tensor_value_info
    nodes = [onnx.helper.make_node("Dropout", ["x", "", "t"], ["y"], name="drop")]
    flags = [onnx.helper.make_tensor("t", onnx.TensorProto.BOOL, [], [True])]
    graph = onnx.helper.make_graph(nodes, "g", [value("x", 1, ["n", 3])], [value("y", 1, ["n", 3])], flags)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)]), tmp_path / "d.onnx")
    with pytest.raises(InputError) as refusal:
        from_onnx(tmp_path / "d.onnx")
    assert '"drop" (Dropout) is in training mode and drops values at random' in str(refusal.value)
    assert "export the network in eval mode" in str(refusal.value)


def test_a_test_split_that_the_network_may_have_seen_is_told(folder, tmp_path: Path) -> None:
    x, y = digits()
    np.savez(tmp_path / "all.npz", x=x[:400], y=y[:400])
    warned: list[str] = []

    def told(event: Event) -> None:
        if event.kind == "warning":
            warned.append(event.text)

    build(str(folder[0] / "my.onnx"), data=tmp_path / "all.npz", out=tmp_path / "out", settings=list(FEW), until="train", reporter=told)
    assert any(text.startswith("test samples: drawn out of all.npz") and "may have been trained on them" in text for text in warned)
