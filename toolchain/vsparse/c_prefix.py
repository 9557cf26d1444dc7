"""The prefix of what a network in C calls its functions and constants."""

from __future__ import annotations

import re

from vsparse.errors import InputError

DEFAULT_PREFIX = "vsparse"
# A header is read by C++ too.
# fmt: off
KEYWORDS = frozenset((
    "auto", "break", "case", "char", "const", "continue", "default", "do", "double", "else", "enum", "extern", "float", "for", "goto",
    "if", "inline", "int", "long", "register", "restrict", "return", "short", "signed", "sizeof", "static", "struct", "switch",
    "typedef", "union", "unsigned", "void", "volatile", "while", "alignas", "alignof", "asm", "bool", "catch", "class", "concept",
    "constexpr", "decltype", "delete", "dynamic_cast", "explicit", "export", "false", "friend", "module", "mutable", "namespace",
    "new", "noexcept", "nullptr", "operator", "private", "protected", "public", "reinterpret_cast", "requires", "static_assert",
    "static_cast", "template", "this", "thread_local", "throw", "true", "try", "typeid", "typename", "using", "virtual", "wchar_t",
    "and", "and_eq", "bitand", "bitor", "compl", "not", "not_eq", "or", "or_eq", "xor", "xor_eq",
))
# fmt: on
_IDENTIFIER = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,30}")


def require_prefix(prefix: str) -> str:
    """Returns a prefix that C and C++ take; InputError names what is wrong with another.

    An identifier of at most 31 characters, which C99 promises to tell apart, that begins with a letter (those that begin with an
    underscore belong to the implementation) and is no keyword.
    """
    if not _IDENTIFIER.fullmatch(prefix):
        raise InputError(
            f'"{prefix[:60]}" is no C identifier of at most 31 characters (letters, digits and underscores, a letter first); choose one '
            "such as my_model"
        )
    if prefix in KEYWORDS:
        raise InputError(f'"{prefix}" is a keyword of C or C++, so it names nothing; choose another, such as {prefix}_model')
    if prefix.upper() == "VS":
        raise InputError(f'"{prefix}" begins the names inside of model.c, so it names no network; choose another, such as {prefix}_model')
    return prefix
