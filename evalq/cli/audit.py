"""``evalq audit``: which precision does an endpoint serve?"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    from evalq.audit.result import Expected

__all__ = ["app"]


class _UrlFirst(TyperGroup):
    """``evalq audit URL`` is ``evalq audit run URL``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("-h", "--help"):
            args = ["run", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_UrlFirst,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="Audit the precision that an endpoint serves: evalq audit https://host/v1 --model NAME "
    "--parent P --tier DIR --tier DIR. See also: evalq audit prepare, evalq audit calibrate.",
)

Parent = Annotated[
    str, typer.Option(help="builtin, smollm2, a directory, a GGUF file or a hub name.")
]
Tiers = Annotated[
    list[str] | None, typer.Option("--tier", help="An artifact, DIR or NAME=DIR; repeat it.")
]
Stored = Annotated[
    Path | None,
    typer.Option("--calibration", help="Stored calibration to use, or to make; OUT/calibration."),
]
Api = Annotated[str, typer.Option(help="completions or chat: how prompts are rendered.")]
Text = Annotated[str, typer.Option(help="auto, a text or JSONL file: calibration and probes.")]
Probes = Annotated[str, typer.Option(help="A file of your own prompts, a line each or JSONL.")]
Pool = Annotated[int, typer.Option(help="Probes to keep, of twice as many that are tried.", min=8)]
Ways = Annotated[
    list[str] | None,
    typer.Option("--benign", help="Another way to run the parent that is noise: input8."),
]
Remote = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run code that comes with the parent.")
]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1; auto by default.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]


def _settings(api: str, text: str, probes: str, pool: int, max_tokens: int) -> Any:
    from evalq.audit.calibration import CalibrationSettings
    from evalq.errors import PlanError, nearest

    if api not in ("completions", "chat"):
        raise PlanError(f"--api {api!r} is unknown", hint=nearest(api, ("completions", "chat")))
    return CalibrationSettings(
        api=api, text=text, probes=probes, pool=pool, candidates=2 * pool, max_tokens=max_tokens,
        windows=max(16, pool // 2),
    )  # fmt: skip


def _panel(parent: str, tiers: list[str] | None, device: str, remote: bool) -> Any:
    from evalq.audit.api import build_panel
    from evalq.cli._memory import return_large_blocks
    from evalq.plan import parse_plan

    return_large_blocks()

    plan = parse_plan({"engine": {"device": device, "trust_remote_code": remote}}, "evalq audit")
    return build_panel(parent, tiers or [], plan.engine)


@app.command()
def run(
    url: Annotated[str, typer.Argument(help="https://HOST/v1", show_default=False)],
    parent: Parent,
    out: Annotated[Path, typer.Option(help="Directory of the audit.")] = Path("runs/audit"),
    model: Annotated[str, typer.Option(help="The served model's name.")] = "",
    tier: Tiers = None,
    mode: Annotated[str, typer.Option(help="auto, logprobs, tokens or text.")] = "auto",
    expect: Annotated[
        str, typer.Option(help="A gate: at least this tier, 'parent', or int8, int4, …")
    ] = "",
    alpha: Annotated[float, typer.Option(help="Chance of accusing an honest endpoint.")] = 0.01,
    prompts: Annotated[int, typer.Option(help="Of phase 1, at most.")] = 40,
    max_tokens: Annotated[int, typer.Option(help="Of an answer in phase 1.")] = 64,
    sampled: Annotated[int, typer.Option(help="Requests of phase 2, at most.")] = 160,
    sampled_tokens: Annotated[int, typer.Option(help="Of an answer in phase 2.")] = 128,
    max_tokens_total: Annotated[int, typer.Option(help="Read and written; 0: no limit.")] = 0,
    budget_usd: Annotated[float, typer.Option(help="0: no limit.")] = 0.0,
    price_in: Annotated[float, typer.Option(help="Dollars for a million tokens read.")] = 0.0,
    price_out: Annotated[float, typer.Option(help="Dollars for a million tokens written.")] = 0.0,
    concurrency: Annotated[int, typer.Option(help="Requests at once.", min=1)] = 8,
    timeout: Annotated[float, typer.Option(help="Seconds without a byte.")] = 120.0,
    attempts: Annotated[int, typer.Option(help="Of one request.", min=1)] = 6,
    key_variable: Annotated[
        str, typer.Option(help="Environment variable that holds the key.")
    ] = "EVALQ_API_KEY",
    seed: Annotated[
        int | None, typer.Option(help="Of the order of the probes; a fresh one by default.")
    ] = None,
    calibration: Stored = None,
    api: Api = "completions",
    text: Text = "auto",
    probes: Probes = "",
    pool: Pool = 96,
    benign: Ways = None,
    device: Device = "auto",
    trust_remote_code: Remote = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print audit.json.")] = False,
    quiet: Quiet = False,
) -> None:
    """Audit an endpoint; run again, it goes on where it was broken off.

    Exit 0 done (or the expected tier is met), 1 it is not met, 3 the audit cannot say, 2 bad input.

    Example: evalq audit https://host/v1 --model m --parent builtin --tier out/w8 --tier out/w4
    """
    from evalq.audit.api import Endpoint, audit_endpoint, prepare, ways
    from evalq.audit.result import check_expected, exit_code, judge
    from evalq.audit.session import AuditSettings
    from evalq.cli._progress import terminal_progress
    from evalq.models.transport import TransportSettings
    from evalq.report.audit import render_audit

    chosen = AuditSettings(
        mode=mode,  # type: ignore[arg-type]  # checked by the class
        alpha=alpha, prompts=prompts, max_tokens=max_tokens, sampled=sampled,
        sampled_tokens=sampled_tokens, max_tokens_total=max_tokens_total, budget_usd=budget_usd,
        price_in=price_in, price_out=price_out, seed=_seed(out, seed),
    )  # fmt: skip
    endpoint = Endpoint(
        url, model, concurrency,
        TransportSettings(
            timeout=timeout, attempts=attempts, max_wait=30.0, key_variable=key_variable
        ),
    )  # fmt: skip
    settings = _settings(api, text, probes, pool, max_tokens)
    panel = _panel(parent, tier, device, trust_remote_code)
    with terminal_progress(quiet or as_json) as progress:
        path = calibration or out / "calibration.json"
        found = prepare(panel, settings, path, ways(benign or []), progress)
        if expect:
            check_expected(expect, found)
        command = "evalq " + " ".join(sys.argv[1:])
        result = audit_endpoint(endpoint, panel, found, chosen, out, progress, command)
    page = render_audit(out, result)
    expected = judge(result, found, expect) if expect else None
    if as_json:
        typer.echo(json.dumps({**result, "rows": None, "examples": None}, indent=1))
    else:
        _say(result, expected, page)
    raise typer.Exit(exit_code(result, expected))


def _seed(out: Path, given: int | None) -> int:
    """The seed given, that of the audit to go on with, or a fresh one, kept beside it."""
    import secrets

    if given is not None:
        return given
    kept = out / "seed"
    if kept.is_file() and kept.read_text().strip().isdigit():
        return int(kept.read_text())
    from evalq.store.files import atomic_write

    fresh = secrets.randbelow(2**31)
    with atomic_write(kept) as stream:
        stream.write(str(fresh).encode())
    return fresh


def _say(result: dict[str, Any], expected: Expected | None, page: Path) -> None:
    from evalq.report.audit import summary_lines

    for line in summary_lines(result):
        typer.echo(line)
    if expected is not None:
        word = {True: "met", False: "NOT met", None: "not decided"}[expected.met]
        typer.echo(f"expected {expected.tier}: {word} ({expected.why})")
    typer.echo(f"report: {page}")


@app.command()
def prepare(
    parent: Parent,
    out: Annotated[Path, typer.Option(help="File to make: the stored calibration.")],
    tier: Tiers = None,
    api: Api = "completions",
    text: Text = "auto",
    probes: Probes = "",
    pool: Pool = 96,
    max_tokens: Annotated[int, typer.Option(help="Of an answer in phase 1.")] = 64,
    benign: Ways = None,
    alpha: Annotated[float, typer.Option(help="That expected tokens are shown for.")] = 0.01,
    device: Device = "auto",
    trust_remote_code: Remote = False,
    quiet: Quiet = False,
) -> None:
    """Measure the noise floor and the tiers and choose probes, once for many audits.

    Example: evalq audit prepare --parent builtin --tier out/w8 --tier out/w4 --out cal.json
    """
    from evalq.audit.api import prepare as made
    from evalq.audit.api import ways
    from evalq.cli._progress import terminal_progress
    from evalq.report.audit import calibration_lines

    settings = _settings(api, text, probes, pool, max_tokens)
    panel = _panel(parent, tier, device, trust_remote_code)
    with terminal_progress(quiet) as progress:
        found = made(panel, settings, out, ways(benign or []), progress)
    for line in calibration_lines(found, alpha):
        typer.echo(line)


@app.command()
def calibrate(
    parent: Parent,
    tier: Tiers = None,
    out: Annotated[Path, typer.Option(help="Directory of the audits and the tables.")] = Path(
        "runs/audit-calibrate"
    ),
    audits: Annotated[int, typer.Option(help="Audits of each endpoint.", min=1)] = 30,
    null: Annotated[int, typer.Option(help="Resampled audits of the parent.", min=0)] = 2000,
    unlisted: Annotated[
        list[str] | None,
        typer.Option(help="An artifact that is served and not listed, DIR or NAME=DIR; repeat it."),
    ] = None,
    cases: Annotated[bool, typer.Option(help="Mixtures and a hidden prompt as well.")] = True,
    mode: Annotated[str, typer.Option(help="auto, logprobs or tokens.")] = "auto",
    alpha: Annotated[float, typer.Option(help="Chance of accusing an honest endpoint.")] = 0.01,
    resample: Annotated[
        bool,
        typer.Option("--resample", help="Record answers once, and resample audits by prompt."),
    ] = False,
    prompts: Annotated[int, typer.Option(help="Of phase 1, at most.")] = 40,
    sampled: Annotated[int, typer.Option(help="Requests of phase 2, at most.")] = 160,
    sampled_tokens: Annotated[int, typer.Option(help="Of an answer in phase 2.")] = 128,
    calibration: Stored = None,
    text: Text = "auto",
    probes: Probes = "",
    pool: Pool = 96,
    max_tokens: Annotated[int, typer.Option(help="Of an answer in phase 1.")] = 64,
    benign: Ways = None,
    dtype: Annotated[
        str, typer.Option(help="That the endpoints compute in: float32, bfloat16 or float16.")
    ] = "float32",
    device: Device = "auto",
    trust_remote_code: Remote = False,
    quiet: Quiet = False,
) -> None:
    """Audit endpoints of known tier, served here: how often is the verdict right?

    Every audit runs the code of `evalq audit` against a server on loopback. Audits that are done
    are kept, so the command can be broken off and run again.

    Example: evalq audit calibrate --parent builtin --tier out/w8 --tier out/w4 --audits 30
    """
    from evalq.audit.api import prepare as made
    from evalq.audit.api import ways
    from evalq.audit.operate import DTYPES, OperateSettings, operate
    from evalq.cli._progress import terminal_progress
    from evalq.errors import PlanError, nearest
    from evalq.report.audit_table import write_characteristics

    if dtype not in DTYPES:
        raise PlanError(f"--dtype {dtype!r} is unknown", hint=nearest(dtype, DTYPES))
    settings = _settings("completions", text, probes, pool, max_tokens)
    chosen = OperateSettings(
        audits=audits, null=null, resample=resample, mode=mode, alpha=alpha, cases=cases,
        prompts=prompts, sampled=sampled, sampled_tokens=sampled_tokens, max_tokens=max_tokens,
        dtype=dtype,
    )  # fmt: skip
    panel = _panel(parent, tier, device, trust_remote_code)
    others = _panel(parent, unlisted, device, trust_remote_code)
    with terminal_progress(quiet) as progress:
        path = calibration or out / "calibration.json"
        found = made(panel, settings, path, ways(benign or []), progress)
        table = operate(panel, others, found, chosen, out, progress)
    for line in write_characteristics(out, table):
        typer.echo(line)
