"""Gates: what a recipe asks for and what every artifact must meet, judged on what the artifact holds."""

from __future__ import annotations

from pathlib import Path

from vsparse import artifact
from vsparse.recipe import Recipe
from vsparse.stages.export import content_sha256
from vsparse.stages.report.facts import Check, Facts, Gate, read_check
from vsparse.stages.report.reading import load_object


def judge(recipe: Recipe, facts: Facts, directory: Path) -> list[Gate]:
    """Returns every gate with what was wanted and what was found; what could not be found fails.

    The checks of soundness (audit, cross-check, the runtime's graph) are gates of every build, and a recipe cannot turn
    them off; a cross-check that a recipe asked none for is left out.
    """
    wanted = recipe.gates
    sparse = None if facts.sparse is None else facts.sparse.certified_share
    dense = None if facts.dense is None else facts.dense.certified_share
    removed = None if facts.compression is None else facts.compression.removed_share
    ratio = next((item.ratio_p50 for item in facts.latency if item.ratio_p50 is not None), None)
    loss = None if sparse is None or dense is None else dense - sparse
    gates = [_check("contract audit", facts.audit), _runtime_graph(directory)]
    for precision in recipe.export.precisions:
        found = load_object((directory / artifact.precision_certificate(precision)).with_name("audit.json"))
        gates.append(_check(f"contract audit of {precision}", read_check(found)))
    if recipe.verify.cross_check and recipe.property.plain:  # of other regions there is no second opinion
        gates.append(_check("cross-check with auto_LiRPA", facts.cross_check))
    if wanted.certified_accuracy:
        gates.append(_at_least("certified accuracy", wanted.certified_accuracy, sparse))
    if wanted.dense_certified_accuracy:
        gates.append(_at_least("certified accuracy of the dense parent", wanted.dense_certified_accuracy, dense))
    if wanted.certified_loss:
        got = "not found" if loss is None else f"{100 * loss:.2f} points"
        passed = loss is not None and loss <= wanted.certified_loss + 1e-12
        gates.append(Gate("certified accuracy lost to sparsity", f"at most {100 * wanted.certified_loss:g} points", got, passed))
    if wanted.weights_removed:
        gates.append(_at_least("weights removed physically", wanted.weights_removed, removed))
    if wanted.latency_ratio:
        got = "not found" if ratio is None else f"{ratio:.3f}"
        passed = ratio is not None and ratio <= wanted.latency_ratio
        gates.append(Gate("packed latency as a share of dense", f"at most {wanted.latency_ratio:g}", got, passed))
    return gates


def _at_least(name: str, least: float, got: float | None) -> Gate:
    shown = "not found" if got is None else f"{100 * got:.2f} %"
    return Gate(name, f"at least {100 * least:g} %", shown, got is not None and got >= least - 1e-12)


def _check(name: str, check: Check | None) -> Gate:
    if check is None or check.passed is None:
        return Gate(name, "no violation", "not found", False)
    return Gate(name, "no violation", "no violation" if check.passed else check.reason, check.passed)


def _runtime_graph(directory: Path) -> Gate:
    part = load_object(directory / "model" / "runtime_graph.json")
    found = part is not None and part.text("content_sha256") == content_sha256(directory / artifact.MODEL)
    return Gate("the runtime folds nothing", "weights bit-identical", "bit-identical" if found else "not found", found)
