"""Which source code this is: the commit that the package was installed from, or that its checkout stands at."""

from __future__ import annotations

import json
import re
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from vsparse.schema import Section

PACKAGE = Path(__file__).resolve().parent
SECONDS = 10
_COMMIT = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")


class SourceCommit(Section):
    """A commit by its hash; `changed` is whether files of the package differ from it, None where that is not known."""

    commit: str = ""
    changed: bool | None = None


@cache
def source_commit() -> SourceCommit:
    """Returns the commit of the running code: of the checkout that it lies in, else the one that pip recorded; empty where none is known.

    Looked up once a process, so that all that one build writes names one commit.
    """
    if (PACKAGE.parent.parent / "pyproject.toml").is_file():  # and not in site-packages inside somebody else's repository
        commit = _git("rev-parse", "HEAD")
        if _COMMIT.fullmatch(commit):
            status = _git("status", "--porcelain", "--untracked-files=no", "--", str(PACKAGE), missing="?")
            return SourceCommit(commit=commit, changed=None if status == "?" else bool(status))
    return SourceCommit(commit=_of_pip())


def _git(*arguments: str, missing: str = "") -> str:
    """Returns what git prints of the package's checkout; `missing` where there is no git, or it refuses."""
    try:
        done = subprocess.run(
            ["git", "-C", str(PACKAGE), *arguments], capture_output=True, text=True, timeout=SECONDS, check=True, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return missing
    return done.stdout.strip()


def _of_pip() -> str:
    """Returns the commit in direct_url.json (PEP 610), which pip writes when it installs from a repository."""
    try:
        told = json.loads(distribution("vsparse").read_text("direct_url.json") or "{}")
    except (PackageNotFoundError, ValueError, OSError):
        return ""
    commit = told.get("vcs_info", {}).get("commit_id", "") if isinstance(told, dict) and isinstance(told.get("vcs_info", {}), dict) else ""
    return commit if isinstance(commit, str) and _COMMIT.fullmatch(commit) else ""
