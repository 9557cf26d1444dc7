"""Tables with named columns, CSV and Parquet: the type of each column, and its values as numbers or as categories."""

from __future__ import annotations

import csv
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from vsparse.data.bounded import reading
from vsparse.data.dataset import VALUE, Loaded, Raw, require_targets
from vsparse.data.parts import part_of, parts_among
from vsparse.errors import InputError, UnavailableError, nearest
from vsparse.recipe_data import Data

LOOKED_FOR = {"csv": "train.csv or <name>.csv", "parquet": "train.parquet or <name>.parquet"}
MAX_FILE_BYTES = 2**29
MAX_CELLS = 20_000_000
MAX_COLUMNS = 4096
MAX_FIELD = 4096
# Characters of one row, over all of its lines: csv.reader holds a whole row before anything can be said of it.
MAX_ROW = 2**22
MAX_CATEGORIES = 64
MAX_TEXTS = 2**16
# Fewer samples a class, on average, cannot be split in three and learned from.
LEAST_SAMPLES_A_CLASS = 4
TABLE_SUFFIXES = (".csv", ".tsv", ".parquet", ".pq")
PARQUET_DAMAGE = (OSError, MemoryError, ValueError, RuntimeError, NotImplementedError, TypeError)
MISSING = frozenset(("", "na", "n/a", "nan", "null", "none", "?"))
DELIMITERS = ",;\t|"


@dataclass(frozen=True)
class TableColumn:
    """One input of the network: a column of numbers, or whether a column has one of its categories (`fixed`: nothing may change it)."""

    name: str
    column: str
    fixed: bool


@dataclass(frozen=True)
class TableFile:
    """The columns of one file by name: float64 where every cell is a number, else texts."""

    source: str
    rows: int
    numbers: dict[str, NDArray[np.float64]]
    texts: dict[str, list[str]]

    @property
    def names(self) -> list[str]:
        """The names of all columns that were read."""
        return [*self.numbers, *self.texts]


def read_table(path: Path, drop: Sequence[str], texts: Sequence[str] = (), only: set[str] | None = None) -> TableFile:
    """Reads a CSV or Parquet file, by its suffix; columns of `drop`, and all but `only`, are left out.

    Columns of `texts` are kept as texts whatever they hold.

    Raises InputError that names file, line and column: for no header, ragged rows, missing values, columns of numbers and texts mixed,
    and files that are too large. UnavailableError for Parquet without pyarrow.
    """
    source = str(path)
    if not path.is_file():
        raise InputError(f"{source} is not a file; check the path")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise InputError(f"{source} has more than the {MAX_FILE_BYTES // 2**20} MiB that are read; give fewer rows or columns")
    with rows_of(path)(path) as (names, rows):
        checked = _checked_names(names, source)
        left = set(drop) if only is None else set(checked) - only
        return _columns(source, checked, rows, left, set(texts))


def rows_of(path: Path) -> Callable[[Path], AbstractContextManager[tuple[list[str], Iterable[Sequence[str]]]]]:
    """Returns what opens a table, by its suffix: a context of the names of its columns and of its rows as texts."""
    return _parquet_rows if path.suffix.lower() in (".parquet", ".pq") else _csv_rows


def _checked_names(names: Sequence[str], source: str) -> list[str]:
    found = [name.strip() for name in names]
    if len(found) > MAX_COLUMNS:
        raise InputError(f"{source} has {len(found)} columns, more than the {MAX_COLUMNS} that are read; drop some")
    for name in found:
        if not name or not name.isprintable():
            raise InputError(f"{source} has a column whose name is empty or not printable ({name!r:.40}); name it in the first line")
        if found.count(name) > 1:
            raise InputError(f'{source} has two columns named "{name[:60]}"; rename one')
    if len(found) < 2:
        raise InputError(f"{source} has one column; a table needs features and a target, divided by comma, semicolon or tab")
    if all(_number(name) is not None for name in found):
        raise InputError(f"{source} begins with numbers and no names of columns; write a first line with the names")
    return found


def _number(text: str) -> float | None:
    try:
        return None if "_" in text else float(text)  # Python's float takes 1_000, which is no number in a table
    except ValueError:
        return None


class _Lines:
    """The lines of a CSV file for csv.reader; InputError for a row of more than MAX_ROW characters, before it is divided into cells."""

    def __init__(self, file: TextIO, source: str) -> None:
        self._file, self._source, self._left = file, source, MAX_ROW

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._file.readline(self._left + 1)
        if not line:
            raise StopIteration
        self._left -= len(line)
        if self._left < 0:
            raise InputError(
                f"{self._source} has a row of more than the {MAX_ROW} characters that are read; drop columns, or repair the quotes"
            )
        return line

    def each(self, rows: Iterable[list[str]]) -> Iterator[list[str]]:
        """Yields the rows that are read from these lines, each with MAX_ROW characters of its own."""
        self._left = MAX_ROW
        for row in rows:
            self._left = MAX_ROW
            yield row


@contextmanager
def _csv_rows(path: Path) -> Iterator[tuple[list[str], Iterable[Sequence[str]]]]:
    with reading(str(path)), path.open(encoding="utf-8-sig", newline="") as file:
        try:
            first = file.readline(2**20)
            counts = {delimiter: first.count(delimiter) for delimiter in DELIMITERS}
            file.seek(0)
            lines = _Lines(file, str(path))
            rows = csv.reader(lines, delimiter=max(DELIMITERS, key=lambda one: counts[one]), strict=True)
            names = next(rows, None)
            if names is None:
                raise InputError(f"{path} is empty; write a first line with the names of the columns, and rows below it")
            yield names, lines.each(rows)
        except UnicodeDecodeError as error:
            raise InputError(f"{path} is not UTF-8 text; save it as UTF-8") from error
        except csv.Error as error:
            raise InputError(f"{path} is no well-formed CSV file ({error}); save it again") from error


@contextmanager
def _parquet_rows(path: Path) -> Iterator[tuple[list[str], Iterable[Sequence[str]]]]:
    try:
        import pyarrow.parquet as parquet  # type: ignore[import-not-found,unused-ignore]  # optional, and large
    except ImportError as error:
        raise UnavailableError(f"{path} is a Parquet file, which pyarrow reads; pip install pyarrow, or save it as CSV") from error
    with (
        reading(str(path), PARQUET_DAMAGE),
        parquet.ParquetFile(path) as file,
    ):
        about = file.metadata
        if about.num_rows * max(1, about.num_columns) > MAX_CELLS:
            raise _too_large(str(path))

        def rows() -> Iterator[Sequence[str]]:
            for batch in file.iter_batches(batch_size=4096):
                columns = [column.to_pylist() for column in batch.columns]
                for row in zip(*columns, strict=True):
                    yield ["" if cell is None else repr(cell) if isinstance(cell, float) else str(cell) for cell in row]

        yield list(file.schema_arrow.names), rows()


def _too_large(source: str) -> InputError:
    return InputError(f"{source} has more than the {MAX_CELLS} cells that are read; give fewer rows or columns")


def _columns(source: str, names: list[str], rows: Iterable[Sequence[str]], drop: set[str], texts: set[str]) -> TableFile:
    kept = [(index, name) for index, name in enumerate(names) if name not in drop]
    numbers = {name: array("d") for _, name in kept if name not in texts}
    words: dict[str, list[str]] = {name: [] for _, name in kept if name in texts}
    known: dict[str, str] = {}
    count = 0
    for row in rows:
        if not row:
            continue  # an empty line
        count += 1
        line = count + 1
        if len(row) != len(names):
            raise InputError(f"{source}: row {line} has {len(row)} cells, and the first line names {len(names)} columns; repair the row")
        if count * len(names) > MAX_CELLS:
            raise _too_large(source)
        for index, name in kept:
            cell = row[index].strip()
            if cell.lower() in MISSING:
                way = "fill it in, delete the row, or leave the column out with data.drop"
                raise InputError(f'{source}: row {line} has no value in the column "{name}"; {way}')
            column = numbers.get(name)
            value = _number(cell) if column is not None else None
            if column is not None and value is not None:
                if not isfinite(value):
                    raise InputError(f'{source}: row {line} has {cell[:20]} in the column "{name}"; give finite numbers')
                column.append(value)
                continue
            if column is not None:
                if len(column):
                    way = "correct it, or name the column in data.categorical or data.drop"
                    raise InputError(f'{source}: the column "{name}" mixes numbers and text (row {line}: "{cell[:40]}"); {way}')
                del numbers[name]
                words[name] = []
            if name not in texts and _number(cell) is not None:
                way = "correct it, or name the column in data.categorical or data.drop"
                raise InputError(f'{source}: the column "{name}" mixes text and numbers (row {line}: "{cell[:40]}"); {way}')
            if len(cell) > MAX_FIELD or len(known) > MAX_TEXTS:
                raise InputError(f'{source}: the column "{name}" holds too long or too many texts; leave it out with data.drop')
            words[name].append(known.setdefault(cell, cell))
    if not count:
        raise InputError(f"{source} has no rows below the names of its columns; give at least a few samples")
    return TableFile(source, count, {name: np.array(values, dtype=np.float64) for name, values in numbers.items()}, words)


def row_values(path: Path, inputs: Sequence[tuple[str, str | None]]) -> NDArray[np.float64]:
    """Returns the rows of a table as values [n, F] in their own units; an input is a column, or whether one has a category.

    Other columns are left out. Raises InputError as `read_table`, for columns that are missing or hold text, and unknown categories.
    """
    texts = [column for column, category in inputs if category is not None]
    table = read_table(path, (), texts, only={column for column, _ in inputs})
    values: list[NDArray[Any]] = []
    for column, category in inputs:
        if column not in (table.numbers if category is None else table.texts):
            what = "has no column" if column not in table.names else "holds text in the column"
            raise InputError(f'{table.source} {what} "{column}", which is a number in the training table; give the same columns')
        values.append(table.numbers[column] if category is None else np.array([text == category for text in table.texts[column]]))
    for column in dict.fromkeys(texts):
        known = {category for name, category in inputs if name == column}
        other = next((text for text in table.texts[column] if text not in known), None)
        if other is not None:
            raise InputError(f'{table.source}: the column "{column}" has "{other[:40]}", which the training rows do not have; correct it')
    return np.stack([value.astype(np.float64) for value in values], axis=1)


def files_at(location: Path, suffix: str) -> dict[str, Path]:
    """Returns the tables train, validation and test of a folder, by part; nothing without a training part."""
    found = sorted(location.glob(f"*.{suffix}")) if location.is_dir() else []
    names = {path.stem: path for path in found if path.is_file()}
    if not any(part_of(name) == "train" for name in names):
        return {}
    return {part: names[name] for part, name in parts_among(names, str(location)).items()}


def read(location: Path, spec: Data, suffix: str) -> Loaded:
    """Returns a table as values of [N, F, 1, 1] in their own units, unscaled, with what each of the F inputs is.

    `location` is a file, a folder with train.csv and perhaps val.csv and test.csv, or one with <name>.csv. Columns of text, and those of
    data.categorical, become one input a category, 0 or 1, which are fixed. Classes are the values of data.target, or its numbers targets.
    """
    files = files_at(location, suffix) if location.is_dir() else {"train": location}
    files = files or {"train": location / f"{spec.name}.{suffix}"}
    regression = spec.is_regression
    wanted = [*([] if regression else [spec.target]), *spec.categorical, *filter(None, [spec.group])]
    train = read_table(files["train"], spec.drop, wanted)
    _require_columns(train, spec)
    tables = {part: train if part == "train" else read_table(path, spec.drop, [*wanted, *train.texts]) for part, path in files.items()}
    for table in tables.values():
        if set(table.names) != set(train.names):
            other = sorted(set(table.names) ^ set(train.names))[0]
            raise InputError(f'the column "{other}" is in only one of {table.source} and {train.source}; give both the same columns')
        for name in train.numbers:
            if name not in table.numbers:
                raise InputError(f'{table.source}: the column "{name}" holds text, and in {train.source} numbers; correct it')
    classes = VALUE if regression else _classes(train, spec.target)
    categories = {name: _categories(train, name) for name in train.texts if name not in (spec.target, spec.group)}
    numbers = [name for name in train.numbers if name != spec.target]
    if not (numbers or categories):
        raise InputError(f"{train.source} has no columns beside {spec.target}; a network needs features")
    columns = [TableColumn(name, name, False) for name in numbers]
    columns += [TableColumn(f"{name}={value}", name, True) for name, values in categories.items() for value in values]
    if len(columns) > MAX_COLUMNS:
        raise InputError(f"{train.source} gives {len(columns)} inputs, more than {MAX_COLUMNS}; drop columns of many categories")
    raws = {part: _raw(table, spec, columns, categories, classes) for part, table in tables.items()}
    told = tuple(f'the column "{name}" is read as {len(values)} categories' for name, values in categories.items())
    return Loaded(raws["train"], raws.get("test"), classes, raws.get("validation"), told, tuple(columns))


def _require_columns(table: TableFile, spec: Data) -> None:
    if not spec.target:
        names = ", ".join(table.names[:12])
        raise InputError(f"{table.source} is a table, and data.target does not say which column is predicted; its columns: {names}")
    named: dict[str, tuple[str, ...]] = {
        "target": (spec.target,),
        "categorical": spec.categorical,
        "group": (spec.group,) * bool(spec.group),
    }
    if spec.is_regression and spec.target in table.texts:
        raise InputError(
            f'{table.source}: the column "{spec.target}" holds text, and data.kind = "regression" predicts numbers; name another column'
        )
    for key, columns in named.items():
        for name in columns:
            if name not in (table.names if key == "target" else table.texts):
                there = table.names
                raise InputError(
                    f'{table.source} has no column "{name}", which data.{key} names{nearest(name, there)}; it has {", ".join(there[:12])}'
                )


def class_order(values: Iterable[str]) -> tuple[str, ...]:
    """Returns the different values in order: as numbers where all are, else as text."""
    found = set(values)
    keys = {value: _number(value) for value in found}
    if all(key is not None for key in keys.values()):
        return tuple(sorted(found, key=lambda value: (keys[value] or 0.0, value)))
    return tuple(sorted(found))


def _classes(table: TableFile, target: str) -> tuple[str, ...]:
    classes = class_order(table.texts[target])
    if len(classes) < 2:
        raise InputError(f'{table.source}: the column "{target}" has one value; a classifier needs at least 2 classes')
    if len(classes) * LEAST_SAMPLES_A_CLASS > table.rows:
        few = f"{table.rows} rows are fewer than {LEAST_SAMPLES_A_CLASS} for each"
        numbers = all(_number(value) is not None for value in classes)
        way = 'predict it as a number (data.kind = "regression")' if numbers else "give more rows, or fewer classes"
        raise InputError(f'{table.source}: the column "{target}" has {len(classes)} classes, and {few}; {way}')
    return classes


def _categories(table: TableFile, name: str) -> tuple[str, ...]:
    values = class_order(table.texts[name])
    if len(values) > MAX_CATEGORIES:
        raise InputError(
            f'{table.source}: the column "{name}" has {len(values)} different texts, more than {MAX_CATEGORIES} categories; '
            "leave it out with data.drop"
        )
    return values


def _codes(table: TableFile, name: str, values: tuple[str, ...], what: str) -> NDArray[np.int64]:
    number = {value: index for index, value in enumerate(values)}
    for row, text in enumerate(table.texts[name]):
        if text not in number:
            raise InputError(
                f'{table.source}: row {row + 2} has the {what} "{text[:40]}" in the column "{name}", which the training rows do not have; '
                "add rows of it there, or remove this one"
            )
    return np.array([number[text] for text in table.texts[name]], dtype=np.int64)


def _raw(table: TableFile, spec: Data, columns: list[TableColumn], categories: dict[str, tuple[str, ...]], classes: tuple[str, ...]) -> Raw:
    if table.rows * len(columns) > 4 * MAX_CELLS:
        raise InputError(f"{table.source} gives {len(columns)} inputs of {table.rows} rows, more than is read; drop columns")
    codes = {name: _codes(table, name, values, "category") for name, values in categories.items()}
    values: list[NDArray[Any]] = []
    for column in columns:
        if column.fixed:
            values.append(codes[column.column] == categories[column.column].index(column.name[len(column.column) + 1 :]))
        else:
            values.append(table.numbers[column.name])
    groups = None if not spec.group else _codes(table, spec.group, class_order(table.texts[spec.group]), "group")
    pixels = np.stack([value.astype(np.float64) for value in values], axis=1)[:, :, None, None]
    if spec.is_regression:
        targets = table.numbers[spec.target]
        require_targets(targets, f'{table.source}: the column "{spec.target}"')
        return Raw(pixels, np.inf, np.zeros(table.rows, dtype=np.int64), table.source, groups, targets)
    return Raw(pixels, np.inf, _codes(table, spec.target, classes, "class"), table.source, groups)
