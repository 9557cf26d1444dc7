"""The page's section on a training: its objective, how its epochs were judged, and its phases."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from vsparse.artifact.facts import Facts
from vsparse.artifact.history import Epoch

# By what the robust accuracy of an epoch was measured.
MEASURES = {"interval": "interval bounds", "crown": "CROWN bounds", "attack": "an attack", "explained": "interval bounds"}


def objective(facts: Facts) -> str:
    """Returns the sentence on the objective, as its class gave it to training; empty where none is on record."""
    name = facts.training_objective
    return facts.objective_report or (f"Trained with {name}." if name else "")


def measures(facts: Facts) -> list[str]:
    """Returns by what the epochs were judged, each once."""
    return list(dict.fromkeys(epoch.measure for one in epochs(facts).values() for epoch in one))


def epochs(facts: Facts) -> dict[str, tuple[Epoch, ...]]:
    """Returns the epochs of both networks; empty where there are none."""
    found = {"sparse": facts.history_sparse, "dense": facts.history_dense}
    return {name: () if history is None else history.epochs for name, history in found.items()}


def judged(facts: Facts) -> str:
    """Returns the sentence on the accuracies of the epochs."""
    found = measures(facts)
    if not found:  # the network was taken as it is
        return ""
    if found == ["explained"]:
        return (
            "Fractions here are of the variance of the validation samples' targets that is explained during training: by the answers, and "
            "by the worst answers that interval bounds leave possible at the ε of the certificate. The certificate is about the file."
        )
    if found == ["attack"]:
        how = "by an attack, which proves nothing: what it does not break may still be wrong,"
    else:
        how = "with " + " and ".join(MEASURES[name] for name in found)
    return (
        f"Accuracies here are measured during training {how} on validation images, at the ε of the certificate; the certificate's come "
        "from the exported file."
    )


def chart_title(facts: Facts) -> str:
    """Returns the title of the chart of accuracies."""
    if measures(facts) == ["explained"]:
        return "Variance explained: in the worst case solid, undisturbed dashed"
    kind = "robust" if measures(facts) == ["attack"] else "certified"
    return f"Accuracy: {kind} solid, clean dashed"


def phases(trained: Sequence[Epoch]) -> str:
    """Returns `train to epoch 40, prune to 44, fine-tune to 54`; empty for a training of one phase."""
    ends = [(name, list(members)[-1].epoch) for name, members in groupby(trained, key=lambda epoch: epoch.phase)]
    if len(ends) < 2:
        return ""
    return ", ".join(f"{name} to {'epoch ' if index == 0 else ''}{end}" for index, (name, end) in enumerate(ends))
