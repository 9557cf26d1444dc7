"""The compiled C of a live certificate against its simulation: the same bits on recorded frames, in every text of the file.

The theorem (docs/numerics.md, section 14) is about the operations that the simulation executes. A C text that reads another element, or a
compiler that fuses what it was told not to, certifies something else; here that is found before anything is certified with it.
"""

from __future__ import annotations

from contextlib import ExitStack
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vsparse.errors import SoundnessError
from vsparse.graph import Graph
from vsparse.graph.ir import Conv, Gemm
from vsparse.stages.export.c_live.compiled import CompiledLive
from vsparse.stages.export.c_live.forms import FLOAT, LiveForm
from vsparse.stages.export.c_live.simulation import Verdicts
from vsparse.stages.export.c_source.compile import CompiledModel

# The text without vectors, which microcontrollers compile.
WITHOUT_VECTORS = ("-O1", "-std=c99", "-ffp-contract=off", "-U__GNUC__")
# Products that the simulation makes at most, a second or two; one of a backward pass counts as several. One frame is always compared.
PRODUCTS, OF_PASS = {False: 15 * 10**7, True: 10**8}, 4
RADII = 4
_FIELDS = ("label", "certified", "margin")


def require_same_bits(
    kind: LiveForm,
    graph: Graph,
    folder: Path,
    inputs: NDArray[np.float32],
    epsilon: float,
    found: Verdicts,
    radii: NDArray[np.float32],
    *,
    ids: NDArray[np.int64],
    data_range: tuple[float, float],
    budget: int,
) -> int:
    """Returns how many verdicts were compared of those `found` by the compiled C in `folder` on inputs [n, …] at a radius.

    Frames that a second or two of simulation have room for, evenly spaced; where backward passes may follow those that are not certified
    come first. Of model.c the text without vectors is compiled too. Raises SoundnessError, naming file and sample, for another label,
    verdict or margin in any bit, and for one of `radii` [n] that the simulation does not certify.
    """
    chosen = _chosen(graph, found, budget)
    x = inputs[chosen]
    stated = kind.certify(graph, x, epsilon, budget, data_range)
    name = Path(kind.form.file).name
    with ExitStack() as stack:
        texts = {"": Verdicts(*(getattr(found, field)[chosen] for field in _FIELDS))}
        if kind is FLOAT:
            classes = prod(graph.shape_of(graph.output))
            model = stack.enter_context(CompiledModel(folder / name, graph.input_shape, classes, WITHOUT_VECTORS, kind.prefix))
            texts[" without vectors"] = CompiledLive(model, kind.prefix).certify(x, epsilon, budget)
        for text, verdicts in texts.items():
            for i, number in enumerate(ids[chosen].tolist()):
                said, simulated = ([getattr(one, field)[i].item() for field in _FIELDS] for one in (verdicts, stated))
                if said != simulated:
                    raise SoundnessError(
                        f"{name}{text}, compiled here, answers sample {number} at {epsilon:g} with {_shown(said)}, and its arithmetic as "
                        f"it is proved gives {_shown(simulated)}: the C or its compiler is wrong, and nothing is certified with it; use "
                        "another compiler, or leave deploy.live out"
                    )
    for i in chosen[radii[chosen] >= 0][:RADII].tolist():
        if not kind.certify(graph, inputs[i : i + 1], float(radii[i]), 0, data_range).certified[0]:
            raise SoundnessError(
                f"{name}, compiled here, finds the radius {radii[i]:g} of sample {ids[i]}, and its arithmetic as it is proved certifies "
                "nothing there: the C or its compiler is wrong; use another compiler, or leave deploy.live out"
            )
    return len(chosen)


def _chosen(graph: Graph, found: Verdicts, budget: int) -> NDArray[np.int64]:
    """Returns the places of the verdicts that are compared, in order."""
    own = sum(graph.params[node.weight].size * prod(node.shape[1:]) for node in graph.nodes if isinstance(node, Conv | Gemm))
    each, count = max(own, 1) * (1 + OF_PASS * budget), len(found.label)
    most = min(max(PRODUCTS[bool(graph.integers)] // each, 1), count)
    order = np.argsort(found.certified, kind="stable") if budget else np.arange(count)
    if not budget or most == count:
        return np.asarray(order[np.unique(np.linspace(0, count - 1, most).round().astype(np.int64))])
    return np.sort(order[:most])


def _shown(values: list[object]) -> str:
    label, certified, margin = values
    return f"class {label}, {'certified' if certified else 'not certified'}, margin {margin!r}"
