"""Everything that needs an accelerator, in pieces that resume and write JSON as they go: run by run.sh, explained in README.md.

Usage: run.sh --out DIR [--data DIR] [--device cuda] [--seconds 540] [--pieces self-test,steps,train,certify] [--state DIR] [--tiny]

A piece runs in a process of its own, ended after its limit (8 minutes) or when `--seconds` are over; what it had done is kept in the state
directory, and the same command goes on from there. `--tiny` runs all of it on small settings, on a processor in minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
LIMIT_S = 480.0
# Below this there is no sense in beginning a piece.
LEAST_S = 20.0


@dataclass(frozen=True)
class Piece:
    """One piece: its name, which is also that of its JSON file, and the arguments of the process that runs it."""

    name: str
    group: str
    command: tuple[str, ...]


def pieces(arguments: argparse.Namespace) -> list[Piece]:
    """Returns every piece in the order in which they run; what a later one needs an earlier one has written."""
    device, out = ["--device", arguments.device], arguments.out
    tiny = ["--tiny"] if arguments.tiny else []
    data = ["--data", str(arguments.data)] if arguments.data else []
    found = [Piece("self-test", "self-test", (str(HERE / "self_test.py"), *device, "--out", str(out / "self-test.json")))]
    size = ["--input", "1x16x16", "--rounds", "1", "--steps", "1"] if arguments.tiny else ["--input", "3x32x32", "--rounds", "10"]
    names = "clean,ours-ibp,ours-crown-ibp,ours-mtl-ibp"
    for architecture in ("cnn4",) if arguments.tiny else ("cnn5", "cnn7"):
        script = (str(HERE.parent / "training" / "steps" / "run.py"), "--architecture", architecture, *size, *device)
        only = ("--only", names) if arguments.tiny else ()
        found.append(Piece(f"steps-{architecture}", "steps", (*script, *only, "--out", str(out / f"steps-{architecture}.json"))))
    for variant in ("dense", "sparse"):
        common = [variant, "--state", str(arguments.state / variant), "--epochs", str(arguments.epochs), *device, *data, *tiny]
        for group, name in (("train", "train.py"), ("certify", "certify.py")):
            out_file = ("--out", str(out / f"{group}-{variant}.json"))
            found.append(Piece(f"{group}-{variant}", group, (str(HERE / name), *common, *out_file)))
    order = {"self-test": 0, "steps": 1, "train": 2, "certify": 3}
    wanted = arguments.pieces.split(",")
    unknown = sorted(set(wanted) - set(order))
    if unknown:
        raise SystemExit(f"there is no piece {unknown[0]}; there are {', '.join(order)}")
    return sorted((piece for piece in found if piece.group in wanted), key=lambda piece: order[piece.group])


def finished(path: Path) -> bool:
    """Returns whether a piece's JSON is there and does not say that it was cut short."""
    try:
        return json.loads(path.read_text()).get("finished", True) is True
    except (OSError, ValueError, AttributeError):
        return False


def run_piece(piece: Piece, limit: float) -> dict[str, Any]:
    """Runs one piece for at most `limit` seconds and returns how it ended: its exit status, None where it was ended."""
    began = time.perf_counter()
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    process = subprocess.Popen([sys.executable, *piece.command], env=environment)
    try:
        status: int | None = process.wait(limit)
    except subprocess.TimeoutExpired:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        status = None
    return {"status": status, "seconds": round(time.perf_counter() - began, 1)}


def main() -> None:
    """Runs the pieces that are not finished, and writes summary.json: what ran, how it ended, and on what."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--state", type=Path, default=None, help="checkpoints and answers; default: OUT/state")
    parser.add_argument("--data", type=Path, default=None, help="CIFAR-10; default: what pack.py has packed")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=540.0, help="for all pieces together")
    parser.add_argument("--epochs", type=int, default=0, help="of each training; 0: as many as fit into a piece by the measured step")
    parser.add_argument("--pieces", default="self-test,steps,train,certify")
    parser.add_argument("--tiny", action="store_true", help="small networks and the embedded digits, to try the script")
    arguments = parser.parse_args()
    arguments.state = arguments.state or arguments.out / "state"
    carried = HERE / "carried" / "data"
    if arguments.data is None and not arguments.tiny and carried.is_dir():
        arguments.data = carried
    arguments.out.mkdir(parents=True, exist_ok=True)
    ends = time.perf_counter() + arguments.seconds
    summary: dict[str, Any] = {"arguments": {key: str(value) for key, value in vars(arguments).items()}, "pieces": {}}
    for piece in pieces(arguments):
        left = min(LIMIT_S, ends - time.perf_counter())
        if finished(arguments.out / f"{piece.name}.json"):
            result: dict[str, Any] = {"status": 0, "seconds": 0.0, "was": "finished before"}
        elif left < LEAST_S:
            result = {"status": None, "seconds": 0.0, "was": "no time left"}
        else:
            print(f"== {piece.name}: at most {left:.0f} s", file=sys.stderr)
            result = run_piece(piece, left)
        summary["pieces"][piece.name] = {**result, "finished": finished(arguments.out / f"{piece.name}.json"), **asdict(piece)}
        (arguments.out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
        print(f"== {piece.name}: {result}", file=sys.stderr)
    bad = [name for name, result in summary["pieces"].items() if not result["finished"]]
    print("finished" if not bad else f"not finished: {', '.join(bad)}; run the same command again to go on", file=sys.stderr)
    raise SystemExit(1 if bad else 0)


if __name__ == "__main__":
    main()
