"""model.c with the live certificate: the inference as it is without, and behind it the bounds, the margins and their functions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from vsparse.c_prefix import DEFAULT_PREFIX
from vsparse.graph.ir import Graph
from vsparse.stages.export.c_live.backward import TracedText
from vsparse.stages.export.c_live.budget import BOUNDS_ALONE, signature_of, with_second
from vsparse.stages.export.c_live.constants import HALF_UP, LIMIT, WIDER, require_live_form
from vsparse.stages.export.c_live.interface import declarations
from vsparse.stages.export.c_live.margins import float_layer, folded_text, plain_text
from vsparse.stages.export.c_live.program import LiveText
from vsparse.stages.export.c_source.arena import Arena
from vsparse.stages.export.c_source.costs import COSTS, KernelCosts
from vsparse.stages.export.c_source.emit import CSource, Parts, emit_c
from vsparse.stages.export.c_source.layers import GemmKernels
from vsparse.stages.export.c_source.literals import float_literal
from vsparse.stages.export.c_source.text import Addition
from vsparse.stages.export.c_source.weights import Notation

_KERNELS = Path(__file__).resolve().parent / "kernels"
UNIT_RANGE = (0.0, 1.0)


def emit_live_c(
    graph: Graph,
    model_sha256: str = "",
    title: str = "",
    prefix: str = DEFAULT_PREFIX,
    costs: KernelCosts = COSTS,
    weights: Notation = "auto",
    data_range: tuple[float, float] = UNIT_RANGE,
    second: bool = False,
) -> CSource:
    """Returns the C files of a graph as `emit_c` does, with `PREFIX_certify` and `PREFIX_radius` (docs/numerics.md, section 14).

    `data_range` are the lowest and highest number of an input. With `second` there is `PREFIX_certify_budget` too, which bounds open
    margins by backward passes (docs/numerics.md, section 16). Raises InputError as `emit_c` does, and for a node that has no interval
    form, or whose numbers are too large for one, by its name.
    """

    def add(parts: Parts) -> Addition:
        require_live_form(graph, data_range)
        kind = TracedText if second else LiveText
        texts = {
            name: kind(graph, parts.programs[name], parts.kernels, costs, name == "vector", max(parts.arenas[name].size, 1), data_range)
            for name in parts.programs
        }
        arenas = {name: text.program.arena() for name, text in texts.items()}
        first = Addition(
            declarations=lambda sizes: declarations(prefix, sizes, data_range),
            common="\n".join([common_text(), kernel("ends"), kernel("settle")]),
            texts={name: _text(graph, text, arenas[name], parts) for name, text in texts.items()},
            entry=kernel("certify").replace("PREFIX", prefix.upper()).replace("prefix", prefix),
            arenas={name: arena.size for name, arena in arenas.items()},
        )
        traced = {name: text for name, text in texts.items() if isinstance(text, TracedText)}
        return with_second(graph, first, traced, parts, prefix, data_range) if second else first

    return emit_c(graph, model_sha256, title, prefix, costs, weights, add)


def kernel(name: str) -> str:
    """Returns the C text of a file of `kernels/`."""
    return (_KERNELS / f"{name}.c").read_text(encoding="utf-8")


def common_text() -> str:
    """Returns what every text of the live certificate needs: constants and magnitudes."""
    constants: Mapping[str, float] = {"VS_LIMIT": LIMIT, "VS_HALF_UP": HALF_UP, "VS_WIDER": WIDER}
    lines = [f"#define {name} {float_literal(value)}" for name, value in constants.items()]
    return "\n".join([*lines, kernel("magnitude")])


def _text(graph: Graph, live: LiveText, arena: Arena, parts: Parts) -> list[str]:
    """Returns the functions of one text: `vs_bounds`, `vs_margin`, and where the label's own inference has its arena."""
    centre, radius = live.last
    at = arena.offsets
    if live.folded is not None:
        kernels = parts.kernels[live.folded.name]
        assert isinstance(kernels, GemmKernels)
        places = (at[centre.array], at[radius.array], at[live.score.array], at["rows"])
        margin = folded_text(float_layer(live.program, graph, live.folded, kernels, places))
    else:
        margin = plain_text(centre, radius, (at[centre.array], at[radius.array]))
    return [
        f"#define VS_LABEL_AT {at['network']}",
        "/* Bounds every activation; returns the label of the centre, or -1 where something is beyond the limits. */",
        *signature_of(live),
        "{",
        "    int beyond = 0, label = 0;",
        *live.program.body(arena),
        "    return beyond ? -1 : label;",
        "}",
        "",
        *(BOUNDS_ALONE if isinstance(live, TracedText) else []),
        margin,
    ]
