"""Command line: `python -m vsparse_check DIR [--json]`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from vsparse_check.artifact import check


def run(arguments: Sequence[str]) -> int:
    """Checks the directory named in `arguments`; prints one sentence, or JSON, and returns 0 confirmed, 1 not, 2 nothing to check."""
    parser = argparse.ArgumentParser(prog="vsparse-check", description="Check an artifact: hashes, and every certified claim.")
    parser.add_argument("directory", help="the directory that `vsparse build` wrote")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    try:
        options = parser.parse_args(list(arguments))
    except SystemExit as ended:  # argparse ends the process, which a caller in the same process does not want
        return int(ended.code or 0)

    def progress(done: int, total: int) -> None:
        if sys.stderr.isatty():
            print(f"\rderived {done} of {total} claims", end="\r\033[K" if done == total else "", file=sys.stderr, flush=True)

    result = check(options.directory, progress)
    text = json.dumps({"schema_version": 1, "passed": result.passed, **result._asdict()}) if options.json else result.sentence
    print(text, file=sys.stderr if result.status == 2 and not options.json else sys.stdout)
    return result.status


def main() -> int:
    """Runs on the command line's arguments."""
    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
