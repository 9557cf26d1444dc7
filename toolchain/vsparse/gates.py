"""Gates: what a recipe asks for and what every artifact must meet, judged on what the artifact holds."""

from __future__ import annotations

from pathlib import Path

from vsparse import artifact
from vsparse.recipe import Recipe
from vsparse.stages.export import content_sha256
from vsparse.stages.report.certificates import EXTRA, NOT_AUDITED, CertificateRow, missing_certificates
from vsparse.stages.report.checks import Check, Gate
from vsparse.stages.report.facts import Facts
from vsparse.stages.report.reading import load_object


def judge(recipe: Recipe, facts: Facts, directory: Path) -> list[Gate]:
    """Returns every gate with what was wanted and what was found; what could not be found fails.

    The checks of soundness (void certificates, audits, cross-check, the runtime's graph) are gates of every build, and a recipe cannot
    turn them off; a cross-check that a recipe asked none for is left out.
    """
    wanted = recipe.gates
    sparse = None if facts.sparse is None else facts.sparse.certified_share
    dense = None if facts.dense is None else facts.dense.certified_share
    removed = None if facts.compression is None else facts.compression.removed_share
    ratio = next((item.ratio_p50 for item in facts.latency if item.ratio_p50 is not None), None)
    loss = None if sparse is None or dense is None else dense - sparse
    rows = {row.name: row for row in facts.certificates}
    gates = [_standing(facts, missing_certificates(directory, recipe.export.precisions, facts.certificates))]
    gates += [_check("contract audit", facts.audit), _runtime_graph(directory, recipe.export.precisions)]
    gates += [_audit(rows[name]) for name in EXTRA if name in rows]
    if recipe.verify.cross_check and recipe.property.plain:  # of other regions there is no second opinion
        gates.append(_check("cross-check with auto_LiRPA", facts.cross_check))
    if wanted.certified_accuracy:
        gates.append(_at_least("certified accuracy", wanted.certified_accuracy, sparse))
    if wanted.dense_certified_accuracy:
        gates.append(_at_least("certified accuracy of the dense parent", wanted.dense_certified_accuracy, dense))
    for name, least in (("fp16", wanted.fp16_certified_accuracy), ("int8", wanted.int8_certified_accuracy)):
        if least:
            gates.append(_at_least(f"certified accuracy of {name}", least, rows[name].certified_share if name in rows else None))
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


def _standing(facts: Facts, missing: tuple[str, ...]) -> Gate:
    """Every certificate that should be there is, none is void, and each is about the model file that lies in the artifact."""
    wrong = [f"{name}: not found" for name in missing]
    wrong += [f"{row.certificate_file} is void ({row.void_reason})" for row in facts.certificates if row.void_reason]
    wrong += [f"{file} is not the file that was certified" for file in facts.other_models]
    return Gate("certificates", "none void or missing", "; ".join(wrong) or f"all {len(facts.certificates)} stand", not wrong)


def _audit(row: CertificateRow) -> Gate:
    """The audit of a further certificate; only a C source where there is no C compiler may go without, and then says so."""
    name = f"contract audit of {row.name}"
    if row.audit_passed is None:
        excused = row.name == artifact.SEQUENTIAL and row.audit_reason.startswith(NOT_AUDITED)
        return Gate(name, "no violation", row.audit_reason if excused else "not found", excused)
    return Gate(name, "no violation", "no violation" if row.audit_passed else row.audit_reason, row.audit_passed)


def _check(name: str, check: Check | None) -> Gate:
    if check is None or check.passed is None:
        return Gate(name, "no violation", "not found", False)
    return Gate(name, "no violation", "no violation" if check.passed else check.reason, check.passed)


def _runtime_graph(directory: Path, precisions: tuple[str, ...]) -> Gate:
    records = {artifact.MODEL: "runtime_graph.json"}
    records.update({artifact.precision_model(name): f"runtime_graph.{name}.json" for name in precisions})
    missing = []
    for model, record in records.items():
        part = load_object(directory / "model" / record)
        if part is None or not (directory / model).is_file() or part.text("content_sha256") != content_sha256(directory / model):
            missing.append(model)
    got = f"not found for {', '.join(missing)}" if missing else "the same network"
    return Gate("the runtime folds nothing", "the same network at every level", got, not missing)
