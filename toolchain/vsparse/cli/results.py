"""Results on stdout: one typed object in, one table or one JSON document out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vsparse.artifact import LAYERS
from vsparse.artifact.device import NOT_CERTIFIED, SENTENCES, DeviceResults, DeviceRuntime, judged
from vsparse.artifact.device_latency import DeviceLatency
from vsparse.artifact.document import read_document
from vsparse.artifact.elsewhere import NOT_YET, with_directory
from vsparse.artifact.forms import FURTHER, INT8_C, SPARSE, VARIANTS
from vsparse.artifact.layers import LayerRow, LayerTable
from vsparse.artifact.outcome import outcome_of
from vsparse.cli.choice import show_choice
from vsparse.cli.options import percent, print_json, stdout
from vsparse.cli.times import plain_text, show_layer_times, show_noise, shown_ranks, told_runtime, within_turns
from vsparse.majority import AgainstMajority, against_majority
from vsparse.proportion import percent_span

if TYPE_CHECKING:
    from vsparse.pipeline.build import BuildResult
    from vsparse.stages.profile import ProfileResult
    from vsparse.stages.verify import Certificate
    from vsparse.stages.verify.smoothing import Smoothing

# Key of the figures, its title, and how its value is shown.
FIGURES = (
    ("weights", "weights", "{:,.0f}"),
    ("macs", "multiply-accumulates", "{:,.0f}"),
    ("bytes", "bytes of weights", "{:,.0f}"),
    ("clean_accuracy", "clean accuracy", "fraction"),
    ("majority_accuracy", "largest class (a constant answer)", "fraction"),
    ("robust_accuracy", "robust accuracy (under our attack)", "fraction"),
    ("certified_accuracy", "certified accuracy", "fraction"),
    ("explained", "variance explained (validation)", "fraction"),
    ("explained_worst", "explained in the worst case of interval bounds (validation)", "fraction"),
    ("mean_absolute_error", "mean absolute error", "{:.4g}"),
    ("constant_mean_absolute_error", "that of a constant answer (the mean)", "{:.4g}"),
    ("rmse", "root mean square error", "{:.4g}"),
    ("latency_ms_p50", "latency p50", "{:.4f} ms"),
    ("latency_ms_p99", "latency p99", "{:.4f} ms"),
)


MARKS = {True: "[green]passed[/green]", False: "[red]FAILED[/red]", None: "[yellow]open  [/yellow]"}
# Of a requirement: without a gate that was decided it is never met.
STATUS = {
    "met": "[green]met    [/green]",
    "not met": "[red]NOT MET[/red]",
    "not run": "[yellow]not run[/yellow]",
    "void": "[red]VOID   [/red]",
}
# The same for an artifact that is trained and not yet verified.
ACCURACY_WORDS = {
    "clean_accuracy": "clean accuracy",
    "majority_accuracy": "largest class (a constant answer),",
    "robust_accuracy": "robust under {by}, which proves nothing,",
    "certified_accuracy": "certified by {by}",
}
ACCURACIES = (("certified_accuracy", "certified"), ("robust_accuracy", "robust"), ("clean_accuracy", "clean"))


def _shown(value: float | None, form: str) -> str:
    if value is None:
        return "–"
    return percent(value) if form == "fraction" else form.format(value)


def _span(ends: Sequence[float] | None) -> str:
    """Returns the 95 % confidence interval of a share, to stand behind it; empty where there is none."""
    return "" if ends is None else f" ({percent_span(*ends)})"


def _title(key: str, title: str, figures: dict[str, Any]) -> str:
    """Returns the title of a row; of what training alone measured it says by what, on which split and on how many samples."""
    if "measured_by" not in figures or key not in ACCURACY_WORDS:
        return title
    samples = figures["robust_samples"] if key in ("certified_accuracy", "robust_accuracy") else figures["samples"]
    words = ACCURACY_WORDS[key].format(by=figures["measured_by"])
    return f"{words} on {samples:,} {figures['split']} samples"


def show_build(result: BuildResult, json: bool, layers: bool = False) -> None:
    """Prints an artifact's key figures, its gates, and where it lies; with `layers` also each layer before and after compression."""
    gates = [gate.model_dump(mode="json") | {"got": with_directory(gate.got, result.directory)} for gate in result.gates]
    found = result.requirements
    if json:
        stages = [record.model_dump(mode="json") for record in result.lineage]
        print_json(
            {
                "schema_version": 1,
                "directory": str(result.directory),
                "until": result.until,
                "passed": result.passed,
                "figures": result.figures,
                "gates": gates,
                "not_measured": list(result.not_measured),
                "advice": result.advice,
                "not_certified_on_this_device": list(result.uncertified),
                "device": result.device,
                "choice": None if result.choice is None else result.choice.model_dump(mode="json"),
                "data": None if result.data is None else result.data.summary(),
                "stages": stages,
                "requirements": [one.model_dump(mode="json") | {"got": with_directory(one.got, result.directory)} for one in found],
            }
        )
        return
    if layers and result.until != "train":
        show_layers(read_document(LayerTable, result.directory / LAYERS))
    out = stdout()
    show_uncertified(result.uncertified, result.device, out)
    columns = [variant for variant in VARIANTS if variant in result.figures]
    if columns:
        table = Table("", *columns, title=result.figures.get("title"))
        for key, title, shown in FIGURES:
            values = [result.figures[variant].get(key) for variant in columns]
            spans = [result.figures[variant].get(f"{key}_interval") for variant in columns]
            if any(value is not None for value in values):
                here = " (build machine)" if key.startswith("latency") and "latency" in result.figures else ""
                table.add_row(
                    _title(key, title, result.figures[columns[0]]) + here,
                    *(_shown(value, shown) + _span(ends) for value, ends in zip(values, spans, strict=True)),
                )
        out.print(table)
        if any(f"{key}_interval" in result.figures[variant] for variant in columns for key in result.figures[variant]):
            out.print("in brackets: 95 % confidence interval (Clopper-Pearson)")
    if "latency" in result.figures:
        told = f"; {NOT_YET}" if result.advice else ""
        out.print(f"latency: {escape(result.figures['latency'])}{told}", soft_wrap=True)
    for noise in result.figures.get("latency_noise", ()):
        out.print(f"[yellow]latency is noisy[/yellow]: {plain_text(noise)}", soft_wrap=True)
    if result.device:
        out.print(plain_text(f"on the device: {result.device}"), soft_wrap=True)
    for name, split in result.data.splits if result.data else ():
        out.print(f"{name}: {split.samples:,} samples, {split.origin}", soft_wrap=True, markup=False)
    for form in FURTHER:
        if form.name in result.figures:
            out.print(_certificate_line(form.name, result.figures[form.name]))
    for key, offline_of in (("live", SPARSE.name), ("live_int8", INT8_C.name)):
        if key in result.figures:
            offline = result.figures.get(offline_of, {}).get("certified_accuracy")
            out.print(live_line(result.figures[key], offline, "" if key == "live" else "int8"), soft_wrap=True)
    for key, file in (("microcontroller", "model.c"), ("microcontroller_int8", "model.int8.c")):
        if key in result.figures:
            out.print(footprint_line(result.figures[key], file), soft_wrap=True, markup=False)
    for key, file in (("c_analysis", "model.c"), ("c_analysis_int8", "model.int8.c")):
        if key in result.figures:
            out.print(analysis_line(result.figures[key], file), soft_wrap=True, markup=False)
    if result.choice is not None:
        show_choice(result.choice, str(result.directory), "delta" in result.figures)
    for gate in result.gates:
        got = plain_text(with_directory(gate.got, result.directory))
        out.print(f"{MARKS[gate.passed]}  {gate.name}: {got} (wanted: {gate.wanted})", soft_wrap=True)
    for one in found:
        told = plain_text(f"{one.id}: {one.text} ({one.gate}: {with_directory(one.got, result.directory)})")
        out.print(f"requirement {STATUS[one.status]}  {told}", soft_wrap=True)
    if result.passed and result.not_measured:
        out.print(f"every gate that could be measured here passed; {NOT_YET}: {', '.join(result.not_measured)}", soft_wrap=True)
    if result.advice:
        out.print(f"to measure there: {escape(result.advice)}", soft_wrap=True)
    show_uncertified(result.uncertified, result.device, out)
    out.print(str(result.directory / "report.html") if result.until == "report" else str(result.directory), soft_wrap=True)


def _certificate_line(name: str, figures: dict[str, Any]) -> str:
    """Returns one line about a further form, which most often has the name of its contract: what is certified, and what its audit did."""
    accuracies = ", ".join(f"{word} {percent(figures[key])}" for key, word in ACCURACIES if key in figures)
    latency = f", p50 {figures['latency_ms_p50']:.4f} ms" if "latency_ms_p50" in figures else ""
    audit = "not audited"
    if "audit_executions" in figures:
        audit = f"audited in {figures['audit_executions']:,.0f} executions, {figures.get('audit_violations', 0):,.0f} violations"
    contract = figures.get("contract", name)
    return f"{'' if contract == name else f'{name}, '}contract {contract}: {accuracies}{latency} ({audit})"


def live_line(found: dict[str, Any], offline: float | None, form: str = "") -> str:
    """Returns one line about what the device certifies by itself, in int8 where that is the form, beside what is proved offline."""
    certified, right = (percent(found[name] / found["samples"]) for name in ("certified", "right"))
    beside = "" if offline is None else f" (offline {percent(offline)})"
    name, epsilon, samples = f"live, {form}" if form else "live", found["epsilon"], found["samples"]
    by_itself = f"{name}: at epsilon {epsilon} the device certifies {certified} of {samples:,} test samples by itself"
    if "budget" in found:
        alone = percent(found["by_intervals"] / found["samples"])
        by_itself += f" (by intervals alone {alone}; with one interval pass and at most {found['budget']} backward passes)"
    return f"{by_itself}, {right} with the right class{beside}"


def footprint_line(taken: dict[str, Any], file: str = "model.c") -> str:
    """Returns one line about what the C takes of a microcontroller."""
    stack = "stack not bounded" if taken["stack_bytes"] is None else f"stack {taken['stack_bytes']:,} bytes"
    flash, constants, code, ram = (f"{taken[f'{name}_bytes'] / 1024:.1f}" for name in ("flash", "constant", "code", "ram"))
    how = " ".join(taken["options"])
    return f"{file}: flash {flash} KiB ({constants} constants, {code} code), RAM {ram} KiB, {stack} ({taken['compiler']}, {how})"


def analysis_line(found: dict[str, Any], file: str) -> str:
    """Returns one line about what Frama-C says of a network in C."""
    if not found["finished"]:
        return f"{file}: not analysed ({found['tool']}, Eva: {found['reason']})"
    low, high = found["inputs"]
    where = f" ({found['found'][0]})" if found["found"] else ""
    reached = f"{found['reached']:,} of {found['statements']:,} statements reached"
    alarms = f"{found['alarms']} alarm{'' if found['alarms'] == 1 else 's'}"
    return f"{file}: {alarms} for inputs in [{low:g}, {high:g}]{where}, {reached} ({found['tool']}, Eva)"


def show_layers(compressed: LayerTable, file: str = "") -> None:
    """Prints each layer before and after compression, and where the packed network lies, if it is a file of its own."""
    table = Table("layer", "type", "shape", "weights", "non-zero", "MACs", "bytes")
    for row in compressed.rows:
        table.add_row(row.name, row.type, f"{_sides(row.shape_before)} → {_sides(row.shape_after)}", *_sizes(row))
    table.add_row("total", "", "", *_sizes(compressed.totals))
    out = stdout()
    out.print(table)
    out.print(f"weights removed physically: {percent(compressed.removed_share)}")
    if file:
        out.print(file, soft_wrap=True)


def _sizes(row: LayerRow) -> tuple[str, str, str, str]:
    weights = f"{row.weights_before:,} → {row.weights_after:,}"
    macs, bytes_ = f"{row.macs_before:,} → {row.macs_after:,}", f"{row.bytes_before:,} → {row.bytes_after:,}"
    return weights, f"{row.nonzero:,}", macs, bytes_


def _sides(shape: Sequence[int] | None) -> str:
    return "merged" if shape is None else "×".join(str(side) for side in shape)


def show_uncertified(found: Sequence[str], device: str, out: Console) -> None:
    """Prints that certificates do not hold on the device that was measured, and what shows it; nothing where none does."""
    if found:
        told = "; ".join(found[:SENTENCES]) + (f"; and {len(found) - SENTENCES} more" if len(found) > SENTENCES else "")
        out.print(f"[bold red]{NOT_CERTIFIED.upper()}[/bold red] ({plain_text(device)}): {plain_text(told)}", soft_wrap=True)


def show_latency(result: ProfileResult, json: bool, directory: str = "ARTIFACT") -> None:
    """Prints what was measured of latency, with its conditions."""
    if json:
        print_json(result.as_dict())
        return
    out = stdout()
    if result.device is not None:
        show_measurements(result.device, out)
    else:
        table = Table("network", "p50 ms", "p90 ms", "p99 ms", "max ms", "jitter ms", "timed runs")
        for name, latency in result.latencies.items():
            table.add_row(name, *shown_ranks(latency), f"{latency.runs_timed:,}")
        out.print(table)
        show_noise([(name, latency.noise) for name, latency in result.latencies.items()], out)
        if result.ratio is not None:
            within = within_turns(result.latencies)
            out.print(f"packed as a fraction of dense: {result.ratio:.3f} (ratio of medians, alternating blocks of one run{within})")
        for name, rows in result.layers.items():
            show_layer_times(name, rows, out)
    out.print(escape(result.conditions), soft_wrap=True)
    if result.choice is not None:
        show_choice(result.choice, directory)
    if result.device is not None:
        show_uncertified(result.device.uncertified, result.device.label, out)


def show_measurements(found: DeviceResults, out: Console) -> None:
    """Prints every form in every runtime as a device measured it; all that comes from the device is text alone."""
    show_uncertified(found.uncertified, found.label, out)
    title, columns = plain_text(f"measured on {found.label}"), ("p50 ms", "p90 ms", "p99 ms", "max ms", "jitter ms", "timed runs")
    table = Table("form", "runtime", *columns, "gates on the device", title=title)
    for one in found.measurements:
        latency, told = one.measured(found.device), one.runtime or found.runtime or DeviceRuntime()
        ranks = ("–",) * 5 if latency is None else shown_ranks(latency)
        runs = 0 if latency is None else latency.settings["runs_timed"]
        version = "" if told.version is None or told.name == "c" else f" {told.version}"
        state, reached = judged(one.gates)
        said = one.fault or state
        table.add_row(
            *(plain_text(text) for text in (one.role, f"{told.name}{version}", *_by_batch(latency, ranks), f"{runs:,}")),
            ("" if reached else "[red]FAILED[/red] ") + plain_text(said) + ("" if one.deployed else ", for comparison"),
        )
    out.print(table)
    if found.ratio is not None:
        order = next((one.settings.get("alternating_blocks_of") for one in found.models if one.role == "packed"), None)
        how = "in alternating blocks" if isinstance(order, (list, tuple)) and len(order) > 1 else "one after the other"
        within = within_turns(found.latencies())
        out.print(f"packed as a fraction of dense: {found.ratio:.3f} (ratio of medians, {how}{within})")
    show_noise([(f"{one.role} ({told_runtime(one, found)})", one.noise) for one in found.measurements if one.latency], out)
    for one in found.measurements:
        if one.layer_times:
            show_layer_times(f"{one.file} ({told_runtime(one, found)})", one.layer_times, out)
    for text in device_lines(found):
        out.print(plain_text(text), soft_wrap=True)


def _by_batch(latency: DeviceLatency | None, ranks: Sequence[str]) -> tuple[str, ...]:
    """The percentiles of a run; of one with more samples than one, what that is for each sample stands beside it."""
    if latency is None or latency.batch == 1:
        return tuple(ranks)
    each = (one / latency.batch for one in (latency.p50, latency.p90, latency.p99, latency.largest))
    beside = [f" a batch of {latency.batch}, {one:.4g} a sample" for one in each]
    *times, jitter = ranks  # the jitter of a sample is not known
    return (*(f"{rank}{told}" for rank, told in zip(times, beside, strict=True)), jitter)


def device_lines(found: DeviceResults) -> list[str]:
    """Returns what a device said of itself and of the conditions, in a line each."""
    device, extra = found.device, found.model_extra or {}
    named = [device.get(key) for key in ("model", "processor", "architecture", "system", "power_mode")]
    lines = ["device: " + (", ".join(str(one) for one in named if one) or "it says nothing of itself")]
    if device.get("emulated"):
        lines.append("this device is emulated: its times mean nothing, and judge no gate")
    conditions, idle = extra.get("conditions"), extra.get("idle")
    if isinstance(conditions, dict) and conditions.get("throttled"):
        lines.append("it was throttled while it was measured")
    if isinstance(idle, dict) and "power_mw_mean" in idle:
        lines.append(f"idle power: {idle['power_mw_mean']} mW, mean of {idle.get('readings')} readings")
    notes = [f"{one.role}: {one.settings['threads_note']}" for one in found.measurements if "threads_note" in one.settings]
    lines += notes
    skipped = extra.get("skipped")
    for one in skipped if isinstance(skipped, list) else []:
        if isinstance(one, dict):
            lines.append(f"left out: {one.get('role')} ({one.get('runtime')}), {one.get('reason')}")
    return lines


def show_verdicts(certificate: Certificate, json: bool) -> None:
    """Prints how many samples are certified, falsified and unknown, and under which contract."""
    summary = certificate.summary
    if json:
        reading = {} if certificate.reading is None else {"reading": certificate.reading.as_dict()}
        found = outcome_of(certificate)
        told: dict[str, Any] = {"against_majority": found.against_majority.as_dict()}
        if found.regression is not None:
            told["regression"] = found.regression.model_dump(mode="json")
        print_json(certificate.model_dump(mode="json", exclude={"claims"}) | told | reading)
        return
    table = Table("", "samples", "fraction")
    for title, count in (
        ("answered" if certificate.property.regression else "correct", summary.correct),
        ("certified", summary.certified),
        ("falsified", summary.falsified),
        ("unknown", summary.unknown),
    ):
        table.add_row(title, f"{count} of {summary.samples}", percent(count / summary.samples if summary.samples else None))
    out = stdout()
    out.print(table)
    out.print(f"{certificate.property.label()}, contract {certificate.contract['name']}")
    errors = outcome_of(certificate).regression
    if errors is None:
        _show_answers(certificate.claims)
    else:
        own, constant = (_shown(value, "{:.4g}") for value in (errors.mean_absolute_error, errors.constant_mean_absolute_error))
        out.print(f"mean absolute error {own}; that of a constant answer, the mean, {constant}")
    if certificate.note and not certificate.note.startswith("contract real"):
        out.print(f"[yellow]{escape(certificate.note)}[/yellow]", soft_wrap=True)
    if certificate.contract["name"] == "real":
        out.print("[red]contract real: proved for the network in real arithmetic, not for any device[/red]")


def _against(claims: Sequence[Any]) -> AgainstMajority:
    return against_majority([claim.label for claim in claims], [claim.predicted for claim in claims])


def _show_answers(claims: Sequence[Any]) -> None:
    """Prints clean accuracy beside that of a constant answer, and that all predictions are one class where they are."""
    found = _against(claims)
    stdout().print(f"clean accuracy {percent(found.clean_accuracy)}; largest class, a constant answer, {percent(found.majority_accuracy)}")
    if found.answers == 1 and found.samples > 1:
        stdout().print(f"[red]all {found.samples} predictions are one class[/red]")


def show_smoothing(result: Smoothing, json: bool) -> None:
    """Prints the probabilistic claims of randomised smoothing: how many at which radius, and that they are probabilistic."""
    if json:
        print_json({key: value for key, value in result.as_dict().items() if key != "claims"})
        return
    sigma, total = result.sampling.sigma, len(result.claims)
    table = Table("l2 radius at least", "predicted as labelled", "fraction")
    for radius in (0.0, 0.5 * sigma, sigma, 2 * sigma, 3 * sigma):
        fraction = result.accuracy(radius)
        table.add_row(f"{radius:g}", f"{round(fraction * total)} of {total}", percent(fraction))
    out = stdout()
    out.print(table)
    out.print(f"largest class, a constant answer: {percent(_against(result.claims).majority_accuracy)}")
    out.print(f"abstained: {result.abstained} of {total}; sigma {sigma:g}, {result.sampling.n} draws for each sample")
    out.print(f"probabilistic: each claim is about the smoothed classifier and false with probability at most {result.sampling.alpha:g}")
