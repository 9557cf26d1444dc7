"""`float_layers = ["auto"]`: which layers stay in float32, against every other choice of one layer more, and what is said of it."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.export.test_export_mixed_precision import dataset, network, tuning

from vsparse.artifact.forms import BY_NAME, SPARSE
from vsparse.bounds import ball, crown, interval, margin_rows, refine
from vsparse.data import Dataset
from vsparse.errors import InputError
from vsparse.graph import Graph, run
from vsparse.graph.from_onnx import from_onnx
from vsparse.graph.ir import Affine
from vsparse.perturbation import PerturbationSet
from vsparse.recipe import load_recipe
from vsparse.stages.export.convolutions import as_convolutions
from vsparse.stages.export.exporters import EXPORTERS, ExecutedBy, ExportJob
from vsparse.stages.export.fit import Fitted
from vsparse.stages.export.mixed import SCALES, LostSamples, MixedPrecision
from vsparse.stages.export.onnx_file import write_onnx
from vsparse.stages.export.quantise import layer_names, layers_in_float, quantise

CONTRACTS = ("int8", "int8-tensorrt")
PERTURBATION = PerturbationSet(epsilon=Fraction("0.01"))
LAYERS = ("c", "z", "y")


def coarse(seed: int = 0, *behind: str) -> Graph:
    """A network with one channel 10,000 times as large behind the layers that are named, and what reads it as much less."""
    graph = network(seed)
    reads = {"c": ("w0", "b0", "w1", slice(0, 16)), "z": ("w1", "b1", "w2", slice(0, 1))}
    for name in behind:
        weight, bias, reader, columns = reads[name]
        graph.params[weight][0] *= 1e4
        graph.params[bias][0] = abs(graph.params[bias][0]) * 1e4 + 1000
        graph.params[reader][:, columns] /= 1e4
    # Centred, so that it predicts every class.
    graph.params["b2"] -= run(graph, graph.tensors(), torch.from_numpy(dataset(96, 5).inputs())).mean(0).numpy()
    return graph


def labelled(graph: Graph, count: int = 96) -> Dataset:
    """Samples with the network's own labels."""
    data = dataset(count, 5)
    return replace(data, labels=run(graph, graph.tensors(), torch.from_numpy(data.inputs())).argmax(1).numpy())


class Choice:
    """A choice of layers with all that it was made from."""

    def __init__(self, graph: Graph, contract: str, limit: float) -> None:
        self.graph, self.samples, self.contract, self.told = graph, dataset(64).inputs(), contract, list[tuple[str, bool]]()
        self.data = labelled(graph)
        self.mixed = MixedPrecision(limit, self.data, lambda text, missed: self.told.append((text, missed)))
        self.judge = LostSamples(graph, self.data, PERTURBATION, 4)

    def quantised(self, graph: Graph, shares: dict[str, float], floats: frozenset[str]) -> Graph:
        return quantise(graph, self.samples, self.contract, shares=shares, floats=floats)

    def floats(self, *named: str) -> frozenset[str]:
        start = Fitted(self.quantised(self.graph, {}, frozenset(named)), self.graph, {})
        return self.mixed.float_layers(self.graph, start, PERTURBATION, self.quantised, frozenset(named))

    def lost(self, *floats: str) -> int:
        return self.judge(self.quantised(self.graph, {}, frozenset(floats)))


@pytest.mark.parametrize("contract", CONTRACTS)
def test_samples_that_are_lost_are_those_that_crown_proves_of_one_network_alone(contract: str) -> None:
    graph = coarse(0, "c")
    choice = Choice(graph, contract, 0.1)
    made = choice.quantised(graph, {}, frozenset())
    counts = []
    for scale in SCALES:
        x = torch.from_numpy(choice.data.inputs())
        box = ball(x, PERTURBATION.epsilon * scale, (0.0, 1.0))
        rows = margin_rows(torch.from_numpy(choice.data.labels), 3)
        proved = []
        for one in (graph, made):
            params = one.tensors(torch.float64)
            proved.append(crown(one, params, box, rows, refine(one, params, box, interval(one, params, box))).amin(1) > 0)
        counts.append(int((proved[0] & ~proved[1]).sum()))
    assert max(counts) > 5
    # Folding the last layers may prove a sample more than CROWN does.
    assert abs(choice.judge(made) - max(counts)) <= 1
    assert choice.judge(graph) == 0
    assert 3 < choice.judge(made, 3) <= 3 + 32
    assert choice.judge.allowed(0.05) == 4


@pytest.mark.parametrize("contract", CONTRACTS)
@pytest.mark.parametrize(("behind", "stays"), [(("c",), "z"), (("z",), "y")])
def test_the_layer_that_reads_a_coarse_grid_stays_in_float32_alone(contract: str, behind: tuple[str, ...], stays: str) -> None:
    choice = Choice(coarse(0, *behind), contract, 0.1)
    assert choice.lost() > choice.judge.allowed(0.1)
    assert choice.floats() == {stays}
    ((text, missed),) = choice.told
    assert not missed
    on_integers = ", ".join(name for name in LAYERS if name != stays)
    assert f"int8 keeps {stays} in float32 (" in text
    assert f"and {on_integers} on integers: of 96 validation samples it loses {choice.lost(stays)}" in text
    assert text.endswith("allows 9")
    assert choice.floats() == {stays}


@pytest.mark.parametrize("contract", CONTRACTS)
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("limit", [1e-9, 0.02, 0.1])
def test_no_layer_of_those_that_stay_could_be_on_integers_too(contract: str, seed: int, limit: float) -> None:
    choice = Choice(coarse(seed, *(("c",), ("z",), ("c", "z"), ())[seed]), contract, limit)
    floats, allowed = choice.floats(), choice.judge.allowed(limit)
    assert floats < set(LAYERS)
    if choice.told[0][1]:
        # Missed: so does every other choice of one layer on integers, and this one loses least.
        assert len(floats) == 2
        assert allowed < choice.lost(*floats) == min(choice.lost(*(set(LAYERS) - {name})) for name in LAYERS)
        assert "raise choose.certified_loss, or leave int8 out of export.precisions" in choice.told[0][0]
        return
    assert choice.lost(*floats) <= allowed
    assert all(choice.lost(*(floats - {name})) > allowed for name in floats)


def test_named_layers_stay_and_a_loose_limit_asks_for_nothing() -> None:
    assert "z" in Choice(coarse(0, "c"), "int8", 0.05).floats("y")
    loose = Choice(coarse(0, "c"), "int8", 1.0)
    assert loose.floats() == frozenset()
    assert loose.told[0][0].startswith("int8 has every layer on integers: of 96 validation samples")
    assert Choice(coarse(0, "c"), "int8", 1.0).floats("y") == {"y"}
    # One layer is left, and stays on integers whatever it loses.
    only = Choice(coarse(0, "c"), "int8", 1e-9)
    assert only.floats("c", "y") == {"c", "y"}
    assert only.told[0][1] == (only.lost("c", "y") > 0)
    none = replace(only.mixed, validation=dataset(0))
    with pytest.raises(InputError, match="decided on validation samples, and there are none; name the layers"):
        none.float_layers(only.graph, Fitted(only.graph, only.graph, {}), PERTURBATION, only.quantised)


def test_a_network_that_takes_too_long_is_bounded_by_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vsparse.stages.export.mixed.WORK", 1.0)
    choice = Choice(coarse(0, "c"), "int8", 0.05)
    assert not choice.judge.refines
    assert len(choice.judge) == 64
    assert "z" in choice.floats()


@pytest.mark.parametrize("runtime", ["onnxruntime", "tensorrt"])
def test_the_exported_file_has_the_layers_that_were_told(runtime: str, tmp_path: Path) -> None:
    graph = coarse(0, "c", "z")
    if runtime == "tensorrt":
        graph = as_convolutions(graph)
    write_onnx(graph, tmp_path / Path(SPARSE.model).name, 17, {})
    told: list[str] = []
    form, contract = BY_NAME["int8"], CONTRACTS[runtime == "tensorrt"]
    # Equalised channels would hide what is coarse: the limit is none.
    mixed = MixedPrecision(1e-9, labelled(graph), lambda text, missed: told.append(text))
    packed = {"sparse": coarse(0, "c", "z")}
    how = tuning(1) if runtime == "tensorrt" else None
    job = ExportJob(
        tmp_path, packed, dataset(256), 17, "r", {form: contract}, PERTURBATION, how, (), mixed=mixed, execution=ExecutedBy(runtime)
    )
    EXPORTERS["int8"](job, form)
    made = from_onnx(tmp_path / "model.int8.onnx")
    names = layer_names(made, packed["sparse"])
    stay = [names[node.name] for node in made.nodes if isinstance(node, Affine) and node.weight not in made.integers]
    assert len(told) == 1
    assert stay
    assert f"int8 keeps {', '.join(stay)} in float32 (" in told[0]


def test_layers_go_by_the_names_of_the_layer_table_in_files_for_tensorrt_too() -> None:
    graph = network()
    written = as_convolutions(graph)
    names = layer_names(written, graph)
    assert names == {"c": "c", "z.map": "z", "y.map": "y"}
    assert layers_in_float(written, ("z", "merged", "auto", "last"), names) == {"z.map", "y.map"}
    assert layers_in_float(graph, ("auto",)) == frozenset()
    assert layer_names(replace(written, nodes=written.nodes[:1]), graph) == {}


def test_a_recipe_without_a_limit_is_refused_with_a_way_out() -> None:
    settings = ['export.precisions=["int8"]', 'export.float_layers=["auto"]']
    with pytest.raises(
        InputError, match=r"at most choose\.certified_loss is lost, and that is 0.*set it, such as to 0\.01, or name the layers"
    ):
        load_recipe("digits", [*settings, "choose.certified_loss=0"])
    load_recipe("digits", [*settings, "choose.certified_loss=0.01"])
    load_recipe("digits", [settings[0], 'export.float_layers=["last"]', "choose.certified_loss=0"])


def test_brightness_and_contrast_grow_with_the_radius() -> None:
    graph = network()
    wide = PerturbationSet(epsilon=Fraction("0.01"), brightness=Fraction("0.02"), contrast=Fraction("0.1"))
    judge = LostSamples(graph, labelled(graph, 16), wide, 4)
    assert judge(graph) == 0
    assert {scale for scale, *_ in judge.asked} == set(SCALES)
    assert np.isfinite([float(rows.sum()) for *_, rows in judge.asked]).all()
