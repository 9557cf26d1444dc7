"""The stack by the compiler's frames and its graph of calls."""

from __future__ import annotations

import pytest

from vsparse.stages.export.firmware.stack import deepest, defined

FRAMES = {"net_classify": 8, "vs_network": 100, "vs_rows": 40, "vs_settled": 30, "vs_other": 90}
CALLS = [
    ("net_classify", "vs_network"),
    ("vs_network", "vs_rows"),
    ("vs_rows", "vs_settled"),
    ("vs_rows", "memcpy"),
    ("net_other", "vs_other"),
]
USAGE = "".join(f"model.c:1:1:{name}\t{size}\tstatic\n" for name, size in FRAMES.items())


def graph(calls: list[tuple[str, str]]) -> str:
    lines = ['graph: { title: "model.c"']
    lines += [
        f'node: {{ title: "model.c:{name}" label: "{name}\\nmodel.c:1:1\\n{size} bytes (static)\\n0 dynamic objects" }}'
        for name, size in FRAMES.items()
    ]
    lines += ['node: { title: "memcpy" label: "memcpy\\n<built-in>" shape : ellipse }']
    for source, target in calls:
        called = target if target == "memcpy" else f"model.c:{target}"
        lines.append(f'edge: {{ sourcename: "model.c:{source}" targetname: "{called}" label: "model.c:1:1" }}')
    return "\n".join([*lines, "}"]) + "\n"


def test_the_deepest_chain_of_calls_counts() -> None:
    assert deepest(USAGE, graph(CALLS), ["net_classify"]) == 8 + 100 + 40 + 30
    assert deepest(USAGE, graph(CALLS), ["vs_rows", "vs_other"]) == 90
    assert "vs_settled" in defined(USAGE)


def test_without_a_graph_all_frames_count() -> None:
    assert deepest(USAGE, "", ["net_classify"]) == sum(FRAMES.values())


@pytest.mark.parametrize("usage", [USAGE.replace("40\tstatic", "40\tdynamic"), USAGE.replace("90\tstatic", "90\tdynamic")])
def test_a_frame_without_a_bound_leaves_none(usage: str) -> None:
    assert deepest(usage, graph(CALLS), ["net_classify"]) == 0


def test_what_calls_itself_has_no_bound() -> None:
    assert deepest(USAGE, graph([*CALLS, ("vs_settled", "vs_network")]), ["net_classify"]) == 0
