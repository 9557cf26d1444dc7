"""model.c on Cortex-M under QEMU: instructions against naive loops, flash, RAM, stack; `microcontrollers.py [RESULTS.json] [--nets N]`.

Numbers are instructions, not cycles.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
from naive import naive
from run import NETS, network

from vsparse.errors import InputError
from vsparse.files import write_bytes
from vsparse.stages.export.c_source import emit_c, simulate
from vsparse.stages.export.firmware import BOARDS, emulate, footprint
from vsparse.stages.export.firmware.link import OPTIONS

# Of the networks of run.py: what fits the boards' memories, the digits and MNIST.
CHOSEN = (0, 1, 2, 3, 7)
OPTIMISE = ("-O2", "-Os")
INPUTS = 2


def main() -> None:
    """Runs networks, boards and options, and writes the results."""
    parser = argparse.ArgumentParser()
    parser.add_argument("results", nargs="?", type=Path)
    parser.add_argument("--nets", type=int, default=len(CHOSEN))
    chosen = parser.parse_args()
    rows: list[dict[str, object]] = []
    for index in CHOSEN[: chosen.nets]:
        title, architecture, width, shape, kept, block = NETS[index]
        graph, _ = network(architecture, width, shape, kept, block)
        x = np.random.default_rng(1).random((INPUTS, *shape), dtype=np.float32)
        expected = simulate(graph, x)[graph.output].reshape(INPUTS, -1)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            emit_c(graph).write(folder)
            (folder / "naive.c").write_text(naive(graph))
            for board, one in BOARDS.items():
                for optimise in OPTIMISE:
                    options = (optimise, *OPTIONS[1:])
                    ours = emulate(one, [folder / "model.c"], x, expected.shape[1], "vsparse_logits", options)
                    try:
                        loops = emulate(one, [folder / "naive.c"], x, expected.shape[1], "naive", options).instructions
                    except InputError:  # all the zeros do not fit the board's memory
                        loops = None
                    assert (ours.logits == expected).all(), f"{title} on {board}: other bits"
                    taken = asdict(footprint(one.options, folder / "model.c", "vsparse", options))
                    rows.append(
                        {
                            "net": title,
                            "board": board,
                            "optimise": optimise,
                            "instructions": int(ours.instructions.max()),
                            "naive_instructions": None if loops is None else int(loops.max()),
                            "ratio": None if loops is None else round(float((ours.instructions / loops).max()), 3),
                            **taken,
                        }
                    )
                    print(
                        f"{title}, {board} {optimise}: {rows[-1]['instructions']} instructions, {rows[-1]['ratio']} of naive loops",
                        flush=True,
                    )
    if chosen.results is not None:
        write_bytes(chosen.results, (json.dumps({"schema_version": 1, "rows": rows}, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
