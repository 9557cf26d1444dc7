"""Products as convolutions of size 1, for TensorRT: a kernel for convolutions says how it adds, Myelin's code for products may not."""

from __future__ import annotations

from dataclasses import replace

from vsparse.graph import Graph, validate
from vsparse.graph.grids import unused
from vsparse.graph.ir import Conv, Gemm, Node, Relu, Reshape


def as_convolutions(graph: Graph) -> Graph:
    """Returns the graph with fully connected layers as convolutions of size 1 on a map of one pixel, and the Relu behind each on that.

    Those are left that an addition reads, as sums that a runtime may fuse with it stand beside it.

    The sums have the same terms, so that every bound is the same. TensorRT's parser makes a product and an addition of a Gemm, which its
    generator may then turn into code that does not say how it adds (docs/numerics.md, section 7.6); of a convolution it makes one layer.
    """
    taken = {graph.input, *(node.name for node in graph.nodes)}
    shapes = {graph.input: graph.input_shape, **{node.name: node.shape for node in graph.nodes}}
    readers = graph.consumers()
    params, nodes = dict(graph.params), list[Node]()
    # The map of one pixel for each activation that has one, and which of them have no vector yet.
    maps, pending = dict[str, str](), set[str]()

    def reshaped(source: str, name: str, shape: tuple[int, ...]) -> str:
        nodes.append(Reshape(name=name, inputs=(source,), shape=shape))
        return name

    def fresh(name: str) -> str:
        taken.add(found := unused(name, lambda one: one in taken))
        return found

    def vector(name: str) -> str:
        if name in pending:
            pending.discard(name)
            reshaped(maps[name], name, shapes[name])
        return name

    def pixel(name: str) -> str:
        if name not in maps:
            maps[name] = reshaped(vector(name), fresh(f"{name}.map"), (shapes[name][0], 1, 1))
        return maps[name]

    for node in graph.nodes:
        if isinstance(node, Gemm) and all(isinstance(one, Relu | Gemm) for one in readers[node.name]):
            weight = params[node.weight]
            if weight.ndim == 2:
                params[node.weight] = weight.reshape(*weight.shape, 1, 1)
            made: Node = Conv(
                name=fresh(f"{node.name}.map"),
                inputs=(pixel(node.inputs[0]),),
                shape=(node.shape[0], 1, 1),
                weight=node.weight,
                bias=node.bias,
            )
        elif isinstance(node, Relu) and node.inputs[0] in pending:
            made = replace(node, name=fresh(f"{node.name}.map"), inputs=(maps[node.inputs[0]],), shape=(node.shape[0], 1, 1))
        else:
            nodes.append(replace(node, inputs=tuple(vector(name) for name in node.inputs)))
            continue
        nodes.append(made)
        maps[node.name] = made.name
        pending.add(node.name)
    vector(graph.output)
    return validate(replace(graph, nodes=tuple(nodes), params=params))
