"""What an artifact's files say of each form: which file it is, its bytes, and its latencies.

choice.json repeats them, and recipe.toml sets limits to them.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from vsparse_check.comparison import Content, same_value
from vsparse_check.device_results import (
    EMULATED,
    FOLDER,
    NOT_CERTIFIED,
    ON_DEVICE,
    RESULTS,
    ROLES,
    TimedRuns,
    counted,
    counts_for_target,
    deployed,
    failed_gates,
    is_emulated,
    is_number,
    read_results,
    state_of,
    timed_runs,
    uncertified,
)
from vsparse_check.files import read_file, read_json
from vsparse_check.layout import PRECISIONS
from vsparse_check.refusal import need

# The file of each form, by its name in the table.
FILES = {
    "sparse": "model/model.fp32.onnx",
    "sequential": "model/model.c",
    "dense": "model/dense.fp32.onnx",
    **{name: f"model/model.{name}.onnx" for name in PRECISIONS},
    "int8-c": "model/model.int8.c",
}
# What is on record of the C source of a form.
C_RECORDS = {"sequential": "model/c_source.json", "int8-c": "model/c_source.int8.json"}
# Where the build's own runs of each form lie, and under which key of the file.
TIMED = {
    "sparse": ("profile/onnxruntime-fp32.json", "packed"),
    "sequential": ("profile/forms/sequential.json", "packed"),
    "dense": ("profile/onnxruntime-fp32.json", "dense"),
    **{name: (f"profile/precisions/{name}.json", "packed") for name in PRECISIONS},
    "int8-c": ("profile/forms/int8-c.json", "packed"),
}
PACKED_TO_DENSE = "packed latency as a fraction of dense"
WHOLE = "certificates"  # a gate of every artifact that was built to the end
MIB = 2**20
# What a header of C source says of its constants: with vectors, without, or of its one text.
CONSTANTS = re.compile(r"(With vectors: |Without: |   )([0-9]+) bytes of constants")
SPEED = re.compile(r"(slower|faster) than fp32: ([0-9.]+)( times its time| of its time)")


class FormTimes(NamedTuple):
    """The latencies of forms by name, each its timed runs in ms, and what they were measured on.

    `there` is what the target's device measured of each form, `results` all that a device did.
    """

    runs: Mapping[str, TimedRuns]
    measured_on: str
    there: Mapping[str, Content] = MappingProxyType({})
    results: Content | None = None


def check_measured(
    root: Path, files: set[str], choice: Content, target: Content, recipe: Content
) -> None:
    """Refuses a table of forms whose files, bytes or latencies are not those of the artifact.

    `target` and `recipe` are the contents of target.toml and recipe.toml.
    """
    times = _times(root, files, target, recipe)
    need(
        choice["measured_on"] == times.measured_on,
        "choice.json: measured_on is not what the latencies of profile/ were measured on",
    )
    bare = target.get("device", {}).get("kind") == "microcontroller"
    for row in choice["rows"]:
        name = row["name"]
        need(row["file"] == FILES[name], f"choice.json: {name} is not the file {FILES[name]}")
        size = _bytes(root, files, name, bare)
        need(
            row["bytes"] == size and not isinstance(row["bytes"], bool),
            f"choice.json: bytes of {name} are {row['bytes']!s:.20}, and those of {FILES[name]} "
            f"{'are not on record' if size is None else size}",
        )
        _check_latency(row, times)
        _check_costs(row, times)
        if name != "dense":
            _check_limits(row, times, recipe)
        if bare and name in C_RECORDS:
            _check_memory(root, files, row, target, recipe)


def _bytes(root: Path, files: set[str], name: str, bare: bool) -> int | None:
    """Returns the bytes of a form's file; of C source those of its constants, as it says itself.

    A bare processor compiles the float32 text without vectors.
    """
    file = FILES[name]
    if file not in files:
        return None
    if not file.endswith(".c"):
        return (root / file).stat().st_size
    header = read_file((root / file).with_suffix(".h")).decode()
    found = {words.strip(): int(count) for words, count in CONSTANTS.findall(header)}
    if name == "int8-c":
        return found[""]
    return found["Without:" if bare else "With vectors:"]


def check_device_gates(
    root: Path, files: set[str], gates: Any, target: Content, recipe: Content | None = None
) -> None:
    """Refuses gates.json where it judges what a device measured otherwise than its results say.

    Models and C source always count; an ONNX file in a further runtime only where it is deployed.
    What an emulator passed, and what no device of the target measured, is neither passed nor
    failed.
    """
    results, told = read_results(root, files), {gate["name"]: gate for gate in gates or ()}
    judged = told.get(ON_DEVICE)
    if WHOLE in told:
        wanted = [PACKED_TO_DENSE] if (recipe or {}).get("gates", {}).get("latency_ratio") else []
        if FOLDER in files and not _runs_here(target, _machine(root, files)):
            wanted.append(ON_DEVICE)
        for name in wanted:
            need(name in told, f"gates.json leaves out a gate that only the target settles: {name}")
    if results is None:
        need(
            judged is None or judged["passed"] is None,
            f"gates.json judges the {ON_DEVICE}, and there is no {RESULTS}",
        )
    else:
        need(
            results["target"] == target.get("name"),
            f"{RESULTS} is about another target than target.toml",
        )
        if gates is not None:
            _check_judged(results, judged)
    _check_ratio(root, files, told.get(PACKED_TO_DENSE), target, recipe or {})


def _check_judged(results: Content, judged: Content | None) -> None:
    """Refuses a gate on the device that was judged otherwise than its results say."""
    failed = failed_gates(results)
    need(
        results["passed"] is not bool(failed),
        f"{RESULTS}: passed contradicts its gates ({', '.join(failed[:3]) or 'none failed'})",
    )
    every = [gate for one in counted(results) for gate in one["gates"]] + results["gates"]
    state = state_of(every, is_emulated(results))
    need(
        judged is not None,
        f"gates.json leaves out the {ON_DEVICE}"
        + (f", and {failed[0]} failed there" if failed else f", and {RESULTS} is there"),
    )
    if judged is None or not every:
        return
    need(
        judged["passed"] is state,
        f"gates.json calls the gates on the device reached, and {failed[0]} failed there, "
        f"as {RESULTS} says"
        if failed
        else f"gates.json judges the {ON_DEVICE} otherwise than {RESULTS}, "
        f"{'which an emulator wrote' if is_emulated(results) else 'where none failed'}",
    )
    said = str(judged.get("got", f"{NOT_CERTIFIED}, {EMULATED}"))
    need(
        not uncertified(results) or NOT_CERTIFIED in said,
        f"gates.json does not say that the artifact is {NOT_CERTIFIED}, as {RESULTS} shows",
    )
    need(
        not is_emulated(results) or EMULATED in said,
        f"gates.json does not say that the {ON_DEVICE} are of an emulated one, as {RESULTS} does",
    )


def _check_ratio(
    root: Path, files: set[str], gate: Content | None, target: Content, recipe: Content
) -> None:
    """Refuses a ratio of latencies judged by other numbers than the target's, or otherwise."""
    limit = recipe.get("gates", {}).get("latency_ratio")
    if gate is None or not limit:
        return
    times = _times(root, files, target, recipe)
    if not times.measured_on:
        need(
            gate["passed"] is None,
            f"gates.json: {PACKED_TO_DENSE} is judged, and nothing was measured on the target",
        )
        return
    if times.results is None or not times.there:
        return  # of the build's own runs, in one alternation
    packed, dense = times.runs.get("sparse"), times.runs.get("dense")
    base = None if dense is None else dense.percentile(50)
    ratio = packed.percentile(50) / base if packed is not None and base else None
    near = ratio is not None and abs(ratio - limit) <= 1e-12 * limit
    need(
        near or gate["passed"] is (ratio is not None and ratio < limit),
        f"gates.json: {PACKED_TO_DENSE} is judged otherwise than {RESULTS} says",
    )


def _times(root: Path, files: set[str], target: Content, recipe: Content) -> FormTimes:
    """Returns the latencies on the target: the device's own, or the build's where it ran there."""
    results = read_results(root, files)
    if results is not None:
        folder = hashlib.sha256(read_file(root / FOLDER)).hexdigest() if FOLDER in files else ""
        need(
            results["manifest_sha256"] == folder,
            f"{RESULTS} is about another device folder than the artifact's",
        )
    if results is not None and counts_for_target(results, recipe):
        every = deployed(results)
        there = {name: every[role] for name, role in ROLES.items() if role in every}
        found = {
            name: timed_runs(one["latency"], RESULTS)
            for name, one in there.items()
            if one.get("latency") is not None
        }
        return FormTimes(found, target["name"], there, results)
    machine = _machine(root, files)
    if not _runs_here(target, machine):
        return FormTimes({}, "", results=results)
    own = {}
    for name, (file, key) in TIMED.items():
        latency = read_json(root / file).get(key) if file in files else None
        if latency is not None:
            own[name] = timed_runs({"samples_ms": latency["samples_ms"]}, file)
    return FormTimes(own, machine if own else "", results=results)


def _machine(root: Path, files: set[str]) -> str:
    """Returns the processor that the build measured on, of the first file that names one."""
    for file in sorted(files):
        if file.startswith("profile/") and file.count("/") == 1 and file.endswith(".json"):
            machine = read_json(root / file)["packed"].get("machine", {})
            name = machine.get("processor") or machine.get("architecture")
            if name:
                return str(name)
    return "an unnamed processor"


def _runs_here(target: Content, machine: str) -> bool:
    """Returns whether a target is the machine that built, or a board that its processor names."""
    device = target.get("device", {})
    kind, module = device.get("kind", "host"), str(device.get("module", ""))
    runs = target.get("runtime", {}).get("name") == "onnxruntime"
    board = runs and kind == "raspberry-pi" and bool(module) and module.lower() in machine.lower()
    return kind == "host" or board


def percentile(runs: Sequence[float], rank: int) -> float:
    """Returns a percentile as trtexec defines it: always one of the runs."""
    return TimedRuns(runs).percentile(rank)


def _check_latency(row: Content, times: FormTimes) -> None:
    """Refuses latencies, a ratio or words on it that the timed runs do not give."""
    name, runs, main = row["name"], times.runs.get(row["name"]), times.runs.get("sparse")
    p50 = None if runs is None else runs.percentile(50)
    p99 = None if runs is None else runs.percentile(99)
    for key, value in (("latency_ms_p50", p50), ("latency_ms_p99", p99)):
        need(
            _same(row[key], value),
            f"choice.json: {key} of {name} is {row[key]!s:.20}, and its timed runs give {value}",
        )
    base = None if main is None else main.percentile(50)
    ratio = p50 / base if p50 is not None and base else None
    need(
        _same(row["latency_ratio"], ratio if ratio is not None and math.isfinite(ratio) else None),
        f"choice.json: latency_ratio of {name} is not that of the medians",
    )
    said = SPEED.fullmatch(row["speed"])
    if said is None:
        # Otherwise it is as fast, within noise, or there is nothing to compare.
        need("er than fp32" not in row["speed"], _speed(name))
        return
    need(ratio is not None and said[2] == f"{ratio:.2f}", _speed(name))
    need((said[1] == "slower") is ((ratio or 0) > 1), _speed(name))


def _check_costs(row: Content, times: FormTimes) -> None:
    """Refuses energy, memory and gates on the device that the device's results do not give."""
    name, one = row["name"], times.there.get(row["name"]) or {}
    power, memory = one.get("power") or {}, one.get("memory") or {}
    for key, value in (
        ("energy_mj", power.get("energy_mj_per_run_estimate")),
        ("peak_bytes", memory.get("process_peak_bytes")),
    ):
        need(
            _same(row.get(key), value),
            f"choice.json: {key} of {name} is {row.get(key)!s:.20}, and {RESULTS} gives {value}",
        )
    if times.results is None or name == "dense":
        return
    run = deployed(times.results).get(ROLES[name])
    gates = [gate["passed"] for gate in row["gates"] if gate["name"] == ON_DEVICE]
    state = None if run is None else state_of(run["gates"], is_emulated(times.results))
    need(
        gates in ([], [None]) if run is None else gates == [state],
        f"choice.json: the {ON_DEVICE} of {name} are judged otherwise than {RESULTS} says",
    )


def _speed(name: str) -> str:
    """Returns what to say of words that the medians contradict."""
    return f"choice.json: speed of {name} says other than the medians"


def _same(found: Any, wanted: float | None) -> bool:
    """Returns whether a number of a document is the one that follows, or both are none."""
    if found is None or wanted is None:
        return found is None and wanted is None
    return is_number(found) and same_value(found, wanted)


def _check_limits(row: Content, times: FormTimes, recipe: Content) -> None:
    """Refuses gates on bytes and latency that are judged otherwise than recipe.toml asks for.

    Those of a row that was compared with the files before.
    """
    choose, limits = recipe.get("choose", {}), recipe.get("gates", {})
    dense = times.runs.get("dense")
    base = None if dense is None else dense.percentile(50)
    p50 = row["latency_ms_p50"]
    size = math.inf if row["bytes"] is None else row["bytes"]
    wanted = {
        "bytes": (choose.get("bytes"), size),
        "latency p50": (choose.get("latency_ms_p50"), p50),
        "latency p99": (choose.get("latency_ms_p99"), row["latency_ms_p99"]),
        "ratio to dense": (
            limits.get("latency_ratio"),
            p50 / base if p50 is not None and base else None,
        ),
        "energy": (choose.get("energy_mj"), row.get("energy_mj")),
        "memory": (
            choose.get("memory_mib"),
            None if row.get("peak_bytes") is None else row["peak_bytes"] / MIB,
        ),
    }
    judged = {gate["name"]: gate["passed"] for gate in row["gates"]}
    for gate, (limit, value) in wanted.items():
        if not limit:
            continue
        right = gate in judged
        if value is None:
            right = right and judged[gate] is None
        elif abs(value - limit) > 1e-12 * limit:
            right = right and judged[gate] is (value < limit)
        need(
            right,
            f"choice.json: {gate} of {row['name']} is judged otherwise than recipe.toml asks for",
        )


def _check_memory(
    root: Path, files: set[str], row: Content, target: Content, recipe: Content
) -> None:
    """Refuses gates on a microcontroller's flash and RAM that are judged otherwise than on record.

    The smaller of the recipe's limit and what the target has decides; without a compiler for the
    target there is no measurement, and the gate is open.
    """
    file = C_RECORDS[row["name"]]
    taken = read_json(root / file).get("footprint") if file in files else None
    judged = {gate["name"]: gate["passed"] for gate in row["gates"]}
    for memory, name in (("flash", "flash"), ("ram", "RAM")):
        limit = target["device"]["facts"][memory]["value"]
        asked = recipe.get("gates", {}).get(f"{memory}_kib")
        limit = min(asked, limit) if asked else limit
        value = None if taken is None else taken[f"{memory}_bytes"] / 1024
        # Bytes by 1024 are exact, so that what is met to the byte is met.
        need(
            name in judged and judged[name] is (None if value is None else value <= limit),
            f"choice.json: {name} of {row['name']} is judged otherwise than {file} and the limits "
            "of recipe.toml and target.toml say",
        )
