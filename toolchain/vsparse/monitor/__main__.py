"""`python -m vsparse.monitor ARTIFACT < frames.jsonl`: verdicts as JSON lines, and a summary at the end.

Exit codes: 0 every line was a frame; 2 bad input, or lines that were none; 3 a tool absent; 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from vsparse.errors import InputError, VsparseError
from vsparse.files import write_json
from vsparse.monitor.certifier import FrameCertifier
from vsparse.monitor.stream import StreamMonitor


def main(arguments: Sequence[str] | None = None) -> int:
    """Reads frames, writes verdicts, and returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m vsparse.monitor", description="Certifies frames as the device does; JSON lines in and out."
    )
    parser.add_argument("artifact", type=Path, help="the directory that `vsparse build` wrote, of a recipe with deploy.live")
    parser.add_argument("--form", help="sequential (model.c) or int8-c (model.int8.c); default: the one that the build chose")
    parser.add_argument("--epsilon", help="radius, such as 0.1 or 2/255 (default: the recipe's)")
    parser.add_argument("--frames", type=Path, help="file of JSON lines with id and pixels (default: standard input)")
    parser.add_argument("--summary", type=Path, help="file for the summary (default: the last line of the output)")
    parser.add_argument("--no-radius", action="store_true", help="leave the radius of each frame, and with it the drift, out")
    parser.add_argument("--simulate", action="store_true", help="simulate the C where it could be compiled: slower, and the same bits")
    given = parser.parse_args(arguments)
    try:
        return watch(given)
    except VsparseError as error:
        print(f"vsparse.monitor: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # whoever reads the verdicts has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("vsparse.monitor: interrupted", file=sys.stderr)
        return 130


def watch(given: argparse.Namespace) -> int:
    """Watches one stream; 2 where lines of it were refused."""
    with FrameCertifier(given.artifact, form=given.form, compiled=not given.simulate) as certifier:
        monitor = StreamMonitor(certifier, given.epsilon, radius=not given.no_radius)
        try:
            source: BinaryIO = sys.stdin.buffer if given.frames is None else given.frames.open("rb")
        except OSError as error:
            raise InputError(f"--frames {given.frames} cannot be read ({error.strerror or error}); give a file of JSON lines") from error
        with source:
            for line in monitor.lines(bounded(source, monitor.longest_line)):
                print(line, flush=True)
    summary = monitor.summary.as_dict()
    if given.summary is None:
        print(json.dumps(summary, allow_nan=False), flush=True)
    else:
        write_json(given.summary, summary)
    return 2 if monitor.summary.refused else 0


def bounded(source: BinaryIO, longest: int) -> Iterator[bytes]:
    """Returns the lines of a file; of one that is longer than `longest` bytes no more than that and one is kept."""
    while line := source.readline(longest + 1):
        yield line
        while len(line) > longest and not line.endswith(b"\n"):  # the rest of it, in pieces
            line = source.readline(longest + 1)
            if not line:
                return


if __name__ == "__main__":
    sys.exit(main())
