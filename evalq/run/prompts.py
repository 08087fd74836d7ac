"""Which chat template a run's prompts are made with, and what the run records of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evalq.errors import PlanError
from evalq.plan import Plan
from evalq.schema import content_hash

if TYPE_CHECKING:
    from evalq.tasks.bridge import BuiltTask
    from evalq.tasks.prompts import ChatTemplate, PromptSettings

__all__ = ["prompt_record", "prompt_settings", "prompt_warnings", "prompts_key", "template_file"]

ENDPOINT = "the endpoint's own"


def _chat_only(plan: Plan) -> bool:
    """Whether nothing but chat endpoints answers: then every prompt is a conversation anyway."""
    local = plan.parent_endpoint is None or any(v.endpoint is None for v in plan.variants)
    return not local and all(e.api == "chat" for e in plan.served)


def template_file(plan: Plan) -> str:
    """The Jinja template that the plan names a file of; empty where it names none.

    Raises:
        PlanError: no such file, or an empty one.
    """
    named = plan.prompts.chat_template
    if not isinstance(named, str):
        return ""
    try:
        text = Path(named).read_text(encoding="utf-8")
    except OSError as error:
        raise PlanError(
            f"cannot read the chat template {named}: {error.strerror}",
            hint="prompts.chat_template is true, false or the path of a Jinja file.",
        ) from None
    except UnicodeDecodeError:
        raise PlanError(f"the chat template {named} is not UTF-8 text") from None
    if not text.strip():
        raise PlanError(f"the chat template {named} is empty")
    return text


def prompt_settings(plan: Plan, tokenizer: Any | None) -> PromptSettings:
    """How ``build`` makes the run's prompts.

    Args:
        plan: of the run.
        tokenizer: of the parent, or of a local variant where the parent is an endpoint.

    Raises:
        PlanError: a template that cannot be read, or none at hand.
        TaskError: a tokenizer without a chat template.
    """
    from evalq.tasks.prompts import (
        PromptSettings,
        chat_template_of,
        messages_as_text,
        plain_template,
    )

    asked = plan.prompts
    template = template_file(plan)
    render: ChatTemplate | None = None
    if _chat_only(plan):
        render = messages_as_text
    elif asked.chat_template is not False and tokenizer is not None:
        render = chat_template_of(tokenizer, template)
    elif template:
        render = plain_template(template)
    elif asked.chat_template is not False:
        raise PlanError(
            "there is no tokenizer here whose chat template could be applied",
            hint="Name a file (prompts.chat_template: template.jinja, or --chat-template FILE), or "
            "use chat endpoints, which apply their own.",
        )
    key = prompts_key(prompt_record(plan, tokenizer))
    turns = asked.multiturn and render is not None
    return PromptSettings(render, asked.system, turns, key=key)


def prompt_record(plan: Plan, tokenizer: Any | None) -> dict[str, Any]:
    """What run.json says of it: source and hash of the template, system message, turns."""
    from evalq.tasks.prompts import template_text

    asked = plan.prompts
    if _chat_only(plan):
        source, digest = ENDPOINT, ""
    elif asked.chat_template is False:
        return {"chat_template": None, "system": asked.system}
    else:
        text = template_file(plan)
        source = str(asked.chat_template) if text else "the tokenizer's"
        digest = content_hash(template_text(tokenizer, text))
    return {
        "chat_template": {"source": source, "sha256": digest},
        "system": asked.system,
        "multiturn": asked.multiturn,
    }


def prompts_key(record: dict[str, Any]) -> str:
    """What tells templates apart in every request's hash; empty for plain prompts."""
    template = record["chat_template"]
    if template is None and not record["system"]:
        return ""
    # Where a template was read from changes no prompt.
    return content_hash({**record, "chat_template": template and template["sha256"]})


def prompt_warnings(plan: Plan, tokenizer: Any | None, tasks: Sequence[BuiltTask]) -> list[str]:
    """Where the models of a run may read different prompts for one item."""
    out = []
    served = {v.label: v.endpoint for v in plan.variants if v.endpoint is not None}
    if plan.parent_endpoint is not None:
        served = {"the parent": plan.parent_endpoint, **served}
    chat = [label for label, e in served.items() if e.api == "chat"]
    if chat and not _chat_only(plan) and plan.prompts.chat_template is False:
        out.append(
            f"{', '.join(chat)} puts each prompt into a chat template of its own, and the others "
            "read plain text: part of any difference is the template's (see --chat)"
        )
    bos = getattr(tokenizer, "bos_token", None)
    completions = [label for label, e in served.items() if e.api == "completions"]
    first = next((r.context for t in tasks for r in t.requests), "")
    if completions and bos and plan.prompts.chat_template is not False and first.startswith(bos):
        out.append(
            f"prompts begin with the template's {bos!r}, and {', '.join(completions)} may put "
            "another before it"
        )
    return out
