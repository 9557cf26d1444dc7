"""Is a live verdict ever wrong, and how much does the device certify of what the host's interval bounds do?

Two questions, each resumable (what the result file holds is not done again):

    run.py nets --count 200 --out results-nets.json            # attacks on random small networks
    run.py frames ARTIFACT --count 10000 --out results-X.json  # an artifact's test split against float64 interval bounds

Both ask `--form int8-c` of quantised networks.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from attack import violations, violations_int8
from host import host_margins
from nets import KINDS, random_int8_net, random_net

from vsparse import artifact
from vsparse.artifact.forms import BY_NAME, INT8_C, SEQUENTIAL
from vsparse.artifact.hashes import content_sha256
from vsparse.bounds import Rounding
from vsparse.contract import contract
from vsparse.data import load
from vsparse.errors import InputError
from vsparse.files import write_json
from vsparse.recipe import load_recipe
from vsparse.stages.verify.deployed import read_model
from vsparse.stages.verify.live import SHARES, LiveCertifier, ball_radius, not_below

BATCH = 100
FEW = 8


def attacked_net(number: int, seed: int, points: int, compiled: bool, form: str, budget: int = 0) -> dict[str, Any]:
    """Returns what attacks on the verdicts of one random network found; its radii are those that it says it certifies, and near ones.

    With a budget the verdicts are those of both tiers, at larger radii too.
    """
    kind = KINDS[number % len(KINDS)]
    rng = np.random.default_rng([seed, number])
    quantised = form == INT8_C.name
    graph = random_int8_net(rng, kind) if quantised else random_net(rng, kind)
    row: dict[str, Any] = {"net": number, "kind": kind, "operators": sorted({type(node).__name__ for node in graph.nodes})}
    try:
        live = LiveCertifier(graph, compiled=compiled, budget=budget)
    except InputError as error:
        return {**row, "refused": str(error)}
    x = rng.random((FEW, *graph.input_shape)).astype(np.float32)
    x[0], x[1] = np.round(x[0]), np.round(x[1] * 255) / np.float32(255)
    wrong: list[str] = []
    certified = second = executions = differing = above = 0
    rounding, attack = Rounding(graph, contract(BY_NAME[form].contract)), violations_int8 if quantised else violations
    with live:
        simulated = LiveCertifier(graph, compiled=False, budget=budget)
        radii = live.radius(x)
        if not np.array_equal(radii, simulated.radius(x)):
            differing += 1
        for i, radius in enumerate(radii.tolist()):
            own = max(radius, 0.0)
            larger = {min(factor * own, 1.0) for factor in (1.1, 1.3, 1.7, 2.5)} if budget else set()
            for epsilon in sorted({0.0, own, own / 3, 2.0**-20} | larger):
                found, again = live.certify(x[i : i + 1], epsilon), simulated.certify(x[i : i + 1], epsilon)
                differing += not all(
                    np.array_equal(getattr(found, name), getattr(again, name)) for name in ("label", "certified", "margin")
                )
                if not found.certified[0]:
                    continue
                certified += 1
                second += bool(budget) and not live.certify(x[i : i + 1], epsilon, budget=0).certified[0]
                contradictions, tried = attack(graph, x[i], epsilon, found, 0, points, rng)
                wrong, executions = wrong + contradictions, executions + tried
                host = host_margins(graph, rounding, x[i : i + 1], epsilon, found.label, (0.0, 1.0), budget > 0)
                above += bool(found.margin[0] > host[0])
    return {
        **row,
        "certified": certified,
        "by_second_tier": second,
        "executions": executions,
        "violations": wrong,
        "above_host": above,
        "bits_that_differ": differing,
        "by": live.by,
    }


def run_nets(given: argparse.Namespace) -> int:
    """Attacks random networks; 1 where a verdict is wrong."""
    about = {"question": "nets", "seed": given.seed, "points": given.points} | ({"budget": given.budget} if given.budget else {})
    state = _state(given.out, about | ({} if given.form == SEQUENTIAL.name else {"form": given.form}))
    rows: list[dict[str, Any]] = state.setdefault("nets", [])
    done = {row["net"] for row in rows}
    for number in range(given.count):
        if number in done:
            continue
        begin = perf_counter()
        row = attacked_net(number, given.seed, given.points, number % given.compile_every == 0, given.form, given.budget)
        rows.append({**row, "seconds": round(perf_counter() - begin, 2)})
        write_json(given.out, _summed(state))
        print(
            f"net {number} ({row['kind']}): {row.get('certified', row.get('refused'))}, violations {row.get('violations')}", file=sys.stderr
        )
    total = _summed(state)["total"]
    print(json.dumps(total))
    return 1 if total["violations"] or total["bits_that_differ"] else 0


def _summed(state: dict[str, Any]) -> dict[str, Any]:
    rows = [row for row in state["nets"] if "refused" not in row]
    total = {
        name: sum(row[name] for row in rows) for name in ("certified", "by_second_tier", "executions", "above_host", "bits_that_differ")
    }
    total |= {"nets": len(rows), "refused": len(state["nets"]) - len(rows), "violations": sum(len(row["violations"]) for row in rows)}
    operators = sorted({name for row in rows for name in row["operators"]})
    return {**state, "total": {**total, "operators": operators, "compiled": sum(row["by"] == "compiled C" for row in rows)}}


def run_frames(given: argparse.Namespace) -> int:
    """Counts an artifact's test frames at 0.25 to 2 times its radius; 1 where one is certified live and not by the host."""
    recipe = load_recipe(str(given.artifact / artifact.RECIPE))
    form = BY_NAME[given.form]
    graph = read_model(given.artifact / form.model).graph
    asked = recipe.property.perturbation
    test = load(recipe.data, given.data, recipe.train.seed).test
    count = min(given.count or len(test), len(test))
    about = {"question": "frames", "recipe": recipe.name, "model": content_sha256(given.artifact / form.model), "frames": count}
    state = _state(given.out, about)
    rows: dict[str, dict[str, Any]] = state.setdefault("radii", {})
    rounding, base = Rounding(graph, contract(form.contract)), ball_radius(asked)
    with LiveCertifier(graph, asked.clip, compiled=not given.simulate) as live:
        state["by"] = live.by
        for share in SHARES:
            epsilon = not_below(share * base)
            row = rows.setdefault(
                str(share), {"epsilon": epsilon, "done": 0, "live": 0, "live_right": 0, "host": 0, "live_not_host": 0, "above": 0}
            )
            while row["done"] < count:
                part = slice(row["done"], min(row["done"] + BATCH, count))
                x = test.inputs(part).reshape(-1, *graph.input_shape)
                found = live.certify(x, epsilon)
                host = host_margins(graph, rounding, x, epsilon, np.maximum(found.label, 0), asked.clip)
                sure = (host > 0) & (found.label >= 0)
                row["live"] += int(found.certified.sum())
                row["live_right"] += int((found.certified & (found.label == test.labels[part])).sum())
                row["host"] += int(sure.sum())
                row["live_not_host"] += int((found.certified & ~sure).sum())
                row["above"] += int((found.certified & (found.margin > host)).sum())
                row["done"] = part.stop
                row["tightness"] = row["live"] / row["host"] if row["host"] else None
                write_json(given.out, state)
            print(f"{share} of epsilon: live {row['live']}, host {row['host']}, live and not host {row['live_not_host']}", file=sys.stderr)
    wrong = sum(row["live_not_host"] for row in rows.values())
    print(json.dumps(state))
    return 1 if wrong else 0


def _state(path: Path, about: dict[str, Any]) -> dict[str, Any]:
    """Returns what an earlier run about the same left, or a new state."""
    if path.exists():
        found: dict[str, Any] = json.loads(path.read_text())
        if all(found.get(key) == value for key, value in about.items()):
            return found
    return dict(about)


def main() -> int:
    """Parses and runs one of the two questions."""
    parser = argparse.ArgumentParser(description="Soundness and tightness of the live certificate.")
    which = parser.add_subparsers(required=True)
    nets = which.add_parser("nets")
    nets.add_argument("--count", type=int, default=200)
    nets.add_argument("--points", type=int, default=10_000)
    nets.add_argument("--seed", type=int, default=0)
    nets.add_argument("--budget", type=int, default=0, help="backward passes of the second tier at most; 0: intervals alone")
    nets.add_argument("--compile-every", type=int, default=1, help="networks between those whose C is compiled and compared bit by bit")
    nets.add_argument("--out", type=Path, default=Path(__file__).parent / "results-nets.json")
    nets.set_defaults(work=run_nets)
    frames = which.add_parser("frames")
    frames.add_argument("artifact", type=Path)
    frames.add_argument("--data", type=Path, default=None)
    frames.add_argument("--count", type=int, default=0, help="0: the whole test split")
    frames.add_argument("--simulate", action="store_true")
    frames.add_argument("--out", type=Path, required=True)
    frames.set_defaults(work=run_frames)
    for one in (nets, frames):
        one.add_argument("--form", choices=(SEQUENTIAL.name, INT8_C.name), default=SEQUENTIAL.name, help="model.c or model.int8.c")
    given = parser.parse_args()
    return int(given.work(given))


if __name__ == "__main__":
    sys.exit(main())
