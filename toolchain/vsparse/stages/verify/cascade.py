"""The cascade: decides a batch of samples by increasingly expensive methods.

Clean prediction in the runtime, interval bounds, CROWN on interval bounds, a short attack, CROWN on refined bounds, the full attack,
brightness and contrast in pieces where they change, optimised slopes, branch and bound.
A verdict `certified` comes from float64 bounds with the contract's rounding terms alone, a verdict `falsified` from the runtime's own
output on a point whose membership was checked exactly. Every bound is compared with executions: of the sample itself, and of points that an
attack visited; SoundnessError where one of them contradicts it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vsparse.artifact.certificate import PHOTOMETRIC, SEARCHED, Method
from vsparse.bounds import Executions, Rounding, crown, interval, last_layer_folding, lowest_margin, margin_rows, member, refine, region
from vsparse.bounds.photometric import attempts, lowest_of_pieces
from vsparse.bounds.region import placed
from vsparse.compute_device import accelerated, to_host
from vsparse.contract import Contract
from vsparse.perturbation import PerturbationSet
from vsparse.stages.verify.allowance import USUAL, Allowance
from vsparse.stages.verify.answers import BatchAnswer, Settled, enter, falsify, open_positions
from vsparse.stages.verify.attack import Attack, pgd
from vsparse.stages.verify.deployed import Deployed, Runtime, predictions
from vsparse.stages.verify.device_memory import Positions, in_parts, in_smaller_pieces
from vsparse.stages.verify.searched import OpenSample, Searched, open_samples, search
from vsparse.stages.verify.spaces import space

CPU = torch.device("cpu")
SHORT_STEPS = 10
CHEAP: tuple[Method, ...] = ("interval", "crown-ibp")
# Most points visited by attacks that are kept for each sample.
VISITED = 8


@dataclass(frozen=True)
class Question:
    """What is asked about every sample: its perturbation set, the contract, and the methods and budgets allowed."""

    perturbation: PerturbationSet
    contract: Contract
    methods: tuple[str, ...]
    branch_domains: int
    attack_steps: int
    attack_restarts: int
    seed: int


@dataclass(frozen=True)
class SampleBatch:
    """Samples that are judged together: inputs [n, *shape] float32, labels [n], ids (they seed the attack), and what is known so far.

    `visited` holds members of the regions that attacks visited, float32, by position.
    """

    inputs: NDArray[np.float32]
    labels: NDArray[np.int64]
    ids: Sequence[int]
    answer: BatchAnswer
    visited: dict[int, list[Tensor]] = field(default_factory=dict)

    def points(self, position: int) -> Tensor:
        """Returns the members of a sample's region that are executed, float32 [m, *shape]: itself first."""
        return torch.stack([torch.from_numpy(self.inputs[position]), *self.visited.get(position, ())])


# A stage gets the batch and the positions that are still open, and returns those that it leaves open.
CascadeStage = Callable[[SampleBatch, Positions], Positions]


class Cascade:
    """Everything that is set up once for a model and a question, and used for every batch of samples."""

    def __init__(
        self, model: Deployed, question: Question, device: torch.device = CPU, branch_batch: int = 0, allowance: Allowance = USUAL
    ) -> None:
        """Bounds, attacks and searches are computed on `device`, with `branch_batch` domains at once (0: as suits it)."""
        self.model = model
        self.question = question
        self.device, self.branch_batch, self.allowance = device, branch_batch, allowance
        self.runtime = Runtime(model.data, model.levels[-1])
        self.params32 = model.graph.tensors(torch.float32, device)
        self.rounding = Rounding(model.graph, question.contract, device)
        self.params64 = self.rounding.params

    @property
    def stages(self) -> list[CascadeStage]:
        """The stages in their order, the search last."""
        return [*self.before_search, self._search] if self.searches else self.before_search

    @property
    def searches(self) -> bool:
        """Whether searched bounds are among the methods allowed."""
        return any(method in self.question.methods for method in SEARCHED)

    @property
    def before_search(self) -> list[CascadeStage]:
        """The stages whose samples are judged together."""
        question = self.question
        stages: list[CascadeStage] = [self._clean]
        stages += [partial(self._bound, method=method) for method in CHEAP if method in question.methods]
        if "crown" in question.methods:
            # Refinement is by far the most expensive bound, and fails wherever a few steps of gradient descent find a counterexample.
            stages += [partial(self._attack, steps=SHORT_STEPS, restarts=1), partial(self._bound, method="crown")]
        stages.append(partial(self._attack, steps=question.attack_steps, restarts=question.attack_restarts))
        if question.perturbation.photometric and "interval" in question.methods:
            stages.append(self._pieces)
        return stages

    def judge(self, inputs: NDArray[np.float32], labels: NDArray[np.int64], ids: Sequence[int]) -> BatchAnswer:
        """Decides a batch: inputs [n, *shape] float32, labels [n] int64, and the samples' ids."""
        return self._through(self.stages, inputs, labels, ids)[0].answer

    def judge_together(
        self, inputs: NDArray[np.float32], labels: NDArray[np.int64], ids: Sequence[int]
    ) -> tuple[BatchAnswer, dict[int, OpenSample]]:
        """Takes a batch as far as its samples are judged together: the answer so far, and the samples left to search, by position.

        With `settle` of each, and `enter` of what that says, the answer is that of `judge`.
        """
        batch, pending = self._through(self.before_search, inputs, labels, ids)
        left: dict[int, OpenSample] = {}

        def keep(batch: SampleBatch, positions: Positions) -> Positions:
            left.update(zip(positions.tolist(), self._open_samples(batch, positions), strict=True))
            return positions

        if self.searches and len(pending):
            self._on_device(keep, batch, pending)
        return batch.answer, left

    def settle(self, sample: OpenSample, name: str = "an open sample") -> Settled | None:
        """Searches one sample, which messages call `name`; None where that decides nothing."""
        question = self.question
        domains = question.branch_domains if "branch-and-bound" in question.methods else 0

        def searched() -> Searched:
            return search(self.model.graph, self.rounding, sample, domains, self.branch_batch)

        with accelerated(self.device):
            found = in_smaller_pieces(searched, f"the search of {name}") if self.accelerates else searched()
        if found.proof is not None and found.margin > 0:
            # Slopes alone are a tree of one leaf: the method of that name, where it was asked for.
            method: Method = "branch-and-bound" if found.split or "alpha-crown" not in question.methods else "alpha-crown"
            return Settled(method, found.margin, found.proof)
        if found.point is not None:
            point = found.point.numpy()
            predicted = self.replay(sample.points[0].numpy(), point, sample.label)
            if predicted is not None:
                return Settled("attack", counterexample=(point, predicted))
        return None

    def _through(
        self, stages: Sequence[CascadeStage], inputs: NDArray[np.float32], labels: NDArray[np.int64], ids: Sequence[int]
    ) -> tuple[SampleBatch, Positions]:
        """Takes a batch through stages: what is known then, and the positions that are still open."""
        n = len(labels)
        answer = BatchAnswer(["unknown"] * n, ["none"] * n, np.full(n, -np.inf), np.full(n, -1), np.zeros(n))
        batch = SampleBatch(inputs, labels, ids, answer)
        pending: Positions = np.arange(n)
        for stage in stages:
            if not len(pending):
                break
            started = perf_counter()
            left = self._on_device(stage, batch, pending)
            answer.time_ms[pending] += (perf_counter() - started) * 1000 / len(pending)
            pending = left
        return batch, pending

    @property
    def accelerates(self) -> bool:
        """Whether an accelerator computes."""
        return self.device.type != "cpu"

    def _on_device(self, stage: CascadeStage, batch: SampleBatch, pending: Positions) -> Positions:
        """Returns what a stage leaves open; where an accelerator's memory is short, it works on fewer samples at once."""
        if not self.accelerates:
            return stage(batch, pending)

        def work(positions: Positions) -> Positions:
            # What an attempt decided before it ran out of memory is decided.
            open_ = open_positions(batch.answer, positions)
            return stage(batch, open_) if len(open_) else open_

        with accelerated(self.device):
            return in_parts(work, pending, lambda position: f"sample {batch.ids[position]}")

    def bound(
        self,
        method: str,
        inputs: NDArray[np.float32],
        labels: NDArray[np.int64],
        points: Sequence[Tensor] | None = None,
        ids: Sequence[int] | None = None,
    ) -> NDArray[np.float64]:
        """Returns proved lower bounds [n] of the margin over the region of each input by one method; -inf where nothing is proved.

        `points` [m, *shape] for each input are members of its region (default: the input itself). SoundnessError where an execution there
        lies outside of a box, or below a bound; it names the input by its id (default: its position).
        """
        parts = self.allowance.parts(self.model.graph, len(inputs))
        if len(parts) > 1:
            each = [
                (inputs[p], labels[p], None if points is None else points[p], range(len(inputs))[p] if ids is None else ids[p])
                for p in parts
            ]
            return np.concatenate([self.bound(method, *one) for one in each])
        graph, rounding = self.model.graph, self.rounding
        box = placed(region(torch.from_numpy(inputs), self.question.perturbation), self.device)
        with torch.no_grad():
            boxes = interval(graph, self.params64, box, rounding)
            if method == "crown":
                boxes = refine(graph, self.params64, box, boxes, rounding, **self.allowance.of_refinement())
            rows = self._rows(labels).to(self.device)
            lower = last_layer_folding(graph, self.params64, rows, boxes, rounding)
            if method != "interval":  # both hold, row by row, and neither is always the tighter one
                lower = torch.fmax(lower, crown(graph, self.params64, box, rows, boxes, rounding))
            for executed in self._executions(torch.from_numpy(inputs), points, ids):
                executed.check(boxes, method)
                executed.check_rows(rows, lower, method)
            return lowest_margin(self._margins(to_host(lower), inputs)).numpy()

    def _rows(self, labels: NDArray[np.int64]) -> Tensor:
        """Returns the rows [n, rows, outputs] of the outputs that are bounded from below."""
        return margin_rows(torch.from_numpy(labels), self.model.classes)

    def _margins(self, lower: Tensor, inputs: NDArray[np.float32]) -> Tensor:
        """Returns the margins [n, rows] that follow from lower bounds of the rows; where all are above 0 the property is proved."""
        return lower

    def replay(self, x: NDArray[np.float32], point: NDArray[np.float32], label: int, pair: tuple[float, float] | None = None) -> int | None:
        """Returns what the artifact predicts for a counterexample, or None where it is none.

        The point must lie in the region around x by exact arithmetic (`pair` hints at the b and c it was made by), ONNX Runtime must
        misclassify it, and, where ONNX Runtime does not execute the contract, every execution within the contract must do so too.
        """
        if not member(torch.from_numpy(point), torch.from_numpy(x), self.question.perturbation, pair):
            return None
        predicted = int(predictions(self.runtime.logits(point[None]))[0])
        return predicted if predicted not in (-1, label) and self._misclassified(point, label) else None

    def _clean(self, batch: SampleBatch, pending: Positions) -> Positions:
        predicted, labels = predictions(self.runtime.logits(batch.inputs[pending])), batch.labels[pending]
        batch.answer.predicted[pending] = predicted
        for i in pending[(predicted != labels) & (predicted >= 0)].tolist():
            if self._misclassified(batch.inputs[i], int(batch.labels[i])):
                falsify(batch.answer, i, "clean", batch.inputs[i], int(batch.answer.predicted[i]))
        # A sample that the runtime gets wrong, or answers with NaN, has nothing left to prove.
        left: Positions = pending[predicted == labels]
        return left

    def _bound(self, batch: SampleBatch, pending: Positions, method: Method) -> Positions:
        answer = batch.answer
        points, ids = [batch.points(i) for i in pending.tolist()], [batch.ids[i] for i in pending]
        margins = self.bound(method, batch.inputs[pending], batch.labels[pending], points, ids)
        for i, lower in zip(pending.tolist(), margins.tolist(), strict=True):
            # The best bound so far is kept, together with the method that gave it.
            if np.isfinite(lower) and lower > answer.margin_lower[i]:
                answer.margin_lower[i], answer.method[i] = lower, method
                if lower > 0:
                    answer.verdict[i] = "certified"
        return open_positions(answer, pending)

    def _attack(self, batch: SampleBatch, pending: Positions, steps: int, restarts: int) -> Positions:
        x, labels = batch.inputs[pending], batch.labels[pending]
        seeds = [(self.question.seed, batch.ids[i]) for i in pending]
        found = pgd(self.model.graph, self.params32, x, space(x, self.question.perturbation), labels, seeds, steps=steps, restarts=restarts)
        self._visit(batch, pending, found)
        for k in (found.margins <= 0).nonzero().flatten().tolist():
            i, point = int(pending[k]), found.inputs[k].numpy()
            b, c = found.pairs[k].tolist()
            predicted = self.replay(x[k], point, int(labels[k]), (b, c))
            if predicted is not None:
                falsify(batch.answer, i, "attack", point, predicted)
        return open_positions(batch.answer, pending)

    def _pieces(self, batch: SampleBatch, pending: Positions) -> Positions:
        answer = batch.answer
        for i in pending.tolist():
            x, label = torch.from_numpy(batch.inputs[i : i + 1]), int(batch.labels[i])
            for pieces in attempts(self.question.perturbation):
                with torch.no_grad():
                    lower = lowest_of_pieces(x, label, self.question.perturbation, pieces, self.rounding)
                    rows = margin_rows(torch.tensor([label]), self.model.classes).to(self.device)
                    for executed in self._executions(x, [batch.points(i)], [batch.ids[i]]):
                        executed.check_rows(rows, torch.full(rows.shape[:2], lower, dtype=torch.float64).to(self.device), PHOTOMETRIC)
                if lower > 0:
                    answer.verdict[i], answer.method[i], answer.margin_lower[i] = "certified", PHOTOMETRIC, lower
                    answer.pieces[i] = pieces
                    break
        return open_positions(answer, pending)

    def _search(self, batch: SampleBatch, pending: Positions) -> Positions:
        for i, sample in zip(pending.tolist(), self._open_samples(batch, pending), strict=True):
            enter(batch.answer, i, self.settle(sample, f"sample {batch.ids[i]}"))
        return open_positions(batch.answer, pending)

    def _open_samples(self, batch: SampleBatch, pending: Positions) -> Iterator[OpenSample]:
        around = placed(region(torch.from_numpy(batch.inputs[pending]), self.question.perturbation), self.device)
        labels = torch.from_numpy(batch.labels[pending])
        points = [batch.points(i) for i in pending.tolist()]
        return open_samples(self.model.graph, self.rounding, around, labels, self.model.classes, points, self.allowance)

    def _visit(self, batch: SampleBatch, pending: Positions, found: Attack) -> None:
        """Keeps points of an attack, and checks them against what is proved about their samples so far."""
        perturbation = self.question.perturbation
        # In a box every iterate is a member. Elsewhere that is decided in rational arithmetic, which is slow.
        visited = found.visited if perturbation.is_box else ((torch.arange(len(pending)), found.inputs, found.pairs),)
        for positions, reached, pairs in visited:
            for k, point, pair in zip(positions.tolist(), reached, pairs.tolist(), strict=True):
                i = int(pending[k])
                kept = batch.visited.setdefault(i, [])
                if len(kept) < VISITED and (
                    perturbation.is_box or member(point, torch.from_numpy(batch.inputs[i]), perturbation, (pair[0], pair[1]))
                ):
                    kept.append(point)
        # A lower bound of the least margin is a lower bound of every margin.
        rows = margin_rows(torch.from_numpy(batch.labels[pending]), self.model.classes).to(self.device)
        proved = torch.from_numpy(batch.answer.margin_lower[pending]).unsqueeze(1).to(self.device).expand(rows.shape[:2])
        points, ids = [batch.points(i) for i in pending.tolist()], [batch.ids[i] for i in pending]
        for executed in self._executions(torch.from_numpy(batch.inputs[pending]), points, ids):
            executed.check_rows(rows, proved, "the margin proved so far")

    def _executions(self, inputs: Tensor, points: Sequence[Tensor] | None, ids: Sequence[int] | None) -> Iterator[Executions]:
        """Yields executions of the points [m, *shape] of each input (default: the inputs), as many at once as there are inputs."""
        mine = list(inputs.unsqueeze(1) if points is None else points)
        names = [f"a point around sample {sample}" for sample in (range(len(inputs)) if ids is None else ids)]
        rows = torch.repeat_interleave(torch.tensor([len(one) for one in mine]))
        every = torch.cat(mine)
        for start in range(0, len(every), len(inputs)):
            at = rows[start : start + len(inputs)]
            piece = every[start : start + len(inputs)]
            placed_at = piece.to(self.device), at.to(self.device)
            yield Executions.of(self.model.graph, self.params64, *placed_at, [names[i] for i in at.tolist()])

    def _misclassified(self, point: NDArray[np.float32], label: int) -> bool:
        """Whether a misclassification by ONNX Runtime, which executes a contract of its own, is one under the contract in question too."""
        if self.question.contract.name == self.model.executes and self.model.levels[-1] == "all":  # a file for TensorRT runs elsewhere
            return True
        x = torch.from_numpy(point[None]).double().to(self.device)
        with torch.no_grad():
            ends = interval(self.model.graph, self.params64, (x, x), self.rounding)[self.model.graph.output]
        lower, upper = (to_host(end) for end in ends)
        others = torch.cat([lower[0, :label], lower[0, label + 1 :]])
        return bool(torch.isfinite(upper).all()) and float(others.max()) > float(upper[0, label])
