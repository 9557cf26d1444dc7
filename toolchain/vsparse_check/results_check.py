"""results.json of a device against its folder: which files, executed and examined by what."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from vsparse_check.comparison import Content
from vsparse_check.device import certifying_of
from vsparse_check.device_results import (
    CERTIFYING,
    FOLDER,
    NS,
    RANKS,
    RESULTS,
    TimedRuns,
    failed_gates,
    is_count,
    is_number,
    is_verdict,
    read_results,
    timed_runs,
)
from vsparse_check.files import read_file, read_json
from vsparse_check.refusal import need

KIND = "vsparse-device-results"
# How an audit that passed says on how many inputs it ran.
RAN = re.compile(
    r"the logits of ([0-9]{1,9}) probe\(s\) lie inside their certified enclosures"
    r"|logits and margins of ([0-9]{1,9}) probe\(s\) keep within their bounds"
)
FASTER_ALONE = 10  # how many times faster a run for the meter may be than the least timed one
POWER = (
    "power_mw_mean",
    "idle_mw_mean",
    "window_s",
    "ms_per_run",
    "energy_mj_per_run_estimate",
)


def check_results(root: Path, files: set[str], target: Content) -> None:
    """Refuses results of a device that are about other files, or contradict themselves.

    And those that leave unexamined what the folder has inputs for.
    """
    results = read_results(root, files)
    if results is None:
        return
    known = results.get("kind") == KIND and results.get("schema_version") == 1
    need(known, f"{RESULTS} is of another kind")
    need(results.get("complete", True) is True, f"{RESULTS} is of a run that was cut short")
    need(
        results["target"] == target.get("name"),
        f"{RESULTS} is about another target than target.toml",
    )
    need(FOLDER in files, f"{RESULTS} is there without {FOLDER}")
    folder = read_json(root / FOLDER)
    need(
        results["manifest_sha256"] == hashlib.sha256(read_file(root / FOLDER)).hexdigest(),
        f"{RESULTS} is about another device folder than the artifact's",
    )
    said = results["device"].get("emulated")
    need(is_verdict(said), _wrong("device.emulated"))
    need(
        said is True or results["device"].get("emulator") is None,
        f"{RESULTS} names an emulator, and is not said to be emulated",
    )
    timing = results.get("timing", {})
    right = all(is_count(timing.get(key, 1), 1) for key in ("batch", "threads"))
    need(right, _wrong("timing"))
    named = [gate["name"] for gate in results["gates"] if gate["passed"] is not None]
    need(named.count("device") == 1, f"{RESULTS} does not say whether this is the target's device")
    need(
        all(is_verdict(gate["passed"]) for gate in results["gates"]),
        _wrong("gates"),
    )
    _check_files(results, folder)
    for one, expected, in_models in _measurements(results, folder):
        _check_measurement(one, expected, in_models, folder, timing)
    failed = failed_gates(results)
    need(
        results["passed"] is not bool(failed),
        f"{RESULTS}: passed contradicts its gates ({', '.join(failed[:3]) or 'none failed'})",
    )


def _wrong(key: str) -> str:
    """Returns what to say of a key that holds no value of its kind."""
    return f"{RESULTS}: {key!s:.60} is no value of its kind"


def _check_files(results: Content, folder: Content) -> None:
    """Refuses measurements of other files than the folder's, and a second one of a form."""
    wanted = [(one["role"], one["file"], one["sha256"]) for one in folder["models"]]
    found = [(one["role"], one["file"], one.get("onnx_sha256")) for one in results["models"]]
    need(found == wanted, f"{RESULTS} is about other models than the device folder's")
    known = {(*one, False) for one in wanted}
    known |= {
        (one["role"], one["file"], one["sha256"], True) for one in folder.get("c_sources", [])
    }
    known |= {(role, one["file"], one["sha256"], False) for role, one in certifying_entries(folder)}
    seen = [(one["role"], folder["target"]["runtime"]) for one in results["models"]]
    for one in results.get("further", []):
        in_c = bool(one.get("source_sha256"))
        digest = one.get("source_sha256") if in_c else one.get("onnx_sha256")
        need(
            (one["role"], one["file"], digest, in_c) in known,
            f"{RESULTS} is about other files than the device folder's",
        )
        seen.append((one["role"], _runtime(one, results, folder)))
    need(len(set(seen)) == len(seen), f"{RESULTS} measures a form twice in one runtime")


def certifying_entries(folder: Content) -> list[tuple[str, Content]]:
    """Returns the files that certify their own input, each with its role."""
    return [(str(one.get("role", CERTIFYING)), one) for one in certifying_of(folder)]


def _runtime(one: Content, results: Content, folder: Content) -> str:
    """Returns what executed a form; where nothing is said, the runtime of all, or the target's."""
    if one.get("source_sha256"):
        return str((one.get("runtime") or {}).get("name") or "c")
    told = [(part or {}).get("name") for part in (one.get("runtime"), results.get("runtime"))]
    return str(next((name for name in told if name), folder["target"]["runtime"]))


class _Expected(NamedTuple):
    """What the folder says of a form: its entry there, and what executed it."""

    entry: Content
    runtime: str


def _measurements(results: Content, folder: Content) -> Iterator[tuple[Content, _Expected, bool]]:
    """Yields each measurement with what the folder says of it, and whether it is of `models`."""
    entries = {one["role"]: one for one in folder["models"]}
    entries |= {one["role"]: one for one in folder.get("c_sources", [])}
    entries |= dict(certifying_entries(folder))
    for key in ("models", "further"):
        for one in results.get(key, []):
            runtime = _runtime(one, results, folder)
            yield one, _Expected(entries[one["role"]], runtime), key == "models"


def _check_measurement(
    one: Content, expected: _Expected, in_models: bool, folder: Content, timing: Content
) -> None:
    """Refuses a measurement that says other than the folder, or that its runs do not give."""
    entry, runtime, of = expected.entry, expected.runtime, f"{RESULTS}: {one['file']!s:.60}"
    in_c = bool(one.get("source_sha256"))
    ran = runtime == "c" if in_c else runtime in ("onnxruntime", "tensorrt")
    need(ran, f"{of} is said to be executed by what does not run it")
    own = in_models or in_c
    need(
        not in_models or runtime == folder["target"]["runtime"],
        f"{of} is said to be executed by another runtime than the target's",
    )
    says = one.get("deployed", True)
    need(says is True or (says is False and not own), f"{of} is deployed, and denies that")
    need(
        own or says is False or runtime == folder["target"]["runtime"],
        f"{of} is not deployed in another runtime than the target's",
    )
    for key in ("contract", "certificate_sha256"):
        stated = one.get(key, "")
        need(
            stated in ("", entry.get(key, "") or stated),
            f"{of} is measured under another {key} than the device folder names",
        )
    _check_gates(one, entry, runtime, of)
    latency = one.get("latency")
    need(latency is not None or one.get("fault"), f"{of} has neither runs nor a fault")
    if latency is not None:
        _check_latency(latency, of)
        batch = timing.get("batch", folder.get("timing", {}).get("batch", 1))
        said = one.get("settings", {}).get("batch", batch)
        wanted = 1 if one["role"].startswith(CERTIFYING) else batch
        need(is_count(said, 1) and said in (wanted, batch), f"{of} was timed with another batch")
        most = timing.get("threads", folder.get("timing", {}).get("threads", 1))
        said = one.get("settings", {}).get("threads_intra_op", 1)
        need(is_count(said, 1) and said <= most, f"{of} was timed with more threads")
        call = one.get("settings", {}).get("call", "")
        need(
            not in_c or call in ("", f"{entry['prefix']}_logits"),
            f"{of} was timed by another function than its inference",
        )
    _check_costs(one, of)


def _check_gates(one: Content, entry: Content, runtime: str, of: str) -> None:
    """Refuses gates that leave out what the folder has inputs for, or a runtime must show."""
    gates, ran = one["gates"], not one.get("fault")
    names = [gate["name"] for gate in gates]
    need(len(set(names)) == len(names), f"{of} has two gates of one name")
    for gate in gates:
        need(is_verdict(gate["passed"]), f"{of} has a gate that is neither passed nor failed")
        need(isinstance(gate["detail"], str), f"{of} has a gate without words")
    stopped = any(gate["passed"] is False for gate in gates)
    need(ran or stopped, f"{of} has a fault and no failed gate")
    judged = {gate["name"]: gate["passed"] for gate in gates}
    probes = len(entry.get("probes", []))
    need(
        not probes or judged.get("audit") is not None or not ran,
        f"{of} was not audited, and the device folder has {probes} inputs for that",
    )
    for gate in gates:
        if gate["name"] == "audit" and gate["passed"]:
            told = RAN.fullmatch(gate["detail"])
            need(
                told and int(told[1] or told[2]) == probes > 0,
                f"{of} passed its audit on other inputs than the {probes} of the device folder",
            )
    needed = ["arithmetic"] if runtime == "tensorrt" else []
    needed += ["refusal"] if one["role"].startswith(CERTIFYING) and runtime == "onnxruntime" else []
    for name in needed:
        need(judged.get(name) is not None or not ran, f"{of}: {name} was not examined")


def _check_latency(latency: Content, of: str) -> None:
    """Refuses counts and numbers that the timed runs do not give, of all or of those kept."""
    runs = timed_runs(latency, of)
    kept = TimedRuns(runs.samples)
    need(latency.get("runs", kept.total) == kept.total, f"{of} counts other runs than it holds")
    timed = latency.get("runs_timed", runs.total)
    need(
        is_count(timed, kept.total) and (not runs.counts or timed == runs.total),
        f"{of} counts other timed runs than it holds",
    )
    if runs.counts:
        held = {round(time * NS): count for time, count in runs.counts}
        for sample in runs.samples:
            place = round(min(sample, 1e12) * NS)
            held[place] = held.get(place, 0) - 1
            need(held[place] >= 0, f"{of} holds runs that it does not count")
    stated = {key: (kept.percentile(rank), runs.percentile(rank)) for key, rank in RANKS.items()}
    mean = math.fsum(kept.samples) / kept.total
    stated["latency_ms_mean"] = (mean, runs.mean if runs.counts else mean)
    for place, key in enumerate(("latency_ms_min", "latency_ms_max")):
        stated[key] = (kept.ends[place], runs.ends[place])
    for key, right in stated.items():
        value = latency.get(key)
        near = value is None or (
            is_number(value)
            and any(math.isclose(value, one, rel_tol=1e-9, abs_tol=1e-12) for one in right)
        )
        need(near, f"{of}: {key} is not that of the timed runs")
    medians = latency.get("block_medians_ms", [])
    need(all(is_number(one) and one >= 0 for one in medians), f"{of} has medians that are no times")


def _check_costs(one: Content, of: str) -> None:
    """Refuses memory and energy that are no such numbers."""
    memory, power = one.get("memory") or {}, one.get("power") or {}
    for key in ("process_bytes_before", "process_peak_bytes"):
        need(memory.get(key) is None or is_count(memory[key]), f"{of}: {key} is no size")
    for key in (
        "power_mw_mean",
        "idle_mw_mean",
        "window_s",
        "ms_per_run",
        "energy_mj_per_run_estimate",
    ):
        value = power.get(key)
        need(value is None or (is_number(value) and value >= 0), f"{of}: {key} is no such number")
    peak = memory.get("process_peak_bytes")
    need(
        peak is None or peak >= (memory.get("process_bytes_before") or 0),
        f"{of}: its process took less at its peak than before",
    )
    stated, each = power.get("energy_mj_per_run_estimate"), power.get("ms_per_run")
    if stated is None:
        return
    need(one.get("latency") is not None, f"{of} has an energy, and no run was timed")
    runs = timed_runs(one["latency"], of)
    # Of an engine power is over the timed runs, and else over runs of its own.
    times = [each] if each is not None else [math.fsum(runs.samples) / len(runs.samples)]
    if each is None and runs.counts:
        times.append(runs.mean)
    need(
        each is None or each >= min(runs.samples) / FASTER_ALONE,
        f"{of}: the runs for the meter took less time than any timed one",
    )
    wanted = [power["power_mw_mean"] * time / 1000 for time in times]
    near = any(math.isclose(stated, energy, rel_tol=1e-6, abs_tol=1e-12) for energy in wanted)
    need(near, f"{of}: the energy of a run is not its power over its time")
