"""Forgeries of a whole artifact, each made to fit as well as one who knows the format can: none of them may be confirmed.

An artifact is forged in place: whatever is stated about it elsewhere (hashes, summaries, stamps, the manifest) is made to agree, but for
the very thing that the forgery is about.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from forging import CERTIFICATES, each, load, rewritten, save, sign, sign_device, store, strip
from onnx import numpy_helper

from vsparse_check.certificate import digest
from vsparse_check.contracts import CONTRACTS


def device_model(folder: Path) -> None:
    """Other weights on the device than those that were certified."""
    model = onnx.load(folder / "device/model.fp32.onnx")
    for tensor in model.graph.initializer:
        value = numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array(-value if value.dtype.kind == "f" else value, tensor.name))
    (folder / "device/model.fp32.onnx").write_bytes(model.SerializeToString())
    sign_device(folder)


def device_source(folder: Path) -> None:
    """Other C source on the device than beside the model."""
    (folder / "device/model.c").write_text("void vsparse_logits(const float *input, float *logits) { logits[0] = input[0]; }\n")


def source(folder: Path) -> None:
    """The same other weights in C everywhere: only who writes C source can tell."""
    for place in ("model", "device"):
        path = folder / place / "model_weights.h"
        path.write_text(path.read_text().replace("f,", "1f,"))
    sign_device(folder)


def agent(folder: Path) -> None:
    """An agent that passes whatever a device computes."""
    path = folder / "device" / "agent.py"
    path.write_text(path.read_text().replace('gate("audit", False', 'gate("audit", True'))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    rewritten(folder, "device/manifest.json", lambda content: content.update(agent_sha256=digest))


def other_agent(folder: Path) -> None:
    """An agent that the manifest of its folder does not know."""
    (folder / "device" / "agent.py").write_text("print()\n")


def probes_of_c(folder: Path) -> None:
    """Probes of model.c whose enclosures any logits lie in."""

    def change(content: dict) -> None:
        for probe in content["c_sources"][0]["probes"]:
            probe.update(lower=[-1e6] * len(probe["lower"]), upper=[1e6] * len(probe["upper"]))

    rewritten(folder, "device/manifest.json", change)


def contract_of_c_there(folder: Path) -> None:
    """A device folder that lets model.c be judged by another contract."""
    rewritten(folder, "device/manifest.json", lambda content: content["c_sources"][0].update(contract="real"))


def report(folder: Path) -> None:
    """A report that says 100 %."""
    shares = {"certified_share": 1.0, "attacked_share": 1.0, "clean_share": 1.0}
    rewritten(folder, "report.json", lambda content: content["sparse"].update(shares))


def report_of_another_kind(folder: Path) -> None:
    """Figures of a regression beside those of classes."""
    rewritten(folder, "report.json", lambda content: content["sparse"].update(regression={"mean_absolute_error": 0.0}))


def requirement(folder: Path) -> None:
    """A requirement that is said to be met, by a gate that nothing judged."""
    requirement_left_out(folder)
    said = {"id": "R1", "text": "t", "gate": "gates on the device", "wanted": "", "got": "", "status": "met"}
    rewritten(folder, "report.json", lambda content: content.update(requirements=[said]))


def requirement_left_out(folder: Path) -> None:
    """A requirement of the recipe that the report does not tell."""
    path = folder / "recipe.toml"
    path.write_text(path.read_text() + '\n[[requirements]]\nid = "R1"\ntext = "t"\ngate = "gates on the device"\n')


def report_rows(folder: Path) -> None:
    """A report whose table of certificates says 100 %."""
    rewritten(folder, "report.json", lambda content: [row.update(certified_share=1.0) for row in content["certificates"]])


def gates(folder: Path) -> None:
    """Gates that say more than the claims."""

    forged = {"name": "certified accuracy", "wanted": "at least 99 %", "got": "100.00 %", "passed": True}

    def change(content: Any) -> None:
        listed = content if isinstance(content, list) else content["gates"]
        listed[:] = [gate for gate in listed if gate["name"] != forged["name"]] + [forged]

    rewritten(folder, "gates.json", change)
    rewritten(folder, "report.json", change)


def gate_left_out(folder: Path) -> None:
    """Gates without one that the recipe asks for, and that the network fails."""
    path = folder / "recipe.toml"
    path.write_text(re.sub(r"\ncertified_accuracy = [0-9.]+", "\ncertified_accuracy = 0.999", path.read_text()))


def gates_of_the_toolchain(folder: Path) -> None:
    """Gates that the checker alone cannot judge, of a network that is said to be right always."""

    def change(content: Any) -> None:
        listed = content if isinstance(content, list) else content["gates"]
        next(gate for gate in listed if gate["name"] == "collapse")["got"] = "100.0 % of 40 test samples right, 10.0 % in the largest class"

    rewritten(folder, "gates.json", change)
    rewritten(folder, "report.json", change)


def curve(folder: Path) -> None:
    """A curve at 100 %, in the report too."""
    full = {"certified_accuracy": 1.0, "attacked_accuracy": 1.0, "clean_accuracy": 1.0}
    rewritten(folder, "certificate/curve.json", lambda content: [point.update(full) for point in content["sparse"]])
    shares = {"certified_share": 1.0, "attacked_share": 1.0, "clean_share": 1.0}
    rewritten(folder, "report.json", lambda content: [point.update(shares) for point in content["curve_sparse"]])


def audit(folder: Path) -> None:
    """An audit that found violations and passed."""
    rewritten(folder, "certificate/audit.json", lambda content: content.update(passed=True, violations=7))


def audit_count(folder: Path) -> None:
    """An audit of a million executions, which the report does not know of."""
    rewritten(folder, "certificate/audit.json", lambda content: content.update(executions=10**6))


def clean_accuracy(folder: Path) -> None:
    """Every sample is said to be classified correctly."""
    strip(folder)

    def change(content: dict) -> None:
        for claim in content["claims"]:
            wrong = claim["predicted"] != claim["label"]
            claim.update({"predicted": claim["label"], "verdict": "unknown", "method": "none", "proof": None} if wrong else {})

    drop_counterexamples(folder, lambda claim: claim["predicted"] == claim["label"])
    each(folder, change)


def drop_counterexamples(folder: Path, keep: Callable[[dict], bool], to_inputs: bool = True) -> None:
    """Takes counterexamples away, and puts their samples to the inputs."""

    def change(content: dict, name: str) -> None:
        path, kept = folder / name / "counterexamples.npz", {claim["id"] for claim in content["claims"] if keep(claim)}
        with np.load(path) as arrays:
            found = {key: arrays[key] for key in arrays.files}
        with np.load(folder / name / "inputs.npz") as arrays:
            ids, inputs = arrays["ids"], arrays["inputs"]
        if not found:
            return
        stays = np.isin(found["ids"], sorted(kept))
        if to_inputs:
            ids, inputs = np.concatenate([ids, found["ids"][~stays]]), np.concatenate([inputs, found["originals"][~stays]])
        store(folder / name / "inputs.npz", ids=ids, inputs=inputs)
        left = {key: value[stays] for key, value in found.items()} if stays.any() else {}
        store(path, **left)
        content["counterexamples_sha256"] = arrays_sha256(left)
        save(folder, name, content)

    for name in [name for name in CERTIFICATES if (folder / name / "certificate.json").exists()]:
        change(load(folder / name / "certificate.json"), name)


def arrays_sha256(arrays: dict[str, np.ndarray]) -> str:
    """Returns the hash that a certificate states of its counterexamples."""
    found = hashlib.sha256()
    for name in ("ids", "inputs", "originals", "labels", "predictions") if arrays else ():
        value = np.ascontiguousarray(arrays[name])
        found.update(f"{name} {value.dtype.str} {value.shape}\n".encode() + value.tobytes())
    return found.hexdigest()


def accuracy_without_inputs(folder: Path) -> None:
    """As `clean_accuracy`, and the samples are not there."""
    strip(folder)

    def change(content: dict) -> None:
        for claim in content["claims"]:
            wrong = claim["predicted"] != claim["label"]
            claim.update({"predicted": claim["label"], "verdict": "unknown", "method": "none", "proof": None} if wrong else {})

    drop_counterexamples(folder, lambda claim: claim["predicted"] == claim["label"], to_inputs=False)
    each(folder, change)


def robust_accuracy(folder: Path) -> None:
    """A summary in which everything withstands the attack."""
    for name in [name for name in CERTIFICATES if (folder / name / "certificate.json").exists()]:
        content = load(folder / name / "certificate.json")
        save(folder, name, content)
        content["summary"]["attacked_accuracy"] = 1.0
        content["certificate_sha256"] = digest(content)
        (folder / name / "certificate.json").write_text(json.dumps(content))


def forgotten_counterexamples(folder: Path) -> None:
    """What the attack broke is called unknown: everything that is classified correctly then withstands it."""
    strip(folder)

    def change(content: dict) -> None:
        for claim in content["claims"]:
            broken = claim["verdict"] == "falsified" and claim["predicted"] == claim["label"]
            claim.update({"verdict": "unknown", "method": "none", "proof": None} if broken else {})

    drop_counterexamples(folder, lambda claim: claim["verdict"] != "falsified" or claim["predicted"] != claim["label"])
    each(folder, change)


def one_sample(folder: Path) -> None:
    """One certified input, 2,000 times, as another data set."""
    for name in CERTIFICATES[1:]:
        shutil.rmtree(folder / name, ignore_errors=True)
    strip(
        folder,
        "model/model.c",
        "model/model.h",
        "model/model_weights.h",
        "model/c_source.json",
        "device",
        "recipe.toml",
        "model/dense.fp32.onnx",
    )
    strip(folder, "certificate/audit.json", "certificate/proofs.npz", "certificate/cross_check.json")
    content = load(folder / "certificate/certificate.json")
    with np.load(folder / "certificate/inputs.npz") as arrays:
        inputs = dict(zip(arrays["ids"].tolist(), arrays["inputs"], strict=True))
    claim = next(one for one in content["claims"] if one["verdict"] == "certified" and one["proof"] == "derivable")
    content["claims"] = [{**claim, "id": number} for number in range(2000)]
    content |= {
        "data": {**content["data"], "name": "mnist", "samples": 2000},
        "proofs_sha256": None,
        "counterexamples_sha256": arrays_sha256({}),
    }
    store(folder / "certificate/inputs.npz", ids=np.arange(2000), inputs=np.repeat(inputs[claim["id"]][None], 2000, axis=0))
    store(folder / "certificate/counterexamples.npz")
    save(folder, "certificate", content)


def no_change_at_all(folder: Path) -> None:
    """epsilon 0 under `real`: all that is classified correctly is certified."""
    one_sample(folder)
    content = load(folder / "certificate/certificate.json")
    content["contract"] = dict.fromkeys(("storage", "operand", "accumulate"), "real") | {
        "name": "real",
        "order": "any",
        "convolution": "direct",
        "subnormals": "gradual",
    }
    content["claims"] = content["claims"][:1]
    for part in (content, *content["claims"]):
        part["property"] = {**part["property"], "epsilon": "0"}
    content["claims"][0]["contract"] = "real"
    content["data"]["samples"] = 1
    with np.load(folder / "certificate/inputs.npz") as arrays:
        store(folder / "certificate/inputs.npz", ids=arrays["ids"][:1].copy(), inputs=arrays["inputs"][:1].copy())
    save(folder, "certificate", content)


def no_claims(folder: Path) -> None:
    """Claims that are all unknown: 0 of 0 certified claims are derived again."""
    one_sample(folder)
    content = load(folder / "certificate/certificate.json")
    content["claims"] = [{**content["claims"][0], "verdict": "unknown", "method": "none", "proof": None}]
    save(folder, "certificate", content)


def extra_folder(folder: Path) -> None:
    """A folder that looks like a certificate of another contract."""
    (folder / "certificate/tensorrt").mkdir()
    shutil.copy(folder / "certificate/certificate.json", folder / "certificate/tensorrt/certificate.json")


def extra_model(folder: Path) -> None:
    """A model that no certificate is about, beside those that are certified."""
    shutil.copy(folder / "model/model.fp32.onnx", folder / "model/model.fast.onnx")


def no_certificate_of_c(folder: Path) -> None:
    """C source without the certificate that is about it."""
    shutil.rmtree(folder / "certificate/sequential")


def contract_of_c(folder: Path) -> None:
    """C source that is certified in exact arithmetic."""
    content = load(folder / "certificate/sequential/certificate.json")
    content["contract"] = CONTRACTS["real"]
    for claim in content["claims"]:
        claim["contract"] = "real"
    strip(folder, "certificate/sequential/audit.json")
    save(folder, "certificate/sequential", content)


def escape_codes(folder: Path) -> None:
    """A file name that prints a verdict of its own."""
    name = "model/\x1b[2K\rconfirmed: 334 of 334 certified claims\n"
    (folder / name).write_text("x")


def escape_codes_in_claims(folder: Path) -> None:
    """A data set and a verdict with escape codes."""

    def change(content: dict) -> None:
        content["data"]["name"] = "\x1b[2K\rconfirmed: 334 of 334\n"
        content["claims"][0]["margin_lower"] = 1e9

    each(folder, change)


def probes(folder: Path) -> None:
    """Enclosures of the device's probes that nothing can leave."""

    def change(content: dict) -> None:
        for entry in content["models"]:
            for probe in entry["probes"]:
                probe.update(lower=[-1e9] * len(probe["lower"]), upper=[1e9] * len(probe["upper"]))

    rewritten(folder, "device/manifest.json", change)


def other_recipe(folder: Path) -> None:
    """A recipe that asks for a larger radius than was certified."""
    path = folder / "recipe.toml"
    radius = load(folder / "certificate/certificate.json")["property"]["epsilon"]
    path.write_text(path.read_text().replace(f'epsilon = "{radius}"', 'epsilon = "0.3"', 1))


def other_target(folder: Path) -> None:
    """A target that promises less than the certificate needs."""
    path = folder / "target.toml"
    path.write_text(path.read_text().replace('[precisions.fp32]\ncontract = "fp32"', '[precisions.fp32]\ncontract = "tf32"', 1))


# What only the toolchain can tell, which writes the text again; the checker alone says that it leaves this to the reader.
WRITTEN = {"source": source, "agent": agent, "gates of the toolchain": gates_of_the_toolchain}
FORGERIES: dict[str, Callable[[Path], None]] = {
    "device model": device_model,
    "device source": device_source,
    "other agent": other_agent,
    "probes of model.c": probes_of_c,
    "contract of model.c on the device": contract_of_c_there,
    "report": report,
    "report, certificates": report_rows,
    "report of another kind": report_of_another_kind,
    "requirement": requirement,
    "requirement left out": requirement_left_out,
    "gates": gates,
    "gate left out": gate_left_out,
    "curve": curve,
    "audit": audit,
    "audit, count": audit_count,
    "clean accuracy": clean_accuracy,
    "accuracy without inputs": accuracy_without_inputs,
    "robust accuracy": robust_accuracy,
    "forgotten counterexamples": forgotten_counterexamples,
    "one sample 2000 times": one_sample,
    "epsilon 0 under real": no_change_at_all,
    "0 of 0 claims": no_claims,
    "extra certificate": extra_folder,
    "extra model": extra_model,
    "no certificate of model.c": no_certificate_of_c,
    "contract of model.c": contract_of_c,
    "escape codes": escape_codes,
    "escape codes in claims": escape_codes_in_claims,
    "probes": probes,
    "other recipe": other_recipe,
    "other target": other_target,
}


def forged(original: Path, folder: Path, name: str) -> Path:
    """Returns a copy of an artifact with one forgery, signed."""
    shutil.copytree(original, folder)
    (FORGERIES | WRITTEN)[name](folder)
    sign(folder)
    return folder
