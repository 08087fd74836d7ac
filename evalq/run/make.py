"""The artifacts of a run: made once, found again by recipe, named by content."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from evalq.errors import PlanError
from evalq.plan import Plan, VariantPlan
from evalq.progress import Progress, layer_steps
from evalq.schema import content_hash
from evalq.store import guard_disk

if TYPE_CHECKING:
    from evalq.artifacts.base import Artifact
    from evalq.models.base import LoadedModel
    from evalq.quantize.calibration import Calibration

__all__ = ["check_methods", "make_variant", "open_variant"]


def check_methods(plan: Plan) -> None:
    """Refuse, before a model is loaded, what no method can make.

    Raises:
        PlanError: an unknown method or option, or a width that the method does not make.
    """
    from evalq.quantize.config import METHODS, resolve_options

    for variant in plan.variants:
        if not variant.method:
            continue
        method = METHODS.get(variant.method)
        if variant.bits not in method.bits:
            raise PlanError(
                f"variant {variant.label!r}: method {variant.method} makes no {variant.bits} bits",
                hint=f"It makes {', '.join(map(str, method.bits))}.",
            )
        resolve_options(method, variant.options)


def _slug(label: str) -> str:
    """A label as a folder name: nothing in it can leave the folder it is put into."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", label).strip(".-")[:60] or "variant"


def _known_recipes(folder: Path) -> dict[str, Path]:
    from evalq.artifacts.files import read_json
    from evalq.artifacts.identity import MANIFEST

    found = {}
    for manifest in sorted(folder.glob(f"*/{MANIFEST}")):
        content = read_json(manifest)
        if isinstance(content, dict) and "recipe_hash" in content:
            found[str(content["recipe_hash"])] = manifest.parent
    return found


def make_variant(
    parent: LoadedModel,
    variant: VariantPlan,
    calibration: Calibration | None,
    seed: int,
    folder: Path,
    progress: Progress,
) -> Artifact:
    """The artifact of one variant in ``folder``, made unless it is there, named by its content.

    A rounded KV cache is no part of it: a variant that differs in that alone shares the artifact.

    Raises:
        EvalqError: a scheme that cannot be made of this parent; nothing half-written is left.
    """
    from evalq.artifacts.make import make_artifact, open_artifact, recipe_of

    variant = variant.model_copy(update={"kv_bits": None})
    recipe = recipe_of(
        parent.hash, variant.scheme, variant.method, calibration, variant.options, seed,
        "compressed-tensors",
    )  # fmt: skip
    recipe_hash = content_hash(recipe)
    known = _known_recipes(folder)
    if recipe_hash in known:
        return open_artifact(known[recipe_hash], recipe_hash)
    step = layer_steps(progress, f"quantize {variant.label}")
    making = folder / f".making-{recipe_hash[:16]}"
    made = make_artifact(
        parent, variant.scheme, variant.method, calibration, variant.options, seed, making, step
    )
    final = folder / f"{_slug(variant.label)}-{made.hash[:12]}"
    with guard_disk(final):
        making.rename(final)
    return open_artifact(final, recipe_hash)


def open_variant(path: Path) -> Artifact:
    """A directory that the user gives as a variant; a peer's has no manifest, and needs none.

    Raises:
        ArtifactError: no model directory, or one that its own manifest belies.
    """
    from evalq.artifacts.base import Artifact
    from evalq.artifacts.identity import MANIFEST, hash_directory
    from evalq.artifacts.make import open_artifact

    if (path / MANIFEST).is_file():
        return open_artifact(path)
    return Artifact(path, hash_directory(path), {}, reused=True)
