"""An artifact's gates and its choice among the deployed forms, judged when it is built and anew with what a device measured."""

from __future__ import annotations

from pathlib import Path

from vsparse import artifact
from vsparse.artifact.choice import CHOICE, FormChoice
from vsparse.artifact.device import DEVICE_RESULTS, DeviceResults
from vsparse.artifact.device_folder import MANIFEST
from vsparse.artifact.document import read_if_there, write_document, write_list
from vsparse.artifact.facts import gather
from vsparse.errors import VsparseError
from vsparse.files import copy_tree, new_directory, sha256_file
from vsparse.pipeline.choose import choice_gate, choose
from vsparse.pipeline.gates import judge
from vsparse.recipe import Recipe, load_recipe
from vsparse.target import Target, load_target


def judge_artifact(directory: Path, recipe: Recipe, target: Target) -> FormChoice:
    """Writes gates.json and choice.json of a directory that holds everything else but the report."""
    facts = gather(directory)
    choice = choose(recipe, target, facts, directory)
    write_document(directory / CHOICE, choice)
    write_list(directory / artifact.GATES, [*judge(recipe, facts, directory, choice.chosen), choice_gate(choice)])
    return choice


def keep_results(directory: Path, results: DeviceResults) -> FormChoice | None:
    """Puts what a device measured into an artifact, in a new copy that takes its place in one step, and judges and chooses anew.

    The results must be about the models of its device folder (`vsparse.stages.profile.require_origin`). Returns the choice; None, and
    nothing is changed, for an artifact that was not built to the end.
    """
    from vsparse.stages.report import write_report

    manifest = artifact.require_intact(directory)
    if manifest.until != "report":
        return None

    def listed(new: Path) -> None:
        lineage = list(manifest.lineage)
        until, key = manifest.until, manifest.road_key
        artifact.write_manifest(new, seed=manifest.seed, until=until, road_key=key, lineage=lineage, built_by=manifest)

    with new_directory(directory) as new:
        copy_tree(directory, new)
        (new / DEVICE_RESULTS).parent.mkdir(parents=True, exist_ok=True)
        write_document(new / DEVICE_RESULTS, results)
        listed(new)  # gates are judged on files that are what the manifest says
        choice = judge_artifact(new, load_recipe(str(new / artifact.RECIPE)), load_target(str(new / artifact.TARGET)))
        listed(new)  # the report shows provenance
        write_report(new)
        listed(new)
    return choice


def carry_results(old: Path, new: Path) -> None:
    """Copies what a device measured from the artifact that is replaced, where the new one's device folder is the same to the byte.

    Not what contradicts that folder, as an earlier version may have taken it in.
    """
    from vsparse.stages.profile import require_about

    folder = new / "device" / MANIFEST
    try:
        results = read_if_there(DeviceResults, old / DEVICE_RESULTS)
        if results is None or not folder.is_file() or results.manifest_sha256 != sha256_file(folder):
            return
        require_about(results, folder, str(old / DEVICE_RESULTS))
    except VsparseError:
        return
    (new / DEVICE_RESULTS).parent.mkdir(parents=True, exist_ok=True)
    write_document(new / DEVICE_RESULTS, results)
