"""What the page says of a training: certified only where bounds certified, its objective, its phases."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from report_artifact import make_artifact
from vsparse.artifact.facts import gather
from vsparse.pipeline.figures import key_figures
from vsparse.pipeline.training_line import epoch_figures
from vsparse.stages.report.document import as_json
from vsparse.stages.report.render import html
from vsparse.stages.report.training import epochs, phases


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    make_artifact(tmp_path)
    return tmp_path


def edited(directory: Path, **changes: Any) -> Path:
    """Puts the same keys into every epoch of both networks."""
    for place, variant in (("train", "sparse"), ("train/dense", "dense")):
        path = directory / place / "history.json"
        content = json.loads(path.read_text())
        path.write_text(json.dumps({**content, variant: [{**epoch, **changes} for epoch in content[variant]]}))
    return directory


def test_the_sentence_on_the_objective_is_what_training_wrote(artifact: Path) -> None:
    assert "Trained on boxes." in html(gather(artifact))
    path = artifact / "train" / "history.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "objective": {**content["objective"], "report": "Trained for <b>certification</b>."}}))
    facts = gather(artifact)
    assert facts.loss_is_cross_entropy
    assert "Trained for &lt;b&gt;certification&lt;/b&gt;." in html(facts)


def test_what_bounds_measured_is_called_certified(artifact: Path) -> None:
    page = html(gather(artifact))
    assert "measured during training with interval bounds on validation images" in page
    assert "Accuracy: certified solid, clean dashed" in page
    assert "Phases of the" not in page


def test_what_an_attack_measured_is_never_called_certified(artifact: Path) -> None:
    facts = gather(edited(artifact, measure="attack"))
    page = html(facts)
    assert "by an attack, which proves nothing" in page
    assert "Accuracy: robust solid, clean dashed" in page
    assert "Accuracy: certified solid" not in page
    assert as_json(facts, None)["history_sparse"][0]["measure"] == "attack"


def test_key_figures_of_a_training_alone_keep_proof_and_attack_apart(artifact: Path) -> None:
    for path in artifact.iterdir():
        if path.is_dir() and path.name != "train":
            shutil.rmtree(path)
    assert "certified_accuracy" in key_figures(gather(artifact))["sparse"]
    figures = key_figures(gather(edited(artifact, measure="attack")))["sparse"]
    assert "certified_accuracy" not in figures
    history = gather(artifact).history_sparse
    assert history is not None
    assert figures["robust_accuracy"] == history.epochs[-1].robust_accuracy


def test_phases_are_named_with_their_last_epochs(artifact: Path) -> None:
    path = artifact / "train" / "history.json"
    content = json.loads(path.read_text())
    for number, epoch in enumerate(content["sparse"], 1):
        epoch |= {"epoch": number, "phase": "train" if number <= 20 else "prune" if number <= 24 else "fine-tune"}
    path.write_text(json.dumps(content))
    facts = gather(artifact)
    assert phases(epochs(facts)["sparse"]) == "train to epoch 20, prune to 24, fine-tune to 30"
    assert "Phases of the sparse network: train to epoch 20, prune to 24, fine-tune to 30." in html(facts)


@pytest.mark.parametrize(("measure", "word"), [("interval", "certified"), ("crown", "certified"), ("attack", "robust")])
def test_an_epochs_line_says_what_was_measured(measure: str, word: str) -> None:
    message = {"loss": 0.5, "clean": 0.9, "certified": 0.8, "measure": measure, "density": 0.2}
    assert f"clean 90.0 %  {word} 80.0 %" in epoch_figures(message)
