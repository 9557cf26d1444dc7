"""The time that is left for a build: unknown before there is data, never more certain than what is known of every stage."""

from __future__ import annotations

from vsparse.pipeline.stage import Stage
from vsparse.pipeline.time_left import TimeLeft
from vsparse.pipeline.training_line import training_reporter
from vsparse.progress import BUILD, Event, duration


def stage(name: str) -> Stage:
    return Stage(f"{name}-id", name, "0", "", lambda scratch, output, workers, report, jobs: None)


class Watched:
    """A build of two trainings side by side and a verification, on a clock of its own."""

    def __init__(self, before: dict[str, float] | None = None, jobs: int = 2) -> None:
        self.events: list[Event] = []
        self.now = 0.0
        groups = [[stage("sparse"), stage("dense")], [stage("verify")]]
        self.left = TimeLeft(groups, before or {}, jobs, self.events.append, lambda: self.now)

    def at(self, now: float, event: Event) -> str:
        """Returns the last estimate after an event."""
        self.now = now
        self.left(event)
        return next(event.text for event in reversed(self.events) if event.stage == BUILD)


def test_it_is_unknown_before_there_is_data_and_then_a_lower_bound() -> None:
    build = Watched()
    assert build.at(0, Event("start", "sparse")) == "time left unknown"
    assert build.at(10, Event("progress", "sparse", done=1, total=4)) == "left at least 30 s (an estimate; not known: dense, verify)"
    assert build.at(12, Event("progress", "dense", done=0, total=4, part=0.5, left_s=100)).startswith(
        "left at least 2 min (an estimate; not known: verify)"
    )
    assert build.at(40, Event("done", "sparse")) == "left at least 72 s (an estimate; not known: verify)"
    assert build.at(100, Event("done", "dense")) == "time left unknown"
    assert build.at(101, Event("start", "verify")) == "time left unknown"
    assert build.at(111, Event("progress", "verify", done=5, total=10)) == "left about 10 s (an estimate)"
    assert build.at(121, Event("done", "verify")) == ""
    assert [event.done for event in build.events if event.stage == BUILD][-1] == 3


def test_what_waits_takes_as_long_as_the_last_time() -> None:
    build = Watched({"sparse-id": 60.0, "dense-id": 40.0, "verify-id": 600.0}, jobs=1)
    assert build.at(0, Event("start", "sparse")) == "left about 12 min (an estimate)"
    assert build.at(30, Event("done", "dense", reused=True)) == "left about 10 min (an estimate)"
    side = Watched({"sparse-id": 60.0, "dense-id": 40.0, "verify-id": 20.0}, jobs=2)
    assert side.at(0, Event("start", "sparse")) == "left about 80 s (an estimate)"


def test_estimates_follow_at_most_once_a_second_and_pass_everything_on() -> None:
    build = Watched()
    for tick in range(30):
        build.at(tick / 10, Event("progress", "sparse", done=tick, total=30))
    build.left(Event("note", "data", "a note"))
    assert sum(event.stage == "sparse" for event in build.events) == 30
    assert sum(event.stage == BUILD for event in build.events) == 3
    assert build.events[-1].text == "a note"


def test_the_line_of_a_training_shows_the_radius_of_the_moment_and_keeps_the_last_figures() -> None:
    events: list[Event] = []
    told = training_reporter("train sparse", events.append)
    inside = {"epoch": 1, "epochs": 4, "batch": 3, "batches": 10, "phase": "train", "epsilon": 0.0123, "eta_s": 100.0}
    epoch = {"epoch": 1, "epochs": 4, "phase": "train", "epsilon": 0.02, "eta_s": 90.0}
    figures = {"loss": 0.5, "clean": 0.9, "certified": 0.8, "measure": "interval", "density": 0.2}
    told({"within": inside})
    told({**epoch, **figures})
    told({"within": {**inside, "epoch": 2, "batch": 5, "epsilon": 0.03, "phase": "prune"}})
    records = [event for event in events if event.kind == "record"]
    assert [event.data for event in records] == [{**epoch, **figures, "event": "epoch"}]
    events = [event for event in events if event.kind != "record"]
    assert [(event.done, event.part, event.total) for event in events] == [(0, 0.3, 4), (1, 0.0, 4), (1, 0.5, 4)]
    assert events[0].text == "ε 0.0123  left about 2 min"
    assert events[1].text.startswith("ε 0.02  loss 0.500  clean 90.0 %  certified 80.0 %")
    assert events[2].text.startswith("prune  ε 0.03  loss 0.500")
    assert [event.left_s for event in events] == [100.0, 90.0, 100.0]


def test_durations_are_as_exact_as_an_estimate() -> None:
    assert [duration(seconds) for seconds in (-1, 0.4, 89, 100, 5399, 9000)] == ["0 s", "0 s", "89 s", "2 min", "90 min", "2.5 h"]
