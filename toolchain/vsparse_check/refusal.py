"""How the checker says no: what contradicts itself is refuted, what it does not know left unchecked; text of files, made harmless."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

LONGEST = 300  # characters of a message that quotes a file


class Refused(Exception):
    """Something stated is not so, or does not follow; the message is one sentence."""


class Unchecked(Refused):
    """Something lies outside of what this checker knows or may spend: neither confirmed nor refuted."""


def need(holds: object, message: str) -> None:
    """Refuses unless something holds."""
    if not holds:
        raise Refused(message)


def known(holds: object, message: str) -> None:
    """Leaves unchecked unless something holds."""
    if not holds:
        raise Unchecked(message)


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Refuses whatever goes wrong while something is read: zipfile, numpy and protobuf raise many types."""
    try:
        yield
    except MemoryError as error:
        raise Unchecked(f"{name} takes more memory than there is; raise --memory on a larger machine") from error
    except Exception as error:
        raise error if isinstance(error, Refused) else Refused(f"{name} is not of its format: {error!r:.120}") from error


@contextmanager
def knowing(name: str) -> Iterator[None]:
    """Leaves unchecked whatever goes wrong while a model is read: what is not understood exactly is not judged."""
    try:
        with reading(name):
            yield
    except Unchecked:
        raise
    except Refused as error:
        raise Unchecked(str(error)) from error


def plain(text: object) -> str:
    """Returns text of printable ASCII alone: line feeds, escape sequences and what else may come out of a file are spelled out."""
    shown = str(text)
    shown = shown if len(shown) <= LONGEST * 4 else f"{shown[: LONGEST * 4]}..."
    return "".join(sign if " " <= sign <= "~" else sign.encode("unicode_escape").decode() for sign in shown)
