"""The progress line of a training: what its worker process says of epochs and of batches, worded for a person."""

from __future__ import annotations

from typing import Any

from vsparse.progress import Emit, Event, Reporter, duration


def training_reporter(title: str, report: Reporter) -> Emit:
    """Returns what takes the messages of a training task and reports its line: the figures of the last epoch, and the radius of the moment.

    A message is an epoch that ended (`EpochReport`), or under the key `within` where in the next one the training is (`BatchReport`), or
    under `steps` the steps of one (`StepsReport`). Epochs and steps are reported as records too, for `vsparse.training_log`.
    """
    figures = ""

    def told(message: dict[str, Any]) -> None:
        nonlocal figures
        if "steps" in message:
            report(Event("record", title, data=message["steps"] | {"event": "steps"}))
            return
        inside = message.get("within")
        if inside is None:
            figures = epoch_figures(message)
            report(Event("record", title, data=message | {"event": "epoch"}))
            now, done, part = message, message["epoch"], 0.0
        else:
            now, done, part = inside, inside["epoch"] - 1, inside["batch"] / inside["batches"]
        phase = "" if now["phase"] == "train" else f"{now['phase']}  "
        text = f"{phase}ε {now['epsilon']:.4g}  {figures}left about {duration(now['eta_s'])}"
        report(Event("progress", title, text, done, now["epochs"], part=part, left_s=now["eta_s"]))

    return told


def epoch_figures(message: dict[str, Any]) -> str:
    """Words an epoch's loss, its clean and robust accuracy on the validation split, and its density."""
    if message["measure"] == "explained":
        return (
            f"loss {message['loss']:.3f}  explained {100 * message['clean']:.1f} %  in the worst case {100 * message['certified']:.1f} %  "
            f"density {100 * message['density']:.1f} %  "
        )
    robust = "robust" if message["measure"] == "attack" else "certified"
    return (
        f"loss {message['loss']:.3f}  clean {100 * message['clean']:.1f} %  {robust} {100 * message['certified']:.1f} %  "
        f"density {100 * message['density']:.1f} %  "
    )
