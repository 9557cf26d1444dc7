"""The files of the int8 C, put together from what was emitted."""

from __future__ import annotations

from math import prod
from pathlib import Path

from vsparse.graph.ir import Shape
from vsparse.stages.export.c_source.literals import comment
from vsparse.stages.export.c_source.text import Addition, CMemory, entry_text
from vsparse.stages.export.c_source.tiles import kernel_text

_KERNELS = Path(__file__).resolve().parent / "kernels"


def source(prefix: str, title: str, functions: list[str], body: list[str], added: Addition | None = None) -> str:
    """Returns model.int8.c: the functions of the steps, the network, and the functions that callers see."""
    capitals = prefix.upper()
    text = "\n".join(body)
    unused = [] if "arena + " in text else ["    (void)arena;"]
    watched = "nan = v == v" in text
    return "\n".join(
        [
            f"/* {comment(title)}: a certified network of 8-bit integers. What is certified, and of which sums: see model.int8.h. */",
            '#include "model.int8.h"',
            "",
            "#define VS_VECTORS 0",
            kernel_text("prelude"),
            (_KERNELS / "prelude8.c").read_text(encoding="utf-8"),
            '#include "model.int8_weights.h"',
            "",
            "\n\n".join(functions),
            "",
            "VS_ONCE static void vs_network(float *arena, const float *input, float *logits)",
            "{",
            *(["    float nan = 0.0f;"] if watched else []),
            *unused,
            *body,
            *(
                [
                    "    if (nan != nan)",
                    f"        for (int i = 0; i < {capitals}_CLASSES; i++)",
                    "            logits[i] = nan;",
                ]
                if watched
                else []
            ),
            "}",
            "",
            *([] if added is None else [added.common, *added.texts["int8"], ""]),
            entry_text(prefix, added),
        ]
    )


def header(
    prefix: str, shape: Shape, classes: int, model_sha256: str, title: str, memory: CMemory, floats: int, added: Addition | None = None
) -> str:
    """Returns model.int8.h; `floats` are those of the inference's arena."""
    capitals = prefix.upper()
    live = "" if added is None else "\n" + added.declarations(str(memory.arena_bytes // 4))
    return f"""/* {comment(title)}: a certified network of 8-bit integers in C99, without dependencies or allocation.

   Compile with `cc -O3 -std=c99 -ffp-contract=off -c model.int8.c` (-ffast-math is refused).
   The certificate is about {comment(model_sha256) or "the ONNX file that this was made from"}
   under the contract `int8`: weights and activations are 8-bit integers, sums are exact in int32, and each result is rounded to the next
   grid in float32. With -ffp-contract=off the logits are the same bits for every compiler and processor.
   {memory.constant_bytes} bytes of constants, {memory.arena_bytes} bytes of arena. */
#ifndef {capitals}_MODEL_H
#define {capitals}_MODEL_H

#include <stddef.h>

#define {capitals}_INPUTS {prod(shape)} /* {" x ".join(str(size) for size in shape)}, row-major */
#define {capitals}_CLASSES {classes}
#define {capitals}_MODEL_SHA256 "{comment(model_sha256)}" /* content hash of the ONNX file, as the certificate states it */
#define {capitals}_ARENA_FLOATS {floats}

#ifdef __cplusplus
extern "C" {{
#endif

/* Computes the logits of one input in an arena of the caller's, which holds nothing before or after: networks may share one, and calls
   with different arenas may run at the same time. Returns 0, or -1, and does nothing, where `floats` is below {capitals}_ARENA_FLOATS.
   Where an input is not a number, no logit is one. */
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
