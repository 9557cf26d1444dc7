"""What a backward pass over the integer bounds of an int8 network passes, keeps and is charged for: one plan for the C and its simulation.

The bound, its charges and their proof: docs/numerics.md, section 17.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from math import ceil, prod

import numpy as np
from numpy.typing import NDArray

from vsparse.errors import InputError
from vsparse.graph.ir import Add, AveragePool, Conv, Gemm, Graph, MaxPool, Reshape
from vsparse.stages.export.c_int8.emit import places_of
from vsparse.stages.export.c_int8.fusion import Step, steps_of
from vsparse.stages.export.c_int8.place import Stored
from vsparse.stages.export.c_live.backward_plan import MOST_INDEXES, depth, fan_in
from vsparse.stages.export.c_live.constants import FLOOR, float32_up, gamma, terms_of
from vsparse.stages.export.c_live.int8_constants import ROUNDINGS, last_step, require_live_int8

# What the offset of a line may err by for each unit of what it is made of, its share of the rounding of a coefficient included; and the
# share of an error that subtracting its constant part from it may lose.
FEW, TINY = 2.0**-19, 2.0**-22
# What a constant that the device multiplies or adds to itself is enlarged by, and each factor of a layer is at least.
_UP, LEAST_FACTOR = 1 + Fraction(1, 2**20), 2.0**-60
_UNIT = Fraction(1, 2**24)
_WAY = "set deploy.live_budget = 0 to leave it out"
# Floats for each element; of ends, a step and a width, half a one.
_KEPT = {"line": 4, "best": 3, "end": 0.5}


@dataclass(frozen=True)
class IntegerPlan:
    """One pass: `walk` are the steps that coefficients pass, last first, behind the `last` one, whose rows begin it.

    Activations go by the name of the array that they lie in (`root`), `stop` is what the last step reads, `ends` are those whose
    coefficients are bounded by their interval in the end, and `reached` says how many terms are added up to one coefficient at most.
    `offsets` are those of what the interval pass keeps, in floats: of a step its lines (`line`) or the elements of its windows (`best`), of
    `stop` and `ends` the ends (`end`); all lie as the activation does.
    """

    graph: Graph
    stored: Mapping[str, Stored]
    aliases: Mapping[str, str]
    last: Step
    walk: tuple[Step, ...]
    ends: tuple[str, ...]
    reached: Mapping[str, int]
    offsets: Mapping[str, int] = field(default_factory=dict)
    floats: int = 0

    def root(self, name: str) -> str:
        """Returns the activation in whose array one lies."""
        return self.aliases.get(name, name)

    @property
    def stop(self) -> str:
        """The activation over whose interval margins are bounded first."""
        return self.root(self.last.inputs[0])

    def size_of(self, root: str) -> int:
        """Returns the elements of an array, those of its margins included."""
        return self.stored[root].place.size

    def terms_into(self, step: Step) -> int:
        """Returns how many terms are added up to one coefficient of what a step reads, at most."""
        return max(self.reached[self.root(name)] for name in step.inputs)


def plan_of_integers(graph: Graph, stored: Mapping[str, Stored], aliases: Mapping[str, str]) -> IntegerPlan:
    """Returns the plan of a network that has a live certificate, by where its activations lie; InputError as `require_second_int8`."""
    last, steps = last_step(graph), steps_of(graph)
    if stored[last.inputs[0]].grid is None:
        raise InputError(
            f'node "{last.result}" reads float32, as export.float_layers asks, and the second tier of int8 C begins with integers; {_WAY}'
        )
    needed = {aliases.get(last.inputs[0], last.inputs[0])}
    reached: dict[str, int] = {next(iter(needed)): 1}
    walk, ends = [], []
    for step in reversed(steps):
        if step.result not in needed or step is last or step.result in aliases:
            continue
        if step.head is None:
            ends.append(step.result)
            continue
        walk.append(step)
        for name in step.inputs:
            root = aliases.get(name, name)
            needed.add(root)
            reached[root] = reached.get(root, 0) + _fan(graph, step)
    plan = IntegerPlan(graph, stored, aliases, last, tuple(walk), tuple(ends), reached)
    for step in walk:
        _require(plan, step)
    offsets, end = {}, 0
    kinds = [("end", root) for root in dict.fromkeys((plan.stop, *ends))]
    kinds += [("best" if isinstance(step.head, MaxPool) else "line", step.result) for step in walk if not isinstance(step.head, Reshape)]
    for kind, root in kinds:
        offsets[f"{kind} {root}"] = end
        end += ceil(_KEPT[kind] * plan.size_of(root))
    offsets["margins"] = end
    end += prod(graph.shape_of(last.result))
    return IntegerPlan(graph, stored, aliases, last, plan.walk, plan.ends, reached, offsets, end)


def require_second_int8(graph: Graph, data_range: tuple[float, float]) -> None:
    """Raises InputError for a quantised network whose live certificate has no second tier, naming the node."""
    from_places(graph, data_range)


def absence_of_second(graph: Graph, data_range: tuple[float, float]) -> str:
    """Returns why the live certificate of a quantised network has no second tier; nothing where it has one."""
    try:
        require_second_int8(graph, data_range)
    except InputError as error:
        return str(error)
    return ""


def from_places(graph: Graph, data_range: tuple[float, float]) -> IntegerPlan:
    """Returns the plan of a network by itself; InputError where it has no live certificate, or no second tier."""
    require_live_int8(graph, data_range)
    return plan_of_integers(graph, *places_of(graph, steps_of(graph)))


def _fan(graph: Graph, step: Step) -> int:
    node = step.head
    return fan_in(graph, node) if isinstance(node, Conv | Gemm | AveragePool | MaxPool) else 1


def _require(plan: IntegerPlan, step: Step) -> None:
    node = step.head
    assert node is not None
    if isinstance(node, Reshape) and plan.terms_into(step) > 1:
        raise InputError(f'node "{node.name}" moves what other operators read too, which int8 C bounds by intervals alone; {_WAY}')
    if isinstance(node, MaxPool) and plan.size_of(plan.root(step.inputs[0])) >= MOST_INDEXES:
        raise InputError(f'node "{node.name}" pools {MOST_INDEXES} elements or more, which int8 C bounds by intervals alone; {_WAY}')
    if isinstance(node, Conv | Gemm | AveragePool | Add):
        least = float(min(factor.min() for factor in factors_of(plan, step)))
        if not least >= LEAST_FACTOR:
            raise InputError(f'node "{node.name}" scales its sums by {least:.3g}, too little for the second tier of int8 C; {_WAY}')


def factors_of(plan: IntegerPlan, step: Step) -> list[NDArray[np.float32]]:
    """Returns what the C multiplies sums of a step by, in steps of its grid: of each output, or each operand of an addition."""
    graph, node = plan.graph, step.head
    scales = [np.float32(grid.scale) for name in step.inputs if (grid := plan.stored[name].grid) is not None]
    own = np.float32(1 if step.grid is None else step.grid.scale)
    if isinstance(node, Add):
        return [np.atleast_1d(np.asarray(scale / own)) for scale in scales]
    if isinstance(node, AveragePool):
        return [np.atleast_1d(np.asarray(scales[0] / np.float32(prod(node.kernel)) / own))]
    assert isinstance(node, Conv | Gemm)
    return [np.broadcast_to(scales[0] * graph.integers[node.weight].scale, (node.shape[0],)).astype(np.float32) / own]


def spare_of_lanes(count: int) -> np.float32:
    """Returns what an offset or end moves outward by for each unit of it: for the sum over so many elements, and its own store."""
    own = gamma(depth(count)) + 4 * _UNIT
    return float32_up(own / (1 - own) * _UP)


def share_of(plan: IntegerPlan, step: Step) -> np.float32:
    """Returns what the coefficients behind a step err by: of a sum, for each unit that its error has for each of its terms.

    Of an addition or a ReLU for each unit of the magnitudes that it reads, of a maximum for each unit of that of an element.
    """
    back = gamma(plan.terms_into(step) + 1)
    node, lanes = step.head, gamma(depth(plan.size_of(step.result))) + 4 * _UNIT
    if isinstance(node, Conv | Gemm):
        back = back / gamma(terms_of(plan.graph, node) + ROUNDINGS)
    elif isinstance(node, AveragePool):
        back = back / gamma(prod(node.kernel) + ROUNDINGS)
    return float32_up(back / (1 - lanes) * _UP)


def of_window(plan: IntegerPlan, step: Step) -> np.float32:
    """Returns what a unit of |coefficient| of a maximum costs: its sums with those of other windows, 0 where there are none."""
    grid = plan.stored[step.inputs[0]].grid
    assert grid is not None
    alone = plan.terms_into(step) == 1
    return np.float32(0) if alone else float32_up(Fraction(float(share_of(plan, step))) * max(-grid.steps[0], grid.steps[1]))


def of_rows(plan: IntegerPlan) -> np.float32:
    """Returns what the difference of two logits errs by for each unit of the magnitudes of its terms."""
    node = plan.last.head
    assert isinstance(node, Gemm)
    terms = plan.graph.params[node.weight].shape[1]
    return float32_up(gamma(terms + ROUNDINGS + 4) * (1 + Fraction(1, 2**19)) / (1 - gamma(terms + 6)))


def total_of_integers(plan: IntegerPlan) -> tuple[np.float32, np.float32]:
    """Returns (factor, constant) of the error of a bound: for each unit of the magnitudes of its parts, and what underflow costs."""
    flushed = Fraction(FLOOR)
    for step in plan.walk:
        read = sum(plan.size_of(plan.root(name)) for name in step.inputs)
        flushed += Fraction(plan.size_of(step.result) + read * (1 + plan.terms_into(step)), 2**80)
    parts = len(plan.walk) + len(plan.ends) + 8
    return float32_up(2 * gamma(parts) * (1 + Fraction(1, 2**10))), float32_up(flushed)
