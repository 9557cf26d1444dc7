"""Frama-C's Eva on a network in C: whether any execution of the text without vectors is undefined, or has a number that is not finite.

Eva interprets the text on intervals. Every loop is unrolled, so that each sum has the interval of its own weights. The arena is not
initialised: a read of what the network did not write is an alarm too. Nothing is assumed but the range of the inputs; of the live
certificate not even that.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from vsparse.artifact.models import CAnalysis
from vsparse.errors import UnavailableError
from vsparse.stages.export.c_source.literals import float_literal

TOOL = "frama-c"
# Pointers one past the end may be made, and none beyond. Without __GNUC__ the text is that of C99 without vectors.
OPTIONS = (
    *("-eva", "-eva-auto-loop-unroll", "100000000", "-warn-invalid-pointer", "-machdep", "gcc_x86_64"),
    *("-eva-no-results", "-eva-no-show-progress", "-eva-msg-key=-final-states,-initial-state,-loop-unroll:auto"),
)
# For the live certificate, which infinite numbers and NaN may enter.
ANY_FLOAT = ("-warn-special-float", "none")
_KERNELS = Path(__file__).resolve().parent / "kernels"
_DRIVER, _LIVE_DRIVER, _RADIUS_DRIVER, _BUDGET_DRIVER = (_KERNELS / f"{name}.c" for name in ("eva", "eva_live", "eva_radius", "eva_budget"))
_MOST_ALARMS = 20
_ALARM = re.compile(r"^\[eva:alarm\] (\S+?): Warning:\s*\n((?:  .*\n)+)", re.MULTILINE)


def find_eva() -> str:
    """Returns the path of Frama-C; UnavailableError where this machine has none."""
    path = shutil.which(TOOL)
    if path is None:
        raise UnavailableError(f"{TOOL} is not on the path, so the C is not analysed here; install it (Debian: frama-c-base)")
    return path


def eva_version() -> str:
    """Returns what Frama-C calls its version, or `absent`."""
    try:
        done = subprocess.run([find_eva(), "-version"], capture_output=True, text=True, timeout=60, check=False)
    except (UnavailableError, OSError, subprocess.TimeoutExpired):
        return "absent"
    return f"Frama-C {done.stdout.strip()}"


@dataclass(frozen=True)
class EvaRequest:
    """What is asked of Eva: the range of an input's elements, the seconds after which it is ended, and whether `radius` is entered too.

    `PREFIX_radius` is made of up to ten of the interval passes that the verdict is made of, so that Eva takes as many times as long.
    """

    lowest: float = 0.0
    highest: float = 1.0
    seconds: float = 600.0
    radius: bool = False


def analyse(files: Mapping[str, str | bytes], source: str, prefix: str, asked: EvaRequest) -> CAnalysis:
    """Analyses a network in C, `source` among its files with weights as text; where it has the live certificate that too, after it.

    The inference is entered with inputs of the stated range, both tiers of the live certificate with any finite input, radius and budget:
    there a sum that is infinite or not a number is no alarm, as it is what answers that nothing is certified. Raises UnavailableError
    without Frama-C. Where it does not finish in time nothing is known, and the result says so.
    """
    begin = monotonic()
    found = _entered(_DRIVER, (), files, source, prefix, asked, asked.seconds)
    if not found.finished or f"{prefix}_certify_in" not in str(files[source]):
        return found
    parts = [found]
    second = [_BUDGET_DRIVER] if f"{prefix}_certify_budget_in" in str(files[source]) else []
    for driver in (_LIVE_DRIVER, *second, *([_RADIUS_DRIVER] if asked.radius else [])):
        live = _entered(driver, ANY_FLOAT, files, source, prefix, asked, asked.seconds - (monotonic() - begin))
        if not live.finished:
            return CAnalysis(**_about(asked), finished=False, reason=f"the live certificate: {live.reason}")
        parts.append(live)
    return CAnalysis(
        **_about(asked),
        finished=True,
        reason="",
        alarms=sum(one.alarms or 0 for one in parts),
        found=tuple(line for one in parts for line in one.found)[:_MOST_ALARMS],
        reached=sum(one.reached or 0 for one in parts),
        statements=sum(one.statements or 0 for one in parts),
    )


def _about(asked: EvaRequest) -> dict[str, Any]:
    return {"tool": eva_version(), "options": OPTIONS, "inputs": (asked.lowest, asked.highest)}


def _entered(
    driver: Path, more: tuple[str, ...], files: Mapping[str, str | bytes], source: str, prefix: str, asked: EvaRequest, seconds: float
) -> CAnalysis:
    """Returns what Eva says of one entry, a driver of `kernels/`, within some seconds."""
    command, capitals, about = [find_eva(), *OPTIONS, *more], prefix.upper(), _about(asked)
    names = {"HEADER": source.removesuffix(".c") + ".h", "PREFIX": capitals, "prefix": prefix}
    names |= {"LOWEST": float_literal(asked.lowest), "HIGHEST": float_literal(asked.highest)}
    text = driver.read_text(encoding="utf-8")
    for name, value in names.items():
        text = text.replace(f"@{name}@", value)
    with tempfile.TemporaryDirectory(prefix="vsparse-eva-") as name:
        folder = Path(name)
        for file, content in {**files, "eva.c": text}.items():
            (folder / file).write_text(str(content), encoding="utf-8")
        command += [f"-cpp-extra-args=-U__GNUC__ -D{capitals}_NO_STATIC_ARENA", "eva.c", source]
        try:
            # It looks for files in $PWD, which a change of the folder leaves as it was.
            where = {**os.environ, "PWD": name}
            done = subprocess.run(command, cwd=folder, env=where, capture_output=True, text=True, timeout=max(seconds, 0.01), check=False)
        except subprocess.TimeoutExpired:
            return CAnalysis(**about, finished=False, reason=f"not done after {asked.seconds:g} s")
    return read_summary(done.stdout, about)


def read_summary(said: str, about: Mapping[str, Any]) -> CAnalysis:
    """Returns what Eva's output says; not finished where it has no summary, or says that the analysis did not come to its end."""
    alarms = re.search(r"^  (\d+) alarms? generated by the analysis", said, re.MULTILINE)
    reached = re.search(r"(\d+) statements reached \(out of (\d+)\)", said)
    errors = re.search(r"by the Eva analyzer: +(\d+) errors?", said)
    unknown = re.search(r"Preconditions +\d+ valid +(\d+) unknown +(\d+) invalid", said)
    aborted = "NON TERMINATING" in said or "User Error" in said or (errors is not None and int(errors[1]))
    if alarms is None or reached is None or aborted:
        first = next((line for line in said.splitlines() if "Error" in line or "NON TERMINATING" in line), "no summary")
        return CAnalysis(**about, finished=False, reason=first.strip()[:200])
    found = [f"{place}: {' '.join(words.split())}"[:200] for place, words in _ALARM.findall(said)]
    return CAnalysis(
        **about,
        finished=True,
        reason="",
        alarms=int(alarms[1]) + (int(unknown[1]) + int(unknown[2]) if unknown else 0),
        found=tuple(found[:_MOST_ALARMS]),
        reached=int(reached[1]),
        statements=int(reached[2]),
    )
