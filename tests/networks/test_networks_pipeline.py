"""Every named architecture on the whole pipeline: graph, ONNX, runtime, bounds, checker, C source, eight bits, a training step."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from vsparse.bounds import Rounding, ball, crown, interval, margin_rows
from vsparse.contract import contract
from vsparse.errors import UnavailableError
from vsparse.graph import Graph, fold_batch_norm, from_onnx, from_torch, run
from vsparse.graph.ir import Affine, BatchNorm
from vsparse.networks import ARCHITECTURES, make
from vsparse.recipe import Network
from vsparse.recipe_train import Train
from vsparse.stages.export import check_runtime_graph, write_onnx
from vsparse.stages.export.c_source import CompiledModel, emit_c, find_compiler, simulate
from vsparse.stages.export.quantise import quantise
from vsparse.stages.train.initialisation import initialise
from vsparse.stages.train.objectives.ibp import IntervalObjective
from vsparse.stages.train.objectives.loss import TrainingBatch
from vsparse_check.bounds import Bounds
from vsparse_check.contracts import CONTRACTS
from vsparse_check.errors import ErrorTerms
from vsparse_check.model import Model
from vsparse_check.region import ClaimedRegion, SampleRegions

SHAPE, CLASSES, RADIUS = (1, 8, 8), 5, Fraction(1, 1000)
WIDTH = {"vgg16": 0.02, "resnet18": 0.05, "wrn-28-4": 0.05, "mobile": 0.1}
NAMES = sorted(ARCHITECTURES)


def module_of(name: str) -> nn.Module:
    """Returns the network at a tiny width with an input normalisation and batch norms that are not the identity."""
    module = make(Network(architecture=name, width=WIDTH.get(name, 0.05)), SHAPE, CLASSES, mean=(0.5,), std=(0.25,), seed=2).eval()
    generator = torch.Generator().manual_seed(2)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            with torch.no_grad():
                for value, spread in ((part.running_mean, 0.1), (part.weight, 0.3), (part.bias, 0.3)):
                    value += spread * torch.randn(value.shape, generator=generator)
                part.running_var.uniform_(0.3, 1.0, generator=generator)
    return module


def graph_of(name: str) -> Graph:
    return fold_batch_norm(from_torch(module_of(name), SHAPE))


def images(count: int) -> torch.Tensor:
    return torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", NAMES)
def test_folded_and_exported_it_computes_the_module_and_the_runtime_changes_nothing(name: str, tmp_path: Path) -> None:
    x, graph, path = images(3), graph_of(name), tmp_path / "m.onnx"
    with torch.no_grad():
        wanted = module_of(name)(x)
    logits = run(graph, graph.tensors(), x)
    torch.testing.assert_close(logits, wanted, rtol=1e-4, atol=1e-4)
    write_onnx(graph, path, 17, {})
    back = from_onnx(path)
    assert torch.equal(run(back, back.tensors(), x), logits)
    (outputs,) = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"input": x.numpy()})
    np.testing.assert_allclose(outputs, wanted.numpy(), rtol=1e-4, atol=1e-4)
    assert [level.level for level in check_runtime_graph(path).levels] == ["basic", "extended", "all"]


@pytest.mark.parametrize("name", NAMES)
def test_bounds_hold_under_attack_and_the_checker_derives_them_too(name: str, tmp_path: Path) -> None:
    graph, x = graph_of(name), images(2)
    rounding = Rounding(graph, contract("fp32"))
    box = ball(x.double(), RADIUS)
    boxes = interval(graph, rounding.params, box, rounding)
    labels = run(graph, graph.tensors(), x).argmax(1)
    rows = margin_rows(labels, CLASSES)
    lower = crown(graph, rounding.params, box, rows, boxes, rounding)
    assert torch.isfinite(lower).all()

    noise = torch.rand(2, 200, *SHAPE, generator=torch.Generator().manual_seed(1)) * 2 - 1
    noise[:, ::2] = noise[:, ::2].sign()
    points = (x[:, None] + noise * float(RADIUS) * 0.9999).clamp(0, 1)
    values = run(graph, graph.tensors(), points.flatten(0, 1), keep=True)
    for key, (low, high) in boxes.items():
        found = values[key].double().unflatten(0, (2, 200))
        assert (found >= low[:, None]).all()
        assert (found <= high[:, None]).all()
    margins = torch.einsum("brk,bnk->bnr", rows, values[graph.output].double().unflatten(0, (2, 200)))
    assert (margins >= lower[:, None]).all()

    write_onnx(graph, tmp_path / "m.onnx", 17, {})
    network = Model(onnx.load(tmp_path / "m.onnx"))
    derive = ErrorTerms(network, CONTRACTS["fp32"])
    for one, label, wanted in zip(x.double().reshape(2, 1, -1).numpy(), labels.numpy(), lower.min(1).values.tolist(), strict=True):
        region = SampleRegions(ClaimedRegion("linf", RADIUS, Fraction(0), Fraction(0), (0.0, 1.0)), one)
        found = Bounds(network, derive, region, refine=False).margins(np.array([label]), fold_only=False)[1].min()
        assert found == pytest.approx(wanted, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("name", ["mobile", "resnet18", "vgg16", "wrn-28-4"])
def test_its_c_source_computes_the_stated_order(name: str, tmp_path: Path) -> None:
    try:
        find_compiler()
    except UnavailableError as error:
        pytest.skip(str(error))
    graph, x = graph_of(name), images(2).numpy()
    emit_c(graph, "00" * 32, name).write(tmp_path)
    with CompiledModel(tmp_path / "model.c", SHAPE, CLASSES, ("-O0", "-std=c99", "-ffp-contract=off")) as compiled:
        assert np.array_equal(compiled.logits(x), simulate(graph, x)[graph.output])


@pytest.mark.parametrize("name", ["mobile", "resnet18", "vgg16", "wrn-28-4"])
def test_it_runs_on_eight_bits(name: str, tmp_path: Path) -> None:
    graph = quantise(graph_of(name), images(32).numpy())
    write_onnx(graph, tmp_path / "m.onnx", 17, {})
    check_runtime_graph(tmp_path / "m.onnx")
    assert Model(onnx.load(tmp_path / "m.onnx")).shape == SHAPE


@pytest.mark.parametrize("name", NAMES)
def test_a_training_step_on_worst_case_logits_has_finite_gradients_everywhere(name: str) -> None:
    """Batch norm works on the statistics of the clean batch, which the step records for every one of its layers."""
    graph = from_torch(module_of(name), SHAPE)
    params = graph.tensors()
    initialise(graph, params, torch.Generator().manual_seed(0), "interval")
    norms = [node for node in graph.nodes if isinstance(node, BatchNorm)]
    names = [key for node in graph.nodes if isinstance(node, Affine) for key in node.params] + [node.scale for node in norms]
    for key in names:
        params[key].requires_grad_()
    objective = IntervalObjective(Train(), graph, params)
    batch = TrainingBatch(images(8), torch.arange(8) % CLASSES, 0.01, 0.1, 0.5, True, torch.Generator().manual_seed(0))
    loss = objective(params, batch)
    loss.value.backward()
    assert torch.isfinite(loss.value)
    assert loss.enclosure is not None
    assert set(loss.statistics) == {key for node in norms for key in (node.mean, node.variance)}
    for key in names:
        gradient = params[key].grad
        assert gradient is not None, key
        assert torch.isfinite(gradient).all(), key
