"""Gates: what a recipe asks for and what every artifact must meet, judged on what the artifact holds."""

from __future__ import annotations

from math import log
from pathlib import Path

from vsparse import artifact
from vsparse.errors import InputError
from vsparse.majority import AgainstMajority
from vsparse.recipe import Recipe
from vsparse.stages.export import content_sha256
from vsparse.stages.report.certificates import EXTRA, NOT_AUDITED, CertificateRow, missing_certificates
from vsparse.stages.report.checks import Check, Gate
from vsparse.stages.report.facts import Facts
from vsparse.stages.report.reading import load_object

# Objectives whose loss has a term beside the cross-entropy, so that its size says nothing.
BESIDE_CROSS_ENTROPY = ("trades", "smoothing")
# A loss has risen for good where it was once below this share of a constant answer's, and above it in each of the last epochs.
ONCE_LEARNT, LAST_EPOCHS = 0.9, 3


def judge(recipe: Recipe, facts: Facts, directory: Path) -> list[Gate]:
    """Returns every gate with what was wanted and what was found; what could not be found fails.

    That the networks are better than a constant answer, and the checks of soundness (void certificates, audits, cross-check, the
    runtime's graph), are gates of every build, and a recipe cannot turn them off; a cross-check that a recipe asked none for is left
    out. What only the target could measure, and this machine is not, is neither passed nor failed.
    """
    wanted = recipe.gates
    sparse = None if facts.sparse is None else facts.sparse.certified_share
    dense = None if facts.dense is None else facts.dense.certified_share
    removed = None if facts.compression is None else facts.compression.removed_share
    ratio = next((item.ratio_p50 for item in facts.latency if item.ratio_p50 is not None), None)
    loss = None if sparse is None or dense is None else dense - sparse
    rows = {row.name: row for row in facts.certificates}
    gates = [_collapse(recipe, facts)]
    gates += [_standing(facts, missing_certificates(directory, recipe.export.precisions, facts.certificates))]
    gates += [_check("contract audit", facts.audit), _runtime_graph(directory, recipe.export.precisions)]
    gates += [_audit(rows[name]) for name in EXTRA if name in rows]
    if recipe.verify.cross_check and recipe.property.plain:  # of other regions there is no second opinion
        gates.append(_cross_check(facts.cross_check))
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
        reached = None if facts.measured_elsewhere else ratio is not None and ratio <= wanted.latency_ratio
        got += f", {facts.measured_elsewhere}" if facts.measured_elsewhere else ""
        gates.append(Gate("packed latency as a share of dense", f"at most {wanted.latency_ratio:g}", got, reached))
    return gates


def require_parent(recipe: Recipe) -> None:
    """Refuses, before anything is trained, gates that compare with a dense parent which the recipe does not train."""
    names = [name for name in ("certified_loss", "latency_ratio", "dense_certified_accuracy") if getattr(recipe.gates, name)]
    if not names or (recipe.train.baseline and recipe.train.is_sparse):
        return
    off = " ".join(f"--set gates.{name}=0" for name in names)
    if recipe.train.is_sparse:
        raise InputError(
            f"gates.{names[0]} compares with the dense parent, and train.baseline = false trains none; set it to true, or turn the gate "
            f"off: {off}"
        )
    raise InputError(
        f"gates.{names[0]} compares with the dense parent, and train.sparsity = 0 trains the dense network alone; turn the gate off: {off}"
    )


def judge_training(recipe: Recipe, facts: Facts) -> list[Gate]:
    """Returns the gates of an artifact that is trained and not yet verified: its network beats a constant answer on validation."""
    reason = "not found" if facts.validation is None else facts.validation.reason
    return [_collapse_gate([f"validation: {reason}"] if reason else _risen(recipe, facts), facts.validation, "validation samples")]


def _collapse(recipe: Recipe, facts: Facts) -> Gate:
    """Every certified network is better than a constant answer on its own samples: a certificate of one that is not says nothing."""
    reasons: dict[str, list[str]] = {}
    for row in facts.certificates:
        if row.against_majority.reason:
            reasons.setdefault(row.against_majority.reason, []).append(row.name)
    wrong = [f"{', '.join(names)}: {reason}" for reason, names in reasons.items()]
    if not facts.certificates:
        wrong.append("not found")
    return _collapse_gate(wrong + _risen(recipe, facts), None if facts.sparse is None else facts.sparse.against_majority, "test samples")


def _collapse_gate(wrong: list[str], found: AgainstMajority | None, samples: str) -> Gate:
    got = "; ".join(wrong)
    if not wrong and found is not None:
        got = f"{100 * found.clean_share:.1f} % of {found.samples} {samples} right, {100 * found.majority_share:.1f} % in the largest class"
    return Gate("collapse", "more right than a constant answer", got, not wrong)


def _risen(recipe: Recipe, facts: Facts) -> list[str]:
    """The loss rose above that of a constant answer, ln(classes), and never came back; only where the loss is a cross-entropy alone."""
    spec, wrong = recipe.train, []
    if spec.objective in BESIDE_CROSS_ENTROPY or spec.l1 or spec.terms.nrs or facts.validation is None or facts.classes < 2:
        return []
    limit = log(facts.classes)
    for role, history in (("sparse", facts.history_sparse), ("dense", facts.history_dense)):
        losses = [epoch.loss for epoch in history if epoch.loss is not None]
        if len(losses) > LAST_EPOCHS and min(losses[:-LAST_EPOCHS]) < ONCE_LEARNT * limit <= limit <= min(losses[-LAST_EPOCHS:]):
            wrong.append(
                f"{role}: the loss was {min(losses):.3f} once, rose to {losses[-1]:.3f} and stayed above {limit:.3f}, that of a constant "
                "answer; lower train.epsilon or train.learning_rate, or lengthen train.ramp"
            )
    return wrong


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


def _cross_check(check: Check | None) -> Gate:
    """The second opinion advises: that there is none, for a reason that is on record, fails nothing."""
    name = "cross-check with auto_LiRPA"
    if check is not None and check.passed is None and check.reason:
        return Gate(name, "no violation", f"no second opinion: {check.reason}", True)
    return _check(name, check)


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
