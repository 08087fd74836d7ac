from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from evalq.errors import TaskError
from evalq.tasks.prompts import chat_template_of

TEMPLATE = (
    "{% for m in messages %}"
    "{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}</>"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def tokenizer(template: str | None) -> Any:
    made = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, "a")))
    made.chat_template = template
    return made


def test_a_chat_is_rendered_as_text() -> None:
    render = chat_template_of(tokenizer(TEMPLATE))
    user = {"role": "user", "content": "{{ 1 }} hi"}
    assert render([user]) == "<user>{{ 1 }} hi</><assistant>"
    started = [user, {"role": "assistant", "content": "Answer:"}]
    rendered = render(started, add_generation_prompt=False)
    assert rendered == "<user>{{ 1 }} hi</><assistant>Answer:"


def test_a_refused_system_message_is_an_error() -> None:
    render = chat_template_of(tokenizer(TEMPLATE))
    with pytest.raises(TaskError, match=r"roles \['system'\]: no system"):
        render([{"role": "system", "content": "Be brief."}])


def test_a_tokenizer_without_a_template_is_refused() -> None:
    with pytest.raises(TaskError, match="no chat template"):
        chat_template_of(tokenizer(None))
