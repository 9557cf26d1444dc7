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
    "int8-c": "certificate/int8/c",
}


def check_choice(
    choice: Content, certificates: Certificates, gates: Any, recipe: Content | None = None
) -> None:
    """Refuses a table of forms that says other than the claims, or a choice that it does not bear.

    `gates` is the content of gates.json, `recipe` that of recipe.toml, or None.
    """
    rows = {row["name"]: row for row in choice["rows"]}
    need(len(rows) == len(choice["rows"]), "choice.json: it has two rows of one form")
    held = {name for name, folder in ABOUT.items() if folder in certificates}
    need(rows.keys() == held, "choice.json: its forms are not those that have a certificate")
    main = None
    if "sparse" in rows:
        main = summary_accuracy(certificates[ABOUT["sparse"]], "certified_accuracy")
    for name, row in rows.items():
        _check_row(name, row, certificates[ABOUT[name]], main)
        if name != "dense":
            _check_limits(name, row, recipe or {})
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
    waits = any(gate["passed"] is None for row in chosen for gate in row["gates"])
    for gate in judged:
        need(
            gate["passed"] is (False if not named else None if waits else True),
            "gates.json: a form to deploy is judged other than choice.json",
        )


def _check_limits(name: str, row: Content, recipe: Content) -> None:
    """Refuses gates of a form on its claims that are judged otherwise than recipe.toml asks for.

    Those of a row that `_check_row` has compared with the claims. A form's own least certified
    accuracy counts before the common one.
    """
    wanted, lost = {}, row["points_lost"]
    limits, choose = recipe.get("gates", {}), recipe.get("choose", {})
    least = limits.get(f"{name}_certified_accuracy") or limits.get("certified_accuracy")
    if least:
        wanted["certified accuracy"] = row["certified_accuracy"] - least
    if choose.get("certified_loss") and name != "sparse":
        wanted["points lost"] = -1 if lost is None else choose["certified_loss"] - lost / 100
    judged = {gate["name"]: gate["passed"] for gate in row["gates"]}
    for gate, spare in wanted.items():
        # What lies within the rounding of the limit may be judged either way.
        right = gate in judged and judged[gate] in (True, False)
        right = right and (abs(spare) <= 1e-9 or judged[gate] is (spare > 0))
        need(right, f"choice.json: {gate} of {name} is judged otherwise than recipe.toml asks for")


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
