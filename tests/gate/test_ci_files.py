"""The action and the template: well formed, and the action's script run as a runner runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.gate.conftest import BAD, GOOD, POLICY

ROOT = Path(__file__).resolve().parents[2]
ACTION = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))


def test_inputs_reach_scripts_as_environment_only() -> None:
    assert ACTION["runs"]["using"] == "composite"
    for step in ACTION["runs"]["steps"]:
        assert step["shell"] == "bash"
        assert "${{" not in step["run"]
    used = str(ACTION["runs"]["steps"])
    for name in ACTION["inputs"]:
        assert f"inputs.{name}" in used


def test_template() -> None:
    job = yaml.safe_load((ROOT / "ci" / "gitlab-template.yml").read_text(encoding="utf-8"))
    job = job[".evalq-gate"]
    assert set(job["artifacts"]["reports"]) == {"junit", "codequality"}
    assert job["allow_failure"] == {"exit_codes": 3}


def act(tmp_path: Path, **inputs: str) -> tuple[int, dict[str, str], str]:
    """Run the action's gate step; (exit code, its outputs, its log)."""
    launcher = tmp_path / "bin" / "evalq"
    launcher.parent.mkdir(exist_ok=True)
    # What the action installs has no torch; nor may a gate ask for it.
    launcher.write_text(
        f"#!{sys.executable}\nimport sys\n"
        "for name in ('torch', 'transformers', 'lm_eval', 'datasets', 'safetensors'):\n"
        "    sys.modules[name] = None\n"
        f"sys.path.insert(0, {str(ROOT)!r})\nfrom evalq.cli.main import main\nmain()\n"
    )
    launcher.chmod(0o755)
    step = ACTION["runs"]["steps"][1]
    given = {n: str(v.get("default", "")) for n, v in ACTION["inputs"].items()} | inputs
    environment = {
        name: given[value.removeprefix("${{ inputs.").removesuffix(" }}")]
        for name, value in step["env"].items()
    }
    output = tmp_path / "output"
    output.write_text("")
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
        env={
            "PATH": f"{launcher.parent}:{os.environ['PATH']}",
            "GITHUB_OUTPUT": str(output),
            "GITHUB_STEP_SUMMARY": str(tmp_path / "summary"),
            **environment,
        },
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    pairs = (line.partition("=") for line in output.read_text().splitlines())
    return done.returncode, {k: v for k, _, v in pairs}, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("variant", "policy", "extra", "code", "verdict"),
    [
        (GOOD, POLICY, {}, 0, "pass"),
        (BAD, POLICY, {}, 1, "fail"),
        (GOOD, POLICY + "on_inconclusive: 7\n", {}, 2, ""),
        (GOOD, POLICY.replace("math, ", "vision, "), {"fail-on-inconclusive": "false"}, 0,
         "not certified"),
    ],
)  # fmt: skip
def test_action(
    run_dir: Path,
    tmp_path: Path,
    variant: str,
    policy: str,
    extra: dict[str, str],
    code: int,
    verdict: str,
) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(policy)
    found, outputs, log = act(
        tmp_path, run=str(run_dir), policy=str(path), variant=variant, **extra
    )
    assert found == code, log
    assert outputs["verdict"] == verdict
    assert outputs["exit-code"] == ("3" if extra else str(code))
    assert ("::notice" in log) == (code != 2)


def test_a_hostile_input_is_no_command(run_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(POLICY)
    bad = f"x'; touch {tmp_path}/owned; echo \"$(touch {tmp_path}/owned)"
    found, _, log = act(tmp_path, run=str(run_dir), policy=str(path), variant=bad)
    assert found == 2, log
    assert not (tmp_path / "owned").exists()
