"""A synthetic artifact directory: every file that a build writes, small, with numbers chosen by the test."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vsparse.artifact.certificate import COUNTEREXAMPLES, Certificate, Claim, summarise
from vsparse.artifact.checks import AuditRecord, CrossCheckRecord, Gate
from vsparse.artifact.choice import FormChoice, FormRow, WeightPattern
from vsparse.artifact.counterexamples import Counterexamples
from vsparse.artifact.curve import Curve, CurvePoint
from vsparse.artifact.document import write_document, write_list
from vsparse.artifact.history import Epoch, History, ObjectiveRecord
from vsparse.artifact.latency import Latency, side_by_side
from vsparse.artifact.layers import Equality, LayerRow, LayerTable, Removal
from vsparse.artifact.layout import Manifest, StageRecord, files_of
from vsparse.artifact.live import LIVE, LiveAnswers, LiveCost, LiveFrame, LivePoint, LiveRecord
from vsparse.majority import against_majority

CONTRACT = {
    "name": "fp32",
    "storage": "fp32",
    "operand": "fp32",
    "accumulate": "fp32",
    "order": "any",
    "convolution": "direct",
    "subnormals": "flush",
}
MODEL = {"file": "model/model.fp32.onnx", "sha256": "ab" * 32}
PASSED = AuditRecord(
    passed=True,
    reason="",
    contract="fp32",
    samples=16,
    points=208,
    sessions=11,
    executions=2288,
    logits_checked=5000,
    values_checked=9000,
    largest_share=0.25,
    largest_share_at="fc2",
    violations=0,
    shown=(),
)
CHOICE = FormChoice(
    chosen="sparse",
    reason="fp32 is chosen: of the forms that meet every gate (fp32, C source) it is the fastest",
    measured_on="a made-up processor",
    advice="",
    rows=tuple(
        FormRow(
            name=name,
            file=file,
            contract=contract,
            certified_accuracy=0.75,
            clean_accuracy=0.875,
            points_lost=0.0,
            bytes=size,
            latency_ms_p50=p50,
            latency_ms_p99=2 * p50,
            latency_ratio=p50 / 0.041,
            speed=speed,
            weights=WeightPattern(density=0.5, pattern="2:4 in 1 of 2 layers", used=used, by=by),
            gates=(Gate(name="certificate", wanted="stands", got="stands", passed=True),),
            competes=True,
            why_not="",
            chosen=name == "sparse",
        )
        for name, file, contract, size, p50, speed, used, by in (
            ("sparse", "model/model.fp32.onnx", "fp32", 12_588, 0.041, "", False, "ONNX Runtime multiplies zeros too"),
            (
                "sequential",
                "model/model.c",
                "sequential",
                14_356,
                0.0533,
                "slower than fp32: 1.30 times its time",
                True,
                "its kernels skip zeros",
            ),
        )
    ),
)
COMPARED = CrossCheckRecord(
    passed=True,
    reason="",
    second_verifier="auto_LiRPA 0.3",
    method="CROWN",
    epsilon="0.05",
    samples=16,
    bounds_compared=144,
    largest_excess=1.2e-9,
    largest_shortfall=2e-9,
    largest_excess_with_rounding=-1e-6,
    tolerance=1e-4,
)


def claims(per_class: list[int], seed: int) -> list[dict[str, Any]]:
    """Claims for classes of the given sizes: of ten, about nine certified by three methods, the rest falsified, unknown or wrong."""
    random = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for label, size in enumerate(per_class):
        for _ in range(size):
            kind = random.choice(["interval", "crown-ibp", "crown", "attack", "none", "clean"], p=[0.6, 0.2, 0.08, 0.05, 0.04, 0.03])
            verdict = {"attack": "falsified", "clean": "falsified", "none": "unknown"}.get(kind, "certified")
            rows.append(
                {
                    "id": len(rows),
                    "input_sha256": "0" * 64,
                    "label": label,
                    "predicted": (label + 1) % max(2, len(per_class)) if kind == "clean" else label,
                    "verdict": verdict,
                    "margin_lower": round(float(random.uniform(0.1, 4.0)), 4) if verdict == "certified" else None,
                    "method": str(kind),
                    "time_ms": round(float(random.exponential(3.0)), 3),
                    "proof": COUNTEREXAMPLES if verdict == "falsified" else None if verdict == "unknown" else "derivable",
                }
            )
    return rows


def certificate(
    rows: list[dict[str, Any]], names: Sequence[str], epsilon: str = "0.05", contract: dict[str, str] | None = None, **more: Any
) -> dict[str, Any]:
    """A certificate about the claims as it stands in its file, with the hash of its content; `more` replaces or adds keys."""
    region, rules, model = {"epsilon": epsilon}, contract or CONTRACT, more.pop("model", MODEL)
    whole = [Claim.model_validate({**row, "property": region, "contract": rules["name"], "model": model}) for row in rows]
    content = Certificate.model_validate(
        {
            "model": model,
            "property": region,
            "contract": rules,
            "data": {"name": "digits", "split": "test", "samples": len(rows), "inputs_sha256": "cd" * 32, "classes": tuple(names)},
            "settings": {},
            "replay": {"batch": "1"},
            "derivations": {},
            "summary": summarise(whole, list(names)),
            "counterexamples_sha256": "0" * 64,
            "claims": whole,
            **more,
        }
    )
    return {"certificate_sha256": content.digest(), **content.model_dump(mode="json")}


def write(path: Path, content: Any) -> None:
    """Writes JSON, folders included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def latency(seed: int, middle: float) -> Latency:
    """One latency: a peak, a shoulder and a few slow runs."""
    random = np.random.default_rng(seed)
    samples = middle * (1 + np.abs(random.normal(0, 0.04, 400)))
    samples[::17] *= 1.25
    samples[::97] *= 2.2
    return Latency(
        samples_ms=tuple(round(float(s), 5) for s in samples),
        settings={
            "model": "x.onnx",
            "runtime": "onnxruntime",
            "runtime_version": "1.31.0",
            "providers": ("CPUExecutionProvider",),
            "threads_intra_op": 1,
            "batch": 1,
            "warmup_runs": 50,
        },
        machine={"processor": "a processor", "cores_usable": 2, "memory_bytes": 8 * 2**30, "load_average_1min": None},
    )


def layer(name: str, kind: str, before: list[int], after: list[int] | None, positions: int) -> LayerRow:
    """One row of the layer table."""
    one, two = int(np.prod(before)), int(np.prod(after)) if after else 0
    return LayerRow(
        name=name,
        type=kind,
        shape_before=tuple(before),
        shape_after=None if after is None else tuple(after),
        weights_before=one,
        weights_after=two,
        nonzero=two,
        macs_before=one * positions,
        macs_after=two * positions,
        bytes_before=4 * one,
        bytes_after=4 * two,
    )


def history(seed: int, final: float, density: float) -> tuple[Epoch, ...]:
    """Thirty epochs that get better, with a growing epsilon."""
    random = np.random.default_rng(seed)
    return tuple(
        Epoch(
            epoch=e + 1,
            loss=round(2.3 * 0.9**e + 0.2, 4),
            clean_accuracy=round(min(1.0, 0.4 + final * e / 50 + float(random.uniform(0, 0.02))), 4),
            robust_accuracy=round(final * min(1.0, 0.3 + e / 30), 4),
            measure="interval",
            phase="train",
            density=density,
            epsilon=round(0.05 * min(1.0, e / 10), 4),
            learning_rate=0.01,
            seconds=0.4,
        )
        for e in range(30)
    )


def points(drop: float) -> tuple[CurvePoint, ...]:
    """Eleven radii, at which ever fewer samples are certified."""
    found = []
    for step in range(11):
        epsilon = f"{0.01 * step:.2f}"
        certified, robust = (round(0.97 - part * (0.01 * step) ** 1.3, 4) for part in (drop, drop / 2))
        accuracies = {"clean_accuracy": 0.97, "robust_accuracy": robust, "certified_accuracy": certified}
        found.append(CurvePoint(epsilon=epsilon, epsilon_value=float(epsilon), **accuracies))
    return tuple(found)


def layers() -> LayerTable:
    """Five layers, of which one is merged away."""
    rows = (
        layer("conv1", "Conv", [16, 1, 3, 3], [6, 1, 3, 3], 64),
        layer("conv2", "Conv", [16, 16, 3, 3], [7, 6, 3, 3], 64),
        layer("fc1", "Gemm", [128, 1024], [40, 448], 1),
        layer("fc2", "Gemm", [10, 128], [10, 40], 1),
        layer("gone", "Gemm", [10, 10], None, 1),
    )
    sums = {
        name: sum(getattr(row, name) for row in rows)
        for name in ("weights_before", "weights_after", "nonzero", "macs_before", "macs_after", "bytes_before", "bytes_after")
    }
    return LayerTable(
        rows=rows,
        totals=LayerRow(name="total", type="", shape_before=(), shape_after=(), **sums),
        removed_share=1 - sums["weights_after"] / sums["weights_before"],
        density=1.0,
        reductions=(Removal(layer="fc1", kind="dead_unit", count=12, exactness="exact"),),
        exactness="exact",
        proof="equal: only terms that are exactly zero were removed",
        equality=Equality(
            rational_inputs=2,
            rational_equal=True,
            float_inputs=512,
            outputs=5120,
            identical=5000,
            max_difference=0.0,
            bound=1e-5,
            double_difference=0.0,
            double_bound=1e-14,
            within_bound=True,
        ),
    )


def counterexamples(amount: int, channels: int, classes: int) -> Counterexamples:
    """Pictures of eight by eight pixels, each changed by 0.05."""
    random = np.random.default_rng(3)
    originals = random.uniform(0, 1, (amount, channels, 8, 8)).astype(np.float32)
    perturbed = np.clip(originals + 0.05 * random.choice([-1.0, 1.0], originals.shape), 0, 1).astype(np.float32)
    labels = np.arange(amount, dtype=np.int64) % classes
    return Counterexamples(np.arange(amount, dtype=np.int64), perturbed, originals, labels, (labels + 1) % classes)


OBJECTIVE = ObjectiveRecord(name="ibp", report="Trained on boxes.", certified=True, validated_by="interval", is_cross_entropy=True)


LIVE_RECORD = LiveRecord(
    network_sha256=MODEL["sha256"],
    contract="sequential",
    clip=(0.0, 1.0),
    computed_by="compiled C",
    cost=LiveCost(
        constant_bytes=4860, static_bytes=1120, live_constant_bytes=4972, live_static_bytes=2264, inference_us=10.0, certify_us=24.5
    ),
    at_epsilon=LivePoint(
        epsilon="0.05", device_epsilon=float(np.nextafter(np.float32(0.05), np.float32(1))), samples=360, certified=311, right=297
    ),
    curve=tuple(
        LivePoint(epsilon=str(step / 64), device_epsilon=step / 64, samples=100, certified=100 - 9 * step, right=96 - 9 * step)
        for step in range(1, 9)
    ),
    frames=(LiveFrame(id=0, epsilon=0.05, label=3, certified=True, margin=0.25, radius=0.0625),),
)


LIVE_INT8 = LIVE_RECORD.model_copy(
    update={
        "int8": LiveAnswers(
            network_sha256="8" * 64,
            contract="int8",
            computed_by="compiled C",
            cost=LIVE_RECORD.cost.model_copy(update={"live_constant_bytes": 1290, "certify_us": 29.0}),
            at_epsilon=LIVE_RECORD.at_epsilon.model_copy(update={"certified": 290, "right": 288}),
            curve=tuple(
                point.model_copy(update={"certified": point.certified - 2, "right": point.right - 2}) for point in LIVE_RECORD.curve
            ),
            frames=LIVE_RECORD.frames,
        )
    }
)


def make_artifact(directory: Path, per_class: list[int] | None = None, names: list[str] | None = None, **options: Any) -> Path:
    """Writes a whole artifact and returns its directory; `epsilon`, `contract`, `counterexamples` (how many) and `channels` can be set."""
    per_class = [36] * 10 if per_class is None else per_class
    names = [str(i) for i in range(len(per_class))] if names is None else names
    epsilon = options.get("epsilon", "0.05")
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "recipe.toml").write_text(
        'name = "digits"\ndescription = "8x8 handwritten digits"\n[data]\nname = "digits"\n[train]\nobjective = "ibp"\n'
    )
    (directory / "target.toml").write_text('name = "local"\ndescription = "this machine, ONNX Runtime on the CPU"\n')
    answers = against_majority([0, 1, 1], [0, 1, 0])
    for variant, place, seed, drop, final, density in (("sparse", "", 1, 7.0, 0.9, 0.2), ("dense", "dense", 2, 5.0, 0.93, 1.0)):
        folder = directory / "certificate" / place
        write(folder / "certificate.json", certificate(claims(per_class, seed), names, epsilon, options.get("contract")))
        write_document(folder / "curve.json", Curve.of(variant, points(drop), 360, "a rule"))
        write_document(directory / "train" / place / "history.json", History.of(variant, history(seed, final, density), OBJECTIVE, answers))
    found = counterexamples(options.get("counterexamples", 14), options.get("channels", 1), len(per_class))
    found.write(directory / "certificate" / COUNTEREXAMPLES)
    write_document(directory / "certificate" / "cross_check.json", COMPARED)
    write_document(directory / "certificate" / "audit.json", PASSED)
    write_document(directory / "compress" / "layers.json", layers())
    write_document(directory / "profile" / "onnxruntime-fp32.json", side_by_side(latency(1, 0.110), latency(2, 0.041), 10))
    write_list(
        directory / "gates.json",
        [
            Gate(name="certified_accuracy", wanted="at least 80 %", got="88.3 %", passed=True),
            Gate(name="latency_ratio", wanted="at most 0.5", got="0.37", passed=True),
        ],
    )
    write_document(directory / "choice.json", CHOICE)
    write_document(directory / LIVE, LIVE_RECORD)
    write_manifest(directory)
    return directory


def write_manifest(directory: Path) -> None:
    """Writes manifest.json with the hashes of all files that are there."""
    files = {name: digest for name, digest in files_of(directory).items() if name not in ("report.html", "report.json")}
    stages = (("train", "12", 31.2, False), ("verify", "34", 4.5, True))
    manifest = Manifest(
        vsparse_version="0.1.0",
        created_utc="2026-01-02T03:04:05Z",
        seed=0,
        until="report",
        road_key="",
        tools={"torch": "2.13.0", "onnxruntime": "1.31.0"},
        lineage=tuple(
            StageRecord(stage=stage, key=key * 32, seconds=seconds, reused=reused, folder=stage) for stage, key, seconds, reused in stages
        ),
        files=files,
    )
    write_document(directory / "manifest.json", manifest)
