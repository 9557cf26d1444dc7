"""From masks to a smaller graph: liveness, exact reductions, packing, merging, and the evidence that nothing changed."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from vsparse.artifact.layers import LayerRow, Removal
from vsparse.errors import GateError, InputError
from vsparse.graph.ir import Affine, Graph
from vsparse.graph.validate import validate
from vsparse.stages.compress.evidence import Evidence, compare, rational_check
from vsparse.stages.compress.liveness import REAL, remove_units
from vsparse.stages.compress.merge import UNIT_ROUNDOFF_32, drop_relus, merge_affine
from vsparse.stages.compress.pack import keep_groups, keep_one, own_parameters, pack
from vsparse.stages.compress.reduced_graph import Mask, ReducedGraph, apply_masks
from vsparse.stages.compress.rules import ExactBiases, require
from vsparse.stages.compress.running_error import ParameterError
from vsparse.stages.compress.signs import proved_signs
from vsparse.stages.compress.table import compare_layers, total
from vsparse.stages.compress.units import find_units

RANDOM_INPUTS = 16


@dataclass(frozen=True)
class Compressed:
    """A packed graph with the account of what was removed and why the function is the same.

    `removed_share` is 1 − weights stored in `packed` / weights of the dense graph (biases left out); zeros that stay
    stored inside packed layers do not count as removed: `density` is the fraction of stored weights that are not zero.
    """

    packed: Graph
    rows: list[LayerRow]
    total: LayerRow
    removed_share: float
    density: float
    reductions: list[Removal]
    evidence: Evidence

    @property
    def is_exact(self) -> bool:
        """Whether only terms that are exactly zero were removed."""
        return all(reduction.exactness != REAL for reduction in self.reductions)

    @property
    def exactness(self) -> str:
        """The weakest exactness of any reduction: `real` when a constant was folded or layers were merged."""
        return "bit-exact modulo order of summation" if self.is_exact else REAL

    @property
    def max_difference(self) -> float:
        """The largest difference of an output, masked against packed, in float32 on the compared inputs."""
        return self.evidence.max_difference

    @property
    def proof(self) -> str:
        """One sentence: what is proved, and what was checked."""
        if self.exactness == REAL:
            what = "equal in real arithmetic: removed units are unread, constant zero or folded constants, and merged layers are products"
        else:
            what = "equal: only terms that are exactly zero were removed, so every sum keeps its non-zero terms"
        checked = f"exactly equal in rational arithmetic on {self.evidence.rational_inputs} inputs" if self.evidence.rational_inputs else ""
        floats = f"{self.evidence.identical} of {self.evidence.outputs} float32 outputs bit-identical" if self.evidence.outputs else ""
        return "; ".join(part for part in (what, checked, floats) if part)


def _rounded_biases(graph: Graph, exact: ExactBiases) -> dict[str, ParameterError]:
    """Returns the perturbation of every affine layer whose exact bias is not the stored one."""
    result: dict[str, ParameterError] = {}
    for node in graph.nodes:
        if isinstance(node, Affine) and node.bias is not None:
            stored = graph.params[node.bias]
            if any(value != float(kept) for value, kept in zip(exact[node.bias], stored, strict=True)):
                slack = 2 * UNIT_ROUNDOFF_32 * np.abs(stored.astype(np.float64)) + 2.0**-149
                result[node.name] = ParameterError(np.zeros(graph.params[node.weight].shape), slack)
    return result


def _checked_inputs(graph: Graph, input_box: tuple[float, float], inputs: NDArray[np.float32] | None) -> NDArray[np.float32]:
    low, high = input_box
    if not (np.isfinite(low) and np.isfinite(high) and low <= high):
        raise InputError(f"the input range is {input_box}; give two finite numbers, the smaller first")
    if inputs is None:
        return np.zeros((0, *graph.input_shape), dtype=np.float32)
    if inputs.dtype != np.float32 or inputs.shape[1:] != graph.input_shape:
        raise InputError(
            f"the inputs to compare on are {inputs.dtype} {inputs.shape}; give float32 [n, {', '.join(map(str, graph.input_shape))}]"
        )
    if not ((inputs >= low) & (inputs <= high)).all():
        raise InputError(f"the inputs to compare on leave the input range {input_box}; scale them")
    return inputs


def compress(
    graph: Graph,
    masks: dict[str, Mask],
    input_box: tuple[float, float] = (0.0, 1.0),
    exact: bool = True,
    *,
    inputs: NDArray[np.float32] | None = None,
    rational_inputs: int = 2,
    seed: int = 0,
    input_groups: int = 1,
) -> Compressed:
    """Returns the smallest graph found that computes what `graph` computes with its weights masked.

    `masks` maps weight names to bool arrays (True: kept). `input_box` is the range of every input value. `exact` adds
    what interval bounds over that whole range prove: dead units are removed, always-active ReLUs dropped, affine pairs
    merged when smaller. `inputs` [n, *input_shape] float32 are compared on besides random ones.
    Of each `input_groups` neighbouring inputs of an affine operator all are removed or none, which keeps a pattern within them (2:4).

    Raises InputError for masks, parameters or inputs that do not fit, and GateError where packed and masked differ by more than
    rounding allows (which would be a defect of this program).
    """
    data = _checked_inputs(graph, input_box, inputs)
    masked = apply_masks(graph, masks)
    require(masked.nodes)
    masked = own_parameters(masked)
    units = find_units(masked)
    reduced = ReducedGraph(masked)
    removed = np.zeros(units.count, dtype=bool)
    reductions = remove_units(reduced, units, removed, {})
    if exact:
        # Once is enough: removal deletes zeros, which leaves every interval as it was.
        dead, _ = proved_signs(reduced.graph_now()[0], input_box)
        reductions += remove_units(reduced, units, removed, dead) if dead else []
    zeroed, biases = reduced.graph_now()
    removed = keep_groups(zeroed, units, keep_one(zeroed, units, removed), input_groups)
    packed, biases = pack(zeroed, biases, units, removed)

    low, high = input_box
    noise = np.random.default_rng(seed).uniform(low, high, (RANDOM_INPUTS, *graph.input_shape)).astype(np.float32).clip(low, high)
    samples = np.concatenate([data, noise])
    sparse_first = samples[[0, len(data)]] if len(data) else noise[:2]
    rational = rational_check(masked, packed, biases, np.concatenate([sparse_first, samples[1:]]), rational_inputs)
    perturbations = _rounded_biases(packed, biases)
    if exact:
        packed, dropped = drop_relus(packed, proved_signs(packed, input_box)[1])
        packed, merged, moved = merge_affine(packed, set(perturbations))
        reductions = [*reductions, *dropped, *merged]
        perturbations |= moved
    used = {name for node in packed.nodes for name in node.params}
    packed = validate(replace(packed, params={name: np.ascontiguousarray(value) for name, value in packed.params.items() if name in used}))
    evidence = compare(masked, packed, samples, rational, perturbations)
    if not (evidence.rational_equal and evidence.within_bound):
        raise GateError(
            "the packed network differs from the masked one by more than rounding allows; nothing was written; please report this model"
        )
    rows = compare_layers(graph, packed)
    summary = total(rows)
    removed_share = 1 - summary.weights_after / summary.weights_before if summary.weights_before else 0.0
    density = summary.nonzero / summary.weights_after if summary.weights_after else 1.0
    return Compressed(packed, rows, summary, removed_share, density, reductions, evidence)
