"""Bounds of sums of int8: a tile's sums over the lower ends, and those of weights above and below zero over the widths: exact ends."""

from __future__ import annotations

from dataclasses import dataclass

from vsparse.graph.ir import Conv, Gemm
from vsparse.stages.export.c_int8 import sums
from vsparse.stages.export.c_int8.fusion import Step
from vsparse.stages.export.c_int8.place import Stored
from vsparse.stages.export.c_int8.program import Int8Program, offset
from vsparse.stages.export.c_int8.sums import Layer, around, loop_over, runs_of, start_of, steps_over, tile_of
from vsparse.stages.export.c_live.constants import FLOOR
from vsparse.stages.export.c_live.int8_refined import Moved, Refinement, error_of
from vsparse.stages.export.c_source.literals import float_literal

# Channels and positions of a tile: three sums each. Rows where there is one position.
CHANNELS, ROWS = 2, 3
# What is stored for zero where the least step is zero.
LEAST = -128


@dataclass(frozen=True)
class KeptLines:
    """How a sum keeps its lines for backward passes, at `line` where that is no null pointer: what their function is given.

    `place` is the expression of that pointer where the step is called.
    """

    place: str
    share: str
    spare: str
    zero: int
    relu: bool
    bias: bool

    def store(self, ends: tuple[str, str], name: str, at: str, index: str, error: str) -> list[str]:
        """Returns the statements; `ends` are the expressions of the exact sums, `at` their channel, `index` where their steps are."""
        bias = f"{name}_plain[{at}]" if self.bias else "0.0f"
        low = f"out[{index}]{offset(-self.zero)}"
        return [
            "if (line)",
            f"    vs_sum_lines(line + 4 * ({index}), {ends[0]}, {ends[1]}, {name}_scale[{at}], {bias}, {error}, {low}, spread[{index}], "
            f"{self.share}, {self.spare}, {int(self.relu)});",
        ]


def bound_sum(program: Int8Program, step: Step, source: Stored, target: Stored | None, kept: KeptLines | None = None) -> list[str]:
    """Returns the body of a function that bounds a sum: `in` and `width` to `out` and `spread`, from the tables of the inference.

    Without a target, `out` are the logits of the centre: half of both ends. With `kept` lines for backward passes go to `line`.
    """
    node = step.head
    assert isinstance(node, Conv | Gemm)
    assert source.grid is not None
    layer = sums.layer_of(program, step, node, source)
    name, error = program.table_of(node.name), error_of(program, step, source)
    lists = sums.lists_of(layer)
    if sums.is_listed(layer, lists):
        return _listed(step, layer, lists.kind, name, target, error, kept)
    if isinstance(node, Gemm) and source.zero == LEAST:
        return _rows(program, step, layer, source.zero, name, target, error, kept)
    return _dense(step, layer, name, target, error, kept)


def _rows(
    program: Int8Program, step: Step, layer: Layer, zero: int, name: str, target: Stored | None, error: Moved, kept: KeptLines | None
) -> list[str]:
    """Returns a fully connected layer whose least step is zero: words of zeros are passed by, as T is Σ q_w·(k - z) + q_b."""
    rows = min(ROWS, len(layer.weight))
    program.constants.integers("int32_t", f"{name}_offset", layer.bias + zero * layer.weight.sum(axis=1))
    dsp = [
        "int32_t " + ", ".join(f"s{r}_0 = {name}_offset[o + {r}], t{r}_0 = 0, u{r}_0 = 0" for r in range(rows)) + ";",
        f"const int8_t *w = {name}_weight + o * {layer.terms};",
        f"for (int k = 0; k < {layer.padded}; k += 4) {{",
        f"    const uint32_t x = vs_word(in + k) ^ 0x{(zero & 255) * 0x01010101:08X}u;",
        "    if (x == 0u)",
        "        continue;",
        "    const uint32_t e = vs_even_unsigned(x), d = vs_odd_unsigned(x);",
    ]
    for r in range(rows):
        dsp += [
            f"    const uint32_t w{r} = vs_word(w + k{offset(r * layer.terms)}), a{r} = vs_even(w{r}), b{r} = vs_odd(w{r});",
            f"    s{r}_0 = vs_pair(vs_pair(s{r}_0, a{r}, e), b{r}, d);",
        ]
    widths = _width_runs(layer, rows, 1)
    begin, end = widths.index("#if VS_DSP"), widths.index("#elif VS_MVE")
    dsp += [
        "}",
        "const uint8_t *x = width;",
        *widths[begin + 1 : end],
        *[f"u{r}_0 -= t{r}_0;" for r in range(rows)],
    ]
    stores = _stores(step, name, target, layer, rows, 1, "o", error, kept)
    other = _tile_text(layer, name, rows, 1, "", "o", dsp=False)
    return around(steps_over("o", len(layer.weight), rows), ["#if VS_DSP", *dsp, "#else", *other, "#endif", *stores])


def _dense(step: Step, layer: Layer, name: str, target: Stored | None, error: Moved, kept: KeptLines | None) -> list[str]:
    rows, positions = _tile(layer)
    per_group = len(layer.weight) // layer.groups
    group = f" + g * {layer.group_step}" if layer.groups > 1 else ""
    channel = f"g * {per_group} + o" if layer.groups > 1 else "o"
    body = _tile_text(layer, name, rows, positions, group, channel)
    body += _stores(step, name, target, layer, rows, positions, channel, error, kept)
    loops = [*steps_over("row", layer.size[0], 1), *steps_over("column", layer.size[1], positions)]
    loops += steps_over("g", layer.groups, 1) if layer.groups > 1 else []
    return around([*loops, *steps_over("o", per_group, rows)], body)


def _tile_text(layer: Layer, name: str, rows: int, positions: int, group: str, channel: str, dsp: bool = True) -> list[str]:
    """Returns the statements that make the three sums of a tile: s over lower ends, t and u over widths; without those for DSP."""
    runs = layer.counts[0] * layer.counts[1]
    tile = [(r, p) for r in range(rows) for p in range(positions)]

    def over(kind: str, array: str, lines: list[str]) -> list[str]:
        return [
            "{",
            f"    const {kind} *{'begin' if runs > 1 else 'x'} = {array}{start_of(layer)}{group};",
            f"    const int8_t *{'weights' if runs > 1 else 'w'} = {name}_weight + ({channel}) * {layer.terms};",
            *[line if line.startswith("#") else f"    {line}" for line in lines],
            "}",
        ]

    sums_of, widths = runs_of(layer, rows, positions), _width_runs(layer, rows, positions)
    if not dsp:
        sums_of, widths = (
            [*lines[: lines.index("#if VS_DSP")], "#if VS_MVE", *lines[lines.index("#elif VS_MVE") + 1 :]] for lines in (sums_of, widths)
        )
    return [
        "int32_t " + ", ".join(f"s{r}_{p} = {name}_bias[{channel} + {r}]" for r, p in tile) + ";",
        "int32_t " + ", ".join(f"t{r}_{p} = 0, u{r}_{p} = 0" for r, p in tile) + ";",
        *over("int8_t", "in", sums_of),
        *over("uint8_t", "width", widths),
    ]


def _tile(layer: Layer) -> tuple[int, int]:
    """Returns the channels and positions of a tile: there are three sums for each of them."""
    rows, positions = tile_of(layer)
    return min(rows, ROWS if positions == 1 else CHANNELS), positions


def _width_runs(layer: Layer, rows: int, positions: int) -> list[str]:
    """Returns the statements that add weights above zero times widths, and those below, in the forms that `runs_of` has."""
    apart, length, terms = layer.apart[1], layer.padded, layer.terms
    tile = [(r, p) for r in range(rows) for p in range(positions)]
    dsp = [
        f"for (int k = 0; k < {length}; k += 4) {{",
        "    const uint32_t " + ", ".join(f"x{p} = vs_word((const int8_t *)x + k{offset(p * apart)})" for p in range(positions)) + ";",
        f"    if (({' | '.join(f'x{p}' for p in range(positions))}) == 0u)",
        "        continue;",
        "    const uint32_t " + ", ".join(f"e{p} = vs_even_unsigned(x{p}), d{p} = vs_odd_unsigned(x{p})" for p in range(positions)) + ";",
    ]
    for r in range(rows):
        dsp.append(f"    const uint32_t w{r} = vs_word(w + k{offset(r * terms)}), f{r} = vs_even(w{r}), g{r} = vs_above(f{r});")
        for p in range(positions):
            dsp += [f"    t{r}_{p} = vs_pair(t{r}_{p}, g{r}, e{p});", f"    u{r}_{p} = vs_pair(u{r}_{p}, f{r}, e{p});"]
        dsp.append(f"    const uint32_t h{r} = vs_odd(w{r}), i{r} = vs_above(h{r});")
        for p in range(positions):
            dsp += [f"    t{r}_{p} = vs_pair(t{r}_{p}, i{r}, d{p});", f"    u{r}_{p} = vs_pair(u{r}_{p}, h{r}, d{p});"]
    mve = [
        f"for (int k = 0; k < {length}; k += 16) {{",
        f"    const mve_pred16_t some = vctp8q((uint32_t)({length} - k));",
        "    const int8x16_t zero = vdupq_n_s8(0);",
        *[f"    const uint8x16_t x{p} = vldrbq_z_u8(x + k{offset(p * apart)}, some);" for p in range(positions)],
    ]
    for r in range(rows):
        mve += [
            f"    const int8x16_t w{r} = vldrbq_z_s8(w + k{offset(r * terms)}, some);",
            f"    const uint8x16_t a{r} = (uint8x16_t)vmaxq_s8(w{r}, zero), b{r} = (uint8x16_t)vmaxq_s8(vnegq_s8(w{r}), zero);",
        ]
        for p in range(positions):
            mve += [
                f"    t{r}_{p} = (int32_t)vmladavaq_u8((uint32_t)t{r}_{p}, a{r}, x{p});",
                f"    u{r}_{p} = (int32_t)vmladavaq_u8((uint32_t)u{r}_{p}, b{r}, x{p});",
            ]
    mve.append("}")
    plain = [
        f"for (int k = 0; k < {layer.length}; k++) {{",
        *[f"    const int32_t x{p} = x[k{offset(p * apart)}];" for p in range(positions)],
        *[f"    const int32_t w{r} = w[k{offset(r * terms)}], a{r} = w{r} > 0 ? w{r} : 0;" for r in range(rows)],
        *[line for r, p in tile for line in (f"    t{r}_{p} += a{r} * x{p};", f"    u{r}_{p} += w{r} * x{p};")],
        "}",
    ]
    lines = ["#if VS_DSP", *dsp, "}", "#elif VS_MVE", *mve, "#else", *plain, "#endif"]
    (outer, inner), (down, across) = layer.counts, layer.steps
    if outer * inner > 1:
        at = [f"i * {down}"] * (outer > 1) + [f"j * {across}"] * (inner > 1)
        number = f"i * {inner * length}" if inner == 1 else f"j * {length}" if outer == 1 else f"(i * {inner} + j) * {length}"
        lines = [f"const uint8_t *x = begin + {' + '.join(at)};", f"const int8_t *w = weights + {number};", *lines]
        for index, count in (("j", inner), ("i", outer)):
            lines = loop_over(index, count, lines) if count > 1 else lines
    # With MVE u is the sum of magnitudes of weights below zero, elsewhere that of all weights.
    ends = [f"u{r}_{p} = -u{r}_{p};" for r, p in tile], [f"u{r}_{p} -= t{r}_{p};" for r, p in tile]
    return [*lines, "#if VS_MVE", *ends[0], "#else", *ends[1], "#endif"]


def _listed(step: Step, layer: Layer, kind: str, name: str, target: Stored | None, error: Moved, kept: KeptLines | None) -> list[str]:
    positions, apart = max(1, sums.positions_of(layer) // 2), layer.apart[1]
    per_group = len(layer.weight) // layer.groups
    group = f" + o / {per_group} * {layer.group_step}" if layer.groups > 1 else ""
    if positions == 1:  # without branches but for widths of zero
        terms = [
            "at += delta[k];",
            "s0_0 += v * x[at];",
            "if (y[at] != 0u) {",
            "    t0_0 += (v > 0 ? v : 0) * y[at];",
            "    u0_0 += (v < 0 ? v : 0) * y[at];",
            "}",
        ]
    else:
        terms = [
            "x += delta[k];",
            "y += delta[k];",
            *[f"s0_{p} += v * x[{p * apart}];" for p in range(positions)],
            "if (v > 0) {",
            *[f"    t0_{p} += v * y[{p * apart}];" for p in range(positions)],
            "} else {",
            *[f"    u0_{p} += v * y[{p * apart}];" for p in range(positions)],
            "}",
        ]
    body = [
        f"const int8_t *x = in{start_of(layer)}{group};",
        f"const uint8_t *y = width{start_of(layer)}{group};",
        "int32_t " + ", ".join(f"s0_{p} = {name}_bias[o], t0_{p} = 0, u0_{p} = 0" for p in range(positions)) + ";",
        *(["uint32_t at = 0;"] if positions == 1 else []),
        "for (int k = 0; k < count; k++) {",
        "    const int32_t v = weight[k];",
        *[f"    {line}" for line in terms],
        "}",
        *_stores(step, name, target, layer, 1, positions, "o", error, kept),
    ]
    inner = around([*steps_over("row", layer.size[0], 1), *steps_over("column", layer.size[1], positions)], body)
    return [
        f"const {kind} *delta = {name}_delta;",
        f"const int8_t *weight = {name}_weight;",
        f"for (int o = 0; o < {len(layer.weight)}; o++) {{",
        f"    const int count = (int){name}_count[o];",
        *[f"    {line}" for line in inner],
        "    delta += count;",
        "    weight += count;",
        "}",
    ]


def _stores(
    step: Step,
    name: str,
    target: Stored | None,
    layer: Layer,
    rows: int,
    positions: int,
    channel: str,
    error: Moved,
    kept: KeptLines | None,
) -> list[str]:
    lines: list[str] = []
    for p in range(positions):
        for r in range(rows):
            at = f"({channel} + {r})" if r or " " in channel else channel
            if target is None:
                lines.append(f"out[{at}] = ((float)(s{r}_{p} + u{r}_{p}) + (float)(s{r}_{p} + t{r}_{p})) * ({name}_scale[{at}] * 0.5f);")
                continue
            column = f"(column + {p})" if p else "column"
            indexes = [at, "row" if layer.size[0] > 1 else "0", column if layer.size[1] > 1 else "0"][: len(target.place.shape)]
            element = target.place.at(indexes)
            index = element[element.index("[") :]
            low = f"(float)(s{r}_{p} + u{r}_{p}) * {name}_scale[{at}]"
            high = f"(float)(s{r}_{p} + t{r}_{p}) * {name}_scale[{at}]"
            if isinstance(error, Refinement):
                lines += error.store(low, high, _ends(step), _places(index), at, column)
            else:
                lines += bound_store(step, f"{low} - {error}", f"{high} + {error}", index)
            if kept is not None:
                inside, ends = index[1:-1], (f"s{r}_{p} + u{r}_{p}", f"s{r}_{p} + t{r}_{p}")
                own = error if isinstance(error, str) else f"vs_smaller({error.call(at, column)}, {error.most})"
                own = own if isinstance(error, str) else f"spread[{inside}] == 0 ? {error.most} : {own}"
                lines += kept.store(ends, name, at, inside, own)
    return lines


def bound_store(step: Step, low: str, high: str, index: str) -> list[str]:
    """Returns the statements that store what lies between two values, after a step's ReLU, at out[index] and spread[index]."""
    if step.grid is not None:
        return [f"vs_between({low}, {high}, {_ends(step)}, {_places(index)});"]
    least = "0.0f" if step.has_relu else "-FLT_MAX"
    return [
        "{",
        f"    const float low = {low}, high = {high};",
        f"    vs_ends(low < {least} ? {least} : low, high < {least} ? {least} : high, {float_literal(FLOOR)}, out + {index[1:-1]}, "
        f"spread + {index[1:-1]});",
        "}",
    ]


def _ends(step: Step) -> str:
    """Returns the arguments that say where the grid of a step begins and ends, after the step's ReLU."""
    assert step.grid is not None
    first, last = step.grid.steps
    return f"{float_literal(max(first, 0) if step.has_relu else first)}, {float_literal(last)}, {first}"


def _places(index: str) -> str:
    return f"out + {index[1:-1]}, spread + {index[1:-1]}"
