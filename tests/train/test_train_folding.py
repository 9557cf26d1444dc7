"""Batch norm folded while training: the very parameters that are exported, and networks that linear bounds can read."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from term_nets import NETWORKS, NormFirst, batch, network, trained

from vsparse.data import Dataset
from vsparse.graph import from_torch, run
from vsparse.graph.ir import AddConstant, Affine, BatchNorm, MulConstant, Relu
from vsparse.stages.train.folding import Folding
from vsparse.stages.train.samples import Samples
from vsparse.stages.train.validation import Validation


@pytest.mark.parametrize("name", [*NETWORKS, "norm-first"])
def test_folding_while_training_gives_the_parameters_that_are_exported(name: str) -> None:
    if name == "norm-first":
        torch.manual_seed(0)
        graph = from_torch(NormFirst(), (1, 8, 8))
        params = {key: value + 0.2 * torch.rand(value.shape) for key, value in graph.tensors().items()}
    else:
        graph, params = network(name)
    folding, folded = Folding(graph), trained(graph, params)
    assert not any(isinstance(node, BatchNorm) for node in folding.graph.nodes)
    values = folding.params(params)
    kinds = Affine | MulConstant | AddConstant
    ours, theirs = ([node for node in one.nodes if isinstance(node, kinds)] for one in (folding.graph, folded))
    for one, other in zip(ours, theirs, strict=True):
        assert type(one) is type(other)
        for mine, exported in zip(one.params, other.params, strict=True):
            assert np.array_equal(values[mine].numpy(), folded.params[exported]), one.name
    # Activations keep their names, so that terms of the loss find them.
    before, after = run(graph, params, batch().x, keep=True), run(folding.graph, values, batch().x, keep=True)
    for node in graph.nodes:
        if isinstance(node, Relu):
            torch.testing.assert_close(after[node.inputs[0]], before[node.inputs[0]], rtol=1e-3, atol=1e-4)


def test_networks_with_batch_norm_are_validated_by_linear_bounds() -> None:
    graph, params = network("cnn5")
    given = batch(size=40)
    right = run(graph, params, given.x).argmax(1)  # the labels are what the network says, so that there is something to certify
    pixels = (given.x * 255).round().to(torch.uint8).numpy()
    samples = Samples.of(Dataset(pixels, 255.0, right.numpy(), tuple("abcde"), None))
    found = {measure: Validation(samples, 0.02, measure, 16)(graph, params) for measure in ("crown", "interval")}
    folded = trained(graph, params)
    assert found["crown"] == Validation(samples, 0.02, "crown", 16)(folded, folded.tensors())
    assert 1 >= found["crown"].robust > found["interval"].robust
