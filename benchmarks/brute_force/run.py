"""Random small networks, executed in every way that a contract allows and in rational arithmetic: does anything leave its bounds?"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "bounds"))

from bound_mutations import DETECTORS, MUTATIONS, mutated  # noqa: E402
from brute_force import Findings, attack, not_executed  # noqa: E402
from graph_builder import net_for  # noqa: E402

from vsparse.contract import CONTRACTS  # noqa: E402
from vsparse.files import write_json  # noqa: E402


def attack_contract(name: str, nets: int, seed: int, devices: int) -> Findings:
    """Returns what random networks gave under one contract; a violation is named with the numbers that make its network again."""
    found = Findings()
    for i in range(nets):
        rng = np.random.default_rng([seed, i, sum(map(ord, name))])
        one = attack(net_for(CONTRACTS[name], rng), CONTRACTS[name], rng, devices)
        one.violations = [f"network {i}: {violation}" for violation in one.violations]
        found.add(one)
    return found


def find_mutation(name: str, most: int, seed: int) -> dict[str, Any]:
    """Returns after how many networks a mutated bound was found out (0: never), and undoes the mutation."""
    contract, what = MUTATIONS[name]
    undo: list[tuple[Any, str, Any]] = []

    def patch(owner: Any, attribute: str, value: Any) -> None:
        undo.append((owner, attribute, getattr(owner, attribute)))
        setattr(owner, attribute, value)

    found = 0
    mutated(name, patch)
    try:
        for i in range(most):
            rng = np.random.default_rng([seed, i])
            net = net_for(CONTRACTS[contract], rng, "detector" if name in DETECTORS else None)
            if attack(net, CONTRACTS[contract], rng).violations:
                found = i + 1
                break
    finally:
        for owner, attribute, value in reversed(undo):
            setattr(owner, attribute, value)
    return {"what": what, "contract": contract, "networks_until_found": found, "networks_tried": found or most}


def as_dict(found: Findings, seconds: float) -> dict[str, Any]:
    """Returns the counts of one contract as they are written to the results."""
    return {
        "networks": found.nets,
        "refused": found.refused,
        "executed_values_by_operator": dict(sorted(found.values.items())),
        "errors_against_rationals_by_operator": dict(sorted(found.errors.items())),
        "margins": found.margins,
        "executions_that_overflowed": found.overflows,
        "closest_to_E_by_operator": {name: round(value, 4) for name, value in sorted(found.closest.items())},
        "violations": found.violations[:100],
        "seconds": round(seconds, 1),
    }


def table(results: dict[str, Any]) -> str:
    """Returns the README's tables."""
    lines = [
        "| contract | networks | executed values | against rationals | margins | overflows | nearest to E | violations |",
        "|" + " --- |" * 8,
    ]
    for name, one in results["contracts"].items():
        nearest = max(one["closest_to_E_by_operator"].values(), default=0.0)
        counts = (sum(one[key].values()) for key in ("executed_values_by_operator", "errors_against_rationals_by_operator"))
        values, errors = (f"{count:,}" for count in counts)
        cells = [
            name,
            one["networks"],
            values,
            errors,
            f"{one['margins']:,}",
            one["executions_that_overflowed"],
            nearest,
            len(one["violations"]),
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    lines += ["", "| what is broken on purpose | contract | networks until it was found |", "|" + " --- |" * 3]
    for name, one in results["mutations"].items():
        until = one["networks_until_found"] or f"not in {one['networks_tried']}"
        lines.append(f"| {name}: {one['what']} | {one['contract']} | {until} |")
    return "\n".join(lines)


def main() -> int:
    """Attacks every mutation, then every contract; writes results.json as it goes; exit code 1 for what is wrong.

    Wrong is a violation, a mutation that was not found, and an operator that was not executed though it could have been.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nets", type=int, default=250, help="networks for each contract")
    parser.add_argument("--mutated-nets", type=int, default=300, help="networks for each mutation, at most")
    parser.add_argument("--devices", type=int, default=5, help="executions of every point, each with choices of its own")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--contracts", nargs="+", choices=list(CONTRACTS), default=list(CONTRACTS))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    settings = {"nets": arguments.nets, "devices": arguments.devices, "seed": arguments.seed}
    results: dict[str, Any] = {"settings": settings, "contracts": {}, "mutations": {}}
    for name in MUTATIONS:
        results["mutations"][name] = find_mutation(name, arguments.mutated_nets, arguments.seed)
        print(f"{name}: {results['mutations'][name]['networks_until_found']}", file=sys.stderr)
    attacked: dict[str, Findings] = {}
    for name in arguments.contracts:
        started = perf_counter()
        found = attacked[name] = attack_contract(name, arguments.nets, arguments.seed, arguments.devices)
        results["contracts"][name] = as_dict(found, perf_counter() - started)
        write_json(arguments.out, results)
        print(f"{name}: {found.nets} networks, {len(found.violations)} violations", file=sys.stderr)
    results["not_executed"], missing = not_executed(attacked)
    write_json(arguments.out, results)
    print(table(results))
    for name, why in results["not_executed"].items():
        print(f"{name} was not executed: {why}", file=sys.stderr)
    for one in missing:
        print(f"error: {one}; draw it in tests/bounds/graph_builder.py (OPERATORS), or more networks with --nets", file=sys.stderr)
    violations = any(one["violations"] for one in results["contracts"].values())
    return 1 if missing or violations or not all(one["networks_until_found"] for one in results["mutations"].values()) else 0


if __name__ == "__main__":
    sys.exit(main())
