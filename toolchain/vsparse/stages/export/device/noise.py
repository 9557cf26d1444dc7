"""What made a measurement noisy: each reason with its value and the limit that it is over."""

from __future__ import annotations

from typing import Any

from vsparse.stages.export.device.latency import spread

# docs/how-to-device.md, section Noise; benchmarks/device/noise.py shows values of quiet runs and of runs beside busy loops.
NOISE_LIMITS = {
    "tail": 3.0,
    "drift": 0.05,
    "waited": 0.05,
    "other processes": 0.1,
    "stolen": 0.05,
    "load": 1.5,
    "clocks": 0.05,
}


def over(found: list[dict[str, Any]], name: str, value: float | None, words: str, more: str = "") -> None:
    """Adds a reason where its value is over its limit; a value of None could not be examined."""
    if value is not None and value > NOISE_LIMITS[name]:
        found.append({"name": name, "value": value, "limit": NOISE_LIMITS[name], "detail": words.format(value) + more})


def noise_of(latency: dict[str, Any], conditions: dict[str, Any] | None, warmup: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Returns why the times of a form are noisy; none where nothing that could be examined says so.

    `latency` as `Counted` tells it, `conditions` as `Watch` does: a reason is a `name`, the `value`, the `limit` that it is over, and the
    same in words, `detail`.
    """
    found: list[dict[str, Any]] = []

    p50 = latency["latency_ms_p50"]
    over(found, "tail", latency["latency_ms_p99"] / p50 if p50 else None, "the 99th percentile is {:.1f} times the median")
    medians = latency.get("block_medians_ms") or []
    over(found, "drift", spread(medians) if len(medians) > 2 else None, "the medians of its turns vary by {:.0%}, their standard deviation")
    share = latency.get("processor_share")
    over(found, "waited", None if share is None else 1 - share, "it waited for a processor {:.0%} of the time")
    if warmup is not None and warmup.get("stable") is False:
        found.append({"name": "warm-up", "value": 0.0, "limit": 1.0, "detail": "warm-up did not become stable"})
    return found + ([] if conditions is None else noise_of_conditions(conditions))


def note_noise(entries: list[dict[str, Any]], conditions: dict[str, Any]) -> None:
    """Adds to each entry that was timed what made its times noisy; an empty list where nothing did."""
    for entry in entries:
        if "latency" in entry:
            entry["noise"] = noise_of(entry["latency"], conditions, entry.get("warmup"))


def noise_of_conditions(conditions: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns what of the state of the machine makes times noisy, whatever is timed."""
    found: list[dict[str, Any]] = []
    before, timed, after = (conditions[key] for key in ("before", "timed", "after"))

    who = ", ".join("{name} {cores:.2f}".format(**one) for one in timed["others"])
    over(found, "other processes", timed["others_cores"], "other processes took {:.2f} cores", f" ({who})" if who else "")
    over(found, "stolen", timed["stolen_cores"], "the host of this virtual machine took {:.2f} cores")
    cores, load = before["cores"], before["load_average_1min"]
    over(found, "load", load / cores if load is not None and cores else None, "the load average before was {:.1f} times the cores")
    low, high = timed["clocks_mhz_min"], timed["clocks_mhz_max"]
    changes = {name: high[name] / low[name] - 1 for name in high if low.get(name)}
    widest = max(changes, key=lambda name: changes[name]) if changes else ""
    if widest:
        more = f": that of {widest} from {low[widest]:.0f} to {high[widest]:.0f} MHz"
        over(found, "clocks", changes[widest], "the clocks changed by {:.0%}", more)
    for name, said, happened in (
        ("governor", "the governor of the clocks was changed meanwhile", before["governors"] != after["governors"]),
        ("throttled", "it was throttled", bool(conditions.get("throttled"))),
    ):
        if happened:
            found.append({"name": name, "value": 1.0, "limit": 0.0, "detail": said})
    return found
