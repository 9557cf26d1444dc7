"""Which deployed form a build chooses, and why: the rule of docs/reference-artifact.md, section choice.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

from vsparse.artifact.certified_forms import CertificateRow, form_latency
from vsparse.artifact.checks import Gate
from vsparse.artifact.choice import FormChoice, FormRow, WeightPattern, milliseconds
from vsparse.artifact.device import EMULATED, DeviceModel, DeviceResults, judged, one_line
from vsparse.artifact.device_folder import MANIFEST
from vsparse.artifact.elsewhere import ADVICE
from vsparse.artifact.facts import Facts
from vsparse.artifact.forms import DENSE, DEPLOYABLE, INT8, INT8_C, SPARSE, DeployedForm
from vsparse.artifact.latency import Latency
from vsparse.artifact.models import CSourceRecord
from vsparse.pipeline.gates import ON_DEVICE, memory_gates_of
from vsparse.recipe import AUTO, Recipe
from vsparse.stages.export.patterns import float_layers, weight_pattern
from vsparse.target import Target

# A form is as fast as another where its median is at most this much larger, or this fraction of the alternating blocks says so.
NOISE, BLOCKS = 0.05, 0.25
GATE = "a form to deploy"
MIB = 2**20


def choose(recipe: Recipe, target: Target, facts: Facts, directory: Path) -> FormChoice:
    """Returns the table of the forms that an artifact holds certificates of, and the one that is chosen.

    Latencies are those of the device's results where these are there, or of the build where its machine is the target. Raises InputError
    for a model file that is damaged.
    """
    found = {row.name: row for row in facts.certificates}
    times = Times.of(facts, target, directory)
    limits = _Limits(recipe, target, facts, (directory / "device" / MANIFEST).is_file())
    rows = [_row(form, found, times, limits, directory) for form in _forms(found)]
    chosen, reason = pick(rows, times)
    return FormChoice(
        chosen="" if chosen is None else chosen.name,
        reason=reason,
        measured_on=times.measured_on,
        advice="" if times.measured_on or not times.has_runtime else ADVICE,
        rows=tuple(row.model_copy(update={"chosen": row is chosen}) for row in rows),
    )


def choice_gate(choice: FormChoice) -> Gate:
    """Returns the gate of every build that some form meets its gates; neither passed nor failed where one of them is not measured."""
    row = choice.row
    if row is None:
        return Gate(name=GATE, wanted="one that meets every gate", got=choice.reason, passed=False)
    passed = None if any(gate.passed is None for gate in row.gates) else True
    waiting = [gate.name for gate in row.gates if gate.passed is None]
    told = f"{row.form.label}, {row.file}"
    if waiting:
        told += f"; not measured yet: {', '.join(waiting)} ({next(gate.got for gate in row.gates if gate.passed is None)})"
    return Gate(name=GATE, wanted="one that meets every gate", got=told, passed=passed)


@dataclass(frozen=True)
class _Limits:
    """What a form must reach, and what that is compared with."""

    recipe: Recipe
    target: Target
    facts: Facts
    has_agent: bool = False


@dataclass(frozen=True)
class Times:
    """The latency of forms by name as the target has it, where that is (`measured_on`, empty: not measured), and what the device said.

    A target without a runtime (`has_runtime`) executes C source alone, and nothing here measures it.
    """

    by_form: Mapping[str, Latency]
    measured_on: str
    target: str
    device: DeviceResults | None = None
    has_runtime: bool = True
    not_yet: str = ""
    numbers: DeviceResults | None = None

    @classmethod
    def of(cls, facts: Facts, target: Target, directory: Path) -> Times:
        forms, device = (*DEPLOYABLE, DENSE), facts.device
        if facts.of_target is not None:
            there = facts.of_target.latencies()
            found = {form.name: there[form.device_role] for form in forms if form.device_role in there}
            return cls(found, target.name, target.name, device, numbers=facts.of_target)
        if not facts.measured_on_target:
            return cls({}, "", target.name, device, target.runtime.name != "c", facts.not_yet)
        here = {form.name: latency for form in forms if (latency := form_latency(directory, form)) is not None}
        return cls(here, facts.build_machine if here else "", target.name, device)

    def model(self, form: DeployedForm) -> DeviceModel | None:
        """What the device said of a form as it is deployed; None where it ran none."""
        return None if self.device is None else self.device.deployed.get(form.device_role)

    def measured(self, form: DeployedForm) -> DeviceModel | None:
        """The same where its numbers are the target's."""
        return None if self.numbers is None else self.numbers.deployed.get(form.device_role)

    def why_not_timed(self, form: DeployedForm) -> str:
        """Why a device that was reached did not time a form, as it said itself, in brackets; empty where it said nothing."""
        model = self.measured(form)
        told = model.fault if model is not None else "" if self.numbers is None else self.numbers.left_out(form.device_role)
        return f" ({one_line(told, 200)})" if told else ""

    def ratio(self, form: DeployedForm, other: DeployedForm) -> float | None:
        """The median of a form over that of another; None where one is not known, or no ratio can be taken of it."""
        one, two = self.by_form.get(form.name), self.by_form.get(other.name)
        ratio = None if one is None or two is None or not two.p50 else one.p50 / two.p50
        return ratio if ratio is not None and isfinite(ratio) else None

    def as_fast(self, name: str, other: str) -> bool:
        """Whether a form is as fast as another, within noise; both must have been timed."""
        one, two = self.by_form[name], self.by_form[other]
        if one.p50 <= (1 + NOISE) * two.p50:
            return True
        ratios = one.block_ratios(two)
        return bool(ratios) and sum(ratio <= 1 for ratio in ratios) >= BLOCKS * len(ratios)

    def speed(self, form: DeployedForm) -> str:
        """How a form's latency compares with that of fp32, in words."""
        ratio = self.ratio(form, SPARSE)
        if ratio is None:
            if form.name not in self.by_form:
                return f"not measured on {self.target}"
            return "no ratio to fp32" if SPARSE.name in self.by_form else "fp32 was not measured"
        if form == SPARSE:
            return ""
        if not self.as_fast(form.name, SPARSE.name):
            return f"slower than fp32: {ratio:.2f} times its time"
        return "as fast as fp32" if self.as_fast(SPARSE.name, form.name) else f"faster than fp32: {ratio:.2f} of its time"


def _forms(found: Mapping[str, CertificateRow]) -> list[DeployedForm]:
    return [form for form in (*DEPLOYABLE, DENSE) if form.name in found]


def _row(form: DeployedForm, found: Mapping[str, CertificateRow], times: Times, limits: _Limits, directory: Path) -> FormRow:
    row, main, timed = found[form.name], found.get(SPARSE.name), times.by_form.get(form.name)
    size = _bytes(form, limits, directory)
    lost = None if main is None else round(100 * (main.certified_accuracy - row.certified_accuracy), 9)
    why_not, there = _why_not(form, times, limits), times.measured(form)
    return FormRow(
        name=form.name,
        file=row.model_file,
        contract=row.contract,
        certified_accuracy=row.certified_accuracy,
        clean_accuracy=row.clean_accuracy,
        points_lost=lost,
        bytes=size,
        latency_ms_p50=None if timed is None else timed.p50,
        latency_ms_p99=None if timed is None else timed.p99,
        latency_ratio=times.ratio(form, SPARSE),
        speed=times.speed(form),
        weights=_weights(form, row.contract, limits, directory),
        gates=() if form.variant == DENSE.variant else tuple(_gates(form, row, size, lost, times, limits)),
        competes=not why_not,
        why_not=why_not,
        chosen=False,
        energy_mj=None if there is None else there.energy_mj,
        peak_bytes=None if there is None else there.peak_bytes,
    )


def _bytes(form: DeployedForm, limits: _Limits, directory: Path) -> int | None:
    """The size of a form's file, or of the constants of C source; None where it is not there."""
    if not form.is_onnx:
        source = _source(form, limits)
        if source is None:
            return None
        # A microcontroller compiles the text without vectors, whose tables are others.
        without_vectors = limits.target.device.kind == "microcontroller" and form != INT8_C
        return source.scalar_constant_bytes if without_vectors else source.constant_bytes
    path = directory / form.file
    return path.stat().st_size if path.is_file() else None


def _source(form: DeployedForm, limits: _Limits) -> CSourceRecord | None:
    return limits.facts.c_int8 if form == INT8_C else limits.facts.c_source


def _weights(form: DeployedForm, contract: str, limits: _Limits, directory: Path) -> WeightPattern | None:
    path = directory / form.model
    sparse = limits.recipe.train.sparse if form.variant == SPARSE.variant and limits.recipe.train.is_sparse else None
    if not path.is_file():
        return None
    found = weight_pattern(path, form, contract, sparse, limits.target)
    # Layers that the recipe names need no telling.
    told = form.model == INT8.model and AUTO in limits.recipe.export.float_layers
    return found.model_copy(update={"float_layers": float_layers(path)}) if told else found


def _why_not(form: DeployedForm, times: Times, limits: _Limits) -> str:
    """Why a form cannot be chosen whatever it reaches; empty where it can."""
    allowed = limits.recipe.choose.forms
    if form.variant == DENSE.variant:
        return "for comparison"
    if allowed and form.label not in allowed:
        return "not in choose.forms"
    if not times.has_runtime:
        return f"{times.target} has no runtime for it" if form.is_onnx else ""
    if times.measured_on and form.name not in times.by_form:
        by_build = times.numbers is None and not form.is_onnx
        return f"not timed on {times.target}{', for want of a C compiler' if by_build else times.why_not_timed(form)}"
    if not times.measured_on and not form.is_onnx and form.label not in allowed:
        # The bytes of its constants do not compare with those of a model file.
        return f"it competes once it is timed on {times.target}"
    return ""


def _gates(form: DeployedForm, row: CertificateRow, size: int | None, lost: float | None, times: Times, limits: _Limits) -> list[Gate]:
    """The gates that concern a form; what is not known of it fails, and what only the target could measure is open."""
    recipe, wanted = limits.recipe, limits.recipe.choose
    gates = [_standing(row, limits.facts)]
    gates += _on_device(form, times, limits)
    least = recipe.gates.certified_of(form) or recipe.gates.certified_accuracy
    if least:
        certified = row.certified_accuracy
        gates.append(_judged("certified accuracy", f"at least {100 * least:g} %", f"{100 * certified:.2f} %", certified >= least - 1e-12))
    if wanted.certified_loss and form != SPARSE:
        most, shown = f"at most {100 * wanted.certified_loss:g} points", "not found" if lost is None else f"{lost:.2f} points"
        gates.append(_judged("points lost", most, shown, lost is not None and lost <= 100 * wanted.certified_loss + 1e-9))
    if wanted.bytes:
        fits = size is not None and size <= wanted.bytes
        gates.append(_judged("bytes", f"at most {wanted.bytes:,}", "not found" if size is None else f"{size:,}", fits))
    if limits.target.device.kind == "microcontroller" and not form.is_onnx:
        gates += memory_gates_of(_source(form, limits), recipe, limits.target)
    timed = times.by_form.get(form.name)
    for name, limit in (("p50", wanted.latency_ms_p50), ("p99", wanted.latency_ms_p99)):
        if limit:
            value = None if timed is None else float(getattr(timed, name))
            gates.append(_measured(f"latency {name}", f"at most {limit:g} ms", value, limit, " ms", times))
    there = times.measured(form)
    if wanted.energy_mj:
        energy = None if there is None else there.energy_mj
        gates.append(_measured("energy", f"at most {wanted.energy_mj:g} mJ", energy, wanted.energy_mj, " mJ", times))
    if wanted.memory_mib:
        peak = None if there is None or there.peak_bytes is None else there.peak_bytes / MIB
        gates.append(_measured("memory", f"at most {wanted.memory_mib:g} MiB", peak, wanted.memory_mib, " MiB", times))
    if recipe.gates.latency_ratio:
        limit, ratio = recipe.gates.latency_ratio, times.ratio(form, DENSE)
        gates.append(_measured("ratio to dense", f"at most {limit:g}", ratio, limit, "", times))
    return gates


def _on_device(form: DeployedForm, times: Times, limits: _Limits) -> list[Gate]:
    """The gate of what the device said of a form; open where only an emulator ran it, or none did and the agent would run it."""
    model, wanted = times.model(form), "all passed"
    if model is None:
        waits = bool(times.not_yet) and times.has_runtime and limits.has_agent
        return [Gate(name=ON_DEVICE, wanted=wanted, got=times.not_yet, passed=None)] if waits else []
    got, passed = judged(model.gates)
    if times.device is not None and times.device.emulated:
        return [Gate(name=ON_DEVICE, wanted=wanted, got=f"{EMULATED}; there: {got}", passed=None if passed else False)]
    return [Gate(name=ON_DEVICE, wanted=wanted, got=got, passed=passed)]


def _standing(row: CertificateRow, facts: Facts) -> Gate:
    wrong = row.void_reason and f"void: {row.void_reason}"
    if row.certified_file in facts.other_models:
        wrong = wrong or f"{row.certified_file} is another file"
    if row.audit_passed is False:
        wrong = wrong or f"the audit failed: {row.audit_reason}"
    if row.form.audited and row.audit_passed is None and not row.goes_unaudited:
        wrong = wrong or "its audit is not found"
    return Gate(name="certificate", wanted="stands", got=wrong or "stands", passed=not wrong)


def _judged(name: str, wanted: str, got: str, passed: bool) -> Gate:
    return Gate(name=name, wanted=wanted, got=got, passed=passed)


def _measured(name: str, wanted: str, value: float | None, limit: float, unit: str, times: Times) -> Gate:
    if value is None:
        return Gate(name=name, wanted=wanted, got=times.not_yet or f"not measured on {times.target}", passed=None)
    return _judged(name, wanted, f"{value:.4g}{unit}", value <= limit)


def pick(rows: Sequence[FormRow], times: Times) -> tuple[FormRow | None, str]:
    """Returns the row of the form that the rule picks, and one sentence that says why; None where no form meets its gates."""
    competing = [row for row in rows if row.competes]
    able = [row for row in competing if not row.missed]
    if not able:
        missed = "; ".join(f"{row.form.label} misses {_in_words(row.missed)}" for row in competing)
        return None, f"no form is chosen: {missed or 'no form that may be chosen is there'}"
    timed = [row for row in able if row.latency_ms_p50 is not None]
    if not timed:
        best = min(able, key=_smallest)
        why = f"of the forms that meet every gate that could be judged ({_labels(able)}) it has the fewest bytes ({best.bytes or 0:,})"
        if len(able) == 1:
            why = "it is the only form that meets every gate that could be judged"
        later = f", and once it is (`{ADVICE}`) the choice is made anew" if times.has_runtime else ""
        told = f" ({EMULATED})" if times.device is not None and times.device.emulated else ""
        return best, f"{best.form.label} is chosen from what is known: {why}; latency on {times.target} is not measured{told}{later}"
    fastest = min(timed, key=lambda row: (row.latency_ms_p50 or 0.0, *_smallest(row)))
    near = [row for row in timed if row is fastest or times.as_fast(row.name, fastest.name)]
    best = min(near, key=_smallest)
    return best, _because(best, fastest, near, timed)


def _because(best: FormRow, fastest: FormRow, near: Sequence[FormRow], timed: Sequence[FormRow]) -> str:
    """Why a form was chosen by its latency, in one sentence."""
    label = best.form.label
    if len(timed) == 1:
        return f"{label} is chosen: it is the only form that meets every gate{_time(best)}"
    if len(near) == 1:
        return f"{label} is chosen: of the forms that meet every gate ({_labels(timed)}) it is the fastest{_time(best)}"
    others = [row for row in near if row is not best]
    second = min(others, key=_smallest)
    if best.bytes != second.bytes:
        why = f"it has the fewest bytes, {best.bytes or 0:,}"
    elif best.certified_accuracy != second.certified_accuracy:
        why = f"with as many bytes it certifies most, {100 * best.certified_accuracy:.2f} %"
    else:
        why = "the others have as many bytes and certify as much"
    fast = "" if best is fastest else f" as {fastest.form.label}, the fastest{_time(fastest)}, within noise"
    return f"{label} is chosen: of the forms that meet every gate ({_labels(timed)}), {_labels(near)} are as fast{fast}, and {why}"


def _smallest(row: FormRow) -> tuple[float, float]:
    """What tells forms apart that are as fast: fewer bytes, then more certified; then the order of the table."""
    return float("inf") if row.bytes is None else row.bytes, -row.certified_accuracy


def _time(row: FormRow) -> str:
    """The median, and beside it the ratio to fp32."""
    if row.latency_ms_p50 is None:
        return ""
    ratio = "" if row.form == SPARSE or row.latency_ratio is None else f", {row.latency_ratio:.2f} of fp32's time"
    return f" (p50 {milliseconds(row.latency_ms_p50)} ms{ratio})"


def _labels(rows: Sequence[FormRow]) -> str:
    return ", ".join(row.form.label for row in rows)


def _in_words(gates: Sequence[Gate]) -> str:
    return ", ".join(f"{gate.name} ({gate.got}, wanted: {gate.wanted})" for gate in gates)
