"""The live certificate executed as a device does: counts over test samples, and verdicts that the checker replays."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from fractions import Fraction
from math import isfinite, prod
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from vsparse.artifact.hashes import content_sha256
from vsparse.artifact.live import LiveAnswers, LiveCost, LiveFrame, LivePoint, LiveRecord
from vsparse.data import Dataset
from vsparse.errors import UnavailableError
from vsparse.graph import Graph
from vsparse.perturbation import PerturbationSet
from vsparse.stages.export.c_live.compiled import CompiledLive
from vsparse.stages.export.c_live.forms import live_form_of, memory_of
from vsparse.stages.export.c_live.simulation import Verdicts
from vsparse.stages.export.c_source.compile import CompiledModel
from vsparse.stages.verify.deployed import read_model
from vsparse.stages.verify.live_bits import require_same_bits

COMPILED, SIMULATED = "compiled C", "simulation"
# Radii of the curve, in those of the property.
SHARES = tuple(Fraction(step, 4) for step in range(1, 9))
FRAMES = 100
TIMED, ROUNDS = 32, 5
# The range of exact numbers in an artifact (`vsparse.schema`).
SMALLEST, LONGEST = Fraction(1, 10**12), 40
AT_ONCE = 256


class LiveCertifier:
    """`NAME_certify` and `NAME_radius` of a network: its C, compiled, where there is a compiler, else the simulation with its bits.

    A quantised network is that of model.int8.c, any other one that of model.c. A context manager; `by` says what answers. With a `budget`
    above 0 verdicts are those of `NAME_certify_budget`; `budget` is 0 where the network has no second tier, and `absence` says why.
    """

    def __init__(self, graph: Graph, data_range: tuple[float, float] = (0.0, 1.0), *, compiled: bool = True, budget: int = 0) -> None:
        """Raises InputError for a network or data range without a live certificate, by the name of the node."""
        self.kind = live_form_of(graph)
        self.kind.require(graph, data_range)
        self.graph, self.data_range = graph, data_range
        self.absence = self.kind.absence(graph, data_range) if budget > 0 else ""
        self.budget = 0 if self.absence else budget
        self._open = ExitStack()
        self._compiled: tuple[CompiledModel, CompiledLive, Path] | None = None
        self.source = self.kind.emit(graph, data_range, budget > 0)
        if compiled:
            try:
                self._compiled = self._compile()
            except UnavailableError:  # no compiler: the simulation takes longer, and answers the same
                self._open.close()
        self.by = SIMULATED if self._compiled is None else COMPILED

    def _compile(self) -> tuple[CompiledModel, CompiledLive, Path]:
        folder = Path(self._open.enter_context(tempfile.TemporaryDirectory(prefix="vsparse-live-")))
        self.source.write(folder)
        classes = prod(self.graph.shape_of(self.graph.output))
        source, prefix = folder / Path(self.kind.form.file).name, self.kind.prefix
        model = self._open.enter_context(CompiledModel(source, self.graph.input_shape, classes, prefix=prefix))
        return model, CompiledLive(model, prefix), folder

    def certify(self, inputs: NDArray[np.float32], epsilon: float, budget: int | None = None) -> Verdicts:
        """Returns the verdicts on float32 inputs [n, *input_shape]; a radius or an input that has none is not certified.

        `budget` is the certifier's where it is left out, and 0 for the first tier alone.
        """
        x, radius = np.ascontiguousarray(inputs, np.float32), as_float32(epsilon)
        passes = self.budget if budget is None else budget
        if self._compiled is not None:
            return self._compiled[1].certify(x, radius, passes)
        return self.kind.certify(self.graph, x, radius, passes, self.data_range)

    def radius(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns the radius [n] that each input is certified at; -1 where not even 0 is."""
        x = np.ascontiguousarray(inputs, np.float32)
        return self.kind.radius(self.graph, x, self.data_range) if self._compiled is None else self._compiled[1].radius(x)

    def require_same_bits(
        self, inputs: NDArray[np.float32], epsilon: float, found: Verdicts, radii: NDArray[np.float32], ids: NDArray[np.int64]
    ) -> int:
        """Returns how many of the verdicts found on inputs [n, …] were compared with the simulation; 0 where that is what found them.

        Raises SoundnessError for other bits, naming the sample by its id [n] (`live_bits`).
        """
        if self._compiled is None:
            return 0
        return require_same_bits(
            self.kind,
            self.graph,
            self._compiled[2],
            inputs,
            as_float32(epsilon),
            found,
            radii,
            ids=ids,
            data_range=self.data_range,
            budget=self.budget,
        )

    def cost(self, inputs: NDArray[np.float32], epsilon: float) -> LiveCost:
        """Returns what it takes beside inference; times are medians over inputs [n, *input_shape], where there is a compiler."""
        plain, whole = memory_of(self.kind.plain(self.graph)), memory_of(self.source)
        times = np.zeros((2, 0))
        if self._compiled is not None:
            model, live, _ = self._compiled
            calls = (model.logits, lambda x: live.certify(x, epsilon))
            times = np.array([[_microseconds(call, one[None]) for call in calls] for one in [*inputs] * ROUNDS]).T
        inference, certify = (float(np.median(taken)) if taken.size else None for taken in times)
        return LiveCost(
            constant_bytes=plain.constant_bytes,
            static_bytes=plain.arena_bytes,
            live_constant_bytes=whole.constant_bytes,
            live_static_bytes=whole.arena_bytes,
            inference_us=inference,
            certify_us=certify,
        )

    def close(self) -> None:
        """Removes the compiled files."""
        self._open.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()


def _microseconds(call: Callable[[NDArray[np.float32]], object], x: NDArray[np.float32]) -> float:
    begin = perf_counter()
    call(x)
    return 1e6 * (perf_counter() - begin)


def as_float32(epsilon: float) -> float:
    """Returns the float32 number nearest to a radius; infinity where that is beyond all."""
    with np.errstate(over="ignore"):
        return float(np.float32(epsilon))


def not_below(epsilon: Fraction) -> float:
    """Returns the smallest float32 number that is at least an exact radius: what is certified at it is so at the radius."""
    try:
        with np.errstate(over="ignore"):
            near = np.float32(float(epsilon))
    except OverflowError:
        return float("inf")
    if isfinite(near) and Fraction(float(near)) < epsilon:
        near = np.nextafter(near, np.float32(np.inf))
    return float(near)


def ball_radius(perturbation: PerturbationSet) -> Fraction:
    """Returns the radius of the l∞ ball, clipped to the data range, that holds a perturbation set."""
    return perturbation.box_radius + Fraction(perturbation.rounding)


def record_live(
    model: Path,
    dataset: Dataset,
    perturbation: PerturbationSet,
    curve: Dataset,
    held: Iterable[int],
    tell: Callable[[str], None] = lambda text: None,
    *,
    int8: Path | None = None,
    compiled: bool = True,
    budget: int = 0,
) -> LiveRecord:
    """Returns what the live certificate of a float32 model file answers, with at most `budget` passes for each sample, and of `int8`.

    Counts are of every sample of `dataset` at the radius of the ball around `perturbation`, and of those of `curve` at shares of it; single
    verdicts are of samples of `dataset` whose ids are in `held`, evenly spaced. InputError for a network without a live certificate,
    SoundnessError where compiled C and simulation differ.
    """
    ids = np.array(sorted(held), np.int64)
    ids = ids[np.unique(np.linspace(0, len(ids) - 1, min(FRAMES, len(ids))).round().astype(np.int64))] if len(ids) else ids
    epsilon = ball_radius(perturbation)

    def answers(path: Path, budget: int) -> dict[str, Any]:
        with LiveCertifier(read_model(path).graph, perturbation.clip, compiled=compiled, budget=budget) as live:
            there = "" if live.by == COMPILED or not compiled else "; no C compiler is here, so no C is compared with it"
            tell(f"live certificate of {path.name}, by {live.by}{there}")
            if live.absence:
                tell(f"{path.name} certifies by intervals alone: {live.absence}")
            return {
                "network_sha256": content_sha256(path),
                "contract": live.kind.form.contract,
                "computed_by": live.by,
                "cost": live.cost(_inputs(live, dataset, slice(0, TIMED)), not_below(epsilon)),
                "at_epsilon": _point(live, dataset, epsilon),
                "curve": _curve(live, curve, epsilon),
                "frames": _frames(live, dataset, ids, not_below(epsilon), tell),
                "budget": live.budget,
            }

    integers = None if int8 is None else LiveAnswers(**answers(int8, budget))
    return LiveRecord(clip=perturbation.clip, **answers(model, budget), int8=integers)


def _curve(live: LiveCertifier, dataset: Dataset, epsilon: Fraction) -> tuple[LivePoint, ...]:
    """Returns the points of the curve, the smallest radius first.

    What is certified at a radius is so at each smaller one, though linear bounds of a smaller region need not say so.
    """
    larger: NDArray[np.bool_] = np.zeros((3, len(dataset)), np.bool_)
    points: list[LivePoint] = []
    for share in reversed(SHARES):
        points.insert(0, _point(live, dataset, share * epsilon, larger if live.budget else None))
    return tuple(points)


def _point(live: LiveCertifier, dataset: Dataset, epsilon: Fraction, larger: NDArray[np.bool_] | None = None) -> LivePoint:
    """Returns the counts at a radius; `larger` [3, samples] is what counts already: certified, with the right class, by intervals."""
    epsilon = max(epsilon, SMALLEST) if epsilon else epsilon
    radius = not_below(epsilon)
    counted: NDArray[np.bool_] = np.zeros((3, len(dataset)), np.bool_) if larger is None else larger
    for start in range(0, len(dataset), AT_ONCE):
        part = slice(start, start + AT_ONCE)
        inputs = _inputs(live, dataset, part)
        found = live.certify(inputs, radius)
        counted[0, part] |= found.certified
        counted[1, part] |= found.certified & (found.label == dataset.labels[part])
        if live.budget:
            counted[2, part] |= live.certify(inputs, radius, budget=0).certified
    certified, right, by_intervals = (int(row.sum()) for row in counted)
    return LivePoint(
        epsilon=_text(epsilon),
        device_epsilon=radius,
        samples=len(dataset),
        certified=certified,
        right=right,
        by_intervals=by_intervals if live.budget else None,
    )


def _text(epsilon: Fraction) -> str:
    """Returns a radius as an artifact may write it: exactly, or as the float32 number that stands for it."""
    return str(epsilon) if len(str(epsilon)) <= LONGEST else str(Fraction(not_below(epsilon)))


def _frames(
    live: LiveCertifier, dataset: Dataset, ids: NDArray[np.int64], epsilon: float, tell: Callable[[str], None]
) -> tuple[LiveFrame, ...]:
    if not len(ids):
        return ()
    inputs = _inputs(live, dataset, ids)
    found, radii = live.certify(inputs, epsilon), live.radius(inputs)
    compared = live.require_same_bits(inputs, epsilon, found, radii, ids)
    if compared:
        tell(f"{compared} of {len(ids)} verdicts of the compiled C have the bits of its simulation")
    rows = zip(ids.tolist(), found.label.tolist(), found.certified.tolist(), found.margin.tolist(), radii.tolist(), strict=True)
    return tuple(
        LiveFrame(id=number, epsilon=epsilon, label=label, certified=sure, margin=margin, radius=radius)
        for number, label, sure, margin, radius in rows
    )


def _inputs(live: LiveCertifier, dataset: Dataset, part: slice | NDArray[np.int64]) -> NDArray[np.float32]:
    found = dataset.inputs(part)
    return np.ascontiguousarray(found.reshape(len(found), *live.graph.input_shape), np.float32)
