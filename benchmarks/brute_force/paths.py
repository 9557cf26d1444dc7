"""Random convolutional networks against every fast path of the bounds, forced on and off: executions, and the plain definition beside it.

`--part 1/2` and `--part 2/2` share the networks between two processes; a run that was ended goes on where it stopped. `--table` writes
what all parts have found into README.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "tests" / "bounds"))

from path_attack import PathFindings, attack_paths, net_and_contract, settings  # noqa: E402
from path_mutations import PATH_MUTATIONS, mutated_path  # noqa: E402

from vsparse.files import write_bytes, write_json  # noqa: E402

EVERY = 25  # networks between two writes of what was found
START, END = "<!-- table paths -->", "<!-- end -->"


def attack(arguments: argparse.Namespace, part: int, parts: int, path: Path) -> dict[str, Any]:
    """Attacks the networks of one part, or those that are left of it, and writes what was found as it goes."""
    asked = {"nets": arguments.nets, "seed": arguments.seed, "part": [part, parts]}
    state: dict[str, Any] = {"settings": asked, "next": part - 1, "seconds": 0.0, "found": as_dict(PathFindings())}
    if path.is_file():
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["settings"] == asked:
            state = kept
    found, before, begun = from_dict(state["found"]), state["seconds"], process_time()
    for number in range(state["next"], arguments.nets, parts):
        one = attack_paths(*net_and_contract(arguments.seed, number))
        one.violations = [f"network {number}: {violation}" for violation in one.violations]
        found.add(one)
        state["next"] = number + parts
        if (number // parts) % EVERY == EVERY - 1 or number + parts >= arguments.nets:
            state |= {"found": as_dict(found), "seconds": round(before + process_time() - begun, 1)}
            write_json(path, state)
            print(f"part {part}/{parts}: {found.nets} networks, {len(found.violations)} violations", file=sys.stderr)
    return state


def find_mutation(name: str, most: int, seed: int) -> dict[str, Any]:
    """Returns after how many networks a path that is broken on purpose was found out (0: never)."""
    broken: list[tuple[Any, str, Any]] = []
    mutated_path(name, lambda owner, attribute, value: broken.append((owner, attribute, value)))
    found, begun = 0, perf_counter()
    with settings(broken):
        for number in range(most):
            if attack_paths(*net_and_contract(seed, number)).violations:
                found = number + 1
                break
    return {"what": PATH_MUTATIONS[name], "networks_until_found": found, "networks_tried": found or most, "seconds": perf_counter() - begun}


def as_dict(found: PathFindings) -> dict[str, Any]:
    """Returns the counts as JSON values."""
    counters = {name: dict(sorted(getattr(found, name).items())) for name in ("values", "errors", "topologies", "modes")}
    numbers = {name: getattr(found, name) for name in ("nets", "refused", "margins")}
    return {**numbers, **counters, "violations": found.violations[:100]}


def from_dict(values: dict[str, Any]) -> PathFindings:
    """Returns the findings that were written."""
    counters = {name: Counter(values[name]) for name in ("values", "errors", "topologies", "modes")}
    return PathFindings(
        nets=values["nets"], refused=values["refused"], margins=values["margins"], violations=list(values["violations"]), **counters
    )


def table(states: list[dict[str, Any]], mutations: dict[str, Any]) -> str:
    """Returns the README's tables from what all parts have found."""
    found, seconds = PathFindings(), 0.0
    for state in states:
        found.add(from_dict(state["found"]))
        seconds += state["seconds"]
    agreed = ", ".join(f"{count:,} {name}" for name, count in sorted(found.errors.items()))
    counted = f"{sum(found.values.values()):,} executed values and {found.margins:,} rows held against bounds"
    modes = {name: count for name, count in sorted(found.modes.items()) if not name.endswith("as it comes")}
    until = {name: one["networks_until_found"] or f"not in {one['networks_tried']}" for name, one in mutations.items()}
    lines = [
        f"{found.nets:,} networks ({found.refused} refused), {counted};",
        f"compared with the plain definition: {agreed}.",
        f"**{len(found.violations)} violations.** {seconds / 60:.0f} minutes of one core.",
        "",
        "| topology, and path | networks |",
        "| --- | --- |",
        *(f"| {name} | {count:,} |" for name, count in [*sorted(found.topologies.items()), *modes.items()]),
        "",
        "| what is broken on purpose | networks until it was found |",
        "| --- | --- |",
        *(f"| {name}: {one['what']} | {until[name]} |" for name, one in mutations.items()),
    ]
    return "\n".join(lines)


def main() -> int:
    """Attacks one part, or finds the mutations, or writes the tables; exit code 1 for a violation or a mutation not found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nets", type=int, default=10_000, help="networks of all parts together")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--part", default="1/1", help="k/n: every n-th network, from the k-th on")
    parser.add_argument("--mutations", action="store_true", help="break each path on purpose instead, and see that it is found")
    parser.add_argument("--mutated-nets", type=int, default=300, help="networks for each mutation, at most")
    parser.add_argument("--table", action="store_true", help="write README.md's tables from the results instead")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    part, parts = (int(number) for number in arguments.part.split("/"))
    if not 1 <= part <= parts:
        parser.error(f"--part {arguments.part} is none of 1/{parts} to {parts}/{parts}")
    mutations_path = arguments.out / "paths-mutations.json"
    if arguments.table:
        runs: dict[tuple[int, int, int], list[dict[str, Any]]] = {}
        for path in sorted(arguments.out.glob("paths-*-of-*.json")):
            state = json.loads(path.read_text(encoding="utf-8"))
            asked = state["settings"]
            runs.setdefault((asked["nets"], asked["seed"], asked["part"][1]), []).append(state)
        # Parts of one run are added up; of several runs the largest counts.
        states = max(runs.values(), key=lambda parts: sum(state["found"]["nets"] for state in parts), default=[])
        mutations = json.loads(mutations_path.read_text(encoding="utf-8")) if mutations_path.is_file() else {}
        page = (HERE / "README.md").read_text(encoding="utf-8")
        head, rest = page.split(START)
        write_bytes(HERE / "README.md", f"{head}{START}\n{table(states, mutations)}\n{END}{rest.split(END, 1)[1]}".encode())
        return 0
    if arguments.mutations:
        found = {}
        for name in PATH_MUTATIONS:
            found[name] = find_mutation(name, arguments.mutated_nets, arguments.seed)
            print(f"{name}: {found[name]['networks_until_found']}", file=sys.stderr)
            write_json(mutations_path, found)
        return 0 if all(one["networks_until_found"] for one in found.values()) else 1
    state = attack(arguments, part, parts, arguments.out / f"paths-{part}-of-{parts}.json")
    for violation in state["found"]["violations"]:
        print(violation)
    return 1 if state["found"]["violations"] else 0


if __name__ == "__main__":
    sys.exit(main())
