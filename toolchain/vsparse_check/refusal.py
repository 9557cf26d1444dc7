"""How the checker says no: refuted, or outside of what it knows; and text of files, harmless."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

LONGEST = 300  # characters of a message that quotes a file


class NotConfirmed(Exception):
    """Something is not confirmed; the message is one sentence."""


class Refuted(NotConfirmed):
    """Something that is stated is not so, or does not follow."""


class Unchecked(NotConfirmed):
    """Something lies outside of what this checker knows or may spend: not refuted either."""


def need(holds: object, message: str) -> None:
    """Raises Refuted unless something holds."""
    if not holds:
        raise Refuted(message)


def known(holds: object, message: str) -> None:
    """Raises Unchecked unless something holds."""
    if not holds:
        raise Unchecked(message)


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Turns whatever goes wrong while a file is read into Refuted, a lack of memory into Unchecked.

    zipfile, numpy, json and protobuf raise many types on malformed input.
    """
    try:
        yield
    except NotConfirmed:
        raise
    except MemoryError as error:
        message = f"{name} takes more memory than there is; raise --memory on a larger machine"
        raise Unchecked(message) from error
    except Exception as error:
        raise Refuted(f"{name} is not of its format: {error!r:.120}") from error


@contextmanager
def knowing(name: str) -> Iterator[None]:
    """Turns whatever goes wrong into Unchecked: a model that is not understood is not judged."""
    try:
        with reading(name):
            yield
    except Refuted as error:
        raise Unchecked(str(error)) from error


def plain(text: object) -> str:
    """Returns text of printable ASCII alone.

    Line feeds, escape sequences and whatever else may come out of a file are spelled out.
    """
    shown = str(text)
    if len(shown) > LONGEST * 4:
        shown = f"{shown[: LONGEST * 4]}..."
    return "".join(
        sign if " " <= sign <= "~" else sign.encode("unicode_escape").decode() for sign in shown
    )
