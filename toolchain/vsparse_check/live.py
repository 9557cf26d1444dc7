"""Recorded live verdicts: what a device answered about single frames, each derived again.

A device certifies by bounds in its own arithmetic (docs/numerics.md, section 14). None of that is
repeated here: a verdict is a claim about the network under the contract, so that the checker's own
float64 bounds decide it.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx

from vsparse_check.comparison import Certificates, exactly
from vsparse_check.files import read_file, read_json
from vsparse_check.limits import CALL, ResourceBudget
from vsparse_check.model import Model
from vsparse_check.refusal import need, reading
from vsparse_check.samples import read_inputs
from vsparse_check.verdicts import CertifyingForm, RecordedVerdict, VerdictReplay

LIVE, CURVE = "certificate/live.json", "certificate/curve.json"
MODEL, RECIPE = "model/model.fp32.onnx", "recipe.toml"
MAX_RECIPE = 2**20
LOWEST = -float(np.finfo(np.float32).max)  # the margin where nothing was found
FRAMES = 100  # verdicts that are recorded, or of all samples whose inputs are held
# An exact radius as such a record has it: small to read, whatever it says.
EXACT = re.compile(r"[0-9]{1,40}(\.[0-9]{1,40})?(e-?[0-9]{1,2})?|[0-9]{1,40}/[0-9]{1,40}", re.I)
LONGEST = 40  # characters of it
KEYS = {"id", "epsilon", "label", "certified", "margin", "radius"}


FLOAT = CertifyingForm("model/model.c", LIVE, MODEL, "sequential", "certificate")
INT8 = CertifyingForm(
    "model/model.int8.c", f"{LIVE}: int8", "model/model.int8.onnx", "int8", "certificate/int8"
)


class ReplayedVerdicts(NamedTuple):
    """How many verdicts were replayed, how many of them certify, and by interval bounds alone.

    Those of model.c, and those of model.int8.c.
    """

    frames: int = 0
    certified: int = 0
    by_interval: int = 0
    int8_frames: int = 0
    int8_certified: int = 0
    int8_by_interval: int = 0


def check_live(
    root: Path, files: set[str], certificates: Certificates, budget: ResourceBudget
) -> ReplayedVerdicts:
    """Returns what was replayed of the live verdicts that an artifact records.

    Refuted where a certified verdict does not follow, a margin or radius is more than what can be
    derived, a class is certainly another one, or the counts contradict the certificate.
    """
    if LIVE not in files:
        return ReplayedVerdicts()
    with reading(LIVE):
        record, main = read_json(root / LIVE), certificates["certificate"]
        clip = tuple(map(float, main["property"]["clip"]))
        need(tuple(record["clip"]) == clip, f"{LIVE} is about another data range")
        if CURVE in files and record["curve"]:
            _check_curves(record["curve"], read_json(root / CURVE), main["property"])
        there = "int8" in record
        need(
            there is (INT8.source in files),
            f"{LIVE} {'has' if there else 'lacks'} int8, and {INT8.source} is "
            f"{'not ' if there else ''}there",
        )
    floats = _check_form(root, FLOAT, record, certificates, budget)
    if not there:
        return ReplayedVerdicts(*floats)
    return ReplayedVerdicts(*floats, *_check_form(root, INT8, record["int8"], certificates, budget))


def _check_form(
    root: Path,
    form: CertifyingForm,
    record: dict[str, Any],
    certificates: Certificates,
    budget: ResourceBudget,
) -> tuple[int, int, int]:
    """Returns how many verdicts of one form were replayed, how many certify, and by intervals."""
    where, held = form.where, _held(certificates["certificate"])
    with reading(where):
        certificate = certificates.get(form.certificate)
        need(certificate is not None, f"{where} is about a network without a certificate")
        assert certificate is not None
        need(
            record["contract"] == form.contract,
            f"{where} is about another contract than {form.contract}",
        )
        same = record["network_sha256"] == certificate["model"]["sha256"]
        need(same, f"{where} is about another network than the certificate")
        clip = tuple(map(float, certificate["property"]["clip"]))
        _check_counts(where, record, certificate)
        _check_budget(root, form, record)
        frames = record["frames"]
        need(type(frames) is list, f"{where}: frames is no list of verdicts")
        verdicts = [_read_verdict(where, one) for one in frames[: FRAMES + 1]]
    distinct = len({(one.id, one.epsilon) for one in verdicts})
    need(distinct == len(verdicts), f"{where} records a verdict twice")
    wanted = min(FRAMES, len(held))
    need(len(frames) == wanted, f"{where}: frames has {len(frames)} verdicts, and not {wanted}")
    if not verdicts:
        return 0, 0, 0
    budget.spend(len(verdicts) * 20.0 * CALL)
    proto = onnx.ModelProto()
    proto.ParseFromString(read_file(root / form.model))
    model = Model(proto, budget)
    inputs = read_inputs(root / "certificate" / "inputs.npz", model.size_of_input, budget)
    replayed = VerdictReplay(form, model, inputs, clip).run(verdicts)
    _check_agreement(where, verdicts, record["at_epsilon"], certificate, held)
    return replayed


def _check_budget(root: Path, form: CertifyingForm, record: dict[str, Any]) -> None:
    """Refuses another number of backward passes than the recipe gives a form, and counts of none.

    A quantised network may lack a second tier, and its C then takes no pass whatever the recipe
    gives it. What intervals alone certify is counted where passes may follow.
    """
    where, passes, wanted = form.where, record.get("budget", 0), 0
    if (root / RECIPE).is_file():
        recipe = tomllib.loads(read_file(root / RECIPE, MAX_RECIPE).decode())
        wanted = recipe.get("deploy", {}).get("live_budget", 0)
    same = type(passes) is int and (passes == wanted or (form is INT8 and passes == 0))
    need(same, f"{where}: budget is not the {wanted} backward passes that recipe.toml gives it")
    for point in (record["at_epsilon"], *record["curve"]):
        counted = point.get("by_intervals") is not None
        need(
            counted is bool(passes),
            f"{where}: by_intervals is {'' if counted else 'not '}counted, and budget is {passes}",
        )


def _held(certificate: Mapping[str, Any]) -> list[int]:
    """Returns the ids of the samples whose inputs an artifact holds, in order."""
    return sorted(one["id"] for one in certificate["claims"] if one["verdict"] != "falsified")


def _check_agreement(
    where: str,
    verdicts: list[RecordedVerdict],
    counted: dict[str, Any],
    certificate: Mapping[str, Any],
    held: list[int],
) -> None:
    """Refuses verdicts on chosen samples, at another radius, or that the counts contradict.

    The samples are those held, evenly spaced, each at the radius that the counts are about.
    """
    parts = max(len(verdicts) - 1, 1)
    spaced = [held[(2 * i * (len(held) - 1) + parts) // (2 * parts)] for i in range(len(verdicts))]
    need([one.id for one in verdicts] == spaced, f"{where}: frames are of chosen samples")
    same = all(one.epsilon == counted["device_epsilon"] for one in verdicts)
    need(same, f"{where}: frames are at another radius than at_epsilon.device_epsilon")
    labels = {one["id"]: one["label"] for one in certificate["claims"]}
    certified = [one for one in verdicts if one.certified]
    right = sum(one.label == labels[one.id] for one in certified)
    left = len(verdicts) - len(certified), len(verdicts) - right
    fits = len(certified) <= counted["certified"] <= counted["samples"] - left[0]
    need(fits, f"{where}: at_epsilon.certified disagrees with the verdicts of frames")
    fits = right <= counted["right"] <= counted["samples"] - left[1]
    need(fits, f"{where}: at_epsilon.right disagrees with the verdicts of frames")


def _exact(where: str, point: dict[str, Any], name: str) -> Fraction:
    """Returns the radius of a point; Refuted where it is no exact number of a size to be read."""
    text = point["epsilon"]
    fits = type(text) is str and len(text) <= LONGEST and EXACT.fullmatch(text)
    need(bool(fits), f"{where}: {name}.epsilon is no exact number such as 0.1 or 8/255")
    return Fraction(text)


def _read_verdict(where: str, content: dict[str, Any]) -> RecordedVerdict:
    """Returns a verdict whose values are of their types; Refuted where it contradicts itself."""
    need(
        content.keys() == KEYS, f"{where}: a verdict has other keys than {', '.join(sorted(KEYS))}"
    )
    one = RecordedVerdict(**content)
    whole = type(one.id) is int and type(one.label) is int and type(one.certified) is bool
    numbers = (one.epsilon, one.margin, one.radius)
    finite = all(type(value) in (int, float) and np.isfinite(value) for value in numbers)
    need(whole and finite, f"{where}: a verdict has values of other types than are stated")
    name = f"{where}: sample {one.id}"
    need(one.certified is (one.margin > 0), f"{name}: its margin is not the sign of its verdict")
    need(one.epsilon >= 0 and one.radius >= -1, f"{name}: a radius is negative")
    found = one.label >= 0 or (not one.certified and one.radius == -1 and one.margin == LOWEST)
    need(found, f"{name}: something is certified, and no class told")
    return one


def _check_counts(where: str, record: dict[str, Any], certificate: Mapping[str, Any]) -> None:
    """Refuses counts that are no counts, or more at the radius than the claims leave possible.

    A sample that is certified is robust: its class is another one than its label, or it is not
    falsified. One that is so with the right class is classified correctly. The curve is drawn on
    samples that the certificate need not name: there, what is certified at a radius is so at
    smaller ones.
    """
    whole, curve = record["at_epsilon"], record["curve"]
    need(type(curve) is list, f"{where}: curve is no list of points")
    named = [("at_epsilon", whole), *((f"curve[{i}]", one) for i, one in enumerate(curve))]
    radii = [_check_point(where, point, name) for name, point in named]
    claims = certificate["claims"]
    radius = Fraction(str(certificate["property"]["epsilon"]))
    need(radii[0] >= radius, f"{where} counts at a smaller radius than is claimed")
    need(whole["samples"] == len(claims), f"{where} counts other samples than there are claims")
    classified = [one for one in claims if one["predicted"] == one["label"]]
    right = [one for one in classified if one["verdict"] != "falsified"]
    need(whole["right"] <= len(right), f"{where} counts falsified samples as certified")
    most = len(claims) - len(classified) + len(right)
    need(whole["certified"] <= most, f"{where} counts falsified samples as certified")
    for (small, before), (large, after) in pairwise(zip(radii[1:], curve, strict=True)):
        need(small <= large, f"{where}: the radii of curve are not in order")
        need(before["samples"] == after["samples"], f"{where}: curve is of several sets of samples")
        falls = all(before[name] >= after[name] for name in ("right", "certified"))
        need(falls, f"{where}: the counts of curve rise with epsilon")


def _check_curves(
    points: list[dict[str, Any]], stated: dict[str, Any], about: Mapping[str, Any]
) -> None:
    """Refuses a curve that certifies samples which the certificate's own curve calls broken.

    Both are drawn on the same samples. What is broken within a radius is so within a larger one.
    """
    samples = stated["samples"]
    same = type(samples) is int and all(point["samples"] == samples for point in points)
    need(same, f"{LIVE}: curve is of other samples than {CURVE}")
    if any(exactly(about.get(name, "0")) for name in ("brightness", "contrast")):
        return  # what breaks these need not lie in a ball
    for i, point in enumerate(points):
        epsilon = _exact(LIVE, point, f"curve[{i}]")
        for other in stated["sparse"]:
            robust = round(samples * other["attacked_accuracy"])
            need(
                exactly(other["epsilon"]) > epsilon or point["right"] <= robust,
                f"{LIVE}: curve[{i}].right counts samples that {CURVE} calls broken",
            )


def _check_point(where: str, point: dict[str, Any], name: str) -> Fraction:
    """Returns the exact radius of a point; Refuted where its counts or radii are none."""
    counts = [point[key] for key in ("right", "certified", "samples")]
    alone = point.get("by_intervals", 0)  # of a budget of backward passes
    fits = type(alone) is int and type(counts[1]) is int and 0 <= alone <= counts[1]
    need(fits, f"{where}: {name}.by_intervals is no count of what is certified")
    whole = all(type(count) is int for count in counts)
    need(whole and 0 <= counts[0] <= counts[1] <= counts[2], f"{where} has no counts of samples")
    epsilon, used = _exact(where, point, name), point["device_epsilon"]
    finite = type(used) in (int, float) and np.isfinite(used)
    need(finite, f"{where}: {name}.device_epsilon is no number")
    need(epsilon <= Fraction(used), f"{where}: {name}.device_epsilon is below epsilon")
    return epsilon
