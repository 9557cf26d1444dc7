"""`vsparse init`: what it sees in folders and archives, what it chooses, and that a build takes what it writes."""

from __future__ import annotations

import json
import tomllib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vsparse
from vsparse import cli
from vsparse.data import load
from vsparse.dry_run import plan_build
from vsparse.errors import InputError
from vsparse.recipe import load_recipe
from vsparse.schema import parse_fraction
from vsparse.starter import DataSurvey, recipe_text, recommend, survey
from vsparse.starter.choose import radius_for
from vsparse.starter.survey import half_distances, wanted_size
from vsparse.target import load_target

TRACKS, FRAMES = 8, 4


def _signs(folder: Path, name: str = "{track:05d}_{frame:03d}.png", mode: str = "RGB") -> Path:
    """Writes two classes of pictures of all sizes, bright left or bright right, each track with frames that are nearly alike."""
    random = np.random.default_rng(0)
    for label, kind in enumerate(("left", "right")):
        (folder / kind).mkdir(parents=True)
        for track in range(TRACKS):
            base = random.integers(60, 120, (24, 24, 3))
            base[:, 12 * label : 12 * label + 12] += 90
            for frame in range(FRAMES):
                pixels = np.clip(base + random.integers(-3, 4, base.shape), 0, 255).astype(np.uint8)
                size = tuple(int(n) for n in random.integers(20, 60, 2))
                file = name.format(track=track, frame=frame, kind=kind, number=track * FRAMES + frame)
                Image.fromarray(pixels).convert(mode).resize(size).save(folder / kind / file)
    return folder


def _archive(path: Path, x: np.ndarray, y: np.ndarray, **more: np.ndarray) -> Path:
    np.savez(path, x=x, y=y, **more)
    return path


def test_folders_of_all_sizes_get_one_size_whole_tracks_and_a_recipe_that_builds_what_was_said(tmp_path: Path) -> None:
    found, path = vsparse.init(_signs(tmp_path / "signs"), out=tmp_path / "my.toml")
    seen = found.survey
    assert (seen.resize and max(seen.resize) == 32) or max(seen.resize) <= 32
    assert len(seen.sizes) > 10
    assert sum(seen.sizes.values()) == 2 * TRACKS * FRAMES == seen.samples
    assert seen.track_separator == "_"
    assert seen.tracks == 2 * TRACKS
    assert seen.centroid_accuracy == 1.0
    recipe = load_recipe(str(path))
    assert recipe == found.recipe
    splits = load(recipe.data, None, recipe.train.seed)  # data.path is enough, without --data
    assert {"train": len(splits.train), "validation": len(splits.validation), "test": len(splits.test)} == seen.counts
    groups = [set(one.groups.tolist()) for one in (splits.train, splits.validation, splits.test) if one.groups is not None]
    assert len(groups) == 3
    assert not groups[0] & groups[1]
    assert not groups[0] & groups[2]
    assert not groups[1] & groups[2]
    np.testing.assert_allclose(recipe.data.mean, splits.train.inputs().mean((0, 2, 3)), atol=6e-4)
    np.testing.assert_allclose(recipe.data.std, splits.train.inputs().std((0, 2, 3)), atol=6e-4)
    plan = plan_build(str(path))
    assert plan.samples == seen.counts
    assert recipe.train.epochs * -(-seen.counts["train"] // recipe.train.batch_size) >= 3000


def test_the_text_says_why_of_every_value_and_names_its_schema(tmp_path: Path) -> None:
    found, path = vsparse.init(_signs(tmp_path / "signs"), out=tmp_path / "my.toml")
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "#:schema ./recipe.schema.json"
    assert json.loads((tmp_path / "recipe.schema.json").read_text())["title"] == "vsparse recipe"
    keys = [number for number, line in enumerate(lines) if line and line[0] not in "#["]
    assert len(keys) == len(found.values)
    assert all(lines[number - 1].startswith("# ") for number in keys)
    assert max(map(len, lines)) <= 140

    def flat(content: dict[str, object], place: str = "") -> dict[str, object]:
        return {
            key: value
            for name, one in content.items()
            for key, value in (flat(one, f"{place}{name}.") if isinstance(one, dict) else {f"{place}{name}": one}).items()
        }

    assert flat(tomllib.loads(path.read_text(encoding="utf-8"))) == found.values


@pytest.mark.parametrize(
    ("name", "separator", "said"),
    [
        ("{number:04d}.png", "", "the names of files show none"),
        ("{kind}_{number:04d}.png", "", "the names of files show none"),
        ("drive{track}-{frame}.png", "-", 'up to the last "-"'),
        ("a{track}_{number}.png", "_", 'up to the last "_"'),
    ],
)
def test_tracks_are_told_by_names_alone_where_names_tell_them(tmp_path: Path, name: str, separator: str, said: str) -> None:
    seen = survey(_signs(tmp_path / "signs", name))
    assert seen.track_separator == separator
    assert said in seen.tracks_said
    if name.startswith("drive"):  # a drive passes things of both classes
        assert seen.tracks == TRACKS


def test_few_tracks_and_tracks_on_two_sides_are_told_and_not_used(tmp_path: Path) -> None:
    _signs(tmp_path / "signs" / "train", "a{track}_{frame}.png")
    _signs(tmp_path / "signs" / "test", "a{track}_{frame}.png")
    seen = survey(tmp_path / "signs")
    assert seen.track_separator == ""
    assert "some are in two parts" in seen.tracks_said
    assert seen.own_test
    assert not seen.own_validation
    found = recommend(seen, load_target("local"))
    assert any("some are in two parts" in text for text in found.warnings)
    assert "data.test" not in found.values


def test_a_file_that_is_there_stays_unless_force_says_otherwise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    signs, path = _signs(tmp_path / "signs"), tmp_path / "my.toml"
    path.write_text("mine")
    (tmp_path / "recipe.schema.json").write_text('{"title": "another"}')
    assert cli.run(["init", str(signs), "--out", str(path)]) == 2
    assert "is there already; give another name with --out, or replace it with --force" in capsys.readouterr().err
    assert path.read_text() == "mine"
    assert cli.run(["init", str(signs), "--out", str(path), "--force"]) == 0
    assert "is written; next: vsparse build" in capsys.readouterr().out
    assert load_recipe(str(path)).data.resize
    assert (tmp_path / "recipe.schema.json").read_text() == '{"title": "another"}'
    assert cli.run(["init", str(signs), "--out", str(tmp_path / "my.txt")]) == 2
    assert "is no .toml file" in capsys.readouterr().err


def test_bad_data_gets_the_readers_sentences(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(path: Path) -> str:
        assert cli.run(["init", str(path), "--out", str(tmp_path / "new.toml")]) == 2
        assert not (tmp_path / "new.toml").exists()
        return capsys.readouterr().err

    assert "is not there; give the folder that holds the data" in said(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "looked for" in said(tmp_path / "empty")
    assert "has Pillow mode RGBA; save it as 8-bit grey or RGB" in said(_signs(tmp_path / "clear", mode="RGBA"))
    signs = _signs(tmp_path / "cut")
    victim = sorted((signs / "right").iterdir())[5]
    victim.write_bytes(victim.read_bytes()[:60])
    assert victim.name in said(signs)


def test_labels_that_have_nothing_to_do_with_the_images_are_told_before_a_build(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    x, y = random.integers(0, 256, (300, 12, 12), dtype=np.uint8), np.arange(300) % 3
    found = recommend(survey(_archive(tmp_path / "noise.npz", x, y)), load_target("local"))
    assert any("the first build may stay at chance" in text for text in found.warnings)


def test_few_unbalanced_and_identical_images_are_told(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    x = random.integers(0, 256, (120, 12, 12, 3), dtype=np.uint8)
    y = (np.arange(120) >= 110).astype(np.int64)
    x[110:] = x[:10]
    seen = survey(_archive(tmp_path / "same.npz", x, y))
    found = recommend(seen, load_target("local"))
    for wanted in ("are identical", "training samples: expect little", "classes are unbalanced"):
        assert any(wanted in text for text in found.warnings), wanted
    assert found.values["gates.certified_accuracy"] > seen.majority


def test_the_radius_follows_from_the_kind_of_image_below_distance_and_contrast(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    y = np.arange(400) % 2

    def chosen(x: np.ndarray) -> tuple[DataSurvey, str]:
        seen = survey(_archive(tmp_path / "one.npz", x.astype(np.uint8), y))
        return seen, radius_for(seen)[0]

    drawn = np.where(random.random((400, 10, 10)) < 0.5, 0, 255)
    seen, radius = chosen(drawn)
    assert radius == "0.05"
    assert seen.near_edge == 1.0
    photograph = random.integers(40, 200, (400, 10, 10, 3))
    assert chosen(photograph)[1] == "2/255"
    faint = 100 + random.integers(0, 6, (400, 10, 10, 3))
    seen, radius = chosen(faint)
    assert parse_fraction(radius) <= min(seen.half_distances[0] / 4, max(seen.std) / 6)
    assert "lowered from 2/255" in radius_for(seen)[1]


def test_half_distances_are_those_of_brute_force() -> None:
    random = np.random.default_rng(1)
    x, labels = random.random((40, 1, 3, 3), dtype=np.float32), np.arange(40) % 3
    nearest = [min(np.abs(x[i] - x[j]).max() for j in range(40) if labels[j] != labels[i]) / 2 for i in range(40)]
    np.testing.assert_allclose(half_distances(x, labels), (np.percentile(nearest, 5), np.median(nearest)), rtol=1e-6)


@pytest.mark.parametrize(
    ("sizes", "wanted"),
    [
        ({(32, 32): 9}, ()),
        ({(48, 20): 9}, ()),
        ({(64, 64): 9}, (32, 32)),
        ({(100, 200): 9}, (16, 32)),
        ({(24, 24): 5, (25, 25): 4}, (24, 24)),
        ({(5, 5): 1, (6, 6): 1}, (8, 8)),
        ({(1000, 10): 4}, (32, 8)),
    ],
)
def test_the_size_that_images_are_resized_to(sizes: dict[tuple[int, int], int], wanted: tuple[int, ...]) -> None:
    assert wanted_size(Counter(sizes)) == wanted


def test_a_network_for_a_microcontroller_fits_its_memories(tmp_path: Path) -> None:
    seen = survey(_signs(tmp_path / "signs"))
    target = load_target("cortex-m4f")
    found = recommend(seen, target)
    assert found.values["network.width"] <= 1
    plan_build(str(_written(tmp_path / "m4.toml", recipe_text(found))), target="cortex-m4f")  # refuses what cannot fit
    facts = {name: fact.model_copy(update={"value": 1.0}) for name, fact in target.device.facts.items()}
    tiny = target.model_copy(update={"device": target.device.model_copy(update={"facts": facts})})
    with pytest.raises(InputError, match=r"no width of cnn4 from 0\.0625 on fits target cortex-m4f"):
        recommend(seen, tiny)


def _written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_names_of_folders_cannot_break_the_file(tmp_path: Path) -> None:
    signs = _signs(tmp_path / 'a "b"\n[train]\nepochs = 1 ')
    (signs / "left").rename(signs / 'x"\n[gates]')
    path = tmp_path / "my.toml"
    with pytest.raises(InputError, match="not printable"):
        vsparse.init(signs, out=path)
    (signs / 'x"\n[gates]').rename(signs / 'x"[gates]')
    found, path = vsparse.init(signs, out=path)
    assert load_recipe(str(path)) == found.recipe
    assert load_recipe(str(path)).train.epochs == found.values["train.epochs"]


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    signs = _signs(tmp_path / "signs")
    with pytest.raises(InputError, match=r"recipe .*signs is a folder; `vsparse init .*signs` writes a recipe"):
        load_recipe(str(signs))
