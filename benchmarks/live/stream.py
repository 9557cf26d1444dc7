"""A camera stream: tracks of traffic signs frame by frame, each certified as the device does it; a line a frame, and a picture.

    stream.py ARTIFACT --data DIR --tracks 40 --out results-stream-gtsrb.json

A track is a sign that the car comes nearer to. A dataset without tracks gets made-up ones: each test sample fades in, with noise, which is
no camera and says nothing but that the script works.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsparse import artifact
from vsparse.data import Dataset, load
from vsparse.files import write_bytes, write_json
from vsparse.monitor import FrameCertifier, StreamMonitor
from vsparse.recipe import load_recipe

BINS = 10  # of a track's course, from its first frame to its last
FADED = 12  # frames of a made-up track


def tracks_of(dataset: Dataset, count: int, seed: int) -> tuple[list[tuple[int, NDArray[np.float32]]], bool]:
    """Returns the label and the frames of some tracks, those of a dataset in the order of its frames, and whether they are real ones."""
    rng = np.random.default_rng(seed)
    if dataset.groups is not None:
        names = np.unique(dataset.groups)
        chosen = np.sort(rng.choice(names, min(count, len(names)), replace=False))
        found = []
        for name in chosen:
            index = np.flatnonzero(dataset.groups == name)
            found.append((int(dataset.labels[index[0]]), dataset.inputs(index)))
        return found, True
    index = np.sort(rng.choice(len(dataset), min(count, len(dataset)), replace=False))
    found = []
    for i in index:
        (x,) = dataset.inputs(np.array([i]))
        strength = np.linspace(0.2, 1, FADED, dtype=np.float32).reshape(-1, *([1] * x.ndim))
        noise = 0.05 * rng.normal(size=(FADED, *x.shape)).astype(np.float32)
        found.append((int(dataset.labels[i]), np.clip(strength * x + (1 - strength) * noise, 0, 1)))
    return found, False


def watched(certifier: FrameCertifier, tracks: list[tuple[int, NDArray[np.float32]]], epsilon: str | None) -> dict[str, Any]:
    """Returns each track frame by frame, counts over the course of a track, and the monitor's summary."""
    monitor = StreamMonitor(certifier, epsilon)
    rows = []
    course = np.zeros((BINS, 4), np.int64)  # frames, certified, certified with the wrong class, right
    for number, (label, frames) in enumerate(tracks):
        told = [monitor.frame(f"{number}-{i}", one) for i, one in enumerate(frames)]
        for i, one in enumerate(told):
            sure, right = one["certified"], one["class"] == label
            course[min(BINS - 1, i * BINS // len(told))] += (1, sure, sure and not right, right)
        rows.append(
            {
                "label": label,
                "class": [one["class"] for one in told],
                "certified": [one["certified"] for one in told],
                "radius": [one["radius"] for one in told],
            }
        )
        print(f"track {number}: {sum(rows[-1]['certified'])} of {len(told)} frames certified", file=sys.stderr)
    first = [next((i for i, sure in enumerate(row["certified"]) if sure), None) for row in rows]
    waits = [one for one in first if one is not None]
    return {
        "tracks": rows,
        "course": [dict(zip(("frames", "certified", "certified_wrong", "right"), map(int, one), strict=True)) for one in course],
        "tracks_with_a_certified_frame": sum(one is not None for one in first),
        "median_frames_until_certified": float(np.median(waits)) if waits else None,
        "longest_wait": max((longest(row["certified"]) for row in rows), default=0),
        "summary": monitor.summary.as_dict(),
    }


def longest(certified: list[bool]) -> int:
    """Returns the most frames in a row that are not certified."""
    most = now = 0
    for sure in certified:
        now = 0 if sure else now + 1
        most = max(most, now)
    return most


def drawn(found: dict[str, Any]) -> str:
    """Returns an SVG: above, a line of squares for each track (green: certified; red: with the wrong class); below, shares."""
    rows, kind = found["tracks"][:40], "Tracks" if found["real_tracks"] else "Made-up tracks"
    width, top, each = 720, 40, 9
    below = top + each * len(rows) + 50
    height = below + 150
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="40" y="24">{kind}, frame by frame: certified (green), certified wrong (red)</text>',
    ]
    for y, row in enumerate(rows):
        step = (width - 60) / max(1, len(row["class"]))
        for x, (sure, label) in enumerate(zip(row["certified"], row["class"], strict=True)):
            colour = "#ddd" if not sure else "#2a7" if label == row["label"] else "#c33"
            parts.append(
                f'<rect x="{40 + x * step:.1f}" y="{top + y * each}" width="{step * 0.9:.1f}" height="{each - 2}" fill="{colour}"/>'
            )
    for name, colour in (("right", "#888"), ("certified", "#2a7")):
        points = []
        for i, one in enumerate(found["course"]):
            share = one[name] / one["frames"] if one["frames"] else 0.0
            points.append(f"{40 + (i + 0.5) * (width - 60) / BINS:.1f},{below + 100 * (1 - share):.1f}")
        parts.append(f'<polyline points="{" ".join(points)}" fill="none" stroke="{colour}" stroke-width="2"/>')
    parts += [
        f'<line x1="40" y1="{below + 100}" x2="{width - 20}" y2="{below + 100}" stroke="black"/>',
        f'<text x="40" y="{below - 8}">share over the course of a track: class right (grey), certified (green); 0 to 100 %</text>',
        f'<text x="40" y="{below + 118}">first frame of a track</text>',
        f'<text x="{width - 20}" y="{below + 118}" text-anchor="end">last frame</text>',
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def main() -> int:
    """Watches the stream, and writes numbers and picture."""
    parser = argparse.ArgumentParser(description="Tracks of frames, certified one by one as the device does it.")
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--data", type=Path, default=None)
    parser.add_argument("--tracks", type=int, default=40)
    parser.add_argument("--epsilon", help="default: the recipe's")
    parser.add_argument("--form", help="sequential or int8-c; default: the one that the build chose")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--simulate", action="store_true")
    parser.add_argument("--out", type=Path, required=True, help="a .json file; the picture goes beside it")
    given = parser.parse_args()
    recipe = load_recipe(str(given.artifact / artifact.RECIPE))
    tracks, real = tracks_of(load(recipe.data, given.data, recipe.train.seed).test, given.tracks, given.seed)
    with FrameCertifier(given.artifact, form=given.form, compiled=not given.simulate) as certifier:
        epsilon = certifier.radius_of(given.epsilon)
        found = {
            "recipe": recipe.name,
            "form": certifier.form,
            "epsilon": epsilon,
            "real_tracks": real,
            **watched(certifier, tracks, given.epsilon),
        }
    write_json(given.out, found)
    write_bytes(given.out.with_suffix(".svg"), drawn(found).encode())
    print(json.dumps({key: value for key, value in found.items() if key not in ("tracks", "summary")}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
