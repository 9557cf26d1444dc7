"""The three files of a network in C, put together from what both texts have emitted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import ClassVar

from vsparse.files import write_bytes
from vsparse.graph.ir import Shape
from vsparse.stages.export.c_source.literals import comment
from vsparse.stages.export.c_source.tiles import kernel_text
from vsparse.stages.export.c_source.weights import VECTORS


@dataclass(frozen=True)
class CFiles:
    """The texts of a network in C, and beside them the files of the binary notation of its weights.

    `names` are those of the texts: source, header, weights; `binary_names` those that the other notation may add.
    """

    names: ClassVar[tuple[str, ...]]
    binary_names: ClassVar[tuple[str, ...]]
    header: str
    source: str
    weights: str
    binary: Mapping[str, str | bytes] = field(default_factory=dict, kw_only=True)

    def files(self) -> dict[str, str | bytes]:
        """Returns the content of each file by its name."""
        return {**dict(zip(self.names, (self.source, self.header, self.weights), strict=True)), **self.binary}

    def write(self, directory: Path) -> None:
        """Writes the files, each in one step; those of another notation of the weights are removed."""
        files = self.files()
        for name, content in files.items():
            write_bytes(directory / name, content.encode() if isinstance(content, str) else content)
        for name in set(self.binary_names) - set(files):
            (directory / name).unlink(missing_ok=True)


@dataclass(frozen=True)
class CMemory:
    """What one text of the network takes: bytes of constant tables (ROM), and of the arena (RAM)."""

    constant_bytes: int
    arena_bytes: int


@dataclass(frozen=True)
class Addition:
    """Further functions of a network in C: C text, and of each text (`vector`, `scalar`) its lines and the floats of its arena.

    `declarations` takes the C expression of the floats that an arena must have, `common` stands before both texts; the file's own arena has
    `static_floats` (`PREFIX` stands for the network's).
    """

    declarations: Callable[[str], str]
    common: str
    texts: Mapping[str, Sequence[str]]
    entry: str
    arenas: Mapping[str, int]
    static_floats: str = "PREFIX_LIVE_ARENA_FLOATS"


def source(
    prefix: str,
    title: str,
    index: str,
    vector: list[str],
    vector_body: list[str],
    scalar: list[str],
    scalar_body: list[str],
    added: Addition | None = None,
) -> str:
    """Returns model.c: the text with vectors, the one without, and the functions that callers see."""
    capitals = prefix.upper()
    return "\n".join(
        [
            f"/* {comment(title)}: a certified network. What is certified, and of which sums: see model.h. */",
            '#include "model.h"',
            "",
            f"#define VS_VECTORS ({capitals}_VECTORS)",
            kernel_text("prelude"),
            f"typedef {index} vs_index;",
            "",
            '#include "model_weights.h"',
            "",
            *([] if added is None else [added.common]),
            "#if VS_LANES > 1",
            *_text(vector, vector_body),
            *([] if added is None else added.texts["vector"]),
            "#else",
            *_text(scalar, scalar_body),
            *([] if added is None else added.texts["scalar"]),
            "#endif",
            "",
            entry_text(prefix, added),
        ]
    )


def entry_text(prefix: str, added: Addition | None = None) -> str:
    """Returns the functions that callers see."""
    capitals, text = prefix.upper(), kernel_text("entry")
    if added is not None:  # one arena for all of them
        text = text.replace("vs_arena[PREFIX_ARENA_FLOATS]", f"vs_arena[{added.static_floats}]")
    text = text.replace("PREFIX", capitals).replace("prefix", prefix)
    return text if added is None else f"{text}\n{added.entry}"


def _text(functions: list[str], body: list[str]) -> list[str]:
    parts = [part for part in functions if part]
    return [
        *parts,
        "",
        "VS_ONCE static void vs_network(float *arena, const float *input, float *logits)",
        "{",
        *(body if any("arena + " in line for line in body) else ["    (void)arena;", *body]),
        "}",
    ]


def header(
    prefix: str,
    shape: Shape,
    classes: int,
    model_sha256: str,
    title: str,
    vector: CMemory,
    scalar: CMemory,
    floats: Mapping[str, int],
    assembly: str = "",
    added: Addition | None = None,
) -> str:
    """Returns model.h; `floats` are those of the inference's arena in each text, `assembly` the file compiled with model.c, if any."""
    capitals = prefix.upper()
    more = f"\n   Compile {assembly} with the same options." if assembly else ""
    live = (
        "" if added is None else "\n" + added.declarations(f"({capitals}_VECTORS ? {vector.arena_bytes // 4} : {scalar.arena_bytes // 4})")
    )
    return f"""/* {comment(title)}: a certified network in C99, without dependencies or allocation.

   Compile with `cc -O3 -std=c99 -ffp-contract=off -c model.c` (add -march=native for the machine's own vectors; -ffast-math is refused).{
        more
    }
   The certificate is about {comment(model_sha256) or "the ONNX file that this was made from"}
   under the contract `sequential`: float32, rounding to nearest, subnormals kept or flushed to zero. A sum starts with its bias and
   adds the products of its non-zero weights in row-major order of the weight tensor [out, in/groups, kh, kw], each with or without
   a fused multiply-add; an average is the sum of its window in row-major order and one division.
   With vectors: {vector.constant_bytes} bytes of constants, {vector.arena_bytes} bytes of arena.
   Without: {scalar.constant_bytes} bytes of constants, {scalar.arena_bytes} bytes of arena. */
#ifndef {capitals}_MODEL_H
#define {capitals}_MODEL_H

#include <stddef.h>

#define {capitals}_INPUTS {prod(shape)} /* {" x ".join(str(size) for size in shape)}, row-major */
#define {capitals}_CLASSES {classes}
#define {capitals}_MODEL_SHA256 "{comment(model_sha256)}" /* content hash of the ONNX file, as the certificate states it */

/* Whether the text with vectors is compiled, and the floats of an arena for it. */
#if {VECTORS}
#define {capitals}_VECTORS 1
#define {capitals}_ARENA_FLOATS {floats["vector"]}
#else
#define {capitals}_VECTORS 0
#define {capitals}_ARENA_FLOATS {floats["scalar"]}
#endif

#ifdef __cplusplus
extern "C" {{
#endif

/* Computes the logits of one input in an arena of the caller's, which holds nothing before or after: networks may share one, and calls
   with different arenas may run at the same time. Returns 0, or -1, and does nothing, where `floats` is below {capitals}_ARENA_FLOATS. */
int {prefix}_logits_in(float *arena, size_t floats, const float *input, float *logits);

/* Returns the class with the largest logit, the first of equals, or -1 where a logit is not finite or the arena is too small. */
int {prefix}_classify_in(float *arena, size_t floats, const float *input);

#ifndef {capitals}_NO_STATIC_ARENA
/* The same in an arena of the file's own, for one call at a time. Define {capitals}_NO_STATIC_ARENA to leave it out. */
void {prefix}_logits(const float *input, float *logits);
int {prefix}_classify(const float *input);
#endif
{live}
#ifdef __cplusplus
}}
#endif
#endif
"""
