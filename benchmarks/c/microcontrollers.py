"""Networks in C on Cortex-M under QEMU: instructions against naive loops, and memory; `microcontrollers.py [RESULTS.json] [--only TEXT]`.

model.c and model.int8.c; flash, RAM and stack by the linker. Numbers are instructions, not cycles. Rows of RESULTS.json about networks
whose names have not the text stay as they are.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from naive import naive
from run import NETS, network

from vsparse.errors import InputError
from vsparse.files import write_bytes
from vsparse.stages.export.c_int8 import emit_int8_c, simulate_integers
from vsparse.stages.export.c_source import emit_c, simulate
from vsparse.stages.export.firmware import BOARDS, emulate, footprint
from vsparse.stages.export.firmware.link import OPTIONS
from vsparse.stages.export.quantise import quantise

# Of the networks of run.py: what fits the boards' memories, the digits and MNIST.
CHOSEN = (0, 1, 2, 3, 7)
OPTIMISE = ("-O2", "-Os")
INPUTS = 2


def main() -> None:
    """Runs networks, boards and options, and writes the results."""
    parser = argparse.ArgumentParser()
    parser.add_argument("results", nargs="?", type=Path)
    parser.add_argument("--only", default="")
    chosen = parser.parse_args()
    titles = [NETS[index][0] for index in CHOSEN]
    rows: list[dict[str, Any]] = []
    if chosen.results is not None and chosen.results.is_file():
        rows = [row for row in json.loads(chosen.results.read_text())["rows"] if row["net"] in titles and chosen.only not in row["net"]]
    for index in CHOSEN:
        title, architecture, width, shape, kept, block = NETS[index]
        if chosen.only not in title:
            continue
        graph, _ = network(architecture, width, shape, kept, block)
        x = np.random.default_rng(1).random((INPUTS, *shape), dtype=np.float32)
        expected = simulate(graph, x)[graph.output].reshape(INPUTS, -1)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            emit_c(graph).write(folder)
            quantised = quantise(graph, np.random.default_rng(2).random((32, *shape), dtype=np.float32))
            emit_int8_c(quantised).write(folder)
            stated = simulate_integers(quantised, x)
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
                    integers = emulate(one, [folder / "model.int8.c"], x, expected.shape[1], "vsparse_int8_logits", options)
                    assert (integers.logits == stated).all(), f"{title} in int8 on {board}: other bits"
                    in_int8 = asdict(footprint(one.options, folder / "model.int8.c", "vsparse_int8", options))
                    rows.append(
                        {
                            "net": title,
                            "board": board,
                            "optimise": optimise,
                            "instructions": int(ours.instructions.max()),
                            "naive_instructions": None if loops is None else int(loops.max()),
                            "ratio": None if loops is None else round(float((ours.instructions / loops).max()), 3),
                            **taken,
                            "int8": {
                                "instructions": int(integers.instructions.max()),
                                "ratio": None if loops is None else round(float((integers.instructions / loops).max()), 3),
                                **{name: value for name, value in in_int8.items() if name != "compiler"},
                            },
                        }
                    )
                    print(
                        f"{title}, {board} {optimise}: {rows[-1]['instructions']} instructions, {rows[-1]['ratio']} of naive loops; "
                        f"int8: {int(integers.instructions.max())}, {rows[-1]['int8']['ratio']}",
                        flush=True,
                    )
        if chosen.results is not None:
            rows.sort(key=lambda row: titles.index(row["net"]))
            write_bytes(chosen.results, (json.dumps({"schema_version": 1, "rows": rows}, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
