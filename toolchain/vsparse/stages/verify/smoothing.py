"""Randomised smoothing: probabilistic l2 certificates of a majority vote over Gaussian noise (Cohen, Rosenfeld, Kolter, ICML 2019).

The claim is about the smoothed classifier g(x) = the class that the deployed network returns most often for x + N(0, σ²I), not about the
network itself, and it fails with probability at most α. It is never mixed with the deterministic claims of a certificate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from math import inf, isfinite, nextafter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri
from scipy.stats import beta

from vsparse.artifact.document import write_document
from vsparse.artifact.smoothing import FILE, SmoothedClaim, SmoothingResult, SmoothingSummary
from vsparse.data import Dataset
from vsparse.errors import InputError
from vsparse.files import sha256_bytes
from vsparse.reading import Asked, ReadingEvidence, check_reading
from vsparse.reading.points import SAMPLES
from vsparse.stages.verify.audit import any_batch
from vsparse.stages.verify.certify import take_samples
from vsparse.stages.verify.deployed import Runtime, describe_replay, predictions, read_model

MEANING = (
    "For each sample that is not abstained on: with probability at least 1 - alpha over the noise drawn here, the smoothed classifier "
    "(the class that the deployed network returns most often under Gaussian noise of standard deviation sigma) returns this class for "
    "every input within the stated l2 radius. Each claim by itself is false with probability at most alpha. Nothing is said about the "
    "network without noise."
)
ASSUMPTION = (
    "The theorem is about real Gaussian noise and exact addition; here noise is pseudorandom float32, added in float32. That the "
    "difference does not matter is an assumption: networks that exploit it get false certificates (Jin, Ohrimenko and Rubinstein, "
    "arXiv 2205.10159; Voracek and Hein, ICLR 2023, arXiv 2207.07209)."
)
THEOREM = "Cohen, Rosenfeld, Kolter, ICML 2019 (arXiv 1902.02918), theorem 1 and algorithm CERTIFY: radius = sigma * ppf(p_lower)"
NOISE = "numpy Philox seeded with (seed, sample), standard normal float32 times float32(sigma), added in float32, not clipped"
ABSTAIN = -1
BATCH = 256
# scipy's special functions are good to far more digits than this; bounds are moved by it, and checked by the inverse function.
SLACK = 2.0**-30
LIMIT = 10**9


@dataclass(frozen=True)
class Sampling:
    """How the noise is drawn: its standard deviation, how many draws choose the class (n0) and count it (n), α, and the seed."""

    sigma: float
    n0: int = 100
    n: int = 10_000
    alpha: float = 0.001
    seed: int = 0

    def __post_init__(self) -> None:
        if not (isfinite(self.sigma) and 0 < self.sigma <= 1e6):
            raise InputError(f"--smoothing {self.sigma}: the standard deviation of the noise must be positive and at most a million")
        if not 0 < self.alpha < 0.5:
            raise InputError(f"--alpha {self.alpha}: the probability of a false claim must lie between 0 and 1/2")
        if not (1 <= self.n0 <= LIMIT and 1 <= self.n <= LIMIT):
            raise InputError(f"--n0 {self.n0} --n {self.n}: give at least one draw for each, and at most {LIMIT}")


@dataclass(frozen=True)
class Smoothing:
    """All claims of one run, with the data and parameters that they rest on."""

    model: dict[str, str]
    data: str
    sampling: Sampling
    claims: tuple[SmoothedClaim, ...]
    replay: dict[str, str] = field(default_factory=dict)
    reading: ReadingEvidence | None = None

    def accuracy(self, radius: float = 0.0) -> float:
        """Returns the fraction of samples predicted as their label with at least this radius."""
        hits = sum(claim.predicted == claim.label and claim.radius >= radius for claim in self.claims)
        return hits / len(self.claims) if self.claims else 0.0

    @property
    def abstained(self) -> int:
        """How many samples nothing is claimed of."""
        return sum(claim.predicted == ABSTAIN for claim in self.claims)

    def document(self) -> SmoothingResult:
        """Returns the contents of smoothing.json."""
        return SmoothingResult(
            meaning=MEANING,
            assumption=ASSUMPTION,
            theorem=THEOREM,
            model=self.model,
            data=self.data,
            **asdict(self.sampling),
            noise=NOISE,
            replay=self.replay,
            reading=None if self.reading is None else self.reading.as_dict(),
            summary=SmoothingSummary(samples=len(self.claims), abstained=self.abstained, certified_accuracy_at_0=self.accuracy()),
            claims=self.claims,
        )

    def as_dict(self) -> dict[str, Any]:
        """Returns the contents of smoothing.json as JSON values."""
        return self.document().model_dump(mode="json")

    def write(self, directory: Path) -> None:
        """Writes smoothing.json."""
        write_document(directory / FILE, self.document())


def p_lower(votes: int, draws: int, alpha: float) -> float:
    """Returns a lower bound of the one-sided Clopper–Pearson limit: the p with P[Binomial(draws, p) >= votes] = α, rounded down.

    It is the α-quantile of Beta(votes, draws − votes + 1) (Clopper and Pearson 1934). scipy's value is lowered by a relative 2^-30, and
    further until the distribution function there, also from scipy, is below α by as much: both would have to be wrong in the same way.
    """
    if votes <= 0 or votes > draws:
        return 0.0
    value = float(beta.ppf(alpha, votes, draws - votes + 1)) * (1 - SLACK)
    step = SLACK
    while value > 0 and not float(beta.cdf(value, votes, draws - votes + 1)) <= alpha * (1 - SLACK):
        value, step = value * (1 - step), step * 2
        if step >= 1:
            return 0.0
    return value if 0 <= value < 1 else 0.0


def certified_radius(p: float, sigma: float) -> float:
    """Returns a lower bound of σ·Φ⁻¹(p), 0 for p <= 1/2 (Cohen et al., theorem 1 with p_B <= 1 − p_A).

    Φ⁻¹ increases, so every r with Φ(−r) >= 1 − p is a lower bound of it (1 − p is exact in float64). scipy's Φ⁻¹(p) is lowered by a
    relative 2^-30, and further until scipy's Φ agrees with as much to spare. The product is rounded to nearest, and then one double down.
    """
    if not p > 0.5:
        return 0.0
    quantile = float(ndtri(p)) * (1 - SLACK)
    step = SLACK
    while quantile > 0 and not float(ndtr(-quantile)) >= (1 - p) * (1 + SLACK):
        quantile, step = quantile * (1 - step), step * 2
        if step >= 1:
            return 0.0
    return max(0.0, nextafter(quantile * sigma, -inf))


def smooth(
    onnx_path: Path,
    dataset: Dataset,
    sampling: Sampling,
    *,
    samples: int = 0,
    data_name: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> Smoothing:
    """Certifies the smoothed classifier on the first samples of a dataset, from what ONNX Runtime makes of the deployed file.

    For each sample n0 noisy inputs choose the candidate, n further ones are counted (algorithm CERTIFY). Outputs that are not finite
    count as votes for no class. Noise and radius are of the float32 nearest to sigma. The same seed gives the same draws for a sample,
    whichever others there are. The file is compared with its reading first; raises what `vsparse.reading.check_reading` does.
    """
    model = read_model(onnx_path)
    inputs, labels = take_samples(dataset, model, samples)
    spread = np.float32(3 * sampling.sigma)
    asked = Asked(inputs[:SAMPLES] - spread, inputs[:SAMPLES] + spread)
    evidence = check_reading(model.data, model.reading, where=f"model {onnx_path}", asked=asked)
    batch = BATCH if any_batch(model.data) else 1
    runtime = Runtime(model.data, batch=batch)
    sigma = float(np.float32(sampling.sigma))
    claims = []
    for i, (x, label) in enumerate(zip(inputs, labels.tolist(), strict=True)):
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([sampling.seed, i])))
        first = _votes(runtime, x, sigma, sampling.n0, model.classes, rng)
        candidate = int(first.argmax())
        votes = int(_votes(runtime, x, sigma, sampling.n, model.classes, rng)[candidate])
        lower = p_lower(votes, sampling.n, sampling.alpha)
        radius = certified_radius(lower, sigma)
        digest = sha256_bytes(np.ascontiguousarray(x, dtype="<f4").tobytes())
        predicted = candidate if radius > 0 else ABSTAIN
        claims.append(
            SmoothedClaim(
                id=i,
                input_sha256=digest,
                label=label,
                candidate=candidate,
                predicted=predicted,
                votes=votes,
                draws=sampling.n,
                p_lower=lower,
                radius=radius,
            )
        )
        if progress is not None:
            progress(i + 1, len(inputs))
    return Smoothing(
        {"file": model.file, "sha256": model.sha256},
        data_name,
        sampling,
        tuple(claims),
        {**describe_replay(), "batch": str(batch)},
        evidence,
    )


def _votes(runtime: Runtime, x: NDArray[np.float32], sigma: float, count: int, classes: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Returns how many of `count` noisy inputs each class gets."""
    votes = np.zeros(classes, dtype=np.int64)
    for start in range(0, count, BATCH):
        noise = rng.standard_normal((min(BATCH, count - start), *x.shape), dtype=np.float32) * np.float32(sigma)
        predicted = predictions(runtime.logits(x[None] + noise))
        votes += np.bincount(predicted[predicted >= 0], minlength=classes)
    return votes
