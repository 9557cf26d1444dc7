"""The trainings of a sweep on a cluster: each in a process of a worker, which gets the data once and sends back what was written."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from threading import Event, Lock
from typing import Any

from vsparse.cluster.client import Cluster
from vsparse.cluster.engine import Engine, Shared, Unit, UnitAnswer, topic
from vsparse.data import load
from vsparse.data.packed import pack_splits
from vsparse.errors import InputError
from vsparse.files import write_bytes
from vsparse.progress import Emit
from vsparse.recipe import Data, Recipe
from vsparse.stages.train.named_classes import own_classes
from vsparse.worker import Workers

REMEDY = "lower train.batch_size or verify.batch_size, or give the workers more memory"
# The paths in a task's payload: folders made on the worker, and files sent to it.
FOLDERS, FILES = ("scratch", "output"), ("model",)


class ClusterWorkers(Workers):
    """The workers of one sweep: `run` has a task done on the cluster, and puts what it wrote where the payload says.

    A training that is interrupted, or whose worker is lost, starts again: its checkpoints are on the worker. What has ended is kept.
    """

    def __init__(self, address: str) -> None:
        super().__init__()
        self.cluster = Cluster(address)
        self._over = Event()
        self._loading = Lock()
        self._packed: Callable[[str, str | None, int], bytes] = lru_cache(maxsize=4)(_packed)

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self.cluster.close()

    @property
    def threads(self) -> int:
        """How many trainings the cluster takes at once."""
        return max(1, self.cluster.threads())

    def stop(self) -> None:
        """Ends every task; calls to `run` that wait for one raise WorkerError."""
        self._over.set()
        super().stop()

    def run(self, task: str, payload: dict[str, Any], progress: Emit) -> dict[str, Any]:
        """Runs one task on a worker and returns its answer; raises its errors, and those of `Engine.run`."""
        recipe = Recipe.model_validate(payload["recipe"])
        require_travels(recipe)
        with self._loading:
            splits = self._packed(recipe.data.model_dump_json(), payload["data"], recipe.train.seed)
        kept = {"splits": splits, **{name: Path(payload[name]).read_bytes() for name in FILES if name in payload}}
        folders = tuple(name for name in FOLDERS if name in payload)
        request = {name: value for name, value in payload.items() if name not in (*FOLDERS, *FILES)}
        shared = Shared(uuid.uuid4().hex, task, kept, folders, REMEDY)
        found: list[UnitAnswer] = []

        def done(unit: Unit, answer: UnitAnswer) -> Iterable[Unit]:
            found.append(answer)
            return ()

        def told(event: Any) -> None:
            if isinstance(event, tuple) and isinstance(event[-1], dict):
                progress(event[-1])

        self.cluster.client.subscribe_topic(topic(shared.run), told)
        try:
            Engine(self.cluster, shared, self._over.is_set).run([Unit(f"{task} {recipe.name}", {**request, "data": None})], done)
        finally:
            if self.cluster.connected:
                self.cluster.client.unsubscribe_topic(topic(shared.run))
        for name, data in found[0].files.items():
            write_bytes(Path(payload["output"], name), data)
        return found[0].result


def require_travels(recipe: Recipe) -> None:
    """Raises InputError for a recipe that names code of the user's own, which is not sent to workers."""
    named = {"network.architecture": recipe.network.architecture} if ":" in recipe.network.architecture else {}
    for key, name in {**named, **own_classes(recipe.train)}.items():
        raise InputError(f"--cluster: {key} {name} is code of your own, which is not sent to other machines; leave --cluster out")


def _packed(spec: str, folder: str | None, seed: int) -> bytes:
    return pack_splits(load(Data.model_validate_json(spec), None if folder is None else Path(folder), seed))
