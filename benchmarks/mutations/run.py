"""Does the checker ever confirm a false claim? Ten thousand mutated proofs and certificates, each judged in rational arithmetic."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from pathlib import Path
from time import perf_counter

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests" / "check")]

from hand_made import PROOFS, claimed  # noqa: E402
from mutations import KINDS, Original, mutate  # noqa: E402

# Seed of the network, ReLUs, contract.
ARTIFACTS = ((1, 3, "fp32"), (2, 3, "real"), (3, 4, "fp32"), (5, 4, "sequential"))


def main() -> int:
    """Runs all mutations and writes the counts; 1 if a false claim was confirmed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results.json"))
    options = parser.parse_args()
    counts, wrong, reasons, started = {kind: Counter() for kind in KINDS}, [], Counter(), perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        made = [claimed(Path(folder) / str(k), seed, hidden=hidden, rules=rules) for k, (seed, hidden, rules) in enumerate(ARTIFACTS)]
        proofs = [(path / PROOFS).read_bytes() for path, _ in made]
        originals = [Original(path, net, proofs[k - 1]) for k, (path, net) in enumerate(made)]
        for seed in range(options.count):
            kind, confirmed, false, problem = mutate(originals[seed // len(KINDS) % len(originals)], seed)
            counts[kind] += Counter(mutations=1, confirmed=int(confirmed), with_a_false_claim=int(false))
            reasons[" ".join(problem.split()[:6]) if "claimed" not in problem else "a bound that does not come out"] += 1
            if confirmed and false:
                wrong.append({"seed": seed, "kind": kind})
            if sys.stderr.isatty():
                print(f"\r{seed + 1} of {options.count}", end="", file=sys.stderr, flush=True)
    result = {
        "mutations": options.count,
        "false_claims_confirmed": len(wrong),
        "wrong": wrong,
        "kinds": counts,
        "reasons": dict(reasons.most_common(25)),
        "seconds": round(perf_counter() - started, 1),
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({key: result[key] for key in ("mutations", "false_claims_confirmed", "seconds")}))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
