"""Stand-ins for training: numbers by a rule, failures on demand, and a record of what was asked."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from vsparse.pipeline.build import resolve
from vsparse.progress import Reporter
from vsparse.recipe import Recipe
from vsparse.sweep.grid import Configuration
from vsparse.sweep.results import Measured, Row, Run


def measured(certified: float, clean: float = 0.9, macs: int = 100, size: int = 400, seconds: float = 1.0) -> Measured:
    return Measured(certified, clean, macs, size, size // 4, size // 4, seconds, 10)


def resolver(recipe: str = "digits") -> Callable[[Sequence[str]], Recipe]:
    return lambda settings: resolve(recipe, "local", ["train.baseline=false", "gates={}", *settings])[0]


def row(name: str, certified: float, macs: int, size: int = 400, status: str = "finished", clean: float = 0.9) -> Row:
    return Row(Configuration(name, {}), 0, (Run(0, 10, measured(certified, clean, macs, size)),), status)  # type: ignore[arg-type]


class FakeTraining:
    """Measures by a rule of the recipe and remembers every recipe; `rule` may raise what a training raises."""

    def __init__(self, rule: Callable[[Recipe], Measured]) -> None:
        self.rule = rule
        self.asked: list[Recipe] = []
        self.together = self.most_together = 0
        self.lock = threading.Lock()

    def __call__(self, recipe: Recipe, reporter: Reporter) -> Measured:
        with self.lock:
            self.asked.append(recipe)
            self.together += 1
            self.most_together = max(self.most_together, self.together)
        try:
            return self.rule(recipe)
        finally:
            with self.lock:
                self.together -= 1
