"""Live verdicts against the host's float64 intervals: `tightness.py RECIPE MODEL.onnx [--data DIR] [--frames N] [--out RESULTS.json]`.

MODEL is a float32 or a quantised file of a build of that recipe. Every live `certified` must be one of the host's interval bounds with the
last layer folded, under `sequential` or `int8`; what the host certifies and the device does not is counted.
"""

from __future__ import annotations

import tempfile
from math import prod
from pathlib import Path
from typing import Any

from host import NATIVE, finish, frames_of, host_margins, parser_of, radii_of

from vsparse.bounds import Rounding
from vsparse.contract import CONTRACTS
from vsparse.stages.export.c_live import CompiledLive, emit_live_c, emit_live_int8_c
from vsparse.stages.export.c_source import CompiledModel


def main() -> None:
    """Compiles the C, asks both about every frame, and writes the counts."""
    chosen = parser_of(__doc__).parse_args()
    recipe, graph, x = frames_of(chosen)
    quantised = bool(graph.integers)
    name, prefix = ("model.int8.c", "vsparse_int8") if quantised else ("model.c", "vsparse")
    rounding = Rounding(graph, CONTRACTS["int8" if quantised else "sequential"])
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        (emit_live_int8_c if quantised else emit_live_c)(graph).write(Path(folder))
        with CompiledModel(Path(folder) / name, graph.input_shape, prod(graph.shape_of(graph.output)), NATIVE, prefix) as model:
            live = CompiledLive(model, prefix)
            for factor, epsilon in radii_of(recipe):
                verdict = live.certify(x, float(epsilon))
                margin = host_margins(graph, rounding, x, float(epsilon), verdict.label.clip(0))
                rows.append(
                    {
                        "factor": factor,
                        "frames": len(x),
                        "live": int(verdict.certified.sum()),
                        "host": int((margin > 0).sum()),
                        "live_not_host": int((verdict.certified & ~(margin > 0)).sum()),
                        "margin_above_host": int((verdict.margin > margin).sum()),
                    }
                )
                print(rows[-1], flush=True)
    content = {"schema_version": 1, "recipe": chosen.recipe, "precision": "int8" if quantised else "fp32", "rows": rows}
    finish(chosen.out, content, "live_not_host", "margin_above_host")


if __name__ == "__main__":
    main()
