"""Judges the batches of a run on a cluster: their samples together first, then each open sample alone, as workers become free."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from vsparse.cluster.client import Cluster
from vsparse.cluster.engine import Engine, Shared, Unit, UnitAnswer
from vsparse.files import write_bytes
from vsparse.stages.verify.answers import enter
from vsparse.stages.verify.batches import MODEL, PLAN, CascadeRun
from vsparse.stages.verify.pieces import (
    open_name,
    read_settled,
    read_together,
    samples_bytes,
    samples_name,
    settled_name,
    together_name,
)
from vsparse.worker import WorkerError

REMEDY = "lower verify.batch_size, or give the workers more memory"


def judge_on_cluster(run: CascadeRun, batches: list[int], address: str, finished: Callable[[int], None]) -> None:
    """Judges batches of a run on the cluster at `address` and calls `finished(batch)` for each whose answer is written.

    What workers answer is kept in the run's directory as it comes, so that the same call after an interruption asks for the rest alone.
    Raises as `Engine.run` does.
    """
    with Cluster(address) as cluster:
        judging = Judging(run, finished)
        kept = {name: (run.directory / name).read_bytes() for name in (MODEL, PLAN)}
        units = [unit for batch in batches for unit in judging.units(batch)]
        Engine(cluster, Shared(run.plan["key"], "verify", kept, remedy=REMEDY)).run(units, judging.done)


class Judging:
    """What is left to do of a run, and what is done with each answer."""

    def __init__(self, run: CascadeRun, finished: Callable[[int], None]) -> None:
        self.run, self.finished = run, finished
        self.key = str(run.plan["key"])
        self.left: dict[int, set[int]] = {}

    def units(self, batch: int) -> Iterator[Unit]:
        """Yields what is to be done of a batch: the searches of its open samples where these are known, else the batch."""
        found = read_together(self._path(together_name(batch)), self.key, len(self.run.span(batch)))
        if found is None:
            yield self._batch(batch)
            return
        _, positions = found
        unsettled = [position for position in positions if read_settled(self._path(settled_name(batch, position)), self.key) is None]
        if not all(self._path(open_name(batch, position)).is_file() for position in unsettled):
            yield self._batch(batch)
            return
        self.left[batch] = set(unsettled)
        if not unsettled:
            self._put_together(batch)
        yield from (self._search(batch, position) for position in unsettled)

    def done(self, unit: Unit, answer: UnitAnswer) -> Iterable[Unit]:
        """Keeps the files of an answer, and returns what is to be done next of the batch."""
        batch = int(unit.request["batch"])
        # The answer to a batch goes last: it says that all files of its open samples are there.
        for name in sorted(answer.files, key=lambda name: name.startswith(together_name(batch))):
            write_bytes(self._path(Path(name).name), answer.files[name])
        if "position" not in unit.request:
            if read_together(self._path(together_name(batch)), self.key, len(self.run.span(batch))) is None:
                raise WorkerError(f"what a worker answered to {unit.name} is no answer; run the same command again")
            return list(self.units(batch))
        position = int(unit.request["position"])
        if read_settled(self._path(settled_name(batch, position)), self.key) is None:
            raise WorkerError(f"what a worker answered to {unit.name} is no answer; run the same command again")
        self.left[batch].discard(position)
        if not self.left[batch]:
            self._put_together(batch)
        return []

    def _batch(self, batch: int) -> Unit:
        span = self.run.span(batch)

        def attached() -> dict[str, bytes]:
            inputs, labels = self.run.inputs[span.start : span.stop], self.run.labels[span.start : span.stop]
            return {samples_name(batch): samples_bytes(inputs, labels)}

        return Unit(f"batch {batch} (samples {span.start} to {span.stop - 1})", {"batch": batch, "first": span.start}, attached)

    def _search(self, batch: int, position: int) -> Unit:
        name = open_name(batch, position)
        request: dict[str, Any] = {"batch": batch, "position": position}
        return Unit(f"the search of sample {self.run.span(batch)[position]}", request, lambda: {name: self._path(name).read_bytes()})

    def _put_together(self, batch: int) -> None:
        """Writes the answer to a batch, as one machine would have, and removes the files of its pieces."""
        span = self.run.span(batch)
        found = read_together(self._path(together_name(batch)), self.key, len(span))
        settled = {} if found is None else {p: read_settled(self._path(settled_name(batch, p)), self.key) for p in found[1]}
        if found is None or None in settled.values():
            raise WorkerError(f"answers to batch {batch} have vanished from {self.run.directory}; run the same command again")
        answer, positions = found
        for position, one in settled.items():
            enter(answer, position, one[0] if one is not None else None)
        self.run.write(batch, answer)
        for position in positions:
            self._path(open_name(batch, position)).unlink(missing_ok=True)
            self._path(settled_name(batch, position)).unlink(missing_ok=True)
        self._path(together_name(batch)).unlink(missing_ok=True)
        self.finished(batch)

    def _path(self, name: str) -> Path:
        return self.run.directory / name
