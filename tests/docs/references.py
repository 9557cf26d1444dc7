"""What documents and docstrings refer to, and whether it is there: sections, files, names, commands and their options."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import typer
from pydantic import BaseModel

from vsparse.cli import app
from vsparse.recipe import Recipe

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
# Paths in documents may begin in one of these, after the document's own folder.
BASES = (ROOT, ROOT / "toolchain", ROOT / "toolchain" / "vsparse", ROOT / "toolchain" / "vsparse" / "stages")
# Files of artifacts and of the reader's own, keys in the metadata of ONNX files, and folders that are made.
NOT_HERE = frozenset(
    {
        "device/agent.py",
        "device/run_on_device.py",
        "device/certify_on_device.py",
        "results.partial.json",
        "results.previous.json",
        "train/dense/",
        "my_package/nets.py",
        "vsparse.recipe",
        "vsparse.certificate",
        "my.toml",
    }
)

# `3`, `3.1 and 3.2`, `1 to 8 and 10`.
LIST = r"\d+(?:\.\d+)?(?:(?:, | and | to )\d+(?:\.\d+)?)*"
CITED = re.compile(rf"(?<![\w/\"'])(?:docs/)?([a-z][a-z0-9-]*\.md)(?:, sections? ({LIST}))?(?:, rules? ({LIST}))?")
PART = re.compile(rf"\bsections? ({LIST})")
# A section of somebody else's text: a paper, a year or an arXiv number stands right before it.
ELSEWHERE = re.compile(r"(?:\d{4}|\d{4}\.\d{4,5}|\bpaper's|et al\.|lemma [\d.]+|chapter \d+)[,)]?(?: v\d+)?(?:,| and)? ?$")
LINK = re.compile(r"\]\(([^()\s]+)\)")
SPAN = re.compile(r"(?<!`)`([^`\n]+(?:\n[^`\n]+)?)`(?!`)")
PYTHON_PATH = re.compile(r"[\w*./{}-]+/[\w*.{}-]+\.py|[\w*.{}-]+/(?:[\w*.{}-]+/)*")
BARE_FILE = re.compile(r"[\w*{},.-]*\w[\w*{},.-]*\.(?:py|md|toml|json)")
# `results-NAME.json`, but not README.md.
PLACEHOLDER = re.compile(r"(?:^|-)[A-Z]{2,}\.(?!md)")
NAME = re.compile(r"\b(vsparse(?:_check)?(?:\.[A-Za-z_]\w*)+)")
OPTION = re.compile(r"(?<![\w-])(--[a-z][a-z0-9-]*)(?![A-Z])")


def slug(heading: str) -> str:
    """Returns the anchor that Markdown pages give a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@cache
def headings(document: Path) -> tuple[str, ...]:
    """Returns the headings of a document, without their marks; those in code are none."""
    text = re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.M | re.S)
    return tuple(re.findall(r"^#+ +(.+?) *$", text, re.M))


@cache
def sections(document: Path) -> dict[str, str]:
    """Returns the numbered sections of a document: `3` and `3.2`, with their text up to the next heading of any kind."""
    parts = re.split(r"^#+ +(\d+(?:\.\d+)?)\.? .*$", document.read_text(encoding="utf-8"), flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def numbers(text: str) -> list[str]:
    """Returns the numbers of a list such as `3.1, 3.2 and 5`; of `1 to 8` both ends."""
    return re.findall(r"\d+(?:\.\d+)?", text)


def one_line(text: str) -> str:
    """Returns a source text with the breaks inside comments and docstrings taken out."""
    return re.sub(r"\s*\n[ \t]*(?:# ?)?[ \t]*", " ", text)


def faults_of_source(path: Path) -> Iterator[str]:
    """Yields what a source file cites of the documents that is not there."""
    text = one_line(path.read_text(encoding="utf-8"))
    for match in re.finditer(r"\bNUMERICS \d|\b(?:NUMERICS|DESIGN|HOUSE|CHARTER)\.md\b", text):
        yield f"{match[0]} is no document of the repository"
    for match in re.finditer(r"\((?:see )?(sections? \d[\d.]*)(?! of the paper)", text):
        yield f"({match[1]}: of which document?"
    for match in CITED.finditer(text):
        name, document = match[1], DOCS / match[1]
        if not match[0].startswith("docs/"):
            if document.exists():
                yield f"{name} is cited without its folder: write docs/{name}"
            continue
        if not document.exists():
            yield f"docs/{name} does not exist"
            continue
        if name == "numerics.md" and not match[2]:
            yield f"docs/{name} is cited without a section: {text[max(0, match.start() - 60) : match.end() + 20]!r}"
        yield from _absent(document, match)


def _absent(document: Path, match: re.Match[str]) -> Iterator[str]:
    cited = numbers(match[2] or "")
    for number in cited:
        if number not in sections(document):
            yield f"{document.name} has no section {number}"
    for number in numbers(match[3] or ""):
        if cited and not re.search(rf"^{number}\. ", sections(document).get(cited[-1], ""), re.M):
            yield f"{document.name}, section {cited[-1]}, has no rule {number}"


def faults_of_document(path: Path) -> Iterator[str]:
    """Yields what a document refers to that is not there."""
    text = re.sub(r"<!--.*?-->", "", path.read_text(encoding="utf-8"), flags=re.S)
    yield from _links(path, text)
    yield from _sections(path, text)
    code = [*SPAN.findall(re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)), *_code_lines(text)]
    for span in SPAN.findall(re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)):
        yield from _files(span)
    for span in code:
        yield from _paths(path, span)
        yield from _names(span)
        yield from _keys(span)
        yield from _commands(span)


def _links(path: Path, text: str) -> Iterator[str]:
    for target in LINK.findall(text):
        if re.match(r"https?:|mailto:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        if not file.exists():
            yield f"link to {target}: no such file"
        elif anchor and anchor not in {slug(heading) for heading in headings(file)}:
            yield f"link to {target}: {file.name} has no such heading"


def _sections(path: Path, text: str) -> Iterator[str]:
    flat = " ".join(text.split())
    for match in PART.finditer(flat):
        before = flat[max(0, match.start() - 60) : match.start()]
        if ELSEWHERE.search(before):
            continue
        named = re.search(r"([a-z][a-z0-9-]*\.md)(?:#[\w-]*)?\)?,? ?$", before)
        document = path if named is None else next((f for f in (path.parent / named[1], DOCS / named[1]) if f.exists()), path)
        for number in numbers(match[1]):
            if number not in sections(document):
                yield f"section {number} of {document.name} does not exist: …{before[-30:]}{match[0]}"


def _code_lines(text: str) -> Iterator[str]:
    for block in re.findall(r"^```[a-z]*\n(.*?)^```", text, re.M | re.S):
        yield from re.sub(r"\\\n\s*", "", block).splitlines()
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        if line.startswith("    "):
            yield line


def _paths(path: Path, span: str) -> Iterator[str]:
    for word in span.split():
        if not PYTHON_PATH.fullmatch(word) or word in NOT_HERE or re.search(r"[A-Z]{2}", word):
            continue
        # Folders of artifacts look like ours: those alone are ours that begin in a known place.
        if word.endswith("/") and not any((base / word.split("/")[0]).is_dir() for base in BASES):
            continue
        if not any(list(base.glob(one)) for base in (path.parent, *BASES) for one in _alternatives(word.rstrip("/"))):
            yield f"{word}: no such file or folder"


def _files(span: str) -> Iterator[str]:
    """Yields files named without a folder that are nowhere in the repository, and that no part of the package reads or writes."""
    for word in span.split():
        if not BARE_FILE.fullmatch(word) or word in NOT_HERE or PLACEHOLDER.search(word):
            continue
        if not any(fnmatch(name, one) for one in _alternatives(word) for name in file_names()) and word not in artifact_files():
            yield f"{word}: no such file anywhere in the repository, and none of an artifact"


@cache
def file_names() -> frozenset[str]:
    """Returns the names of all files of the repository, without their folders; hidden folders and builds are none of it."""
    folders = ("benchmarks", "docs", "models", "targets", "tests", "toolchain")
    return frozenset(path.name for path in (*ROOT.glob("*.*"), *(path for folder in folders for path in (ROOT / folder).rglob("*.*"))))


@cache
def artifact_files() -> frozenset[str]:
    """Returns the names of files that stand, alone or at the end of a path, in strings of the package's sources."""
    sources = (path.read_text(encoding="utf-8") for path in (ROOT / "toolchain").rglob("*.py"))
    return frozenset(name for source in sources for name in re.findall(r"[\"/]([\w-]+\.(?:py|md|toml|json))\"", source))


def _alternatives(word: str) -> list[str]:
    """Returns what a pattern with one group in braces stands for."""
    match = re.fullmatch(r"([^{}]*)\{([^{}]*)\}([^{}]*)", word)
    return [f"{match[1]}{part}{match[3]}" for part in match[2].split(",")] if match else [word]


def _names(span: str) -> Iterator[str]:
    for name in NAME.findall(span):
        if name not in NOT_HERE and not resolves(name):
            yield f"{name}: no such module or attribute"


@cache
def resolves(name: str) -> bool:
    """Whether a dotted name is a module of the package, or an attribute of one, or of a class there."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[end:]:
            if not hasattr(found, attribute):
                return attribute in getattr(found, "model_fields", {}) or attribute in getattr(found, "__dataclass_fields__", {})
            found = getattr(found, attribute)
        return True
    return False


def _keys(span: str) -> Iterator[str]:
    """Yields keys that no recipe has: those of `--set` and `--sweep`, and dotted keys that begin with a section."""
    named = re.findall(r"--(?:set|sweep) ['\"]?([a-z_.]+)=", span)
    if (
        (match := re.fullmatch(r"([a-z_]+)(?:\.[a-z_]+)+(?= ?=|$)(?:\s*=.*)?", span))
        and match[1] in Recipe.model_fields
        and not re.search(r"\.(json|npz|toml|zip|csv)$", span)
    ):
        named.append(span.split("=")[0].strip())
    for key in named:
        model: type[BaseModel] | None = Recipe
        for part in key.split("."):
            field = model.model_fields.get(part) if model is not None else None
            if field is None:
                yield f"{key}: no recipe has this key"
                break
            inner = field.annotation
            model = inner if isinstance(inner, type) and issubclass(inner, BaseModel) else None


@cache
def commands() -> dict[str, frozenset[str]]:
    """Returns the options of every command, and of none (the key is empty)."""
    group = typer.main.get_command(app)
    found = {"": group, **group.commands}  # type: ignore[attr-defined]  # the group's own attribute
    return {name: frozenset(o for item in one.params for o in item.opts) | {"--help"} for name, one in found.items()}


@cache
def options() -> frozenset[str]:
    """Returns the options of all programs of the repository: what stands in quotes in their sources, and in patterns of shell scripts."""
    sources = (
        path.read_text(encoding="utf-8") for folder in ("toolchain", "benchmarks", "tests") for path in (ROOT / folder).rglob("*.py")
    )
    scripts = (path.read_text(encoding="utf-8") for path in (ROOT / "benchmarks").rglob("*.sh"))
    quoted = {option for source in sources for option in re.findall(r"[\"'](--[a-z][a-z0-9-]*)", source)}
    return frozenset(
        quoted | {option for script in scripts for option in re.findall(r"(--[a-z][a-z0-9-]*)(?=\)| \| )", script)} | {"--help"}
    )


def _commands(span: str) -> Iterator[str]:
    line = re.sub(r"(?<!\S)#.*", "", span)
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    if (match := re.match(r"\s*make ([a-z]+)$", line.rstrip())) and match[1] not in targets:
        yield f"make {match[1]}: no such target"
    if match := re.match(r"\s*(?:[A-Z_]+=\S+ )*(?:\S*/)?python\d? ((?:benchmarks|tests)/[\w/]+\.py)(.*)", line):
        script = ROOT / match[1]
        if not script.exists():
            yield f"{match[1]}: no such script"
        else:
            source = script.read_text(encoding="utf-8")
            yield from (f"{match[1]} has no option {option}" for option in OPTION.findall(match[2]) if option not in source)
    elif span.startswith("--"):
        yield from (f"{option}: no program has such an option" for option in OPTION.findall(span.split()[0]) if option not in options())
    elif match := re.match(r"\s*(?:\S*/)?(?:python -m )?vsparse(?: ([a-z]+|--[a-z]+)\b)(.*)", line):
        command = "" if match[1].startswith("-") else match[1]
        if command not in commands():
            yield f"vsparse {command}: no such command"
        else:
            named = OPTION.findall(match[2]) + ([match[1]] if not command else [])
            yield from (f"vsparse {command} has no option {option}" for option in named if option not in commands()[command])
