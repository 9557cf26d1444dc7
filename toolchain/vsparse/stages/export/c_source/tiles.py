"""The text of the kernels that hold a tile of sums in registers, unrolled here so that no option of a compiler decides how fast they are.

A tile of `positions` has ROWS output channels × VECTORS vectors of positions: a term loads VECTORS vectors of inputs and multiplies each
with ROWS weights. A tile of `channels` has POINTS positions × up to two vectors of output channels: a term loads weights and multiplies
them with POINTS inputs. Either way a lane holds one output, and its terms come in the order of the list of offsets.
"""

from __future__ import annotations

from pathlib import Path

KERNELS = Path(__file__).resolve().parent / "kernels"
# Rows of a tile of positions to the most vectors that 16 or 32 registers hold beside the operands (benchmarks/c/kernels.py).
VECTORS_16 = {1: 8, 2: 6, 3: 3, 4: 2, 5: 2, 6: 2}
VECTORS_32 = {1: 8, 2: 6, 3: 6, 4: 4, 5: 4, 6: 4}
MOST_ROWS = max(VECTORS_16)
# Output channels of a block of a tile of channels: one vector of the widest, four of the narrowest.
BLOCK = 16
MOST_POINTS = 6
# Vectors of rows of a fully connected layer that are summed together.
ROW_VECTORS = (8, 6, 4, 3, 2, 1)
# What names of kernels that multiply magnitudes of weights end with.
MAGNITUDES = "_magnitudes"
# And of those of fully connected layers that pass inputs of zero by, before that.
PASSING = "_passing"
POSITIONS, DENSE, CHANNELS, ROWS = "positions", "dense", "channels", ("rows", "listed_rows")


def kernel_text(name: str) -> str:
    """Returns the C text of a kernel: a file of `kernels/`, or one written here (`positionsROWS`, `denseROWS`, `channelsPOINTS`).

    With `_magnitudes` behind its name it multiplies the magnitudes of weights, with `_passing` before that it passes inputs of zero by.
    """
    kernel, of = name.removesuffix(MAGNITUDES), MAGNITUDES if name.endswith(MAGNITUDES) else ""
    for kind, write in ((POSITIONS, _positions), (DENSE, _dense), (CHANNELS, _channels)):
        if kernel.startswith(kind):
            return write(int(kernel.removeprefix(kind)), of)
    if kernel.removesuffix(PASSING) in ROWS:
        return _rows(kernel, of, listed=kernel.startswith(ROWS[1]), passing=kernel.endswith(PASSING))
    return (KERNELS / f"{name}.c").read_text(encoding="utf-8")


def _positions(rows: int, of: str) -> str:
    one = "Without `row`, they are all channels in order." if rows == 1 else ""
    return "\n".join(
        [
            f"/* {rows} output channels a tile, at all positions. Tile i has the terms start[i] … start[i + 1] - 1 of its own, or, without",
            f"   `start`, the same `terms` as all others; its channels are row[]. {one} */",
            *_tiles(rows, of, dense=False),
            f"static void vs_positions{rows}{of}(const float *in, const vs_index *offset, const uint32_t *start, int terms,",
            "                          const float *weight, const float *bias, const vs_index *row, int tiles, float *out,",
            "                          int positions, int relu)",
            "{",
            *_blocks(rows, f"(long)positions * {rows} * (start ? (long)start[tiles] : (long)tiles * terms)"),
            "            const long from = start ? (long)start[i] : (long)i * terms;",
            "            const int n = start ? (int)(start[i + 1] - start[i]) : terms;",
            "            const vs_index *at = start ? offset + from : offset;",
            f"            const float *w = weight + {rows} * from;",
            *(f"            const int o{r} = {'row ? row[i] : i' if rows == 1 else f'row[{rows} * i + {r}]'};" for r in range(rows)),
            *_calls(rows, f"tile{of}", "at, n, w", [f"o{r}" for r in range(rows)]),
            "        }",
            "    }",
            "}",
        ]
    )


def _dense(rows: int, of: str) -> str:
    pairs = range(0, rows, 2)
    return "\n".join(
        [
            f"/* {rows} output channels a tile, in their own order from `first` on, at all positions and with all terms; the weights lie",
            "   in blocks [terms][block] of channels. Two neighbours from an even one on are never in two blocks. */",
            *_tiles(rows, of, dense=True),
            f"static void vs_dense{rows}{of}(const float *in, const vs_index *offset, int terms, const float *weight, int block,",
            "                      const float *bias, int first, int tiles, float *out, int positions, int relu)",
            "{",
            *_blocks(rows, f"(long)positions * {rows} * tiles * terms"),
            f"            const int o0 = first + {rows} * i{''.join(f', o{r} = o0 + {r}' for r in range(1, rows))};",
            *(f"            const float *w{r} = weight + (long)(o{r} / block) * block * terms + o{r} % block;" for r in pairs),
            *_calls(rows, f"pairs{of}", f"offset, terms, {', '.join(f'w{r}' for r in pairs)}, block", [f"o{r}" for r in range(rows)]),
            "        }",
            "    }",
            "}",
        ]
    )


def _tiles(rows: int, of: str, dense: bool) -> list[str]:
    few, many = VECTORS_16[rows], VECTORS_32[rows]
    return _guarded([_position_tile(rows, v, of, dense) for v in range(1, many + 1)], few)


def _blocks(rows: int, work: str) -> list[str]:
    """Returns the loops over blocks of vectors of positions, and over tiles; a last vector overlaps the one before it."""
    few, many = VECTORS_16[rows], VECTORS_32[rows]
    most = str(few) if few == many else f"(VS_REGISTERS >= 32 ? {many} : {few})"
    return [
        f"    const int vectors = (positions + VS_LANES - 1) / VS_LANES, most = {most}, blocks = (vectors + most - 1) / most;",
        f"    VS_PARALLEL({work})",
        "    for (int b = 0; b < blocks; b++) {",
        "        const int first_vector = (int)((long)b * vectors / blocks);",
        "        const int count = (int)((b + 1L) * vectors / blocks) - first_vector;",
        "        int p = first_vector * VS_LANES;",
        "        if (p + count * VS_LANES > positions)",
        "            p = positions > count * VS_LANES ? positions - count * VS_LANES : 0;",
        "        for (int i = 0; i < tiles; i++) {",
    ]


def _calls(rows: int, kind: str, weights: str, channels: list[str]) -> list[str]:
    few, many = VECTORS_16[rows], VECTORS_32[rows]
    arguments = f"in + p, {weights}, bias, {', '.join(channels)}, out + p, positions, positions - p, relu"
    calls = [f"            case {v}: vs_{kind}{rows}x{v}({arguments}); break;" for v in range(1, many + 1)]
    return ["            switch (count) {", *_guarded(calls, few), "            default: break;", "            }"]


def _guarded(parts: list[str], few: int) -> list[str]:
    """Returns the parts, those beyond `few` only for 32 registers."""
    return parts if len(parts) <= few else [*parts[:few], "#if VS_REGISTERS >= 32", *parts[few:], "#endif"]


def _position_tile(rows: int, vectors: int, of: str, dense: bool) -> str:
    """Returns one tile; a term's weights follow each other, or, where `dense`, lie in pairs that are `block` floats from term to term."""
    columns = range(vectors)
    channels = ", ".join(f"int o{r}" for r in range(rows))
    if dense:
        name, given = f"pairs{of}", f"int terms, {', '.join(f'const float *w{r}' for r in range(0, rows, 2))}, int block"
        loop = "for (long k = 0, at = 0; k < terms; k++, at += block) {"
        weight = [f"w{r}[at]" if r % 2 == 0 else f"w{r - 1}[at + 1]" for r in range(rows)]
    else:
        name, given, loop = f"tile{of}", "int terms, const float *weight", f"for (int k = 0; k < terms; k++, weight += {rows}) {{"
        weight = [f"weight[{r}]" for r in range(rows)]
    weight = [f"VS_MAGNITUDE({one})" for one in weight] if of else weight
    lines = [
        f"VS_INLINE void vs_{name}{rows}x{vectors}(const float *in, const vs_index *offset, {given},",
        f"                         const float *bias, {channels}, float *out, int positions, int count, int relu)",
        "{",
    ]
    for r in range(rows):
        lines.append(f"    vs_vec s{r}_0 = VS_FILL(bias[o{r}]){''.join(f', s{r}_{v} = s{r}_0' for v in columns[1:])};")
    lines += [f"    {loop}", "        const float *x = in + offset[k];"]
    if vectors <= rows:
        lines += [f"        const vs_vec x{v} = vs_load(x + {v} * VS_LANES);" for v in columns]
        for r in range(rows):
            lines.append(f"        {{ const vs_vec w = VS_FILL({weight[r]}); {' '.join(f's{r}_{v} += w * x{v};' for v in columns)} }}")
    else:
        lines += [f"        const vs_vec v{r} = VS_FILL({weight[r]});" for r in range(rows)]
        for v in columns:
            sums = " ".join(f"s{r}_{v} += v{r} * y;" for r in range(rows))
            lines.append(f"        {{ const vs_vec y = vs_load(x + {v} * VS_LANES); {sums} }}")
    lines.append("    }")
    for r in range(rows):
        lines.append(f"    float *to{r} = out + (long)o{r} * positions;")
        lines += [f"    vs_put(to{r} + {v} * VS_LANES, s{r}_{v}, relu, count - {v} * VS_LANES);" for v in columns]
    return "\n".join([*lines, "}"])


def _channels(points: int, of: str) -> str:
    return "\n".join(
        [
            f"/* {points} positions × VECTORS vectors of output channels: weight [terms][{BLOCK}], out [{points}][{BLOCK}]. */",
            _point_tile(points, 1, of),
            "#if VS_LANES * 2 <= 16",
            _point_tile(points, 2, of),
            "#endif",
            f"VS_INLINE void vs_channels{points}{of}(const float *in, const vs_index *offset, const float *weight, int terms,",
            "                             const float *bias, float *out)",
            "{",
            "#if VS_LANES * 2 <= 16",
            f"    for (int c = 0; c < {BLOCK}; c += 2 * VS_LANES)",
            f"        vs_points{points}x2{of}(in, offset, weight + c, terms, bias + c, out + c);",
            "#else",
            f"    vs_points{points}x1{of}(in, offset, weight, terms, bias, out);",
            "#endif",
            "}",
        ]
    )


def _point_tile(points: int, vectors: int, of: str) -> str:
    columns = range(vectors)
    lines = [
        f"VS_INLINE void vs_points{points}x{vectors}{of}(const float *in, const vs_index *offset, const float *weight, int terms,",
        "                           const float *bias, float *out)",
        "{",
    ]
    lines += [f"    vs_vec {', '.join(f's{p}_{v} = vs_load(bias + {v} * VS_LANES)' for p in range(points))};" for v in columns]
    lines += [f"    for (int k = 0; k < terms; k++, weight += {BLOCK}) {{", "        const float *x = in + offset[k];"]
    lines += [f"        const vs_vec w{v} = {_magnitude(f'vs_load(weight + {v} * VS_LANES)', of)};" for v in columns]
    for p in range(points):
        lines.append(f"        {{ const vs_vec y = VS_FILL(x[{p}]); {' '.join(f's{p}_{v} += w{v} * y;' for v in columns)} }}")
    lines.append("    }")
    for p in range(points):
        lines.append("    " + " ".join(f"*(vs_vec *)(out + {p * BLOCK} + {v} * VS_LANES) = s{p}_{v};" for v in columns))
    return "\n".join([*lines, "}"])


def _magnitude(vector: str, of: str) -> str:
    return f"vs_magnitude({vector})" if of else vector


def _rows(name: str, of: str, listed: bool, passing: bool) -> str:
    x = f"x[{'index[k]' if listed else 'k'}]"
    lists, pass_lists = ("const vs_index *index, ", "index + from, ") if listed else ("", "")
    starts = "const vs_index *index, const uint32_t *start" if listed else "int terms"
    lines = [
        "/* `count` rows of W·x + b by blocks of `step` (at most 64), weight [block][terms][step]: bias, then the products in order.",
        "   Vectors cover `width` rows, a multiple of 16; what lies beyond `step` is never stored.",
        f"   {'Block i reads the inputs index[start[i]] … index[start[i + 1] - 1].' if listed else 'All blocks read all inputs.'} */",
    ]
    for vectors in ROW_VECTORS:
        columns = range(vectors)
        lines += [
            f"VS_INLINE void vs_{name}{vectors}{of}(const float *x, {lists}const float *weight, int terms, int step, const float *bias,",
            "                         float *sums)",
            "{",
            f"    vs_vec {', '.join(f's{v} = vs_load(bias + {v} * VS_LANES)' for v in columns)};",
            "    for (int k = 0; k < terms; k++, weight += step) {",
            *([f"        if ({x} == 0.0f)", "            continue;"] if passing else []),
            f"        const vs_vec y = VS_FILL({x});",
            *(f"        s{v} += {_magnitude(f'vs_load(weight + {v} * VS_LANES)', of)} * y;" for v in columns),
            "    }",
            *(f"    *(vs_vec *)(sums + {v} * VS_LANES) = s{v};" for v in columns),
            "}",
        ]
    work = "(long)width * (start[blocks] - start[0])" if listed else "(long)count * terms"
    lines += [
        f"static void vs_{name}{of}(const float *x, {starts}, int width, int step, const float *weight, const float *bias, int count,",
        "                        float *out, int relu)",
        "{",
        "    const int blocks = (count + step - 1) / step;",
        f"    VS_PARALLEL({work})",
        "    for (int i = 0; i < blocks; i++) {",
        "        float sums[64] VS_ALIGNED;",
        f"        const long from = {'(long)(start[i] - start[0])' if listed else '(long)i * terms'};",
        *(["        const int terms = (int)(start[i + 1] - start[i]);"] if listed else []),
        "        const int left = count - i * step;",
        "        int r = 0;",
    ]
    for vectors in ROW_VECTORS:
        lines += [
            f"        for (; r + {vectors} * VS_LANES <= width; r += {vectors} * VS_LANES)",
            f"            vs_{name}{vectors}{of}(x, {pass_lists}weight + from * step + r, terms, step, bias + i * step + r, sums + r);",
        ]
    lines += [
        "        for (r = 0; r < width && r < left; r += VS_LANES)",
        "            vs_put(out + i * step + r, vs_load(sums + r), relu, left - r);",
        "    }",
        "}",
    ]
    return "\n".join(lines)
