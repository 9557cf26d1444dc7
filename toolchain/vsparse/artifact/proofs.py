"""proofs.npz: the proofs of searched claims in one file, the same bytes for the same proofs, read back without trust (docs/proofs.md)."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsparse.artifact.counterexamples import npz_bytes
from vsparse.bounds.proof import Proof, Tree
from vsparse.data.bounded import Zip, read_exactly, reading
from vsparse.errors import InputError

FILE = "proofs.npz"
VERSION = 1
# Of all arrays together when unpacked, in writing and in reading; checkers take no more (docs/proofs.md).
MAX_BYTES = 2**28
_HEADER_BYTES = 128
ARRAYS = {
    "version": "<i8",
    "ids": "<i8",
    "unit_start": "<i8",
    "units": "<i4",
    "set_start": "<i8",
    "slopes": "|u1",
    "lemma_start": "<i8",
    "lemma_unit": "<i4",
    "lemma_side": "|u1",
    "lemma_set": "<i4",
    "tree_start": "<i8",
    "tree_class": "<i4",
    "node_start": "<i8",
    "node_unit": "<i4",
    "leaf_set": "<i4",
    "multipliers": "<f4",
}
Arrays = dict[str, NDArray[Any]]


def pack(proofs: Mapping[int, Proof]) -> Arrays:
    """Returns the arrays of the file for proofs by sample id; a tree's row is the class it is about."""
    order = sorted(proofs)
    ordered = [proofs[sample] for sample in order]
    trees = [tree for proof in ordered for tree in proof.trees]
    columns: dict[str, list[NDArray[Any]]] = {
        "version": [np.array([VERSION])],
        "ids": [np.array(order)],
        "unit_start": [_starts([len(proof.units) for proof in ordered])],
        "units": [proof.units for proof in ordered],
        "set_start": [_starts([len(proof.slopes) for proof in ordered])],
        "slopes": [proof.slopes.reshape(-1) for proof in ordered],
        "lemma_start": [_starts([len(proof.lemma_unit) for proof in ordered])],
        "lemma_unit": [proof.lemma_unit for proof in ordered],
        "lemma_side": [proof.lemma_side for proof in ordered],
        "lemma_set": [proof.lemma_set for proof in ordered],
        "tree_start": [_starts([len(proof.trees) for proof in ordered])],
        "tree_class": [np.array([tree.row for tree in trees])],
        "node_start": [_starts([len(tree.node_unit) for tree in trees])],
        "node_unit": [tree.node_unit for tree in trees],
        "leaf_set": [tree.leaf_set for tree in trees],
        "multipliers": [tree.multipliers for tree in trees],
    }
    return {name: np.concatenate([np.zeros(0), *parts]).astype(ARRAYS[name]) for name, parts in columns.items()}


def proofs_bytes(proofs: Mapping[int, Proof]) -> bytes:
    """Returns the bytes of proofs.npz; InputError for more than MAX_BYTES of arrays, which no checker would read."""
    arrays = pack(proofs)
    size = sum(array.nbytes + _HEADER_BYTES for array in arrays.values())
    if size > MAX_BYTES:
        raise InputError(
            f"the proofs of {len(proofs)} claims take {size} bytes, more than the {MAX_BYTES} that checkers read; "
            "verify fewer samples at once, or lower verify.branch_domains"
        )
    return npz_bytes(arrays)


def unpack(arrays: Mapping[str, NDArray[Any]], source: str) -> dict[int, Proof]:
    """Returns the proofs by sample id that arrays hold; InputError, naming `source`, where they do not belong together.

    What a proof says about a network is not looked at: `Proof.check` does that.
    """
    for name, dtype in ARRAYS.items():
        if name not in arrays:
            raise InputError(f'{source} has no array "{name}"; build the artifact again')
        if arrays[name].ndim != 1 or arrays[name].dtype != np.dtype(dtype):
            raise InputError(f"{source}: {name} is not a list of {dtype}; build the artifact again")
    if arrays["version"].tolist() != [VERSION]:
        raise InputError(f"{source} is not of version {VERSION} of its format; build the artifact again")
    ids = arrays["ids"]
    count = len(ids)
    if count and (int(ids[0]) < 0 or bool((np.diff(ids) <= 0).any())):
        raise InputError(f"{source}: ids are not increasing; build the artifact again")
    trees = len(arrays["tree_class"])
    units = _check_starts(arrays, "unit_start", count, len(arrays["units"]), source)
    sets = _check_starts(arrays, "set_start", count, None, source)
    lemmas = _check_starts(arrays, "lemma_start", count, len(arrays["lemma_unit"]), source)
    rows = _check_starts(arrays, "tree_start", count, trees, source)
    nodes = _check_starts(arrays, "node_start", trees, len(arrays["node_unit"]), source)
    widths = np.diff(units)
    lengths = [int(width) * int(number) for width, number in zip(widths, np.diff(sets), strict=True)]
    if sum(lengths) != len(arrays["slopes"]):
        raise InputError(f"{source}: slopes does not have the length that the other arrays say; build the artifact again")
    if not len(arrays["lemma_unit"]) == len(arrays["lemma_side"]) == len(arrays["lemma_set"]):
        raise InputError(f"{source}: the arrays of lemmas have several lengths; build the artifact again")
    made: list[Tree] = []
    leaf = multiplier = 0
    for tree in range(trees):
        node_unit = arrays["node_unit"][nodes[tree] : nodes[tree + 1]]
        leaves, betas = _counts(node_unit)
        row = int(arrays["tree_class"][tree])
        ends = leaf + leaves, multiplier + betas
        if ends[0] > len(arrays["leaf_set"]) or ends[1] > len(arrays["multipliers"]):
            raise InputError(f"{source}: a tree has more leaves than there is data for; build the artifact again")
        made.append(Tree(row, node_unit, arrays["leaf_set"][leaf : ends[0]], arrays["multipliers"][multiplier : ends[1]]))
        leaf, multiplier = ends
    if leaf != len(arrays["leaf_set"]) or multiplier != len(arrays["multipliers"]):
        raise InputError(f"{source}: there is more data than the trees have leaves; build the artifact again")
    slope_ends = np.cumsum([0, *lengths])
    return {
        int(sample): Proof(
            arrays["units"][units[i] : units[i + 1]],
            arrays["slopes"][slope_ends[i] : slope_ends[i + 1]].reshape(int(sets[i + 1] - sets[i]), int(widths[i])),
            arrays["lemma_unit"][lemmas[i] : lemmas[i + 1]],
            arrays["lemma_side"][lemmas[i] : lemmas[i + 1]],
            arrays["lemma_set"][lemmas[i] : lemmas[i + 1]],
            tuple(made[rows[i] : rows[i + 1]]),
        )
        for i, sample in enumerate(ids.tolist())
    }


def read_proofs(path: Path) -> dict[int, Proof]:
    """Reads proofs.npz; raises InputError for a file that is absent, damaged, or whose arrays do not belong together."""
    if not path.is_file():
        raise InputError(f"{path} is not there; build the artifact again")
    arrays: Arrays = {}
    with Zip(path) as archive:
        if sum(member.file_size for member in archive.members.values()) > MAX_BYTES:
            raise InputError(f"{path} claims more than {MAX_BYTES} bytes of arrays; build the artifact again")
        for name in ARRAYS:
            if f"{name}.npy" not in archive.members:
                raise InputError(f'{path} has no array "{name}"; build the artifact again')
            member = f"{name}.npy"
            with archive.open(member, MAX_BYTES) as stream, reading(f"{path}: {member}"):
                content = read_exactly(stream, archive.members[member].file_size, str(path), member).tobytes()
                # Objects are refused, never unpickled; a header that promises more than there is fails before it is believed.
                arrays[name] = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    return unpack(arrays, str(path))


def _starts(lengths: list[int]) -> NDArray[np.int64]:
    return np.cumsum([0, *lengths]).astype(np.int64)


def _check_starts(arrays: Mapping[str, NDArray[Any]], name: str, count: int, total: int | None, source: str) -> NDArray[np.int64]:
    """Returns an array of starts, which begin at 0, never fall, and end at `total`."""
    starts: NDArray[np.int64] = arrays[name]
    # Differences that overflow would wrap around, so the order is compared instead.
    right = len(starts) == count + 1 and int(starts[0]) == 0 and bool((starts[1:] >= starts[:-1]).all())
    if not right or (total is not None and int(starts[-1]) != total) or int(starts[-1]) > MAX_BYTES:
        raise InputError(f"{source}: {name} does not fit the arrays it cuts up; build the artifact again")
    return starts


def _counts(node_unit: NDArray[np.int32]) -> tuple[int, int]:
    """Returns how many leaves nodes in preorder have, and the sum of their depths; for nodes that are no tree, numbers that fit none."""
    depths = [0]
    leaves = betas = 0
    for unit in node_unit.tolist():
        if not depths:
            break
        depth = depths.pop()
        if unit < 0:
            leaves, betas = leaves + 1, betas + depth
        else:
            depths += [depth + 1, depth + 1]
    return leaves, betas
