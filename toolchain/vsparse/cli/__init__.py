"""The command line: parsing and printing, one file a command; `main` turns every outcome into an exit code."""

from __future__ import annotations

import signal
import sys
import traceback
from types import FrameType
from typing import Annotated, NoReturn

import typer

from vsparse import __version__
from vsparse.cli import build, cache, check, info, init, predict, profile, report, schema, stages, verify
from vsparse.cli.options import print_error
from vsparse.errors import VsparseError
from vsparse.files import refused
from vsparse.limits import process_started

# typer brings its own click or uses the installed one, depending on its version; this finds the base class of either.
USAGE_ERROR: type[typer.BadParameter] = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")

app = typer.Typer(
    name="vsparse",
    help="Certified sparse neural networks for small computers.\n\n"
    "Start with `vsparse build`: it trains, compresses, exports, re-verifies, profiles and reports on the bundled digits. "
    "A recipe says what is wanted (`vsparse models`), a target where it will run (`vsparse targets`).\n\n"
    "Exit codes: 0 done and every gate passed; 1 a gate failed; 2 usage or bad input; 3 a device, runtime or tool is absent; "
    "130 interrupted, and resumable.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
init.register(app)
build.register(app)
stages.register(app)
verify.register(app)
check.register(app)
profile.register(app)
report.register(app)
predict.register(app)
info.register(app)
schema.register(app)
cache.register(app)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"vsparse {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_show_version)] = False,
) -> None:
    """Takes the options that stand before a command."""


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _interrupted(json: bool) -> int:
    text = "interrupted; run the same command again to resume"
    print(f"vsparse: {text}", file=sys.stderr)
    if json:
        print_error(text, 130)
    return 130


def main() -> None:
    """Entry point of `vsparse`."""
    signal.signal(signal.SIGTERM, _interrupt)
    sys.exit(run(sys.argv[1:], process_started()))


def run(arguments: list[str], started: float | None = None) -> int:
    """Runs one command and returns its exit code; a user's mistake is one sentence on stderr, a traceback only with --verbose.

    `started`, of `time.monotonic`, is when limits of time begin; default: when the command does.
    """
    verbose, json = "--verbose" in arguments or "-v" in arguments, "--json" in arguments

    def told(text: str, code: int, shown: bool = False) -> int:
        """Prints a mistake, with its traceback where it was asked for, and with --json as a document too."""
        if verbose and not isinstance(sys.exception(), USAGE_ERROR):
            traceback.print_exc()
        print(f"vsparse: {text}", file=sys.stderr)
        if json and not shown:  # one document, whatever happens
            print_error(text, code)
        return code

    try:
        code = app(arguments, standalone_mode=False, obj=started)
        # Some versions of typer turn an interrupt into the exit code themselves.
        return _interrupted(json) if code == 130 else code if isinstance(code, int) else 0
    except VsparseError as error:
        return told(str(error), error.exit_code, error.shown)
    except (KeyboardInterrupt, typer.Abort):
        return _interrupted(json)
    except typer.Exit as stop:
        return _interrupted(json) if stop.exit_code == 130 else stop.exit_code
    except USAGE_ERROR as error:
        text = error.format_message() or "no command is given; the commands are listed above"
        if text.startswith("Missing argument"):
            command = "" if error.ctx is None else error.ctx.command_path.removeprefix(error.ctx.find_root().command_path)
            text = f"{text.removesuffix('.')}; `vsparse{command} --help` says what it is"
        return told(text, 2)
    except BrokenPipeError:
        sys.stderr.close()
        return 2
    except MemoryError:
        return told("out of memory; lower verify.batch_size or train.batch_size in the recipe", 2)
    except OSError as error:
        return told(refused(error), 2)
    except Exception as error:
        return told(f"this is a bug in vsparse ({type(error).__name__}: {error}); --verbose shows where", 2)
