"""Gates: the requirements of a recipe and those on every artifact, judged on the artifact's contents."""

from __future__ import annotations

from pathlib import Path

from vsparse.artifact.certified_forms import CertificateRow, missing_certificates
from vsparse.artifact.checks import AuditRecord, CrossCheckRecord, Gate
from vsparse.artifact.choice import form_in_memory
from vsparse.artifact.device import EMULATED, judged
from vsparse.artifact.device_folder import MANIFEST
from vsparse.artifact.document import read_if_there
from vsparse.artifact.facts import Facts
from vsparse.artifact.forms import FORMS, FURTHER, INT8_C, DeployedForm
from vsparse.artifact.hashes import content_sha256
from vsparse.artifact.models import CSourceRecord, RuntimeGraphReport
from vsparse.errors import InputError
from vsparse.pipeline.collapse import collapse_of_certified, collapse_of_trained
from vsparse.pipeline.fits import CROSS_COMPILER, KIB, limit_kib
from vsparse.pipeline.wanted import wants_int8_c
from vsparse.recipe import Recipe
from vsparse.recipe_requirements import missing_gate, wrong_requirement
from vsparse.target import Target, target_of


def judge(recipe: Recipe, facts: Facts, directory: Path, chosen: str = "") -> list[Gate]:
    """Returns every gate with what was wanted and what was found, `chosen` the form to deploy; what could not be found fails.

    That the networks are better than a constant answer, and the checks of soundness (void certificates, audits, cross-check, the
    runtime's graph), are gates of every build, and a recipe cannot turn them off; a cross-check that a recipe asked none for is left
    out. What only the target could measure, and this machine is not, is neither passed nor failed, and neither is a cross-check whose
    second verifier is not installed.
    """
    wanted = recipe.gates
    sparse = None if facts.sparse is None else facts.sparse.certified_accuracy
    dense = None if facts.dense is None else facts.dense.certified_accuracy
    removed = None if facts.compression is None else facts.compression.removed_share
    loss = None if sparse is None or dense is None else dense - sparse
    rows = {row.name: row for row in facts.certificates}
    gates = [collapse_of_certified(recipe, facts)]
    gates += [_standing(facts, missing_certificates(directory, recipe.export.precisions, facts.certificates))]
    here = f", {facts.measured_elsewhere}" if facts.measured_elsewhere and facts.build_machine else ""
    gates += [_check("contract audit", facts.audit, here), _runtime_graph(directory, recipe.export.precisions)]
    gates += [_audit(form, rows[form.name], here) for form in FURTHER if form.audited and form.name in rows]
    asked = recipe.property.perturbation
    if recipe.verify.cross_check and asked.is_box and not asked.regression:  # of other regions there is no second opinion
        gates.append(_cross_check(facts.cross_check))
    for form in sorted(FORMS, key=lambda form: form.is_further):  # those of float32 first
        if least := wanted.certified_of(form):
            name = "certified accuracy" if form.is_main else f"certified accuracy of {form.title}"
            gates.append(_at_least(name, least, rows[form.name].certified_accuracy if form.name in rows else None))
    if wanted.live_certified_accuracy:
        counted = None if facts.live is None else facts.live.answers_of(chosen).at_epsilon.accuracy
        gates.append(_at_least("live certified accuracy", wanted.live_certified_accuracy, counted))
    if wanted.certified_loss:
        got = "not found" if loss is None else f"{100 * loss:.2f} points"
        passed = loss is not None and loss <= wanted.certified_loss + 1e-12
        gates.append(_gate("certified accuracy lost to sparsity", f"at most {100 * wanted.certified_loss:g} points", got, passed))
    if wanted.weights_removed:
        gates.append(_at_least("weights removed physically", wanted.weights_removed, removed))
    gates += device_gates(facts, directory)
    if wanted.latency_ratio:
        gates.append(_latency_ratio(facts, wanted.latency_ratio))
    return gates + memory_gates(recipe, facts, chosen)


ON_DEVICE = "gates on the device"


def device_gates(facts: Facts, directory: Path) -> list[Gate]:
    """Returns the gate of what the target's device examined: open where nothing of it is on record, or only what an emulator passed.

    A target that is the build machine, and one that runs no agent, has none before anything was measured elsewhere.
    """
    wanted = "all passed"
    if facts.device is not None:
        got, passed = judged(facts.device.every_gate)
        if facts.device.emulated:
            got = f"{EMULATED}; there: {got}"
        return [_gate(ON_DEVICE, wanted, got, None if passed and facts.device.emulated else passed)]
    if facts.measured_on_target or not (directory / "device" / MANIFEST).is_file():
        return []
    return [_gate(ON_DEVICE, wanted, facts.not_yet, None)]


def _latency_ratio(facts: Facts, most: float) -> Gate:
    """The packed network against its dense parent, in the target's numbers; any others are told, and judge nothing."""
    name, wanted = "packed latency as a fraction of dense", f"at most {most:g}"
    here = next((item.ratio for item in facts.latency.values() if item.ratio is not None), None)
    ratio = here if facts.of_target is None else facts.of_target.ratio
    if facts.reached:
        return _gate(name, wanted, "not found" if ratio is None else f"{ratio:.3f}", ratio is not None and ratio <= most)
    told = "" if here is None else f" ({here:.3f}, {facts.measured_elsewhere})"
    return _gate(name, wanted, facts.not_yet + told, None)


def memory_gates(recipe: Recipe, facts: Facts, chosen: str = "") -> list[Gate]:
    """What the C takes of a microcontroller's flash and RAM, which it must fit in; not measured where there was no compiler for it.

    That is the form that was chosen; where none was, model.int8.c if the recipe asks for int8, whose purpose is to take less.
    """
    target = target_of(facts.target_toml) if facts.target_toml else None
    if target is None or target.device.kind != "microcontroller":
        return []
    form = form_in_memory(chosen, facts.c_int8 is not None)
    return memory_gates_of(facts.c_int8 if form is INT8_C else facts.c_source, recipe, target)


def memory_gates_of(source: CSourceRecord | None, recipe: Recipe, target: Target) -> list[Gate]:
    """Returns the gates flash and RAM of one C source for a microcontroller."""
    found = None if source is None else source.footprint
    written = source is not None and source.written
    gates = []
    for memory, name in (("flash", "flash"), ("ram", "RAM")):
        most, who = limit_kib(recipe, target, memory)
        wanted = f"at most {most:g} KiB, {who}"
        if found is None:
            got = f"not measured: {CROSS_COMPILER} was not at hand" if written else "there is no C source"
            gates.append(_gate(name, wanted, got, None if written else False))
            continue
        kib = (found.flash_bytes if memory == "flash" else found.ram_bytes) / KIB
        gates.append(_gate(name, wanted, f"{kib:.1f} KiB", kib <= most))
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


def require_judged(recipe: Recipe, target: Target) -> None:
    """Refuses, before anything is trained, requirements whose gate no artifact for this target has."""
    crossed = bool(recipe.verify.cross_check) and recipe.property.perturbation.is_box
    microcontroller = target.device.kind == "microcontroller"
    wrong = wrong_requirement(recipe.requirements, recipe.gates, crossed, recipe.export.precisions) or missing_gate(
        recipe.requirements,
        memory=microcontroller,
        agent=not microcontroller and target.device.kind != "host",
        c_source=target.c_source,
        c_int8=wants_int8_c(recipe, target),
        target=target.name,
    )
    if wrong:
        raise InputError(f"recipe {recipe.name}: {wrong}")


def judge_training(recipe: Recipe, facts: Facts) -> list[Gate]:
    """Returns the gates of an artifact that is trained and not yet verified: its networks beat a constant answer on validation."""
    return [collapse_of_trained(recipe, facts)]


def _gate(name: str, wanted: str, got: str, passed: bool | None) -> Gate:
    return Gate(name=name, wanted=wanted, got=got, passed=passed)


def _at_least(name: str, least: float, got: float | None) -> Gate:
    shown = "not found" if got is None else f"{100 * got:.2f} %"
    return _gate(name, f"at least {100 * least:g} %", shown, got is not None and got >= least - 1e-12)


def _standing(facts: Facts, missing: tuple[str, ...]) -> Gate:
    """Every certificate that should be there is, none is void, and each is about the model file that lies in the artifact."""
    wrong = [f"{name}: not found" for name in missing]
    wrong += [f"{row.certificate_file} is void ({row.void_reason})" for row in facts.certificates if row.void_reason]
    wrong += [f"{file} is not the file that was certified" for file in facts.other_models]
    return _gate("certificates", "none void or missing", "; ".join(wrong) or f"all {len(facts.certificates)} stand", not wrong)


def _audit(form: DeployedForm, row: CertificateRow, here: str) -> Gate:
    """The audit of a further form; only C source where there is no C compiler may go without, and then says so."""
    name = f"contract audit of {form.name}"
    if row.audit_passed is None:
        return _gate(name, "no violation", row.audit_reason if row.goes_unaudited else "not found", row.goes_unaudited)
    return _gate(name, "no violation", f"no violation{here}" if row.audit_passed else row.audit_reason, row.audit_passed)


def _cross_check(check: CrossCheckRecord | None) -> Gate:
    """The second opinion advises: that there is none, for a reason that is on record, fails nothing; one that was not run is open."""
    name = "cross-check with auto_LiRPA"
    if check is not None and check.not_run:
        return _gate(name, "no violation", check.why, None)
    if check is not None and check.stands is None and check.why:
        return _gate(name, "no violation", f"no second opinion: {check.why}", True)
    return _check(name, check)


def _check(name: str, check: AuditRecord | CrossCheckRecord | None, here: str = "") -> Gate:
    if check is None or check.stands is None:
        return _gate(name, "no violation", "not found", False)
    return _gate(name, "no violation", f"no violation{here}" if check.stands else check.why, check.stands)


def _runtime_graph(directory: Path, precisions: tuple[str, ...]) -> Gate:
    missing = []
    for form in FORMS:
        if not form.is_main and form.name not in precisions:
            continue
        found, model = read_if_there(RuntimeGraphReport, directory / form.record("runtime_graph")), directory / form.model
        if found is None or not model.is_file() or found.content_sha256 != content_sha256(model):
            missing.append(form.model)
    got = f"not found for {', '.join(missing)}" if missing else "the same network"
    return _gate("the runtime folds nothing", "the same network at every level", got, not missing)
