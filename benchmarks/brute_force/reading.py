"""Random ONNX files with odd attributes against ONNX Runtime: is anything read as another network than the one that runs?"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
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


def attack_files(indices: range, seed: int, keep: Path | None, forms: bool = False) -> dict[str, Any]:
    """Returns the counts of these files; each one that differs is named by what makes it again, and its bytes are kept."""
    kinds: Counter[str] = Counter()
    computed: Counter[str] = Counter()
    appeared: Counter[str] = Counter()
    refusals: dict[str, Counter[str]] = {"refused": Counter(), "refused by runtime": Counter()}
    sorts: Counter[str] = Counter()
    opsets: Counter[int] = Counter()
    differences: list[str] = []
    values = integers = 0
    start, cpu = perf_counter(), process_time()
    for i in indices:
        file = form_file(seed, i) if forms else file_of(seed, i)
        outcome = one(file, seed, i, forms)
        kinds[outcome.kind] += 1
        appeared.update(set(file.operators))
        values += outcome.values
        if outcome.kind == "computed":
            integers += outcome.integers
            computed.update(outcome.compared)
            opsets[file.opset] += 1
            sorts["fp16" if file.half else "quantised" if file.quantised else "fp32"] += 1
            sorts["fixed batch" if file.batch else "symbolic batch"] += 1
        elif outcome.kind == "different":
            differences.append(f"file {i} of seed {seed} (opset {file.opset}): {outcome.why}")
            print(differences[-1], file=sys.stderr)
            if keep is not None:
                keep.mkdir(parents=True, exist_ok=True)
                (keep / f"{seed}-{i}.onnx").write_bytes(file.data)
        else:
            refusals[outcome.kind][outcome.why] += 1
        if sum(kinds.values()) % 5000 == 0:
            print(f"{sum(kinds.values())} of {len(indices)}: {dict(kinds)}", file=sys.stderr)
    return {
        "files": len(indices),
        "outcomes": dict(kinds),
        "share_computed": round(kinds["computed"] / max(len(indices), 1), 4),
        "computed": dict(sorts),
        "computed_by_opset": {str(opset): opsets[opset] for opset in sorted(opsets)},
        "quantised_and_compared_as_optimised": integers,
        "values_compared": values,
        "files_by_operator": {name: {"computed": computed[name], "files": appeared[name]} for name in sorted(appeared)},
        "refused_by_reason": dict(refusals["refused"].most_common()),
        "refused_by_runtime": dict(refusals["refused by runtime"].most_common()),
        "differences": differences,
        "seconds": round(perf_counter() - start, 1),
        "cpu_milliseconds_per_file": round((process_time() - cpu) * 1e3 / max(len(indices), 1), 2),
    }


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
    parser.add_argument("--out", type=Path, help="results; by default reading.json beside this script, reading-i-of-n.json for a part")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    i, n = arguments.part
    results = attack_files(range(i - 1, arguments.count, n), arguments.seed, arguments.keep, arguments.forms)
    if arguments.mutations:
        results["broken_readers"] = {name: find_mutation(name, arguments.mutations, arguments.seed) for name in MUTATIONS}
    stem = "reading-forms" if arguments.forms else "reading"
    write_json(arguments.out or Path(__file__).with_name(f"{stem}.json" if n == 1 else f"{stem}-{i}-of-{n}.json"), results)
    print(f"{results['outcomes']}, {results['values_compared']:,} values compared, {results['seconds']} s")
    missed = [name for name, one in results.get("broken_readers", {}).items() if not one["files_until_found"]]
    for name in missed:
        print(f"not found out: {name}")
    return 1 if results["differences"] or missed else 0


if __name__ == "__main__":
    sys.exit(main())
