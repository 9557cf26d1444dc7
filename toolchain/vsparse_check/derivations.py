"""The certified claims of one certificate, each derived again from model, input and contract.

A claim says: every execution within the contract, on every input of the region, has z_label − z_j
> margin_lower for every class j ≠ label. It is confirmed where the least of the derived bounds of
these rows is positive and at least margin_lower, without tolerance. Of regression it says that
the answer changes by less than delta − margin_lower (change.py).
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsparse_check import photometric
from vsparse_check.bounds import Bounds
from vsparse_check.certificate import (
    ALPHA_CROWN,
    BRANCH_AND_BOUND,
    CROWN,
    CROWN_IBP,
    INTERVAL,
    PHOTOMETRIC,
)
from vsparse_check.change import least_change_margin
from vsparse_check.errors import ErrorTerms
from vsparse_check.files import read_file
from vsparse_check.model import Model
from vsparse_check.proofs import StoredProof, read_proofs
from vsparse_check.records import CertificateFiles, ProgressCallback
from vsparse_check.refusal import need
from vsparse_check.region import ClaimedRegion, SampleRegions
from vsparse_check.samples import Inputs, at_once, input_sha256
from vsparse_check.trees import ProofEvaluation

# How little a margin may be missed by before a stronger method is tried: two derivations differ by
# their own rounding.
NEAR = 1e-3
STRONGER = {INTERVAL: CROWN_IBP, CROWN_IBP: CROWN, CROWN: None}
SEARCHED = (ALPHA_CROWN, BRANCH_AND_BOUND)


class ClaimDerivations:
    """Derives the claims one after the other, those of the cheapest method together."""

    def __init__(
        self,
        files: CertificateFiles,
        content: dict[str, Any],
        claimed: ClaimedRegion,
        model: Model,
        inputs: Inputs,
    ) -> None:
        """Takes a certificate that agrees with itself, its model, and inputs [size] by sample id.

        Refuted where parameters do not fit the contract, or proofs.npz is not what is stated.
        """
        self.files, self.claimed = files, claimed
        self.model, self.inputs = model, inputs
        self.claims = [claim for claim in content["claims"] if claim["verdict"] == "certified"]
        self.errors = ErrorTerms(model, content["contract"])
        self.proofs = self._read_proofs(content.get("proofs_sha256"))

    def _read_proofs(self, stated: str | None) -> dict[int, StoredProof]:
        """Returns the proofs of the file with the stated hash, {} where none is stated."""
        if stated is None:
            return {}
        path = self.files.folder / "proofs.npz"
        need(
            hashlib.sha256(read_file(path)).hexdigest() == stated,
            f"{self.files.name}/proofs.npz is not the file that the certificate is about",
        )
        units = sum(op.size for op in self.model.ops if op.kind == "relu")
        return read_proofs(path, units, self.model.budget)

    def derive_all(self, progress: ProgressCallback) -> tuple[int, str]:
        """Returns how many claims were derived again, and why the first that was not could not."""
        by_interval, done, problem = self._interval_margins(), 0, ""
        for claim in self.claims:
            reason = self._reason_against(claim, by_interval.get(claim["id"], -np.inf))
            done += not reason
            if reason and not problem:
                problem = f"{self.files.name}: sample {claim['id']}: {reason}"
            progress(done, len(self.claims))
        return done, problem

    def _interval_margins(self) -> dict[int, float]:
        """Returns the least margins, by interval arithmetic, of the claims by that method."""
        cheap = [one for one in self.claims if one["method"] == INTERVAL]
        cheap = [one for one in cheap if not self._unusable(one)]
        found, step = dict[int, float](), at_once(self.model)
        for start in range(0, len(cheap), step):
            some = cheap[start : start + step]
            region = self._regions(np.stack([self.inputs[claim["id"]] for claim in some]))
            bounds = Bounds(self.model, self.errors, region, refine=False)
            if self.claimed.delta is not None:
                least = least_change_margin(bounds, region.x, self.claimed, True).tolist()
                found |= dict(zip([claim["id"] for claim in some], least, strict=True))
                continue
            labels = np.array([claim["label"] for claim in some])
            margins = bounds.margins(labels, fold_only=True)[1]
            least = margins.reshape(len(some), -1).min(axis=1).tolist()
            found |= dict(zip([claim["id"] for claim in some], least, strict=True))
        return found

    def _regions(self, xs: NDArray[np.float32]) -> SampleRegions:
        """Returns the claimed regions around samples [n, size]."""
        return SampleRegions(self.claimed, xs.astype(np.float64))

    def _unusable(self, claim: dict[str, Any]) -> str:
        """Returns why a claim cannot be derived at all, or an empty string."""
        x, (low, high) = self.inputs.get(claim["id"]), self.claimed.clip
        if x is None:
            return "inputs.npz does not hold its input"
        if input_sha256(x) != claim["input_sha256"]:
            return "its input in inputs.npz is not the one that the claim is about"
        if not ((x >= low) & (x <= high)).all():
            return "its input is not a number, or outside the data range"
        if self.claimed.delta is not None:
            several = self.model.size_of_output != 1
            return "the model has more than one answer, or none" if several else ""
        if not 0 <= claim["label"] < self.model.size_of_output or self.model.size_of_output < 2:
            return f"its label {claim['label']} is no class of the model"
        return ""

    def _reason_against(self, claim: dict[str, Any], by_interval: float) -> str:
        """Returns why a claim is not confirmed, or an empty string."""
        margin, method = claim["margin_lower"], claim["method"]
        reason = self._unusable(claim)
        if reason:
            return reason
        if method in SEARCHED and claim["id"] not in self.proofs:
            return "proofs.npz holds no proof of it"
        least = by_interval
        if method == PHOTOMETRIC:
            least = self._least_of_pieces(claim)
        elif not least >= margin:
            method, least = self._least_by_method(claim)
        if not least >= margin:
            return f"its margin is at least {least:.6g} by {method}, and {margin:.6g} is claimed"
        return "" if margin > 0 else "its margin is no bound"

    def _least_of_pieces(self, claim: dict[str, Any]) -> float:
        """Returns the least margin of all pieces of brightness and contrast."""
        counts = photometric.pieces_of(claim, self.claimed)
        x = self.inputs[claim["id"]][None].astype(np.float64)
        return photometric.least_margin(
            self.model,
            self.errors,
            self.claimed,
            x,
            claim["label"],
            counts,
            claim["margin_lower"],
        )

    def _least_by_method(self, claim: dict[str, Any]) -> tuple[str, float]:
        """Returns the least margin by the claim's method, or by the last stronger one tried.

        Where a method misses the claimed margin by little, two roundings may differ, and the next
        stronger method decides, whose bound is as good a proof.
        """
        method: str = claim["method"]
        while True:
            least = self._least_margin(claim, method)
            missed_by = claim["margin_lower"] - least
            stronger = STRONGER.get(method)
            if not (missed_by > 0) or missed_by > NEAR or stronger is None:
                return method, least
            method = stronger

    def _least_margin(self, claim: dict[str, Any], method: str) -> float:
        """Returns the least margin by one method.

        `interval`: rows folded into the last layers. `crown-ibp`: passed to the input, too.
        `crown`: over refined boxes. Searched ones: besides, what the proof proves.
        """
        number, label = claim["id"], claim["label"]
        region = self._regions(self.inputs[number][None])
        refine = method not in (INTERVAL, CROWN_IBP)
        bounds = Bounds(self.model, self.errors, region, refine)
        if self.claimed.delta is not None:
            fold_only = method == INTERVAL
            return float(least_change_margin(bounds, region.x, self.claimed, fold_only).min())
        rows, found = bounds.margins(np.array([label]), fold_only=method == INTERVAL)
        if method in SEARCHED:
            evaluation = ProofEvaluation(bounds, self.proofs[number])
            found = evaluation.improved(label, claim["margin_lower"], rows, found)
        return float(found.min())
