"""How prompts are made: chat template, system message, the seed of few-shot examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evalq.errors import TaskError

__all__ = ["ChatTemplate", "PromptSettings", "chat_template_of"]

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
    """

    chat_template: ChatTemplate | None = None
    system: str = ""
    multiturn: bool = False
    fewshot_seed: int = 1234


def chat_template_of(tokenizer: Any) -> ChatTemplate:
    """The chat template of a transformers tokenizer, called as lm-eval calls it.

    lm-eval drops the system message, with a log line, where a template takes none. The message
    holds a task's instructions, so that is refused here.

    Args:
        tokenizer: a ``PreTrainedTokenizerBase``.

    Raises:
        TaskError: the tokenizer has no chat template; later, the template refuses the messages.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise TaskError(
            "the parent's tokenizer has no chat template",
            hint="Leave the chat template out: the prompts are then plain text.",
        )

    def render(messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = True) -> str:
        import jinja2

        try:
            text = tokenizer.apply_chat_template(
                list(messages),
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        except jinja2.exceptions.TemplateError as error:
            roles = [message["role"] for message in messages]
            raise TaskError(
                f"the chat template refuses messages of roles {roles}: {error}"
            ) from None
        return str(text)

    return render
