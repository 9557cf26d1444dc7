"""One text of the bounds of a network: for each operator the centre, by the inference's own kernels, then the radius, and its settling."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import numpy as np

from vsparse.graph.ir import (
    AddConstant,
    Conv,
    Gemm,
    Graph,
    MaxPool,
    MulConstant,
    Node,
    Relu,
    Reshape,
)
from vsparse.stages.export.c_int8.place import flat_expression
from vsparse.stages.export.c_live.constants import CONSTANT, FLOOR, folded, growth, of_input, spread
from vsparse.stages.export.c_live.margins import is_together, scratch_of
from vsparse.stages.export.c_live.pairs import emit_pair, is_paired
from vsparse.stages.export.c_source import convolution, fully_connected, scalar_gemm
from vsparse.stages.export.c_source.arena import Lifetime
from vsparse.stages.export.c_source.costs import KernelCosts
from vsparse.stages.export.c_source.geometry import WIDEST
from vsparse.stages.export.c_source.layers import SLICE, GemmKernels, LayerKernels
from vsparse.stages.export.c_source.literals import comment, float_literal
from vsparse.stages.export.c_source.lives import INPUT, lives_of
from vsparse.stages.export.c_source.operators import constant_place, emit_nest, emit_zeros
from vsparse.stages.export.c_source.place import Place, padded, plain
from vsparse.stages.export.c_source.program import Program
from vsparse.stages.export.c_source.tables import Tables
from vsparse.stages.export.c_source.texts import (
    EMIT,
    Call,
    MapMargin,
    copies_input,
    emit_scalar_conv,
    kernels_by_kind,
    scalar_margins,
    vector_layouts,
)


class LiveText:
    """The statements of one text, with vectors or without, beside those of the inference, whose kernels and tables it reads.

    `network` are the floats of the inference's arena. `last` are the places of centre and radius that margins are made of,
    `score` that of the logits of the centre.
    """

    def __init__(
        self,
        graph: Graph,
        inference: Program,
        kernels: Mapping[str, LayerKernels],
        costs: KernelCosts,
        vectors: bool,
        network: int,
        data_range: tuple[float, float],
    ) -> None:
        self.graph, self.costs, self.vectors, self.data_range = graph, costs, vectors, data_range
        self.program = Program(inference.tables, inference.unit, kernels=inference.kernels, functions=inference.functions, passing=True)
        self.convs, self.gemms = kernels_by_kind(kernels)
        self.lives = lives_of(graph)
        self.growth = growth(graph, self.lives)
        self.layouts, self.extents = vector_layouts(graph, self.lives) if vectors else ({}, {})
        self.margins: dict[str, MapMargin] = {} if vectors else scalar_margins(graph, self.lives)
        self.folded = folded(graph)
        shapes = {graph.input: graph.input_shape, **{node.name: node.shape for node in graph.nodes}}
        names = {root: f"b{i}" for i, root in enumerate(self.lives.spans)}
        self.centres = {name: self._place(root, f"c{names[root]}", shapes[name]) for name, root in self.lives.roots.items()}
        self.radii = {name: self._place(root, f"r{names[root]}", shapes[name]) for name, root in self.lives.roots.items()}
        self._build(network)

    def _place(self, root: str, array: str, shape: tuple[int, ...]) -> Place:
        margin = self.margins.get(root)
        return plain(array, shape) if margin is None else padded(array, shape, margin)

    def _copies(self, node: Node) -> bool:
        if self.vectors:
            return node.name in self.layouts and not self.layouts[node.name].direct
        return copies_input(self.graph, node, self.lives, self.margins)

    def _build(self, network: int) -> None:
        program, graph, size = self.program, self.graph, prod(self.graph.input_shape)
        low, high = (float_literal(end) for end in self.data_range)
        centre, radius = self.centres[graph.input].array, self.radii[graph.input].array
        more = float_literal(float(of_input(self.data_range)))
        program.begin(-1, "the region")
        program.do(f"beyond |= vs_region({INPUT}, {size}, epsilon, {low}, {high}, {more}, {centre}, {radius});")
        self._settle(graph.input, relu=False, more=0.0)
        fused = set(self.lives.relu.values())
        for step, node in enumerate(graph.nodes):
            if not isinstance(node, Reshape) and node.name not in fused:
                self._operator(step, node)
        end = len(graph.nodes)
        self.last = (self.centres[graph.output], self.radii[graph.output])
        if self.folded is not None:
            source = self.folded.inputs[0]
            self.last = (self.centres[source], self.radii[source])
            classes, terms = graph.params[self.folded.weight].shape
            scratch = scratch_of(classes, terms, is_together(self.folded, self.gemms[self.folded.name]))
            program.lives.append(Lifetime("rows", scratch, 4 * end, 4 * end + 1))
        # What the label's own inference takes.
        program.lives.append(Lifetime("network", max(network, 1), 4 * end + 2, 4 * end + 3))
        self._lifetimes(end)
        self.score = self.centres[graph.output]
        program.begin(2 * end, "the label of the centre")
        program.do(
            f"for (int i = 1; i < {prod(self.score.shape)}; i++)",
            f"    label = {flat_expression(self.score, 'i')} > {flat_expression(self.score, 'label')} ? i : label;",
        )

    def _operator(self, step: int, node: Node) -> None:
        program, graph = self.program, self.graph
        relu = node.name in self.lives.relu
        title = f"{type(node).__name__} {comment(node.name)}"
        sources = [[places[name] for name in node.inputs] for places in (self.centres, self.radii)]
        targets = self.centres[node.name], self.radii[node.name]
        last = self.folded is not None and node.name == self.folded.name
        if self._together(node):
            program.begin(2 * step + 1, f"{title}{', Relu' if relu else ''}")
            if isinstance(node, MaxPool):
                for target in targets:
                    emit_zeros(program, target)
                self._max_pool(node, [places[0] for places in sources], targets)
            else:
                assert isinstance(node, Gemm)
                add_spread(program.tables, graph, node, self.gemms[node.name])
                read = sources[0][0], sources[1][0]
                emit_pair(program, graph, node, self.gemms[node.name], read, targets)
        else:
            program.begin(2 * step, f"{title}: centre")
            self._zeros(node, targets[0])
            self._sum(Call(program, graph, node, sources[0], targets[0], False))
            if last:
                return
            program.begin(2 * step + 1, f"{title}{', Relu' if relu else ''}: radius")
            self._zeros(node, targets[1])
            self._radius(Call(program, graph, node, sources[1], targets[1], False))
        more = 0.0 if isinstance(node, Conv | Gemm | Relu | MaxPool) else FLOOR
        self._settle(node.name, relu or isinstance(node, Relu), more)

    def _together(self, node: Node) -> bool:
        """Returns whether an operator makes centre and radius at once."""
        if isinstance(node, Gemm):
            return not self.vectors and node != self.folded and is_paired(self.gemms[node.name])
        return isinstance(node, MaxPool)

    def _zeros(self, node: Node, target: Place) -> None:
        if not isinstance(node, Conv) and not target.is_plain:
            emit_zeros(self.program, target)

    def _sum(self, call: Call) -> None:
        """Adds an operator as the inference has it."""
        node = call.node
        if isinstance(node, Conv) and self.vectors:
            kernels, layout = self.convs[node.name], self.layouts[node.name]
            convolution.emit_conv(call.program, call.graph, node, kernels, self.costs, layout, call.sources[0], call.target, call.relu)
        elif isinstance(node, Conv):
            emit_scalar_conv(call, self.convs[node.name])
        elif isinstance(node, Gemm):
            emit = fully_connected.emit_gemm if self.vectors else scalar_gemm.emit_gemm
            emit(call.program, call.graph, node, self.gemms[node.name], call.sources[0], call.target, call.relu)
        elif isinstance(node, Relu):
            emit_nest(call.program, node.shape, [call.sources[0], call.target], lambda s, to: [f"{to} = {s};"])
        else:
            EMIT[type(node)](call)

    def _radius(self, call: Call) -> None:
        """Adds the radius of an operator from those of what it reads, but for what settling adds."""
        node, program = call.node, call.program
        if isinstance(node, Conv | Gemm):
            add_spread(program.tables, call.graph, node, self.gemms.get(node.name))
            program.magnitudes = True
            self._sum(call)
            program.magnitudes = False
        elif isinstance(node, AddConstant | MulConstant):
            constant = constant_place(program, call.graph, node)
            added = isinstance(node, AddConstant)
            factor = f" * {float_literal(CONSTANT)}" if added else ""

            def body(source: str, value: str, target: str) -> list[str]:
                return [f"{target} = {source} {'+' if added else '*'} VS_MAGNITUDE({value}){factor};"]

            emit_nest(program, node.shape, [call.sources[0], constant, call.target], body)
        else:
            self._sum(call)

    def _settle(self, name: str, relu: bool, more: float) -> None:
        centre, radius = self.centres[name], self.radii[name]
        growth = float_literal(float(self.growth[self.lives.roots[name]]))
        rest = f"{float_literal(more)}, {growth}, {int(relu)});"
        if centre.is_plain:
            self.program.do(f"beyond |= vs_settle({centre.array}, {radius.array}, {prod(centre.shape)}, {rest}")
            return
        channels, height, width = centre.shape
        at = [f"{place.array} + {place.origin} + i * {place.steps[0]} + j * {place.steps[1]}" for place in (centre, radius)]
        self.program.do(
            f"for (int i = 0; i < {channels}; i++)",
            f"    for (int j = 0; j < {height}; j++)",
            f"        beyond |= vs_settle({at[0]}, {at[1]}, {width}, {rest}",
        )

    def _max_pool(self, node: MaxPool, sources: list[Place], targets: tuple[Place, Place]) -> None:
        _, height, width = self.graph.shape_of(node.inputs[0])
        (kh, kw), (sy, sx), (top, left) = node.kernel, node.stride, node.pads[:2]
        centre, radius = (place.at(["c", "y", "x"]) for place in sources)
        to = [place.at(["c", "i", "j"]) for place in targets]
        self.program.do(
            f"for (int c = 0; c < {node.shape[0]}; c++)",
            f"    for (int i = 0; i < {node.shape[1]}; i++)",
            f"        for (int j = 0; j < {node.shape[2]}; j++) {{",
            f"            const int y0 = i * {sy} - {top}, x0 = j * {sx} - {left};",
            "            float low = -FLT_MAX, high = -FLT_MAX;",
            f"            for (int y = y0 < 0 ? 0 : y0; y < y0 + {kh} && y < {height}; y++)",
            f"                for (int x = x0 < 0 ? 0 : x0; x < x0 + {kw} && x < {width}; x++) {{",
            f"                    const float one = {centre} - {radius}, other = {centre} + {radius};",
            "                    low = one > low || one != one ? one : low;",
            "                    high = other > high || other != other ? other : high;",
            "                }",
            f"            vs_ends(low, high, {float_literal(FLOOR)}, &{to[0]}, &{to[1]});",
            "        }",
        )

    def _lifetimes(self, end: int) -> None:
        """Adds both arrays of each activation, in half steps: operator s makes its centre in 4s and 4s + 1, its radius in the next two.

        One that copies its input is done with it before it writes (`Program.arena`).
        """
        program, graph = self.program, self.graph
        born = {graph.input: (-2, -2)}
        read: dict[str, tuple[int, int]] = dict.fromkeys(self.lives.spans, (-2, -2))
        fused = set(self.lives.relu.values())
        for step, node in enumerate(graph.nodes):
            if isinstance(node, Reshape) or node.name in fused:
                continue
            together, copies = self._together(node), self._copies(node)
            born[self.lives.roots[node.name]] = (4 * step + 2, 4 * step + 2) if together else (4 * step + 1, 4 * step + 3)
            for name in node.inputs:
                root = self.lives.roots[name]
                centre, radius = (4 * step + 3, 4 * step + 3) if together else (4 * step + (not copies), 4 * step + 2 + (not copies))
                read[root] = (max(read[root][0], centre), max(read[root][1], radius))
        needed = {self.centres[graph.output].array, *[place.array for place in self.last]}
        for root, (first_centre, first_radius) in born.items():
            made = max(first_centre, first_radius) // 4 * 4 + 3
            for place, first, last in ((self.centres[root], first_centre, read[root][0]), (self.radii[root], first_radius, read[root][1])):
                stop = 4 * end + 3 if place.array in needed else max(last, made)
                program.lives.append(Lifetime(place.array, max(place.size, self.extents.get(root, 0)), first, stop))


def add_spread(tables: Tables, graph: Graph, node: Conv | Gemm, kernels: GemmKernels | None) -> None:
    """Adds what the radii of a layer start with, in the order and length of its biases."""
    values, name = spread(graph, node), tables.table_of(node.name)
    if kernels is not None and kernels.form == "sparse":
        weight = graph.params[node.weight]
        order = np.argsort(-np.count_nonzero(weight, axis=1), kind="stable")
        lanes = np.zeros(-(-len(weight) // SLICE) * SLICE, np.float32)
        lanes[: len(weight)] = values[order]
        values = lanes
    tables.floats(f"{name}_spread", values, slack=bool(len(values) % WIDEST))
