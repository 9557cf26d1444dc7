"""Forms that are refused before anything is trained: by a target, or for an operator; and that the way out works."""

from __future__ import annotations

import json
import sys
import tomllib
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from vsparse.artifact import RECIPE
from vsparse.data import Dataset
from vsparse.errors import InputError
from vsparse.graph import Graph
from vsparse.pipeline.build import build, resolve
from vsparse.pipeline.plan import make_plan
from vsparse.pipeline.requirements import require_forms
from vsparse.pipeline.wanted import wanted_forms
from vsparse.recipe import Recipe, load_recipe
from vsparse.schema import validate
from vsparse.target import load_target

INTEGERS = 'export.precisions=["int8"]'
SPARSITY, DENSE = "train.sparsity=0.5", "train.sparsity=0"  # more cannot be removed of the network below; with a sigmoid, nothing


class Gated(nn.Module):
    """A pool that a convolution and a sigmoid read: the one wants integers, the other has no kernel for them."""

    def __init__(self, odd: bool) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 1), nn.Linear(64, 10)
        self.odd = odd

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.max_pool2d(torch.relu(self.first(x)), 2)
        gate = torch.sigmoid(x) if self.odd else x
        return self.head((self.second(x) + gate).flatten(1))


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> str:
    module = types.ModuleType("gated_net")
    module.odd = lambda input_shape, classes, width: Gated(True)  # type: ignore[attr-defined]  # a module made by hand
    module.plain = lambda input_shape, classes, width: Gated(False)  # type: ignore[attr-defined]  # as above
    monkeypatch.setitem(sys.modules, "gated_net", module)
    return "gated_net"


@pytest.mark.parametrize("target", ["local", "jetson-orin-nano"])
def test_what_int8_lacks_is_said_before_training(own: str, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lacks(graph: Graph, contract: str, float_layers: tuple[str, ...]) -> None:
        raise InputError('node "odd" (Sigmoid) reads quantised values')

    with monkeypatch.context() as patched:
        patched.setattr("vsparse.stages.export.quantise.require_quantisable", lacks)
        words = r'cannot be deployed in int8: node "odd" \(Sigmoid\) reads quantised values; or leave "int8" out of export.precisions'
        settings = [f'network.architecture="{own}:plain"', SPARSITY, INTEGERS]
        with pytest.raises(InputError, match=words):
            build("digits", target=target, settings=settings, out=tmp_path / "never")
    assert not (tmp_path / "never").exists()
    # A sigmoid beside a convolution reads floats.
    make_plan(*resolve("digits", target, [f'network.architecture="{own}:odd"', DENSE, INTEGERS]), None, 1)


def test_a_form_that_a_target_does_not_honour_is_refused_with_those_that_it_does() -> None:
    with pytest.raises(InputError, match=r"jetson-orin-nano offers no bf16 \(it offers fp32, fp16, int8\); leave it out"):
        resolve("digits", "jetson-orin-nano", ['export.precisions=["bf16"]'])
    assert resolve("digits", "jetson-orin-nano", ['export.precisions=["fp16","int8"]'])[0].export.precisions == ("fp16", "int8")


AUTO = 'export.precisions=["auto"]'


@pytest.mark.parametrize(
    ("target", "precisions", "forms"),
    [
        ("cortex-m4f", ("int8",), ["sparse", "sequential", "int8", "int8-c", "dense"]),
        ("jetson-orin-nano", ("fp16", "int8"), ["sparse", "sequential", "fp16", "int8", "dense"]),
        ("raspberry-pi-5", ("fp16", "int8"), ["sparse", "sequential", "fp16", "int8", "int8-c", "dense"]),
    ],
)
def test_auto_asks_for_every_form_that_the_target_offers(target: str, precisions: tuple[str, ...], forms: list[str]) -> None:
    recipe, device = resolve("digits", target, [AUTO])
    assert recipe.export.precisions == precisions
    assert [form.name for form in wanted_forms(recipe, device)] == forms
    # As if they had been listed: the same document, and the same stages.
    listed = resolve("digits", target, [f"export.precisions={json.dumps(precisions)}"])[0]
    assert recipe == listed
    assert validate(Recipe, tomllib.loads(recipe.to_toml()), "recipe.toml") == recipe
    assert resolve("mnist", target)[0].export.precisions == precisions


def test_auto_leaves_out_what_only_a_file_that_is_not_there_needs(tmp_path: Path) -> None:
    path = tmp_path / "board.toml"
    target = load_target("raspberry-pi-5")
    bare = target.model_copy(update={"name": "board", "precisions": {"fp32": target.precisions["fp32"]}})
    path.write_text(bare.to_toml())
    recipe, device = resolve("digits", str(path), [AUTO, 'export.float_layers=["last"]'])
    assert (recipe.export.precisions, recipe.export.float_layers) == ((), ())
    assert [form.name for form in wanted_forms(recipe, device)] == ["sparse", "sequential", "dense"]
    assert validate(Recipe, tomllib.loads(recipe.to_toml()), "recipe.toml") == recipe
    for setting, words in (
        (
            "gates.int8_certified_accuracy=0.5",
            r"gates\.int8_certified_accuracy needs int8 in export\.precisions, and target board offers fp32",
        ),
        ('choose.forms=["fp16"]', r"choose\.forms names fp16, which needs fp16 in export\.precisions, and target board offers fp32"),
    ):
        load_recipe("digits", [AUTO, setting])  # some target may offer it
        with pytest.raises(InputError, match=words):
            resolve("digits", str(path), [AUTO, setting])
        resolve("digits", "raspberry-pi-5", [AUTO, setting])


@pytest.mark.parametrize("others", ['"auto","int8"', '"int8","auto"', '"auto","auto"'])
def test_auto_stands_alone(others: str) -> None:
    with pytest.raises(InputError, match=r'export\.precisions: "auto" stands for every form that the target offers; leave the others out'):
        load_recipe("digits", [f"export.precisions=[{others}]"])


def test_trained_networks_keep_auto_for_the_target_that_they_are_exported_for(tmp_path: Path) -> None:
    quick = ["train.epochs=1", "network.architecture=mlp", "network.width=0.25", "train.baseline=false", "gates={}"]
    trained, out = tmp_path / "trained", tmp_path / "board"
    build("digits", settings=[*quick, AUTO], out=trained, until="train")
    assert load_recipe(str(trained / RECIPE)).export.precisions == ("auto",)
    build(str(trained / RECIPE), target="raspberry-pi-5", until="export", out=out, adopt=trained)
    assert load_recipe(str(out / RECIPE)).export.precisions == ("fp16", "int8")
    assert {path.name for path in (out / "model").glob("*.onnx")} == {"model.fp32.onnx", "model.fp16.onnx", "model.int8.onnx"}


def test_the_forms_that_a_refusal_advises_work(own: str) -> None:
    """Also where `auto` stood, and the form that cannot be written was never named."""
    odd = [f'network.architecture="{own}:odd"', DENSE]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("vsparse.graph.to_onnx", refuse)
        with pytest.raises(
            InputError, match=r"""or leave "fp16" out of export\.precisions: --set 'export\.precisions=(\[.*\])'"""
        ) as refused:
            make_plan(*resolve("digits", "raspberry-pi-5", [*odd, AUTO]), None, 1)
        way_out = str(refused.value).split("--set '")[1].removesuffix("'")
        assert way_out == 'export.precisions=["int8"]'
        make_plan(*resolve("digits", "raspberry-pi-5", [*odd, way_out]), None, 1)


def refuse(graph: Graph) -> None:
    raise InputError("the network has no half precision")


def test_a_form_that_may_be_chosen_is_one_that_is_written(own: str) -> None:
    with pytest.raises(InputError, match=r"choose\.forms names int8, which needs int8 in export\.precisions"):
        resolve("digits", "local", ['choose.forms=["int8"]'])
    assert resolve("digits", "local", ['choose.forms=["int8"]', INTEGERS])[0].choose.forms == ("int8",)
    # A network without a C form goes without, unless it may only be chosen in that one.
    odd = [f'network.architecture="{own}:odd"', DENSE]
    make_plan(*resolve("digits", "local", odd), None, 1)
    with pytest.raises(InputError, match=r'cannot be deployed in C source: .*"?igmoid.*; or leave "C source" out of choose\.forms'):
        make_plan(*resolve("digits", "local", [*odd, 'choose.forms=["C source"]']), None, 1)
    make_plan(*resolve("digits", "local", [*odd, 'choose.forms=["fp32"]']), None, 1)


def test_c_source_that_the_target_does_not_ask_for_cannot_be_chosen(tmp_path: Path) -> None:
    path = tmp_path / "board.toml"
    plain = load_target("local").model_copy(update={"c_source": False, "name": "board"})
    path.write_text(plain.to_toml())
    with pytest.raises(InputError, match="target board asks for none; leave it out, or set c_source = true in the target"):
        resolve("digits", str(path), ['choose.forms=["C source"]'])
    path.write_text(plain.model_copy(update={"c_source": True}).to_toml())
    resolve("digits", str(path), ['choose.forms=["C source"]'])


def samples(count: int, constant: bool = False) -> Dataset:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 1, 8, 8)).astype(np.uint8)
    return Dataset(np.zeros_like(pixels) if constant else pixels, 255.0, np.zeros(count, np.int64), ("0", "1"), None)


@pytest.mark.parametrize(
    ("training", "words"),
    [
        (samples(15), "there are 15, fewer than 16; give more, or leave"),
        (samples(2000, constant=True), "all 2000 are one and the same image; give others, or leave"),
    ],
)
@pytest.mark.parametrize("target", ["local", "jetson-orin-nano"])
def test_too_few_or_constant_samples_of_a_calibration_are_refused(training: Dataset, words: str, target: str) -> None:
    recipe, device = resolve("digits", target, [INTEGERS])
    graph = make_plan(recipe, device, None, 1).untrained
    with pytest.raises(InputError, match=words):
        require_forms(wanted_forms(recipe, device), recipe, graph, training)
    # The ways out: enough that differ, or no int8.
    require_forms(wanted_forms(recipe, device), recipe, graph, samples(16))
    without = resolve("digits", target, [])[0]
    require_forms(wanted_forms(without, device), without, graph, training)


@pytest.mark.parametrize(
    ("settings", "words", "way_out"),
    [
        (
            ['train.sparse.granularity="2:4"', "train.sparsity=0.5", "train.sparse.method=magnitude"],
            'layer "logits" cannot be 2:4, as each of its outputs reads 150 input.*set train.sparsity to 0.4808 or less',
            "train.sparsity=0.4808",
        ),
        (
            ["train.sparse.granularity=block", "train.sparse.block=[512, 1]", "train.sparse.method=magnitude"],
            r"spans 512 outputs, and no weight has so many: the largest, fc1.weight, has 150; set it to \[150, 1\] or less",
            "train.sparse.block=[10, 1]",
        ),
        (
            ["train.sparse.granularity=block", "train.sparse.block=[1, 193]", "train.sparse.method=magnitude"],
            r"spans 193 inputs, and no weight has so many: the largest, fc1.weight, has 192; set it to \[1, 192\] or less",
            "train.sparse.block=[1, 12]",
        ),
    ],
)
def test_a_pattern_that_does_not_fit_is_refused_before_training(settings: list[str], words: str, way_out: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words):
        build("digits", settings=settings, out=tmp_path / "never")
    assert not (tmp_path / "never").exists()
    make_plan(*resolve("digits", "local", [*settings, way_out]), None, 1)


@pytest.mark.parametrize("target", ["local", "jetson-orin-nano"])
def test_float_layers_that_there_are_not_are_said_before_training(target: str) -> None:
    words = r'cannot be deployed in int8: export\.float_layers names "logit", and the network has no such layer.*conv1, conv2, fc1, logits'
    recipe, chosen = resolve("digits", target, [INTEGERS, 'export.float_layers=["logit"]'])
    with pytest.raises(InputError, match=words):
        make_plan(recipe, chosen, None, 1)
    recipe, chosen = resolve("digits", target, [INTEGERS, 'export.float_layers=["logits", "first"]'])
    make_plan(recipe, chosen, None, 1)


def test_the_limit_is_part_of_what_an_export_is_made_from_where_it_finds_layers_by_it() -> None:
    def key(*settings: str) -> str:
        return next(stage.key for stage in make_plan(*resolve("digits", "local", [INTEGERS, *settings]), None, 1).stages("export")[-1:])

    auto = 'export.float_layers=["auto"]'
    assert key() == key("choose.certified_loss=0.02")
    assert len({key(), key(auto), key(auto, "choose.certified_loss=0.02"), key('export.float_layers=["last","auto"]')}) == 4
    with pytest.raises(InputError, match=r'export\.float_layers names "logit"'):
        key('export.float_layers=["auto","logit"]')
