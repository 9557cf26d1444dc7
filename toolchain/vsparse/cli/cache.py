"""`vsparse cache`: what finished stages take on the disk, and how it is freed."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from vsparse.cli.options import JsonOption, print_json, stdout

if TYPE_CHECKING:
    from vsparse.pipeline.cache import CacheEntry

STAGE_WIDTH = 12


def register(app: typer.Typer) -> None:
    """Adds the commands to the application."""
    cache = typer.Typer(
        name="cache",
        help="What builds keep of finished stages (VSPARSE_CACHE, else the user's cache folder): list it, or free the disk of it.",
        no_args_is_help=True,
    )
    app.add_typer(cache)

    @cache.command("ls")
    def list_command(json: JsonOption = False) -> int:
        """List finished and interrupted stages, the largest first."""
        from vsparse.pipeline.cache import StageCache

        kept = StageCache()
        entries = kept.entries()
        if json:
            print_json({"directory": str(kept.root), "bytes": sum(entry.bytes for entry in entries), "entries": _rows(entries)})
            return 0
        _show(entries)
        print(f"{len(entries)} folders, {_size(sum(entry.bytes for entry in entries))} in {kept.root}")
        return 0

    @cache.command("prune")
    def prune_command(
        days: Annotated[float, typer.Option("--days", min=0, help="Remove what was not used for so many days; 0: everything.")] = 30,
        dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
        json: JsonOption = False,
    ) -> int:
        """Remove what was not used for some time; what a build works on stays, and what is gone is computed again when it is needed."""
        from vsparse.pipeline.cache import StageCache

        kept = StageCache()
        gone = kept.prune(days, dry_run=dry_run)
        total = sum(entry.bytes for entry in gone)
        if json:
            print_json({"directory": str(kept.root), "removed": not dry_run, "bytes": total, "entries": _rows(gone)})
            return 0
        _show(gone)
        print(f"{len(gone)} folders, {_size(total)} {'would go' if dry_run else 'are gone'} from {kept.root}")
        return 0


def _rows(entries: list[CacheEntry]) -> list[dict[str, Any]]:
    return [
        {"stage": entry.stage, "key": entry.key, "finished": entry.finished, "bytes": entry.bytes, "used_utc": _time(entry)}
        for entry in entries
    ]


def _show(entries: list[CacheEntry]) -> None:
    if not entries:
        return
    table = Table("stage", "key", "", "size", "used last (UTC)")
    for entry in entries:
        table.add_row(
            entry.stage, entry.key[:STAGE_WIDTH], "finished" if entry.finished else "interrupted", _size(entry.bytes), _time(entry)
        )
    stdout().print(table)


def _time(entry: CacheEntry) -> str:
    return datetime.fromtimestamp(entry.used, UTC).strftime("%Y-%m-%d %H:%M")


def _size(count: int) -> str:
    """Returns bytes in the largest unit of which there is at least one."""
    value, units = float(count), ["bytes", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return f"{value:.0f} {units[0]}" if units[0] == "bytes" else f"{value:.1f} {units[0]}"
