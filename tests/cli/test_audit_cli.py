"""The command line of audit and serve, up to where a model would be loaded."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from evalq.cli.audit import _seed
from evalq.cli.main import build_app
from evalq.errors import PlanError

APP = build_app(("audit", "serve"))
URL = "http://127.0.0.1:9/v1"


def run(*args):
    return CliRunner().invoke(APP, list(args))


def test_a_url_needs_no_verb_of_its_own():
    done = run("audit", URL)
    assert done.exit_code == 2
    assert "--parent" in done.output
    done = run("audit", "--json", URL, "--parent", "builtin", "--tier", "nowhere")
    assert isinstance(done.exception, PlanError)
    assert "nowhere" in done.exception.message


def test_help_names_the_other_verbs():
    done = run("audit", "--help")
    assert done.exit_code == 0
    for verb in ("run", "prepare", "calibrate"):
        assert verb in done.output
    assert run("audit").exit_code == 2 or "prepare" in run("audit").output


@pytest.mark.parametrize(
    ("args", "what"),
    [
        (("--mode", "guess"), "guess"),
        (("--alpha", "0.7"), "alpha"),
        (("--budget-usd", "1"), "prices"),
        (("--prompts", "1"), "prompts"),
        (("--api", "grpc"), "grpc"),
        (("--tier", "parent=."), "parent"),
        (("--benign", "int1"), "int1"),
    ],
)
def test_options_that_mean_nothing_are_refused_before_a_model_is_loaded(args, what, tmp_path):
    done = run(
        "audit", URL, "--parent", "builtin", "--out", str(tmp_path), "--seed", "1", "-q", *args
    )
    assert isinstance(done.exception, PlanError), done.output
    assert what in done.exception.message
    assert not (tmp_path / "audit.json").exists()


def test_a_seed_is_kept_for_the_next_start(tmp_path):
    first = _seed(tmp_path, None)
    assert _seed(tmp_path, None) == first
    assert _seed(tmp_path, 5) == 5


@pytest.mark.parametrize("args", [(), ("builtin", "--tier-mix", "builtin:1")])
def test_serve_wants_one_thing_to_serve(args):
    assert isinstance(run("serve", *args).exception, PlanError)
