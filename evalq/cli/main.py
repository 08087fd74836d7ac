"""The command line: one thin file a verb, imported when that verb is asked for."""

from __future__ import annotations

import os
import sys
from importlib import import_module

import typer

from evalq.errors import EvalqError

__all__ = ["VERBS", "build_app", "main"]

VERBS = (
    "run",
    "quantize",
    "artifacts",
    "list",
    "data",
    "workload",
    "compare",
    "report",
    "show",
    "gate",
    "policy",
    "serve",
    "audit",
    "rescue",
    "stats",
    "bench",
    "cost",
    "doctor",
)
"""Every verb, in the order of the help; each is a module here with a ``command`` or an ``app``."""


def _version(value: bool) -> None:
    if value:
        from evalq import __version__

        typer.echo(f"evalq {__version__}")
        raise typer.Exit


def build_app(verbs: tuple[str, ...] = VERBS) -> typer.Typer:
    """The Typer application with the given verbs."""
    app = typer.Typer(
        name="evalq",
        help="Which precision of this model can I ship? Makes quantized variants, runs your "
        "workloads on the parent and on each of them, and shows where the loss is.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @app.callback()
    def _root(
        version: bool = typer.Option(
            False, "--version", callback=_version, is_eager=True, help="Print the version."
        ),
    ) -> None:
        pass

    for verb in verbs:
        module = import_module(f"evalq.cli.{verb}")
        if hasattr(module, "app"):
            app.add_typer(module.app, name=verb)
        else:
            app.command(name=verb)(module.command)
    return app


def _fail(message: str, hint: str = "") -> None:
    sys.stderr.write(f"evalq: error: {message}\n")
    if hint:
        sys.stderr.write(f"  {hint}\n")


def main() -> None:
    """Entry point of the ``evalq`` command."""
    # torch's profiler prints its own lifecycle to standard error unless told not to.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # evalq shows its own progress; a library's bars and advice would tear it apart.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    asked = next((a for a in sys.argv[1:] if not a.startswith("-")), "")
    app = build_app((asked,) if asked in VERBS else VERBS)
    try:
        app(prog_name="evalq")
    except EvalqError as error:
        _fail(error.message, error.hint)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        _fail("interrupted", "What was finished is stored; the same command resumes.")
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


if __name__ == "__main__":
    main()
