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
POSITIONS, CHANNELS, ROWS = "positions", "channels", ("rows", "listed_rows")


def kernel_text(name: str) -> str:
    """Returns the C text of a kernel: a file of `kernels/`, or `positionsROWS` and `channelsPOINTS`, which are written here."""
    for kind, write in ((POSITIONS, _positions), (CHANNELS, _channels)):
        if name.startswith(kind):
            return write(int(name.removeprefix(kind)))
    if name in ROWS:
        return _rows(name, listed=name != ROWS[0])
    return (KERNELS / f"{name}.c").read_text(encoding="utf-8")


def _positions(rows: int) -> str:
    few, many = VECTORS_16[rows], VECTORS_32[rows]
    wide = str(few) if few == many else f"(VS_REGISTERS >= 32 ? {many} : {few})"
    return "\n".join(
        [
            f"/* {rows} output channels a tile, at all positions. Tile i has the terms start[i] … start[i + 1] - 1 of its own, or, without",
            "   `start`, the same `terms` as all others; its channels are row[]. A last vector overlaps the one before it. */",
            *_guarded([_position_tile(rows, v) for v in range(1, many + 1)], few),
            f"static void vs_positions{rows}(const float *in, const vs_index *offset, const uint32_t *start, int terms,",
            "                          const float *weight, const float *bias, const vs_index *row, int tiles, float *out,",
            "                          int positions, int relu)",
            "{",
            f"    const int vectors = (positions + VS_LANES - 1) / VS_LANES, most = {wide}, blocks = (vectors + most - 1) / most;",
            f"    VS_PARALLEL((long)positions * {rows} * (start ? (long)start[tiles] : (long)tiles * terms))",
            "    for (int b = 0; b < blocks; b++) {",
            "        const int first = (int)((long)b * vectors / blocks), count = (int)((b + 1L) * vectors / blocks) - first;",
            "        int p = first * VS_LANES;",
            "        if (p + count * VS_LANES > positions)",
            "            p = positions > count * VS_LANES ? positions - count * VS_LANES : 0;",
            "        for (int i = 0; i < tiles; i++) {",
            "            const long from = start ? (long)start[i] : (long)i * terms;",
            "            const int n = start ? (int)(start[i + 1] - start[i]) : terms;",
            "            const vs_index *at = start ? offset + from : offset;",
            "            switch (count) {",
            *_guarded([_position_call(rows, v) for v in range(1, many + 1)], few),
            "            default: break;",
            "            }",
            "        }",
            "    }",
            "}",
        ]
    )


def _guarded(parts: list[str], few: int) -> list[str]:
    """Returns the parts, those beyond `few` only for 32 registers."""
    return parts if len(parts) <= few else [*parts[:few], "#if VS_REGISTERS >= 32", *parts[few:], "#endif"]


def _position_call(rows: int, vectors: int) -> str:
    arguments = f"in + p, at, weight + {rows} * from, n, bias + {rows} * i, row + {rows} * i, out + p, positions, positions - p, relu"
    return f"            case {vectors}: vs_tile{rows}x{vectors}({arguments}); break;"


def _position_tile(rows: int, vectors: int) -> str:
    columns = range(vectors)
    lines = [
        f"VS_INLINE void vs_tile{rows}x{vectors}(const float *in, const vs_index *offset, const float *weight, int terms,",
        "                         const float *bias, const vs_index *row, float *out, int positions, int count, int relu)",
        "{",
    ]
    for r in range(rows):
        lines.append(f"    vs_vec s{r}_0 = VS_FILL(bias[{r}]){''.join(f', s{r}_{v} = s{r}_0' for v in columns[1:])};")
    lines += [f"    for (int k = 0; k < terms; k++, weight += {rows}) {{", "        const float *x = in + offset[k];"]
    if vectors <= rows:
        lines += [f"        const vs_vec x{v} = vs_load(x + {v} * VS_LANES);" for v in columns]
        for r in range(rows):
            lines.append(f"        {{ const vs_vec w = VS_FILL(weight[{r}]); {' '.join(f's{r}_{v} += w * x{v};' for v in columns)} }}")
    else:
        lines += [f"        const vs_vec w{r} = VS_FILL(weight[{r}]);" for r in range(rows)]
        for v in columns:
            sums = " ".join(f"s{r}_{v} += w{r} * y;" for r in range(rows))
            lines.append(f"        {{ const vs_vec y = vs_load(x + {v} * VS_LANES); {sums} }}")
    lines.append("    }")
    for r in range(rows):
        lines.append(f"    float *to{r} = out + (long)row[{r}] * positions;")
        lines += [f"    vs_put(to{r} + {v} * VS_LANES, s{r}_{v}, relu, count - {v} * VS_LANES);" for v in columns]
    return "\n".join([*lines, "}"])


def _channels(points: int) -> str:
    return "\n".join(
        [
            f"/* {points} positions × VECTORS vectors of output channels: weight [terms][{BLOCK}], out [{points}][{BLOCK}]. */",
            _point_tile(points, 1),
            "#if VS_LANES * 2 <= 16",
            _point_tile(points, 2),
            "#endif",
            f"VS_INLINE void vs_channels{points}(const float *in, const vs_index *offset, const float *weight, int terms,",
            "                             const float *bias, float *out)",
            "{",
            "#if VS_LANES * 2 <= 16",
            f"    for (int c = 0; c < {BLOCK}; c += 2 * VS_LANES)",
            f"        vs_points{points}x2(in, offset, weight + c, terms, bias + c, out + c);",
            "#else",
            f"    vs_points{points}x1(in, offset, weight, terms, bias, out);",
            "#endif",
            "}",
        ]
    )


def _point_tile(points: int, vectors: int) -> str:
    columns = range(vectors)
    lines = [
        f"VS_INLINE void vs_points{points}x{vectors}(const float *in, const vs_index *offset, const float *weight, int terms,",
        "                           const float *bias, float *out)",
        "{",
    ]
    lines += [f"    vs_vec {', '.join(f's{p}_{v} = vs_load(bias + {v} * VS_LANES)' for p in range(points))};" for v in columns]
    lines += [f"    for (int k = 0; k < terms; k++, weight += {BLOCK}) {{", "        const float *x = in + offset[k];"]
    lines += [f"        const vs_vec w{v} = vs_load(weight + {v} * VS_LANES);" for v in columns]
    for p in range(points):
        lines.append(f"        {{ const vs_vec y = VS_FILL(x[{p}]); {' '.join(f's{p}_{v} += w{v} * y;' for v in columns)} }}")
    lines.append("    }")
    for p in range(points):
        lines.append("    " + " ".join(f"*(vs_vec *)(out + {p * BLOCK} + {v} * VS_LANES) = s{p}_{v};" for v in columns))
    return "\n".join([*lines, "}"])


def _rows(name: str, listed: bool) -> str:
    lists, pass_lists = ("const vs_index *index, ", "index + from, ") if listed else ("", "")
    starts = "const vs_index *index, const uint32_t *start" if listed else "int terms"
    lines = [
        "/* `count` rows of W·x + b by blocks of `width` (at most 64), weight [block][terms][width]: bias, then the products in order.",
        f"   {'Block i reads the inputs index[start[i]] … index[start[i + 1] - 1].' if listed else 'All blocks read all inputs.'} */",
    ]
    for vectors in ROW_VECTORS:
        columns = range(vectors)
        lines += [
            f"VS_INLINE void vs_{name}{vectors}(const float *x, {lists}const float *weight, int terms, int width, const float *bias,",
            "                         float *sums)",
            "{",
            f"    vs_vec {', '.join(f's{v} = vs_load(bias + {v} * VS_LANES)' for v in columns)};",
            "    for (int k = 0; k < terms; k++, weight += width) {",
            f"        const vs_vec y = VS_FILL(x[{'index[k]' if listed else 'k'}]);",
            *(f"        s{v} += vs_load(weight + {v} * VS_LANES) * y;" for v in columns),
            "    }",
            *(f"    *(vs_vec *)(sums + {v} * VS_LANES) = s{v};" for v in columns),
            "}",
        ]
    work = "(long)width * start[blocks]" if listed else "(long)count * terms"
    lines += [
        f"static void vs_{name}(const float *x, {starts}, int width, const float *weight, const float *bias, int count,",
        "                        float *out, int relu)",
        "{",
        "    const int blocks = (count + width - 1) / width;",
        f"    VS_PARALLEL({work})",
        "    for (int i = 0; i < blocks; i++) {",
        "        float sums[64] VS_ALIGNED;",
        f"        const long from = {'(long)start[i]' if listed else '(long)i * terms'};",
        *(["        const int terms = (int)(start[i + 1] - start[i]);"] if listed else []),
        "        const int left = count - i * width;",
        "        int r = 0;",
    ]
    for vectors in ROW_VECTORS:
        lines += [
            f"        for (; r + {vectors} * VS_LANES <= width; r += {vectors} * VS_LANES)",
            f"            vs_{name}{vectors}(x, {pass_lists}weight + from * width + r, terms, width, bias + i * width + r, sums + r);",
        ]
    lines += [
        "        for (r = 0; r < width && r < left; r += VS_LANES)",
        "            vs_put(out + i * width + r, vs_load(sums + r), relu, left - r);",
        "    }",
        "}",
    ]
    return "\n".join(lines)
