"""Here queries are answered in the process of the tests, which spares each an import of torch; tests/test_limits.py has the real ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from vsparse import ask
from vsparse.limits import Ended
from vsparse.stages.verify import query_task


@pytest.fixture(autouse=True)
def _queries_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def run_here(task: str, payload: dict[str, Any], *, deadline: float, memory_bytes: int, on_message: Callable[[Any], None]) -> Ended:
        assert task == "query"
        return Ended("done", query_task.query_task(payload, on_message), 0)

    monkeypatch.setattr(ask, "run_limited", run_here)
    monkeypatch.setattr(query_task, "_refuse_more_than", lambda memory: None)
