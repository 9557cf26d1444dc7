"""The command line: `python -m vsparse_check DIR [--data FILE] [--memory MIB] [--work N]`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from vsparse_check.artifact import CheckResult, check
from vsparse_check.refusal import NotConfirmed, plain
from vsparse_check.samples import read_data

DESCRIPTION = "Check an artifact: hashes, what follows from claims, every claim."
HELP = {
    "directory": "the directory that `vsparse build` wrote",
    "data": "an .npz file with inputs (float32) and labels (int64): "
    "are the samples its first ones?",
    "memory": "MiB that may be used; default: half of what is free, 1536 MiB at most",
    "work": "billions of operations that may be done; default: by the artifact's size, 20 at least",
    "json": "print the result as JSON",
}


def progress(done: int, total: int) -> None:
    """Shows on a terminal how many claims are done."""
    if sys.stderr.isatty():
        end = "\r\033[K" if done == total else ""
        text = f"\rderived {done} of {total} claims"
        print(text, end=end, file=sys.stderr, flush=True)


def show(result: CheckResult, as_json: bool) -> int:
    """Prints a result, as JSON or in words, and returns its exit code."""
    text = json.dumps(result.as_dict()) if as_json else result.sentence
    print(text, file=sys.stderr if result.status == 2 and not as_json else sys.stdout)
    return result.status


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Returns the options; argparse raises SystemExit where they are none."""
    parser = argparse.ArgumentParser(prog="vsparse-check", description=DESCRIPTION)
    parser.add_argument("directory", help=HELP["directory"])
    parser.add_argument("--data", type=Path, help=HELP["data"])
    parser.add_argument("--memory", type=int, help=HELP["memory"])
    parser.add_argument("--work", type=int, help=HELP["work"])
    parser.add_argument("--json", action="store_true", help=HELP["json"])
    options = parser.parse_args(list(arguments))
    if any(limit is not None and limit < 1 for limit in (options.memory, options.work)):
        parser.error("--memory and --work are whole numbers from 1")
    return options


def run(arguments: Sequence[str]) -> int:
    """Checks the directory named in `arguments`, and prints what was found.

    Returns 0 where everything is confirmed, 1 where something is not, 2 where nothing is checked.
    """
    try:
        options = parse(arguments)
    except SystemExit as ended:  # a caller in the same process does not want it to end
        return int(ended.code or 0)
    try:
        data = None if options.data is None else read_data(options.data)
    except NotConfirmed as error:
        hint = "give an .npz file with the arrays inputs and labels"
        print(plain(f"--data {options.data}: {error}; {hint}"), file=sys.stderr)
        return 2
    memory = options.memory and options.memory * 2**20
    work = options.work and options.work * 10**9
    result = check(options.directory, progress, data=data, memory=memory, work=work)
    return show(result, options.json)


def main() -> int:
    """Runs on the command line's arguments."""
    try:
        return run(sys.argv[1:])
    except BrokenPipeError:  # whoever read the lines has had enough of them
        sys.stderr.close()
        return 1


if __name__ == "__main__":
    sys.exit(main())
