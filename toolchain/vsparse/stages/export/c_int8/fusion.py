"""A quantised network as the steps that its C executes: an operator, what is applied to its result at once, and the rounding at its end.

Which operators are fused decides where float32 rounds, so the C and its simulation both follow this list.
"""

from __future__ import annotations

from dataclasses import dataclass

from vsparse.errors import InputError
from vsparse.graph.ir import Add, AddConstant, Affine, AveragePool, Conv, Gemm, Graph, MaxPool, MulConstant, Node, Relu, Reshape
from vsparse.graph.operators.quantised import FakeQuant, moved_grid
from vsparse.graph.quantised import check_integer_execution

# What may be applied to a result while it is in a register.
_UNARY = (Relu, AddConstant, MulConstant)
SUPPORTED = (Conv, Gemm, AveragePool, MaxPool, Add, Reshape, FakeQuant, *_UNARY)


@dataclass(frozen=True)
class Step:
    """An operator (`head`; None: what it reads, as it is), the `chain` applied to its result, and the grid that it is rounded to.

    `inputs` are the activations that it reads, `result` is the one that it stores: on `grid` in int8, or in float32 where that is None.
    """

    head: Node | None
    chain: tuple[Node, ...]
    grid: FakeQuant | None
    inputs: tuple[str, ...]
    result: str

    @property
    def relu_alone(self) -> bool:
        """Whether nothing but ReLU lies between the operator and the rounding, so that its scales and the grid's make one factor."""
        return self.grid is not None and all(isinstance(node, Relu) for node in self.chain)

    @property
    def has_relu(self) -> bool:
        """Whether the chain has a ReLU."""
        return any(isinstance(node, Relu) for node in self.chain)


def require_c_operators(graph: Graph) -> None:
    """Raises InputError for an operator that the int8 C has no form for, naming it."""
    for node in graph.nodes:
        if not isinstance(node, SUPPORTED):
            known = ", ".join(one.__name__ for one in SUPPORTED)
            raise InputError(
                f'node "{node.name}" is a {type(node).__name__}, which the int8 C has no form for; it has {known}; deploy model.int8.onnx '
                "instead"
            )


def grids_of(graph: Graph) -> dict[str, FakeQuant | None]:
    """Returns for each activation the grid on which all of its values lie; None for float32."""
    grids: dict[str, FakeQuant | None] = {graph.input: None}
    for node in graph.nodes:
        grids[node.name] = moved_grid(node, grids)
    return grids


def steps_of(graph: Graph) -> tuple[Step, ...]:
    """Returns the steps of a graph that integer kernels may execute, in order; InputError for one that is in no such form."""
    require_c_operators(graph)
    check_integer_execution(graph)
    grids, readers = grids_of(graph), graph.consumers()
    steps: list[Step] = []
    taken: set[str] = set()

    def only_reader(name: str) -> Node | None:
        after = readers[name]
        return after[0] if len(after) == 1 and name != graph.output else None

    for node in graph.nodes:
        if node.name in taken:
            continue
        # What moves or selects steps of a grid stays in integers, and so does a ReLU of them.
        if isinstance(node, Reshape) or (isinstance(node, MaxPool | Relu) and grids[node.name] is not None):
            steps.append(Step(node, (), grids[node.name], node.inputs, node.name))
            continue
        begins = isinstance(node, FakeQuant | Relu | AddConstant | MulConstant)
        chain: list[Node] = [node] if begins and not isinstance(node, FakeQuant) else []
        end: Node = node
        while not isinstance(end, FakeQuant):
            following = only_reader(end.name)
            if not isinstance(following, (*_UNARY, FakeQuant)):
                break
            end = following
            taken.add(end.name)
            if not isinstance(end, FakeQuant):
                chain.append(end)
        grid = end if isinstance(end, FakeQuant) else None
        steps.append(Step(None if begins else node, tuple(chain), grid, node.inputs, end.name))
    return tuple(steps)


def is_integer_sum(node: Node | None, grids: dict[str, FakeQuant | None]) -> bool:
    """Returns whether a node is a sum of products of integers."""
    return isinstance(node, Affine) and grids[node.inputs[0]] is not None
