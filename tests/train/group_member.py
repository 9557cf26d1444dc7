"""What each of two gloo processes does in the tests of data parallelism; what it finds goes to a file of its own."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from blob_data import blobs

from vsparse.data import Splits
from vsparse.errors import GateError, InputError
from vsparse.recipe import Recipe
from vsparse.recipe_train import METHODS
from vsparse.stages.train import process_group
from vsparse.stages.train.determinism import deterministic
from vsparse.stages.train.process_group import ProcessGroup
from vsparse.stages.train.trainer import Trainer

# 91 samples in batches of 31, 30 and 30: shares of unequal size.
SPLITS = Splits(blobs(91, 0), blobs(30, 1), blobs(30, 2), "blobs", "0" * 64)


def recipe(architecture: str, **settings: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "t",
            "data": {"name": "blobs", "shift": 1, "flip": True},
            "network": {"architecture": architecture, "width": 0.2},
            "property": {"epsilon": "0.05"},
            "train": {
                "epochs": 3,
                "batch_size": 32,
                "learning_rate": 0.01,
                "sparsity": 0.6,
                "regulariser": 0,
                "sparse": {"freeze": 0.5},
                "processes": 2,
                **settings,
            },
        }
    )


# Objectives without draws on networks without batch norm: as in one process, up to the order of sums.
ALIKE: dict[str, tuple[str, dict[str, Any]]] = {
    "ibp, channels": ("cnn4", {}),
    "natural, sgd": ("mlp", {"objective": "natural", "optimizer": "sgd", "l1": 1e-4, "weight_decay": 1e-3, "average": "ema"}),
    "ibp, channels, muon": ("cnn4", {"optimizer": "muon"}),
    **{
        method: ("mlp", {"sparse": {"method": method, "granularity": "element", "freeze": 0.7, "prune_epochs": 2, "finetune_epochs": 2}})
        for method in METHODS
    },
    "gradual by sensitivity, channels": ("cnn4", {"sparse": {"method": "gradual", "importance": "sensitivity", "freeze": 0.7}}),
    "lottery, rounds": ("mlp", {"sparse": {"method": "lottery", "granularity": "element", "rounds": 2, "finetune_epochs": 2}}),
}
# Draws of their own in each process, and batch norm.
ANY: dict[str, tuple[str, dict[str, Any]]] = {
    "pgd, batch norm": ("cnn5", {"objective": "pgd", "loss": {"attack_steps": 2}}),
    "channels by sensitivity, batch norm": ("cnn5", {"sparse": {"method": "gradual", "importance": "sensitivity", "freeze": 0.7}}),
}


def trained(architecture: str, settings: dict[str, Any], folder: Path) -> Trainer:
    """Returns a training that has run to its end, in as many processes as the group has."""
    with deterministic():
        trainer = Trainer(recipe(architecture, **settings), SPLITS, folder, True)
        while not trainer.finished:
            trainer.run_epoch()
            trainer.save(durable=False)
    return trainer


def collectives(group: ProcessGroup) -> dict[str, Any]:
    """Exercises the group on values that differ by rank."""
    tensors = [torch.tensor([1.0 + group.rank, 10.0]), torch.tensor([[group.rank * 4.0]])]
    group.all_reduce(tensors, 0.25 if group.rank == 0 else 0.75)
    found: dict[str, Any] = {
        "rank": group.rank,
        "parts": [[part.start, part.stop] for part in map(group.shard, (31, 2, 7))],
        "sum": [tensor.flatten().tolist() for tensor in tensors],
        "heard": group.broadcast((1 / 3 + group.rank, 5.0)),
    }
    group.require_equal({"w": torch.ones(3)})
    try:
        group.require_equal({"w": torch.tensor([1.0, 1.0 + 2**-23 * group.rank])})
    except GateError as error:
        found["differ"] = str(error)
    # Rank 1 says that it trains on a card.
    device = torch.device("cpu") if group.is_rank_0 else torch.device("cuda", 0)
    try:
        with mock.patch.object(process_group, "device_label", lambda device: device.type):
            ProcessGroup.current(device)
    except InputError as error:
        found["mixed"] = str(error)
    try:
        Trainer(recipe("mlp", batch_size=2, processes=2).model_copy(), Splits(*(blobs(3, 0),) * 3, "blobs", "1" * 64), Path("."), True)
    except InputError as error:
        found["too few"] = str(error)
    return found


def main(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2)
    torch.set_num_threads(1)
    found = collectives(ProcessGroup.current())
    for name, (architecture, settings) in {**ALIKE, **ANY}.items():
        scratch = folder / name
        scratch.mkdir(exist_ok=True)
        trainer = trained(architecture, settings, scratch)
        torch.save((trainer.state.params, trainer.best_params), folder / f"{name}.{rank}.pt")
        found[name] = {"history": [{k: v for k, v in row.items() if k != "seconds"} for row in trainer.history]}
    (folder / f"{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
