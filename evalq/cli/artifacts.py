"""``evalq artifacts``: what is in a directory, and who loads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["app"]

app = typer.Typer(
    help="Look into an artifact: which engines load it, and what is in it.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command()
def check(
    directory: Annotated[Path, typer.Argument(help="An artifact, ours or a peer's.")],
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say which engines load the artifact, and which rule of its format it breaks.

    Exit code 0 when the files are sound, 2 when they are broken.

    Example: evalq artifacts check runs/demo/artifacts/gptq-w4-g128
    """
    from dataclasses import asdict

    from evalq.artifacts.check import SEVERITIES, loadable
    from evalq.artifacts.check import check as look

    findings = sorted(look(directory), key=lambda f: (SEVERITIES.index(f.severity), f.engine))
    engines = loadable(findings)
    broken = any(f.engine == "files" and f.severity == "error" for f in findings)
    if json_output:
        content = {
            "path": str(directory),
            "engines": engines,
            "findings": [asdict(finding) for finding in findings],
        }
        typer.echo(json.dumps(content, indent=2))
    else:
        typer.echo(str(directory))
        for finding in findings:
            layers = f" [{len(finding.layers)} layers]" if finding.layers else ""
            refused = finding.severity == "error" and finding.engine != "files"
            mark = "no" if refused else finding.severity
            typer.echo(f"  {mark:<7} {finding.engine:<12} {finding.message}{layers}")
    if broken:
        raise typer.Exit(2)


@app.command()
def show(
    directory: Annotated[Path, typer.Argument(help="An artifact, ours or a peer's.")],
    layers: Annotated[bool, typer.Option("--layers", help="Every layer, too.")] = False,
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what is in the artifact: format, schemes, bytes, and the recipe that made it.

    Example: evalq artifacts show runs/demo/artifacts/gptq-w4-g128 --layers
    """
    from evalq.artifacts.show import describe

    found = describe(directory)
    if json_output:
        typer.echo(json.dumps(found, indent=2))
        return
    typer.echo("\n".join(_lines(found, layers)))


def _lines(found: dict[str, Any], layers: bool) -> list[str]:
    stored, manifest = found["storage"], found["manifest"]
    lines = [
        found["path"],
        f"  content     {found['hash']}",
        f"  format      {found['format']}, {found['architecture']}, {found['dtype']}",
        f"  size        {stored['bytes_on_disk']:,} bytes, {stored['parameters']:,} parameters, "
        f"{stored['bits_per_weight']:.2f} bits a weight all in",
    ]
    for scheme in found["schemes"]:
        lines.append(
            f"  scheme      {scheme['scheme']}: {scheme['layers']} layers, "
            f"{scheme['weights']:,} weights"
        )
    if found["schemes"]:
        lines.append(f"  quantized   {stored['linear_bits_per_weight']:.3f} bits a weight, all in")
    lines += [f"  activations {bits} bits, one scale a token" for bits in found["activation_bits"]]
    if manifest:
        parent = manifest["parent"]
        lines.append(f"  made by     {manifest['method']}, seed {manifest['seed']}")
        lines.append(f"  made from   {parent['name']} ({parent['hash'][:16]})")
        text = manifest["calibration"]
        if text:
            lines.append(
                f"  calibrated  {text['samples']} x {text['length']} tokens of {text['source']}"
            )
        lines += [f"  warning     {warning}" for warning in manifest["warnings"]]
    lines += [f"  note        {note}" for note in found["notes"]]
    if layers:
        lines += [
            f"  {layer['name']}  {layer['shape'][0]} x {layer['shape'][1]}  {layer['scheme']}"
            for layer in found["layers"]
        ]
    return lines
