"""How prompts are made: chat template, system message, the seed of few-shot examples."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evalq.errors import TaskError

__all__ = [
    "ChatTemplate",
    "Conversations",
    "PromptSettings",
    "chat_template_of",
    "messages_as_text",
    "plain_template",
    "template_text",
]

ChatTemplate = Callable[..., str]
"""``(messages, add_generation_prompt=True) -> str``; a message is ``{"role", "content"}``."""


@dataclass(frozen=True)
class PromptSettings:
    """How prompts are made.

    Args:
        chat_template: ``(messages, add_generation_prompt) -> str``, see ``chat_template_of``;
            ``None`` leaves prompts as plain text.
        system: a system message to put before every prompt.
        multiturn: few-shot examples become turns of the chat instead of one user message.
        fewshot_seed: seed that few-shot examples are drawn with; lm-eval's default.
        key: hash of the template and the system message, put into every request; empty for plain
            prompts.
    """

    chat_template: ChatTemplate | None = None
    system: str = ""
    multiturn: bool = False
    fewshot_seed: int = 1234
    key: str = ""


def chat_template_of(tokenizer: Any, template: str = "") -> ChatTemplate:
    """The chat template of a transformers tokenizer, called as lm-eval calls it.

    lm-eval drops the system message, with a log line, where a template takes none. The message
    holds a task's instructions, so that is refused here.

    Args:
        tokenizer: a ``PreTrainedTokenizerBase``.
        template: a Jinja template to use in place of the tokenizer's own.

    Raises:
        TaskError: the tokenizer has no chat template, or several and none for plain use; later, the
            template refuses the messages.
    """
    chosen = template_text(tokenizer, template)

    def render(messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = True) -> str:
        import jinja2

        try:
            text = tokenizer.apply_chat_template(
                list(messages),
                chat_template=chosen,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        except (jinja2.exceptions.TemplateError, TypeError, ValueError) as error:
            raise _refused(messages, error) from None
        return str(text)

    return render


def template_text(tokenizer: Any, template: str = "") -> str:
    """The Jinja template that ``chat_template_of`` renders with.

    Raises:
        TaskError: there is none.
    """
    if template:
        return template
    if not getattr(tokenizer, "chat_template", None):
        raise TaskError(
            "the parent's tokenizer has no chat template",
            hint="Leave the chat template out (the prompts are then plain text), or give a file.",
        )
    try:
        return str(tokenizer.get_chat_template())
    except ValueError as error:
        raise TaskError(f"the parent's chat template cannot be chosen: {error}") from None


def plain_template(template: str) -> ChatTemplate:
    """A Jinja template rendered without a tokenizer: its special tokens are empty.

    Raises:
        TaskError: later, the template is faulty or refuses the messages.
    """

    def render(messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = True) -> str:
        import jinja2
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            rendered: Any = render_jinja_template(
                conversations=[[dict(m) for m in messages]],
                chat_template=template,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
                bos_token="",
                eos_token="",
            )
        except (jinja2.exceptions.TemplateError, TypeError, ValueError) as error:
            raise _refused(messages, error) from None
        return str(rendered[0][0])

    return render


def messages_as_text(
    messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = True
) -> str:
    """A conversation as JSON: the prompt of an item whose template only the endpoint knows."""
    del add_generation_prompt
    return json.dumps([dict(m) for m in messages], ensure_ascii=False)


def _refused(messages: Sequence[Mapping[str, str]], error: Exception) -> TaskError:
    roles = [message["role"] for message in messages]
    return TaskError(f"the chat template refuses messages of roles {roles}: {error}")


class Conversations:
    """A chat template that remembers what it rendered, so that a chat endpoint can be sent the
    messages of the very text that a local model reads.

    Args:
        render: the template.
    """

    def __init__(self, render: ChatTemplate) -> None:
        self._render = render
        self._seen: dict[str, tuple[tuple[str, str], ...]] = {}

    def __call__(
        self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The text of ``messages``."""
        text = self._render(messages, add_generation_prompt=add_generation_prompt)
        # A template may trim its messages: of those with one text, the first stands for all.
        self._seen.setdefault(text, tuple((str(m["role"]), str(m["content"])) for m in messages))
        return text

    def of(self, text: str, task: str) -> tuple[tuple[str, str], ...]:
        """The messages of a prompt.

        Raises:
            TaskError: the task made its prompt without the template.
        """
        if text not in self._seen:
            raise TaskError(
                f"task {task!r} does not put its prompts into the chat template",
                hint="Leave the task out of a run with a chat template.",
            )
        return self._seen[text]
