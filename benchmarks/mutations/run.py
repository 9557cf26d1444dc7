"""Does the checker ever confirm what is false? Ten thousand mutated proofs and certificates, each judged in rational arithmetic; whole
artifacts forged in each way that is known; and small ones that would cost minutes or gigabytes if they were believed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path
from time import perf_counter

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests" / "check")]

from bombs import BOMBS, BYTES, SECONDS, measure  # noqa: E402
from forgeries import FORGERIES, WRITTEN, forged  # noqa: E402
from hand_made import PROOFS, claimed  # noqa: E402
from mutations import KINDS, Original, mutate  # noqa: E402

from vsparse.recheck import recheck  # noqa: E402
from vsparse_check import check  # noqa: E402

# Seed of the network, ReLUs, contract.
ARTIFACTS = ((1, 3, "fp32"), (2, 3, "real"), (3, 4, "fp32"), (5, 4, "sequential"))


def forge_all(artifact: Path, folder: Path) -> dict[str, dict[str, str]]:
    """Returns what the checker answers to each forgery of an artifact; those of written files are put to the toolchain's check."""
    answers = {}
    for name in (*FORGERIES, *WRITTEN):
        made = forged(artifact, folder / "forged", name)
        found = recheck(made) if name in WRITTEN else check(made)
        answers[name] = {"verdict": found.verdict, "problem": found.problem[:160]}
        shutil.rmtree(made)
        print(f"{name}: {found.verdict}", file=sys.stderr)
    return answers


def bomb_all(folder: Path) -> dict[str, dict[str, object]]:
    """Returns what the checker answers to each bomb, and what that took, in a process of its own."""
    answers = {}
    for name, make in BOMBS.items():
        make(folder / "bomb")
        cost = measure(folder / "bomb")
        took = {"seconds": round(cost.seconds, 1), "processor_seconds": round(cost.processor_seconds, 1), "mebibytes": cost.bytes // 2**20}
        answers[name] = {"verdict": cost.verdict, **took, "cheap": cost.cheap, "problem": cost.problem[:160]}
        shutil.rmtree(folder / "bomb")
        print(f"{name}: {cost.verdict}, {took}", file=sys.stderr)
    return answers


def mutate_all(count: int) -> tuple[dict[str, Counter[str]], list[dict[str, object]], Counter[str]]:
    """Returns the counts of so many mutations by kind, those that were confirmed though false, and the reasons given."""
    counts, wrong, reasons = {kind: Counter[str]() for kind in KINDS}, [], Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        made = [claimed(Path(folder) / str(k), seed, hidden=hidden, rules=rules) for k, (seed, hidden, rules) in enumerate(ARTIFACTS)]
        proofs = [(path / PROOFS).read_bytes() for path, _ in made]
        originals = [Original(path, net, proofs[k - 1]) for k, (path, net) in enumerate(made)]
        for seed in range(count):
            kind, confirmed, false, problem = mutate(originals[seed // len(KINDS) % len(originals)], seed)
            counts[kind] += Counter(mutations=1, confirmed=int(confirmed), with_a_false_claim=int(false))
            reasons[" ".join(problem.split()[:6]) if "claimed" not in problem else "a bound that does not come out"] += 1
            if confirmed and false:
                wrong.append({"seed": seed, "kind": kind})
            if sys.stderr.isatty():
                print(f"\r{seed + 1} of {count}", end="", file=sys.stderr, flush=True)
    return counts, wrong, reasons


def main() -> int:
    """Runs all mutations, forgeries and bombs and writes the counts; 1 if anything false was confirmed, or an answer was too dear."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000, help="how many mutations of proofs and certificates")
    parser.add_argument("--artifact", type=Path, help="the artifact of a whole build, such as `vsparse build digits` writes, to be forged")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results.json"))
    options = parser.parse_args()
    started = perf_counter()
    counts, wrong, reasons = mutate_all(options.count)
    with tempfile.TemporaryDirectory() as folder:
        bombs = bomb_all(Path(folder))
        forgeries = forge_all(options.artifact, Path(folder)) if options.artifact else {}
    result = {
        "mutations": options.count,
        "false_claims_confirmed": len(wrong),
        "wrong": wrong,
        "kinds": counts,
        "reasons": dict(reasons.most_common(25)),
        "forgeries": forgeries,
        "forgeries_confirmed": [name for name, answer in forgeries.items() if answer["verdict"] == "confirmed"],
        "bombs": bombs,
        "limits": {"seconds": SECONDS, "mebibytes": BYTES // 2**20},
        "bombs_confirmed_or_dear": [name for name, answer in bombs.items() if answer["verdict"] == "confirmed" or not answer["cheap"]],
        "seconds": round(perf_counter() - started, 1),
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    shown = ("mutations", "false_claims_confirmed", "forgeries_confirmed", "bombs_confirmed_or_dear", "seconds")
    print(json.dumps({key: result[key] for key in shown} | {"forgeries": len(forgeries), "bombs": len(bombs)}))
    return 1 if wrong or result["forgeries_confirmed"] or result["bombs_confirmed_or_dear"] else 0


if __name__ == "__main__":
    sys.exit(main())
