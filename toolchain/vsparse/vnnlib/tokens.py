"""The text of a VNN-LIB file as nested lists of tokens, in bounded memory, each with its offset for error messages."""

from __future__ import annotations

import gzip
import io
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from vsparse.errors import InputError
from vsparse.files import read_bytes

MAX_TEXT_BYTES = 64 * 2**20
MAX_DEPTH = 64
MAX_TOKEN = 1000
# An image of 224 by 224 pixels in colour, two bounds each, has three million; a token costs up to 200 bytes while its command is read.
MAX_TOKENS = 8_000_000
MAX_COMMAND_TOKENS = 1_000_000
GZIP_MAGIC = b"\x1f\x8b"

_TOKEN = re.compile(r";[^\n]*|[()]|[^\s();]+")


class Atom(str):
    """A token other than a parenthesis; `offset` is its position in the text."""

    __slots__ = ("offset",)
    offset: int


class TokenList(list["Atom | TokenList"]):
    """The tokens between two parentheses; `offset` is the position of the first."""

    __slots__ = ("offset",)
    offset: int


class Text:
    """The text of one file, with errors that name the file and the line."""

    def __init__(self, name: str, content: str) -> None:
        self.name = name
        self.content = content

    def refuse(self, offset: int, reason: str) -> NoReturn:
        """Raises InputError about the text at this offset."""
        line = self.content.count("\n", 0, offset) + 1
        raise InputError(f"property {self.name}, line {line}: {reason}")

    def commands(self) -> Iterator[TokenList]:
        """Yields the top-level lists one by one; InputError for unbalanced parentheses, and where a limit is exceeded."""
        open_: list[TokenList] = []
        total = since = 0
        for match in _TOKEN.finditer(self.content):
            token, offset = match.group(), match.start()
            if token[0] == ";":
                continue
            total += 1
            since += 1
            if total > MAX_TOKENS or since > MAX_COMMAND_TOKENS:
                most = f"{MAX_TOKENS} in a file" if total > MAX_TOKENS else f"{MAX_COMMAND_TOKENS} in one assertion"
                self.refuse(offset, f"there are more tokens than the {most} that are read; split the property into several files")
            if token == "(":
                if len(open_) == MAX_DEPTH:
                    self.refuse(offset, f"parentheses are nested more than {MAX_DEPTH} deep; write the formula flatter")
                group = TokenList()
                group.offset = offset
                open_.append(group)
            elif token == ")":
                if not open_:
                    self.refuse(offset, "a parenthesis is closed that was never opened")
                done = open_.pop()
                if open_:
                    open_[-1].append(done)
                else:
                    since = 0
                    yield done
            else:
                if not open_:
                    self.refuse(offset, f'"{shown(token)}" stands outside of any parentheses; give (declare-const …) and (assert …)')
                if len(token) > MAX_TOKEN:
                    self.refuse(offset, f"a token has {len(token)} characters, more than the {MAX_TOKEN} that are read")
                atom = Atom(token)
                atom.offset = offset
                open_[-1].append(atom)
        if open_:
            self.refuse(open_[0].offset, "a parenthesis is opened here and never closed; the file may be cut off")


def read_text(path: Path) -> Text:
    """Reads a .vnnlib file, gzipped or not (told by its first bytes), of at most `MAX_TEXT_BYTES` once unpacked.

    InputError for a file that is absent, too large, damaged, or not text.
    """
    data = read_bytes(path, "property", MAX_TEXT_BYTES)
    if data.startswith(GZIP_MAGIC):
        try:
            with gzip.GzipFile(fileobj=io.BytesIO(data)) as stream:
                data = stream.read(MAX_TEXT_BYTES + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(f"property {path} is damaged: it cannot be unpacked ({error}); fetch it again") from error
        if len(data) > MAX_TEXT_BYTES:
            raise InputError(f"property {path} unpacks to more than the {MAX_TEXT_BYTES} bytes that are read; split it into several files")
    try:
        return Text(str(path), data.decode())
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"property {path}, line {line}: this is not UTF-8 text; give a VNN-LIB file, plain or gzipped") from error


def shown(token: str) -> str:
    """Returns a token as an error message quotes it: printable, and not long."""
    text = "".join(c if c.isprintable() else "?" for c in token[:40])
    return text + ("…" if len(token) > 40 else "")
