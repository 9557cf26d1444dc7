"""What the zeros among a file's weights form, and whether the kernels that execute the file leave them out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsparse.artifact.choice import WeightPattern
from vsparse.artifact.forms import INT8_C, DeployedForm
from vsparse.artifact.hashes import parse_model
from vsparse.contract import contract
from vsparse.files import read_bytes
from vsparse.graph.from_onnx import from_onnx
from vsparse.graph.ir import Affine
from vsparse.recipe_train import Sparse
from vsparse.stages.export.c_int8 import emit_int8_c
from vsparse.stages.export.c_source.costs import COSTS
from vsparse.stages.export.c_source.selection import leaves_zeros_out, select_kernels
from vsparse.stages.export.structured import two_of_four, weights
from vsparse.target import Target

# Below this fraction of zeros the weights count as dense: a few are zero by rounding alone.
FEW = 0.05


def weight_pattern(path: Path, form: DeployedForm, contract_name: str, sparse: Sparse | None, target: Target) -> WeightPattern:
    """Returns the pattern of the weights of a form, from its ONNX file, and whether the target's kernels for this form use it.

    `contract_name` is the contract that the form is certified under. `sparse` is how the recipe removed weights; None for the dense
    parent. Raises InputError for a file that is no model.
    """
    found = list(weights(parse_model(read_bytes(path, "model", 2**30))))
    size = sum(weight.size for weight in found)
    zeros = size - sum(int(np.count_nonzero(weight)) for weight in found)
    density = 1.0 if not size else 1 - zeros / size
    pattern = _pattern(found, 1 - density, sparse)
    dense = 1 - density < FEW
    used, by = _used(found, form, contract_name, target, dense) if form.is_onnx else _used_by_c(path, form, target, dense)
    return WeightPattern(density=density, pattern=pattern, used=used, by=by)


def float_layers(path: Path) -> tuple[str, ...]:
    """Returns the layers of a quantised file that compute in float32, by the names of its nodes, in order."""
    graph = from_onnx(path)
    return tuple(node.name for node in graph.nodes if isinstance(node, Affine) and node.weight not in graph.integers)


def _pattern(found: Sequence[NDArray[Any]], zeros: float, sparse: Sparse | None) -> str:
    halved = sum(map(_halved, found))
    if halved:
        return f"2:4 in {halved} of {len(found)} layers"
    if sparse is not None and sparse.granularity == "channel":
        return "whole channels, which are absent"
    if zeros < FEW:
        return "dense"
    if sparse is not None and sparse.granularity == "block":
        return f"blocks of {sparse.block[0]}×{sparse.block[1]}"
    return "single weights"


def _halved(weight: NDArray[Any]) -> bool:
    """Whether a weight has the 2:4 pattern, and not merely no weights at all."""
    return two_of_four(weight) and bool(weight.any())


def _used(found: Sequence[NDArray[Any]], form: DeployedForm, contract_name: str, target: Target, dense: bool) -> tuple[bool, str]:
    """Returns whether kernels leave zeros out, and which ones, or why none does."""
    if target.runtime.name == "tensorrt" and any(map(_halved, found)):
        if not target.device.structured_sparsity_2_4:
            return False, f"the GPU of {target.name} has no 2:4 kernels"
        if contract(contract_name).operand == "fp32":  # sparse tensor cores multiply TF32, half precision and integers
            return False, "2:4 kernels multiply no float32 numbers, and TF32 is off"
        return True, "TensorRT may use its 2:4 kernels (--sparsity=enable)"
    if target.runtime.name == "c":
        return False, f"{target.name} runs the C source alone"
    runtime = {"tensorrt": "TensorRT", "onnxruntime": "ONNX Runtime"}[target.runtime.name]
    return False, "nothing to skip" if dense else f"{runtime} multiplies zeros too"


def _used_by_c(path: Path, form: DeployedForm, target: Target, dense: bool) -> tuple[bool, str]:
    """Returns the same of our C, in the text that the target compiles."""
    graph = from_onnx(path)
    layers = [node for node in graph.nodes if isinstance(node, Affine)]
    if form == INT8_C:
        skipping = sum(emit_int8_c(graph).listed)
    else:
        kernels, vectors = select_kernels(graph, COSTS), target.device.kind != "microcontroller"
        skipping = sum(leaves_zeros_out(graph, node, kernels, vectors) for node in layers)
    if skipping:
        return True, f"its kernels skip zeros in {skipping} of {len(layers)} layers"
    return False, "nothing to skip" if dense else "too few zeros to skip"
