"""choice.json against the claims: what it says of each form that may be deployed."""

from __future__ import annotations

from typing import Any

from vsparse_check.comparison import Certificates, Content, same_value, summary_accuracy
from vsparse_check.layout import PRECISIONS
from vsparse_check.refusal import need

# The certificate of each form, by its name in the table.
ABOUT = {
    "sparse": "certificate",
    "sequential": "certificate/sequential",
    "dense": "certificate/dense",
    **{name: f"certificate/{name}" for name in PRECISIONS},
}


def check_choice(choice: Content, certificates: Certificates, gates: Any) -> None:
    """Refuses a table of forms that says other than the claims, or a choice that it does not bear.

    `gates` is the content of gates.json, or None.
    """
    rows = {row["name"]: row for row in choice["rows"]}
    held = {name for name, folder in ABOUT.items() if folder in certificates}
    need(rows.keys() == held, "choice.json: its forms are not those that have a certificate")
    main = None
    if "sparse" in rows:
        main = summary_accuracy(certificates[ABOUT["sparse"]], "certified_accuracy")
    for name, row in rows.items():
        _check_row(name, row, certificates[ABOUT[name]], main)
    chosen = [row for row in rows.values() if row["chosen"]]
    named = choice["chosen"]
    need(
        [row["name"] for row in chosen] == ([named] if named else []),
        "choice.json: chosen is not the form that its table marks",
    )
    for row in chosen:
        able = row["competes"] and all(gate["passed"] is not False for gate in row["gates"])
        need(able and row["name"] != "dense", "choice.json: the chosen form misses a gate")
    judged = [gate for gate in gates or [] if gate["name"] == "a form to deploy"]
    for gate in judged:
        need(
            (gate["passed"] is False) is not bool(named),
            "gates.json: a form to deploy is judged other than choice.json",
        )


def _check_row(name: str, row: Content, content: Content, main: float | None) -> None:
    """Refuses a row that says other than the claims of its certificate."""
    certified = summary_accuracy(content, "certified_accuracy")
    wanted = {
        "contract": content["contract"]["name"],
        "certified_accuracy": certified,
        "clean_accuracy": summary_accuracy(content, "clean_accuracy"),
    }
    lost = row["points_lost"]
    same = same_value(row, wanted) and wanted.keys() <= row.keys()
    if main is not None:
        same = same and lost is not None and abs(lost - 100 * (main - certified)) < 1e-6
    need(same, f"choice.json: {name} is not what the claims add up to")
