"""Files that are no property: each ends in one sentence with the file and, where there is one, the line."""

from __future__ import annotations

import gzip
import random
from pathlib import Path

import pytest

from vsparse.errors import InputError
from vsparse.vnnlib import read_vnnlib

HEAD = "(declare-const X_0 Real)\n(declare-const Y_0 Real)\n(declare-const Y_1 Real)\n"
BOX = "(assert (>= X_0 0))\n(assert (<= X_0 1))\n"

# name: (text, what the message says)
CASES = {
    "empty": ("", "line 1: no input X_0 is declared"),
    "no outputs": ("(declare-const X_0 Real)(assert (<= X_0 1))", "no output Y_0 is declared"),
    "unknown command": (HEAD + "(check-sat)", 'line 4: "check-sat" is not known'),
    "undeclared": (HEAD + BOX + "(assert (<= Y_2 0))", "line 6: Y_2 is not declared"),
    "undeclared bound": (HEAD + BOX + "(assert (<= X_7 0))", "line 6: X_7 is not declared"),
    "strange symbol": (HEAD + BOX + "(assert (<= Z_0 0))", 'line 6: "Z_0" is neither a number nor a variable'),
    "declared strange": ("(declare-const A Real)", 'line 1: "A" is neither an input'),
    "declared badly": ("(declare-const X_0)", "a declaration is written (declare-const X_0 Real)"),
    "declared as integer": ("(declare-const X_0 Int)", "a declaration is written"),
    "twice": (HEAD + "(declare-const X_0 Real)", "line 4: X_0 is declared twice"),
    "gap": ("(declare-const X_0 Real)(declare-const X_2 Real)(declare-const Y_0 Real)", "X_2 is declared and X_1 is not"),
    "no upper bound": (HEAD + "(assert (>= X_0 0))(assert (<= Y_0 0))", "line 1: input X_0 has no upper bound"),
    "no lower bound in one case": (HEAD + "(assert (<= X_0 0))(assert (or (<= Y_0 0) (>= X_0 -1)))", "X_0 has no lower bound"),
    "mixed": (HEAD + BOX + "(assert (<= X_0 Y_0))", "line 6: a statement relates inputs to outputs"),
    "two inputs": ("(declare-const X_1 Real)" + HEAD + BOX + "(assert (<= X_0 X_1))", "relates X_0 to other inputs"),
    "product": (HEAD + BOX + "(assert (<= (* Y_0 Y_1) 0))", "two variables are multiplied"),
    "strict": (HEAD + BOX + "(assert (< Y_0 0))", 'the operator "<" is not known'),
    "not": (HEAD + BOX + "(assert (not (<= Y_0 0)))", 'the operator "not" is not known'),
    "three arguments": (HEAD + BOX + "(assert (<= Y_0 0 1))", "<= takes two arguments and has 3"),
    "empty and": (HEAD + BOX + "(assert (and))", "(and) has no arguments"),
    "empty list": (HEAD + BOX + "(assert ())", "a list without an operator"),
    "atom as formula": (HEAD + BOX + "(assert true)", '"true" stands where a formula is expected'),
    "assert of nothing": (HEAD + "(assert)", "assert takes one formula and has 0"),
    "formula as expression": (HEAD + BOX + "(assert (<= (and Y_0) 0))", '"and" stands where a linear expression is expected'),
    "closed twice": (HEAD + BOX + "(assert (<= Y_0 0)))", "line 6: a parenthesis is closed that was never opened"),
    "never closed": (HEAD + BOX + "(assert (<= Y_0 0)", "line 6: a parenthesis is opened here and never closed"),
    "outside": (HEAD + "X_0", 'line 4: "X_0" stands outside'),
    "not a number": (HEAD + BOX + "(assert (<= Y_0 nan))", '"nan" is neither a number'),
    "infinity": (HEAD + BOX + "(assert (<= Y_0 inf))", '"inf" is neither a number'),
    "hexadecimal": (HEAD + BOX + "(assert (<= Y_0 0x10))", '"0x10" is neither a number'),
    "underscore": (HEAD + BOX + "(assert (<= Y_0 1_000))", "neither a number"),
    "huge exponent": (HEAD + BOX + "(assert (<= Y_0 1e999999))", "too large or too small"),
    "longer exponent": (HEAD + BOX + "(assert (<= Y_0 1e99999999999999))", "neither a number"),
    "many digits": (HEAD + BOX + f"(assert (<= Y_0 {'9' * 500}))", "too large or too small"),
    "long token": (HEAD + BOX + f"(assert (<= Y_0 {'9' * 5000}))", "a token has 5000 characters"),
    "deep": (HEAD + BOX + "(assert " + "(and " * 5000 + "(<= Y_0 0)" + ")" * 5001, "nested more than 64 deep"),
    "growing product": (HEAD + BOX + "(assert (<= (* Y_0" + " 1e300" * 100 + ") 0))", "too many digits"),
    "exponential": (HEAD + BOX + "(assert (or (<= Y_0 0) (<= Y_1 0)))" * 40, "more than 100000 cases"),
    "exponential and": (HEAD + BOX + "(assert (and" + " (or (<= Y_0 0) (<= Y_1 0))" * 40 + "))", "more than 100000 cases"),
}


@pytest.mark.parametrize("case", CASES)
def test_damage_is_one_sentence(tmp_path: Path, case: str) -> None:
    text, message = CASES[case]
    path = tmp_path / "p.vnnlib"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        read_vnnlib(path)
    said = str(error.value)
    assert message in said
    assert str(path) in said
    assert "\n" not in said
    assert len(said) < 600


def test_files_that_are_not_there_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not there"):
        read_vnnlib(tmp_path / "none.vnnlib")
    (tmp_path / "p").write_bytes(b"(declare-const X_0 Real)\n\xff\xfe")
    with pytest.raises(InputError, match="line 2: this is not UTF-8"):
        read_vnnlib(tmp_path / "p")


def test_damaged_gzip(tmp_path: Path) -> None:
    packed = gzip.compress((HEAD + BOX + "(assert (<= Y_0 0))").encode())
    path = tmp_path / "p.gz"
    for data in (packed[:-9], packed[:12], packed[:15] + b"\0\0\0\0" + packed[19:], b"\x1f\x8b"):
        path.write_bytes(data)
        with pytest.raises(InputError, match="cannot be unpacked"):
            read_vnnlib(path)


def test_gzip_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "bomb.gz"
    with gzip.open(path, "wb") as stream:
        for _ in range(80):
            stream.write(b" " * 2**20)
    assert path.stat().st_size < 2**20
    with pytest.raises(InputError, match="unpacks to more than"):
        read_vnnlib(path)


def test_too_many_tokens_in_one_assertion(tmp_path: Path) -> None:
    path = tmp_path / "p.vnnlib"
    path.write_text(HEAD + BOX + "(assert (or" + "(<= Y_0 0)" * 300_000 + "))")
    with pytest.raises(InputError, match="more tokens than the 1000000 in one assertion"):
        read_vnnlib(path)


def test_mutated_files_are_read_or_refused(tmp_path: Path) -> None:
    """No cut and no changed byte gives anything but a query or a sentence."""
    text = HEAD + BOX + "(assert (or (and (<= Y_0 Y_1) (>= Y_0 -1.5e-3)) (<= (+ (* 2 Y_0) -1) (- Y_1 .5))))\n"
    dice = random.Random(11)
    path = tmp_path / "p.vnnlib"
    read = 0
    for _ in range(600):
        data = bytearray(text.encode())
        for _ in range(dice.randint(1, 4)):
            place = dice.randrange(len(data))
            choice = dice.random()
            if choice < 0.4:
                data[place] = dice.choice(b"()XY_01.eE+-* \n;\xff\x00")
            elif choice < 0.7:
                del data[place : place + dice.randint(1, 6)]
            else:
                data[place:place] = data[dice.randrange(len(data)) :][: dice.randint(1, 12)]
        path.write_bytes(bytes(data))
        try:
            read_vnnlib(path)
            read += 1
        except InputError:
            pass
    assert 0 < read < 600
