"""What the zeros among a file's weights form, and whether the kernels that execute the file leave them out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsparse.artifact.choice import WeightPattern
from vsparse.artifact.forms import DeployedForm
from vsparse.artifact.hashes import parse_model
from vsparse.contract import contract
from vsparse.files import read_bytes
from vsparse.recipe_train import Sparse
from vsparse.stages.export.c_source.layers import SPARSE_CONV, SPARSE_GEMM
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
    used, by = _used(found, form, contract_name, target, dense=1 - density < FEW)
    return WeightPattern(density=density, pattern=pattern, used=used, by=by)


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
    if not form.is_onnx:
        skipping = sum(np.count_nonzero(weight) < _least_density(weight) * weight.size for weight in found)
        if skipping:
            return True, f"its kernels skip zeros in {skipping} of {len(found)} layers"
        return False, "next to no zeros" if dense else "too few zeros to skip"
    if target.runtime.name == "tensorrt" and any(map(_halved, found)):
        if not target.device.structured_sparsity_2_4:
            return False, f"the GPU of {target.name} has no 2:4 kernels"
        if contract(contract_name).operand == "fp32":  # sparse tensor cores multiply TF32, half precision and integers
            return False, "2:4 kernels multiply no float32 numbers, and TF32 is off"
        return True, "TensorRT may use its 2:4 kernels (--sparsity=enable)"
    if target.runtime.name == "c":
        return False, f"{target.name} runs the C source alone"
    runtime = {"tensorrt": "TensorRT", "onnxruntime": "ONNX Runtime"}[target.runtime.name]
    return False, "next to no zeros" if dense else f"{runtime} multiplies zeros too"


def _least_density(weight: NDArray[Any]) -> float:
    """The density below which our C leaves the zeros of a layer out: of a convolution [out, in, …], or of a matrix."""
    return SPARSE_CONV if weight.ndim > 2 else SPARSE_GEMM
