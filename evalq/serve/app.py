"""The web application: completions, chat, models; each request answered by one of the tiers."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse

from evalq.errors import EvalqError
from evalq.schema import content_hash
from evalq.serve.engine import Done, Job, ServeEngine, Told
from evalq.serve.queue import EngineQueue
from evalq.serve.wire import (
    ChatBody,
    CompletionBody,
    chat_logprobs,
    completion_logprobs,
    usage,
)

__all__ = ["ServeSettings", "create_app"]


class _RefusedError(Exception):
    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """How a server behaves.

    Args:
        name: the served model's name.
        shares: of the requests that each engine answers, by its name; they sum to 1.
        system_prompt: put before every prompt, and not told to anyone.
        batch: most requests in one pass.
        seed: of the choice among engines.
        usage: count tokens in answers; some vendors do not.
    """

    name: str
    shares: Mapping[str, float]
    system_prompt: str = ""
    batch: int = 32
    seed: int = 0
    usage: bool = True


class _Service:
    def __init__(self, engines: Mapping[str, ServeEngine], settings: ServeSettings) -> None:
        self.engines, self.settings = engines, settings
        self.queue = EngineQueue(engines, settings.batch)
        self._random = random.Random(settings.seed)
        self._count = 0

    def pick(self) -> str:
        names = list(self.settings.shares)
        self._count += 1
        return self._random.choices(names, [self.settings.shares[n] for n in names])[0]

    def identifier(self) -> str:
        return f"evalq-{self._count}"

    def checked(self, job: Job, engine: ServeEngine) -> Job:
        if not job.prompt:
            raise _RefusedError("the prompt has no tokens")
        if any(t < 0 or t >= len(engine.vocabulary) for t in job.prompt):
            raise _RefusedError("a token id is not in the vocabulary")
        room = engine.max_length - len(job.prompt)
        if room < max(1, job.max_tokens):
            raise _RefusedError(
                f"{len(job.prompt)} prompt tokens and {job.max_tokens} new ones are more than the "
                f"{engine.max_length} that this model reads"
            )
        return job

    def completion_job(self, body: CompletionBody, engine: ServeEngine) -> Job:
        tokenizer: Any = engine.model.tokenizer
        hidden = self.settings.system_prompt
        if isinstance(body.prompt, str):
            text = f"{hidden}\n\n{body.prompt}" if hidden else body.prompt
            ids = tokenizer(text)["input_ids"]
        else:
            prefix = tokenizer(f"{hidden}\n\n")["input_ids"] if hidden else []
            ids = [*prefix, *body.prompt]
        return self.checked(
            Job(
                tuple(ids), body.max_tokens, body.temperature, body.top_p, max(0, body.top_k),
                self._seed(body.seed), body.stops, body.logprobs, body.echo,
            ),
            engine,
        )  # fmt: skip

    def chat_job(self, body: ChatBody, engine: ServeEngine) -> Job:
        tokenizer: Any = engine.model.tokenizer
        if not tokenizer.chat_template:
            raise _RefusedError("this model has no chat template; use /v1/completions")
        messages = [{"role": m.role, "content": m.content} for m in body.messages]
        if self.settings.system_prompt:
            messages = [{"role": "system", "content": self.settings.system_prompt}, *messages]
        try:
            text = tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # a template is a program that raises what it likes
            raise _RefusedError(f"the chat template refuses these messages: {error}") from None
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        limit = body.max_completion_tokens or body.max_tokens or 256
        return self.checked(
            Job(
                tuple(ids), limit, body.temperature, body.top_p, max(0, body.top_k),
                self._seed(body.seed), body.stops, body.top_logprobs if body.logprobs else None,
            ),
            engine,
        )  # fmt: skip

    def _seed(self, given: int | None) -> int:
        return self._random.getrandbits(31) if given is None else given & 0x7FFFFFFF


def create_app(engines: Mapping[str, ServeEngine], settings: ServeSettings) -> FastAPI:
    """The application; ``app.state.service`` holds the queue that its owner closes.

    Args:
        engines: by tier.
        settings: how it behaves.
    """
    app = FastAPI(title="evalq serve", docs_url=None, redoc_url=None, openapi_url=None)
    service = _Service(engines, settings)
    app.state.service = service

    @app.exception_handler(RequestValidationError)
    async def _invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        fault = error.errors()[0]
        where = ".".join(str(p) for p in fault["loc"][1:])
        return _error(f"{where}: {fault['msg']}", 400)

    @app.exception_handler(_RefusedError)
    async def _refused(_: Request, error: _RefusedError) -> JSONResponse:
        return _error(str(error), error.status)

    @app.exception_handler(EvalqError)
    async def _failed(_: Request, error: EvalqError) -> JSONResponse:
        return _error(error.message, 500)

    @app.get("/health")
    async def _health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/v1/models")
    async def _models() -> dict[str, Any]:
        entry = {"id": settings.name, "object": "model", "created": 0, "owned_by": "evalq"}
        return {"object": "list", "data": [entry]}

    @app.post("/v1/completions", response_model=None)
    async def _completions(body: CompletionBody) -> Response:
        return await _answer(service, body)

    @app.post("/v1/chat/completions", response_model=None)
    async def _chat(body: ChatBody) -> Response:
        return await _answer(service, body)

    return app


def _error(message: str, status: int) -> JSONResponse:
    kind = "invalid_request_error" if status < 500 else "server_error"
    return JSONResponse(
        {"error": {"message": message, "type": kind, "code": status}}, status_code=status
    )


async def _answer(service: _Service, body: CompletionBody | ChatBody) -> Response:
    if body.model and body.model != service.settings.name:
        raise _RefusedError(f"this server serves {service.settings.name!r} only", 404)
    name = service.pick()
    engine = service.engines[name]
    chat = isinstance(body, ChatBody)
    job = (
        service.chat_job(body, engine)
        if isinstance(body, ChatBody)
        else service.completion_job(body, engine)
    )
    head = {
        "id": service.identifier(),
        "object": "chat.completion" if chat else "text_completion",
        "created": int(time.time()),
        "model": service.settings.name,
        "system_fingerprint": "evalq-" + content_hash(sorted(service.settings.shares))[:12],
    }
    if body.stream:
        events = _events(service, name, job, body, head)
        return StreamingResponse(events, media_type="text/event-stream")
    done = await asyncio.wrap_future(service.queue.submit(name, job))
    choice = _chat_choice(engine, job, done, body) if chat else _choice(engine, job, done, body)
    counted = {"usage": usage(len(job.prompt), done)} if service.settings.usage else {}
    if not service.settings.usage:
        choice.pop("prompt_token_ids", None)
    return JSONResponse({**head, "choices": [choice], **counted})


def _ids(job: Job, done: Done, body: CompletionBody | ChatBody) -> dict[str, Any]:
    if not body.return_token_ids:
        return {}
    return {
        "token_ids": [t.token for t in done.tokens],
        "prompt_token_ids": list(job.prompt),
    }


def _choice(
    engine: ServeEngine, job: Job, done: Done, body: CompletionBody | ChatBody
) -> dict[str, Any]:
    prompt = engine.vocabulary.text(job.prompt) if job.echo else ""
    told = [*done.prompt, *done.tokens]
    logprobs = None
    if job.logprobs is not None:
        logprobs = completion_logprobs(engine.vocabulary, told, body.return_tokens_as_token_ids)
    return {
        "index": 0,
        "text": prompt + done.text,
        "logprobs": logprobs,
        "finish_reason": done.reason,
        **_ids(job, done, body),
    }


def _chat_choice(
    engine: ServeEngine, job: Job, done: Done, body: CompletionBody | ChatBody
) -> dict[str, Any]:
    logprobs = None
    if job.logprobs is not None:
        logprobs = chat_logprobs(engine.vocabulary, done.tokens, body.return_tokens_as_token_ids)
    return {
        "index": 0,
        "message": {"role": "assistant", "content": done.text},
        "logprobs": logprobs,
        "finish_reason": done.reason,
        **_ids(job, done, body),
    }


async def _events(
    service: _Service,
    name: str,
    job: Job,
    body: CompletionBody | ChatBody,
    head: dict[str, Any],
) -> AsyncIterator[str]:
    """Server-sent events: text as it is sure (no cut character, no begun stop string)."""
    chat = isinstance(body, ChatBody)
    vocabulary = service.engines[name].vocabulary
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[Told | None] = asyncio.Queue()

    def tell(told: Told) -> None:
        loop.call_soon_threadsafe(queue.put_nowait, told)

    job.emit = tell
    future = service.queue.submit(name, job)
    future.add_done_callback(lambda _: loop.call_soon_threadsafe(queue.put_nowait, None))
    kind = {**head, "object": "chat.completion.chunk" if chat else "text_completion"}

    def event(text: str, reason: str | None, last: bool = False) -> str:
        choice: dict[str, Any] = {"index": 0, "finish_reason": reason}
        if chat:
            choice["delta"] = {"content": text}
        else:
            choice["text"] = text
        told = last and service.settings.usage
        extra = {"usage": usage(len(job.prompt), future.result())} if told else {}
        return f"data: {json.dumps({**kind, 'choices': [choice], **extra})}\n\n"

    sent, ids = "", []
    try:
        while (told := await queue.get()) is not None:
            ids.append(told.token)
            ready = _sure(vocabulary.text(ids), job.stops)
            if told.token not in service.engines[name].ends and len(ready) > len(sent):
                yield event(ready[len(sent) :], None)
                sent = ready
        error = future.exception()
        if error is not None:
            yield f"data: {json.dumps({'error': {'message': str(error), 'code': 500}})}\n\n"
            return
        done = future.result()
        yield event(done.text[len(sent) :], done.reason, last=True)
        yield "data: [DONE]\n\n"
    finally:
        job.cancelled = True


def _sure(text: str, stops: tuple[str, ...]) -> str:
    """The part of ``text`` that no later token changes."""
    text = text.rstrip("\ufffd")
    for stop in stops:
        if stop in text:
            text = text.split(stop)[0]
        for size in range(min(len(stop) - 1, len(text)), 0, -1):
            if text.endswith(stop[:size]):
                text = text[:-size]
                break
    return text
