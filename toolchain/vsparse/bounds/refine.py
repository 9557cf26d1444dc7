"""Tighter intermediate bounds: the inputs of the operators that are relaxed (ReLU and its like, max-pooling) bounded by CROWN, in order."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf, prod

import torch
from torch import Tensor

from vsparse.bounds import paths
from vsparse.bounds.ball import Box
from vsparse.bounds.crown import GIBIBYTE, ancestors, crown, unit_costs
from vsparse.bounds.curves import is_curve
from vsparse.bounds.interval import deployed, propagate
from vsparse.bounds.operators.quantised import readers_at_once
from vsparse.bounds.region import Region, samples_of
from vsparse.bounds.rounding import Rounding
from vsparse.bounds.rules import Params, is_relaxed, require, rules_of
from vsparse.bounds.windows import Windows, windows
from vsparse.compute_device import to_host
from vsparse.graph.execute import run
from vsparse.graph.ir import Affine, Graph, Node, Relu


def refine(
    graph: Graph,
    params: Params,
    box: Box | Region,
    enclosure: Mapping[str, Box],
    rounding: Rounding | None = None,
    only_unstable: bool = True,
    intersect: bool = True,
    memory_limit_bytes: int = GIBIBYTE,
    work: float = inf,
) -> dict[str, Box]:
    """Returns an enclosure of every activation in which the inputs of relaxed operators are bounded by CROWN.

    `enclosure` (from `interval`, or already split by branching) must hold for the inputs in `box`; the result holds for the
    same inputs, and with `intersect` none of its boxes is wider. `only_unstable` bounds only elements whose relaxation is
    not exact yet: neurons whose ReLU is neither always active nor always off, and so on.
    Activations in between are propagated again from the tightened ones. `only_unstable=False, intersect=False` gives plain CROWN, as
    in auto_LiRPA's method of that name, for cross-checks.
    `work` is how many multiplications this may take for each sample: its refinement ends before the first activation for which there
    are not enough left, and what follows is propagated from what is known.
    Dtypes, `rounding` and errors as for `crown`, and InputError for a node without an interval rule.
    """
    boxes: dict[str, Box] = {graph.input: enclosure[graph.input]}
    targets = relaxed_inputs(graph)
    require(graph.nodes, "interval")
    bounded = [node.name for node in graph.nodes if node.name in targets and not _interval_suffices(graph, node, box)]
    require({one.name: one for name in bounded for one in ancestors(graph, name)}.values(), "backward")
    costs: dict[str, Tensor] = {}
    left = torch.full((len(boxes[graph.input][0]),), work, dtype=torch.float64)
    middle: dict[str, Tensor] = {}
    for node in graph.nodes:
        reads = set(node.inputs) if rounding is None else rounding.reads(node)
        if paths.ONLY_UNSTABLE and intersect and all(boxes[name] is enclosure[name] for name in reads):
            boxes[node.name] = enclosure[node.name]  # nothing new is known of what it reads
        else:
            known = [boxes[name] for name in node.inputs]
            new = propagate(node, params, known) if rounding is None else deployed(node, params, boxes, rounding)
            boxes[node.name] = _meet(new, enclosure[node.name]) if intersect else new
        if rounding is not None:
            costs |= unit_costs([node], boxes, rounding)
        if node.name in bounded:
            boxes[node.name] = _bounded(
                graph, params, box, boxes, costs, node, rounding, only_unstable, intersect, memory_limit_bytes, left, middle
            )
    return boxes


def relaxed_inputs(graph: Graph) -> set[str]:
    """Returns the names of the activations whose bounds shape a relaxation: those that a ReLU or its like or a max-pool reads."""
    return {name for node in graph.nodes if is_relaxed(node) for name in node.inputs}


def _interval_suffices(graph: Graph, node: Node, box: Box | Region) -> bool:
    """Returns whether the interval is as tight as CROWN: for a node that reads an input out of a box, and for the image of a curve."""
    direct = node.inputs == (graph.input,) and not isinstance(box, Region) and paths.ONLY_UNSTABLE
    return direct or is_curve(node)


def _meet(a: Box, b: Box) -> Box:
    """Returns the intersection of two boxes that both hold."""
    return torch.maximum(a[0], b[0]), torch.minimum(a[1], b[1])


def _bounded(
    graph: Graph,
    params: Params,
    box: Box | Region,
    boxes: Mapping[str, Box],
    costs: Mapping[str, Tensor],
    node: Node,
    rounding: Rounding | None,
    only_unstable: bool,
    intersect: bool,
    memory_limit_bytes: int,
    left: Tensor,
    middle: dict[str, Tensor],
) -> Box:
    """Returns CROWN bounds of the selected elements of one activation, and its present box elsewhere.

    `left` [batch], on the processor, is how many multiplications each sample may take; it is lowered by those that are made, and below
    zero where they were not enough. `middle` is for the values of all activations at the middle of the box, once they are asked for.
    """
    lower, upper = (end.flatten(1).clone() for end in boxes[node.name])
    only_unstable = only_unstable and paths.ONLY_UNSTABLE
    selected = _unstable(graph, node, lower, upper) if only_unstable else torch.ones_like(lower, dtype=torch.bool)
    # How the work is cut into pieces is decided on the processor.
    selected = to_host(selected)
    if not bool(selected.any()):
        return boxes[node.name]
    small = windows(graph, params, boxes, rounding, node.name, costs) if intersect and isinstance(box, tuple) else None
    if small is not None and small.ends is not None and only_unstable:
        if not middle:
            middle |= run(graph, params, (boxes[graph.input][0] + boxes[graph.input][1]) * 0.5, keep=True)
        _by_one_row(graph, node, small, middle[node.name].flatten(1), selected, lower, upper, left)
        return lower.view_as(boxes[node.name][0]), upper.view_as(boxes[node.name][1])
    left -= selected.sum(dim=1) * (2.0 * (row_work(ancestors(graph, node.name), params) if small is None else small.work))
    selected &= (left >= 0).unsqueeze(1)
    if small is not None:
        samples, units = (index.to(lower.device) for index in selected.nonzero(as_tuple=True))
        both = small.bound(samples, units)
        lower[samples, units] = torch.maximum(lower[samples, units], both[0])
        upper[samples, units] = torch.minimum(upper[samples, units], both[1])
        return lower.view_as(boxes[node.name][0]), upper.view_as(boxes[node.name][1])
    counts = selected.sum(dim=1)
    # Samples with the most selected elements first, so that each piece of rows is a full block of the first few samples.
    order = counts.argsort(descending=True)
    most = int(counts.max()) if counts.numel() else 0
    piece = max(
        1,
        min(memory_limit_bytes, paths.working_set(lower.device))
        // (16 * max(1, node.size) * lower.element_size() * max(1, lower.shape[0])),
    )
    positions = selected.to(torch.uint8).argsort(dim=1, descending=True, stable=True)
    start = 0
    while start < most:
        chosen = order[: int((counts > start).sum())]
        # Half of these samples have no more than this: few rows of a block are empty.
        width = min(piece, max(2, int(counts[chosen].median()) - start))
        picked = positions[chosen, start : start + width]
        width = picked.shape[1]
        valid = torch.arange(start, start + width) < counts[chosen].unsqueeze(1)
        at = valid.nonzero(as_tuple=True)
        where = tuple(index.to(lower.device) for index in (chosen.unsqueeze(1).expand_as(picked)[valid], picked[valid]))
        row, column = (index.to(lower.device) for index in at)
        samples, columns = chosen.to(lower.device), picked.to(lower.device)
        rows = torch.zeros(len(samples), 2 * width, node.size, dtype=lower.dtype, device=lower.device)
        rows[:, :width].scatter_(2, columns.unsqueeze(2), 1.0)
        rows[:, width:].scatter_(2, columns.unsqueeze(2), -1.0)
        part = {name: (one[0][samples], one[1][samples]) for name, one in boxes.items()}
        part_costs = {name: cost[samples] for name, cost in costs.items()}
        found = crown(graph, params, samples_of(box, samples), rows, part, rounding, None, node.name, memory_limit_bytes, part_costs)
        both = found[:, :width][row, column], -found[:, width:][row, column]
        if intersect:
            lower[where] = torch.maximum(lower[where], both[0])
            upper[where] = torch.minimum(upper[where], both[1])
        else:
            lower[where], upper[where] = both
        start += width
    return lower.view_as(boxes[node.name][0]), upper.view_as(boxes[node.name][1])


def _unstable(graph: Graph, node: Node, lower: Tensor, upper: Tensor) -> Tensor:
    """Returns of which elements [batch, size] of an activation in [lower, upper] a reader's relaxation is not exact."""
    wanted = [rules_of(reader).unstable(reader, lower, upper) for reader in readers_at_once(graph, node.name)]
    return torch.stack([one for one in wanted if one is not None]).any(dim=0)


def _by_one_row(
    graph: Graph, node: Node, small: Windows, middle: Tensor, selected: Tensor, lower: Tensor, upper: Tensor, left: Tensor
) -> None:
    """Tightens the ends [batch, size] of selected elements by one row each, and where a relaxation is not exact yet by another one.

    The first row is about the end between zero and the value at the middle of the input: where the element is stable, that is the end that
    shows it. It is a guess, and bounds hold whatever it is.
    """
    signs = torch.where(middle >= 0, 1.0, -1.0).to(lower.dtype)
    for side in (signs, -signs):
        left -= selected.sum(dim=1) * float(small.work)
        samples, units = (selected & (left >= 0).unsqueeze(1)).nonzero(as_tuple=True)
        below, above = small.one_row(samples, units, side[samples, units])
        lower[samples, units] = torch.maximum(lower[samples, units], below)
        upper[samples, units] = torch.minimum(upper[samples, units], above)
        selected = selected & _unstable(graph, node, lower, upper)


def row_work(walk: list[Node], params: Params) -> int:
    """Returns how many multiplications one row of coefficients takes through the weights of these nodes, on whole maps."""
    affine = [node for node in walk if isinstance(node, Affine)]
    return sum(params[node.weight].numel() * prod(node.shape[1:]) for node in affine)


def unstable_count(graph: Graph, enclosure: Mapping[str, Box]) -> Tensor:
    """Returns for each sample [batch] how many ReLU inputs may have either sign."""
    inputs = {name for node in graph.nodes if isinstance(node, Relu) for name in node.inputs}
    counts = [((enclosure[n][0] < 0) & (enclosure[n][1] > 0)).flatten(1).sum(dim=1) for n in sorted(inputs)]
    return (
        torch.stack(counts).sum(dim=0) if counts else enclosure[graph.input][0].new_zeros(len(enclosure[graph.input][0]), dtype=torch.int64)
    )
