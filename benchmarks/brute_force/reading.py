"""Random ONNX files with odd attributes against ONNX Runtime: is anything read as another network than the one that runs?"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
AT_ONCE = 250
sys.path.insert(0, str(ROOT / "tests" / "graph"))

from reading_attack import Outcome, attack  # noqa: E402
from reading_damage import file_of  # noqa: E402
from reading_forms import attack_form, form_file  # noqa: E402
from reading_graphs import File  # noqa: E402
from reading_mutations import MUTATIONS  # noqa: E402

from vsparse.files import write_json  # noqa: E402


def part_of(text: str) -> tuple[int, int]:
    """Returns (i, n) of "i/n", i from 1."""
    i, n = (int(number) for number in text.split("/"))
    if not 1 <= i <= n:
        raise ValueError(f"part {text} is none of {n}")
    return i, n


def one(file: File, seed: int, i: int, forms: bool = False) -> Outcome:
    """Returns what becomes of file i of a seed; a crash is as bad as a difference."""
    try:
        return (attack_form if forms else attack)(file, np.random.default_rng([seed, i, 1]))
    except Exception as error:
        return Outcome("different", f"a crash: {type(error).__name__}: {error}")


def attack_files(indices: Sequence[int], seed: int, keep: Path | None, forms: bool = False) -> dict[str, Any]:
    """Returns the counts of these files; each one that differs is named by what makes it again, and its bytes are kept."""
    found = nothing()
    start, cpu = perf_counter(), process_time()
    for i in indices:
        file = form_file(seed, i) if forms else file_of(seed, i)
        outcome = one(file, seed, i, forms)
        found["files"] += 1
        count(found["outcomes"], outcome.kind)
        found["values_compared"] += outcome.values
        for name in set(file.operators):
            count(found["files_by_operator"].setdefault(name, {"computed": 0, "files": 0}), "files")
        if outcome.kind == "computed":
            found["quantised_and_compared_as_optimised"] += outcome.integers
            for name in outcome.compared:
                count(found["files_by_operator"].setdefault(name, {"computed": 0, "files": 0}), "computed")
            count(found["computed_by_opset"], str(file.opset))
            count(found["computed"], "fp16" if file.half else "quantised" if file.quantised else "fp32")
            count(found["computed"], "fixed batch" if file.batch else "symbolic batch")
        elif outcome.kind == "different":
            found["differences"].append(f"file {i} of seed {seed} (opset {file.opset}): {outcome.why}")
            print(found["differences"][-1], file=sys.stderr)
            if keep is not None:
                keep.mkdir(parents=True, exist_ok=True)
                (keep / f"{seed}-{i}.onnx").write_bytes(file.data)
        else:
            count(found["refused_by_reason" if outcome.kind == "refused" else "refused_by_runtime"], outcome.why)
    found["seconds"], found["cpu_seconds"] = perf_counter() - start, process_time() - cpu
    return found


def nothing() -> dict[str, Any]:
    """Returns the counts of no file."""
    counts: dict[str, Any] = {"files": 0, "outcomes": {}, "computed": {}, "computed_by_opset": {}, "quantised_and_compared_as_optimised": 0}
    counts |= {"values_compared": 0, "files_by_operator": {}, "refused_by_reason": {}, "refused_by_runtime": {}, "differences": []}
    return counts | {"seconds": 0.0, "cpu_seconds": 0.0}


def count(counts: dict[str, int], key: str) -> None:
    """Adds one."""
    counts[key] = counts.get(key, 0) + 1


def added(a: Any, b: Any) -> Any:
    """Returns the counts of two sets of files together."""
    if isinstance(a, dict):
        return {key: added(a[key], b[key]) if key in a and key in b else a.get(key, b.get(key)) for key in sorted({*a, *b})}
    return round(a + b, 1) if isinstance(a, float) else a + b


def attack_all(arguments: argparse.Namespace) -> dict[str, Any]:
    """Attacks the files of a part, from the first that the results on disk do not count; writes what was found after every `AT_ONCE`."""
    i, n = arguments.part
    indices = range(i - 1, arguments.count, n)
    asked = {"seed": arguments.seed, "part": f"{i}/{n}", "forms": arguments.forms}
    found = nothing()
    if arguments.resume and arguments.out.exists():
        before = json.loads(arguments.out.read_text())
        if {key: before.get(key) for key in asked} != asked:
            raise SystemExit(f"{arguments.out} holds results of other files than {asked}; leave --resume out, or name another --out")
        found = {key: before[key] for key in found}
    while found["files"] < len(indices) and not (arguments.read and found["outcomes"].get("computed", 0) >= arguments.read):
        at_once = indices[found["files"] : found["files"] + AT_ONCE]
        found = added(found, attack_files(at_once, arguments.seed, arguments.keep, arguments.forms))
        write_json(arguments.out, asked | found)
        if found["files"] % 5000 < AT_ONCE:
            print(f"{found['files']} of {len(indices)}: {found['outcomes']}", file=sys.stderr)
    return asked | found


def find_mutation(name: str, most: int, seed: int) -> dict[str, Any]:
    """Returns after how many files a reader that is broken in one way was found out (0: never), and mends it."""
    undo: list[tuple[Any, str, Any]] = []

    def patch(owner: Any, attribute: str, value: Any) -> None:
        undo.append((owner, attribute, getattr(owner, attribute)))
        setattr(owner, attribute, value)

    MUTATIONS[name](patch)
    try:
        found = next((i + 1 for i in range(most) if one(file_of(seed, i), seed, i).kind == "different"), 0)
    finally:
        for owner, attribute, value in reversed(undo):
            setattr(owner, attribute, value)
    return {"files_until_found": found, "files_tried": found or most}


def main() -> int:
    """Attacks the files that the arguments name; returns 1 when one differs, or a broken reader was not found out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=5000, help="files, all parts together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--part", type=part_of, default=(1, 1), help="i/n: the i-th of n parts, for several processes")
    parser.add_argument(
        "--mutations", type=int, default=0, metavar="MOST", help="also break the reader on purpose; files tried for each way"
    )
    parser.add_argument("--keep", type=Path, help="folder for the files that differ")
    parser.add_argument("--forms", action="store_true", help="QDQ, float16 and bfloat16 files alone, at every level under their contract")
    parser.add_argument("--read", type=int, default=0, metavar="N", help="stop once N files have been read and compared; 0: never")
    parser.add_argument("--resume", action="store_true", help="go on after the files that the results on disk count")
    parser.add_argument("--out", type=Path, help="results; by default reading.json beside this script, reading-i-of-n.json for a part")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    i, n = arguments.part
    stem = "reading-forms" if arguments.forms else "reading"
    arguments.out = arguments.out or Path(__file__).with_name(f"{stem}.json" if n == 1 else f"{stem}-{i}-of-{n}.json")
    results = attack_all(arguments)
    if arguments.mutations:
        results["broken_readers"] = {name: find_mutation(name, arguments.mutations, arguments.seed) for name in MUTATIONS}
        write_json(arguments.out, results)
    print(f"{results['outcomes']}, {results['values_compared']:,} values compared, {results['seconds']} s")
    missed = [name for name, one in results.get("broken_readers", {}).items() if not one["files_until_found"]]
    for name in missed:
        print(f"not found out: {name}")
    return 1 if results["differences"] or missed else 0


if __name__ == "__main__":
    sys.exit(main())
