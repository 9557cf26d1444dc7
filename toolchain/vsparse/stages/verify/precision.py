"""The stage for a further precision: certifies and audits its model file under its own contract. Runs in a worker process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vsparse.artifact import precision_model
from vsparse.artifact.certificate import write_certificate
from vsparse.contract import contract
from vsparse.data import load
from vsparse.files import write_json
from vsparse.progress import Say
from vsparse.recipe import Recipe
from vsparse.stages.verify.audit import audit
from vsparse.stages.verify.certify import certify
from vsparse.stages.verify.task import write_inputs


def precision_task(payload: dict[str, Any], say: Say) -> dict[str, Any]:
    """Writes certificate.json and audit.json of one model file under the contract of its precision; a failed audit voids the former."""
    recipe = Recipe.model_validate(payload["recipe"])
    model, output, scratch = Path(payload["model"]), Path(payload["output"]), Path(payload["scratch"])
    dataset = load(recipe.data, None if payload["data"] is None else Path(payload["data"]), recipe.train.seed).test
    certificate = certify(
        model,
        dataset,
        recipe.property,
        contract(payload["contract"]),
        recipe.verify,
        jobs=payload["jobs"],
        progress=lambda done, total: say({"text": "certifying", "done": done, "total": total}),
        state_directory=scratch / "claims",
        file=precision_model(payload["precision"]),
        data_name=recipe.data.name,
        seed=recipe.train.seed,
    )
    say({"text": "audit of the contract on this machine"})
    found = audit(model, dataset, certificate, seed=recipe.train.seed)
    write_json(output / "audit.json", found.as_dict())
    if not found.passed:
        certificate = certificate.voided(f"the audit found: {found.reason}")
    write_inputs(output, model, dataset, recipe, certificate)
    write_certificate(output / "certificate.json", certificate)
    return {}
