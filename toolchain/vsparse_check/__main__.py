"""Command line: `python -m vsparse_check DIR [--data FILE] [--memory MIB] [--work BILLIONS] [--json]`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from vsparse_check.artifact import CheckResult, check
from vsparse_check.refusal import Refused, plain
from vsparse_check.samples import read_data


def progress(done: int, total: int) -> None:
    """Shows on a terminal how many claims are done."""
    if sys.stderr.isatty():
        print(f"\rderived {done} of {total} claims", end="\r\033[K" if done == total else "", file=sys.stderr, flush=True)


def show(result: CheckResult, as_json: bool) -> int:
    """Prints a result, as JSON or in words, and returns its exit code."""
    text = json.dumps(result.as_dict()) if as_json else result.sentence
    print(text, file=sys.stderr if result.status == 2 and not as_json else sys.stdout)
    return result.status


def run(arguments: Sequence[str]) -> int:
    """Checks the directory named in `arguments`; prints what was found, or JSON, and returns 0 confirmed, 1 not, 2 nothing to check."""
    parser = argparse.ArgumentParser(prog="vsparse-check", description="Check an artifact: hashes, what follows from claims, every claim.")
    parser.add_argument("directory", help="the directory that `vsparse build` wrote")
    parser.add_argument("--data", type=Path, help="an .npz file with inputs (float32) and labels (int64): are the samples its first ones?")
    parser.add_argument("--memory", type=int, help="MiB that may be used; default: half of what is free, 1536 at most")
    parser.add_argument("--work", type=int, help="billions of operations that may be done; default: by the artifact's size, 20 at least")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    try:
        options = parser.parse_args(list(arguments))
        if any(limit is not None and limit < 1 for limit in (options.memory, options.work)):
            parser.error("--memory and --work are whole numbers from 1")
    except SystemExit as ended:  # argparse ends the process, which a caller in the same process does not want
        return int(ended.code or 0)
    try:
        data = None if options.data is None else read_data(options.data)
    except Refused as error:
        print(plain(f"--data {options.data}: {error}; give an .npz file with the arrays inputs and labels"), file=sys.stderr)
        return 2
    memory, work = options.memory and options.memory * 2**20, options.work and options.work * 10**9
    return show(check(options.directory, progress, data=data, memory=memory, work=work), options.json)


def main() -> int:
    """Runs on the command line's arguments."""
    try:
        return run(sys.argv[1:])
    except BrokenPipeError:  # whoever read the lines has had enough of them
        sys.stderr.close()
        return 1


if __name__ == "__main__":
    sys.exit(main())
