"""`vsparse report`: the report again, from what the artifact holds, or a page on what differs between two artifacts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vsparse.cli.options import JsonOption, print_json, stdout
from vsparse.cli.times import plain_text
from vsparse.errors import InputError

if TYPE_CHECKING:
    from vsparse.stages.report import ArtifactComparison

PAGE = Path("comparison.html")


def register(app: typer.Typer) -> None:
    """Adds the command to the application."""

    @app.command("report")
    def report_command(
        directory: Annotated[Path | None, typer.Argument(help="The artifact directory.", show_default=False)] = None,
        compare: Annotated[
            tuple[Path, Path] | None,
            typer.Option("--compare", help="Two artifacts, A and B: a page on what differs, and whether luck explains it.", metavar="A B"),
        ] = None,
        out: Annotated[
            Path | None, typer.Option("--out", help=f"With --compare: where the page goes; default: {PAGE}, and none with --json.")
        ] = None,
        json: JsonOption = False,
    ) -> int:
        """Write report.html and report.json again from what the artifact holds; or compare two artifacts."""
        if compare is not None:
            if directory is not None:
                raise InputError(f"--compare takes both artifacts, and {directory} is a third; leave it out")
            return _compare(*compare, out, json)
        if out is not None:
            raise InputError("--out is about the page of --compare; the report lies in its artifact")
        if directory is None:
            raise InputError("give the artifact directory, or two of them: vsparse report --compare A B")
        from vsparse.pipeline.build import rewrite_report

        path = rewrite_report(directory)
        print_json({"report": str(path)}) if json else print(path)
        return 0


def _compare(a: Path, b: Path, out: Path | None, json: bool) -> int:
    from vsparse.stages.report import compare_artifacts, write_comparison

    found = compare_artifacts(a, b)
    page = out or (None if json else PAGE)
    if page is not None:
        write_comparison(found, page)
    if json:
        print_json(found.as_dict() | {"page": None if page is None else str(page)})
    else:
        _show(found)
        print(page)
    return 0


def _show(found: ArtifactComparison) -> None:
    out = stdout()
    for note in found.notes:
        out.print(f"[yellow]note[/yellow]: {plain_text(note)}", soft_wrap=True)
    for share in found.shares:
        (a, of_a), (b, of_b) = share.a, share.b
        counts = f"A {a:,} of {of_a:,}, B {b:,} of {of_b:,} ({share.points:+.2f} points)"
        out.print(plain_text(f"{share.form}, {share.share}: {counts}: {share.verdict}"), soft_wrap=True)
    for row in found.latency:
        out.print(plain_text(f"{row.name}: {row.sentence()}"), soft_wrap=True)
    for title, rows in (("recipe", found.recipe), ("target", found.target), ("size", found.sizes), ("forms", found.forms)):
        for one in rows:
            out.print(plain_text(f"{title}: {one.name}: {one.a or 'none'} -> {one.b or 'none'}"), soft_wrap=True)
    if found.same:
        out.print("nothing but times differs")
