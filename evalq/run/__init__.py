"""The main job: from a plan to a run directory that holds all that a report or a gate needs."""

from evalq.run.resolve import DEFAULT_VARIANTS, resolve_plan
from evalq.run.session import run_plan

__all__ = ["DEFAULT_VARIANTS", "resolve_plan", "run_plan"]
