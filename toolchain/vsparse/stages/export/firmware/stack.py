"""The stack that functions of a C file take, by what the compiler says of their frames and of who calls whom."""

from __future__ import annotations

import re
from collections.abc import Sequence

USAGE = "-fstack-usage"
# GCC 10 and later.
CALL_GRAPH = "-fcallgraph-info=su"
_NODE = re.compile(r'^node: \{ title: "([^"]*)" label: "[^"]*?\\n(\d+) bytes \(([^)]*)\)', re.MULTILINE)
_EDGE = re.compile(r'^edge: \{ sourcename: "([^"]*)" targetname: "([^"]*)"', re.MULTILINE)
_BOUNDED = ("static", "dynamic,bounded")


def defined(usage: str) -> frozenset[str]:
    """Returns the names of the functions that a .su file has a frame of."""
    return frozenset(name for name, _, _ in _frames(usage))


def deepest(usage: str, graph: str, entries: Sequence[str]) -> int:
    """Returns the bytes of the deepest chain of calls that begins at one of some functions; 0 where one of them has no bound.

    `usage` is the text of a .su file (-fstack-usage) and `graph` that of a .ci file (-fcallgraph-info=su); where there is none, as GCC
    before 10 writes none, the bound is the sum of all frames: no function of a network in C calls itself. What functions of the C library
    take is not in it.
    """
    if any(kind not in _BOUNDED for _, _, kind in _frames(usage)):
        return 0
    if not graph:
        return sum(size for _, size, _ in _frames(usage))
    size = {name: int(count) for name, count, _ in _NODE.findall(graph)}
    calls: dict[str, list[str]] = {}
    for source, target in _EDGE.findall(graph):
        calls.setdefault(source, []).append(target)
    known: dict[str, int] = {}

    def below(name: str, above: frozenset[str]) -> int:
        if name in above:
            raise RecursionError(name)
        if name not in known:
            known[name] = size.get(name, 0) + max((below(one, above | {name}) for one in calls.get(name, ())), default=0)
        return known[name]

    wanted = [name for name in size if name.rpartition(":")[2] in entries]
    try:
        return max((below(name, frozenset()) for name in wanted), default=0)
    except RecursionError:
        return 0


def _frames(usage: str) -> list[tuple[str, int, str]]:
    """Returns the name, the bytes and the kind of every frame in a .su file."""
    lines = [line.split("\t") for line in usage.splitlines()]
    return [(place.rsplit(":", 1)[1], int(size), kind) for place, size, kind in lines]
