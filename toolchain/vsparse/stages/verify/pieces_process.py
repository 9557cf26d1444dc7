"""The process that judges pieces of runs on a worker: `python -m vsparse.stages.verify.pieces_process`.

Each line on stdin is a piece and names the folder of its run, which holds the plan, the model, and the piece's file; each line on stdout
names the files of its answer there, or tells an error. Where nothing comes for a while, it ends.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from select import select
from typing import Any

from vsparse.errors import VsparseError
from vsparse.files import write_bytes
from vsparse.stages.verify.batches import CascadeRun, one_thread
from vsparse.stages.verify.pieces import judge_together, open_name, samples_name, settle
from vsparse.worker import PARENT, die_with_parent

# Runs that follow each other, as those of a curve do, find the process again.
IDLE_SECONDS = 120.0
# What torch says where the system gives it no memory: an error of no class of its own.
NO_MEMORY = ("not enough memory", "can't allocate memory")


def judge_piece(run: CascadeRun, piece: dict[str, Any]) -> dict[str, bytes]:
    """Judges one piece: `batch` and its `first` sample, or with `position` one open sample of it; returns files by name."""
    batch, key = int(piece["batch"]), str(run.plan["key"])
    if "position" in piece:
        position = int(piece["position"])
        return settle(run.cascade, key, batch, position, (run.directory / open_name(batch, position)).read_bytes())
    return judge_together(run.cascade, key, batch, int(piece["first"]), (run.directory / samples_name(batch)).read_bytes())


def main() -> None:
    """Entry point."""
    die_with_parent(int(os.environ[PARENT]))
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # a library that prints must not disturb the conversation

    def tell(message: dict[str, Any]) -> None:
        print(json.dumps(message), file=answers, flush=True)

    run: CascadeRun | None = None
    try:
        with one_thread():
            while select([sys.stdin], [], [], IDLE_SECONDS)[0] and (line := sys.stdin.readline()):
                piece = json.loads(line)
                folder = Path(piece["folder"])
                run = run if run is not None and run.directory == folder else CascadeRun.of_plan(folder)
                files = judge_piece(run, piece)
                for name, data in files.items():
                    write_bytes(folder / name, data, durable=False)
                tell({"files": sorted(files)})
    except VsparseError as error:
        tell({"error": type(error).__name__, "message": str(error)})
    except MemoryError:
        tell({"memory": "its memory was not enough"})
    except RuntimeError as error:
        known = any(words in str(error) for words in NO_MEMORY)
        tell({"memory": "its memory was not enough"} if known else {"error": "Exception", "message": traceback.format_exc()})
    except Exception:
        tell({"error": "Exception", "message": traceback.format_exc()})


if __name__ == "__main__":
    main()
