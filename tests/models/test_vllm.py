"""The vLLM engine on a module that behaves as vLLM's offline API does, over transformers.

vLLM itself needs a GPU and is no dependency. The fake takes the arguments that the real classes
take and no others, keeps their limits (a prompt leaves room for one new token) and returns their
types: ``prompt_logprobs`` begins with ``None`` and lists the likeliest token beside the prompt's.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, TypedDict

import pytest
import torch

from evalq.compare.runs import load_run
from evalq.errors import MissingDependencyError, ParentError, PlanError, TaskError
from evalq.models.base import StreamingEngine
from evalq.models.hf import TransformersEngine
from evalq.models.load import load_artifact, load_parent
from evalq.models.vllm_offline import VllmEngine
from evalq.plan import EnginePlan
from evalq.run import resolve_plan, run_plan
from evalq.schema import Request
from tests.models.hflm import answers
from tests.models.tiny import byte_level_tokenizer, module

PLAN = EnginePlan(kind="vllm", dtype="float32", device="cpu")


class TokensPrompt(TypedDict):
    prompt_token_ids: list[int]


@dataclass
class SamplingParams:
    n: int = 1
    temperature: float = 1.0
    seed: int | None = None
    max_tokens: int | None = 16
    stop: list[str] | None = None
    stop_token_ids: list[int] | None = None
    prompt_logprobs: int | None = None
    repetition_penalty: float = 1.0
    detokenize: bool = True
    skip_special_tokens: bool = True


@dataclass
class Logprob:
    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass
class CompletionOutput:
    index: int
    text: str
    token_ids: list[int]
    finish_reason: str | None


@dataclass
class RequestOutput:
    prompt_token_ids: list[int]
    prompt_logprobs: list[dict[int, Logprob] | None] | None
    outputs: list[CompletionOutput] = field(default_factory=list)


class LLM:
    made: ClassVar[list[dict[str, Any]]] = []
    alive: ClassVar[int] = 0

    def __init__(
        self,
        model: str,
        *,
        tokenizer: str | None = None,
        trust_remote_code: bool = False,
        dtype: str = "auto",
        seed: int = 0,
        gpu_memory_utilization: float = 0.9,
        max_model_len: int | None = None,
        max_num_batched_tokens: int | None = None,
    ) -> None:
        if dtype not in ("float32", "bfloat16", "float16"):
            raise ValueError(f"unknown dtype {dtype}")
        path = Path(model)
        config = json.loads((path / "config.json").read_text())
        quantized = "quantization_config" in config
        plan = EnginePlan(dtype=dtype, device="cpu")
        self._loaded = load_artifact(path, plan) if quantized else load_parent(model, plan)
        assert max_model_len is not None
        self._longest = max_model_len
        LLM.made.append({"model": model, "dtype": dtype, "max_model_len": max_model_len})
        LLM.alive += 1

    def __del__(self) -> None:
        LLM.alive -= 1

    def generate(
        self, prompts: list[TokensPrompt], sampling_params: list[SamplingParams], use_tqdm: bool
    ) -> list[RequestOutput]:
        assert len(prompts) == len(sampling_params)
        return [
            self._one(p["prompt_token_ids"], s)
            for p, s in zip(prompts, sampling_params, strict=True)
        ]

    @torch.inference_mode()
    def _logits(self, ids: list[int]) -> torch.Tensor:
        return self._loaded.module(input_ids=torch.tensor([ids])).logits[0].float()

    def _one(self, ids: list[int], params: SamplingParams) -> RequestOutput:
        if len(ids) + 1 > self._longest:
            raise ValueError(f"the prompt of {len(ids)} tokens leaves no room for a new one")
        found: list[dict[int, Logprob] | None] | None = None
        if params.prompt_logprobs:
            logp = torch.log_softmax(self._logits(ids), -1)
            found = [None]
            for row, token in zip(logp[:-1], ids[1:], strict=True):
                values, tops = row.topk(params.prompt_logprobs)
                entry = {token: Logprob(float(row[token]), int((row > row[token]).sum()) + 1)}
                for rank, (v, t) in enumerate(zip(values, tops, strict=True), 1):
                    entry.setdefault(int(t), Logprob(float(v), rank))
                found.append(entry)
        return RequestOutput(ids, found, [self._write(ids, params)])

    def _write(self, ids: list[int], params: SamplingParams) -> CompletionOutput:
        tokenizer: Any = self._loaded.tokenizer
        ends = {tokenizer.eos_token_id, *(params.stop_token_ids or ())}
        out: list[int] = []
        reason = "length"
        room = min(params.max_tokens or 16, self._longest - len(ids))
        while len(out) < room:
            logits = self._logits([*ids, *out])[-1].clone()
            seen = torch.tensor(sorted({*ids, *out}))
            some = logits[seen]
            penalty = params.repetition_penalty
            logits[seen] = torch.where(some > 0, some / penalty, some * penalty)
            assert params.temperature == 0
            out.append(int(logits.argmax()))
            text = tokenizer.decode(out, skip_special_tokens=params.skip_special_tokens)
            if out[-1] in ends or any(s in text for s in params.stop or ()):
                reason = "stop"
                break
        return CompletionOutput(0, tokenizer.decode(out), out, reason)


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> type[LLM]:
    fake, distributed = ModuleType("vllm"), ModuleType("vllm.distributed")
    fake.__spec__ = ModuleSpec("vllm", None)
    fake.__version__ = "0.11.0"  # type: ignore[attr-defined]
    for kind in (LLM, SamplingParams, TokensPrompt):
        setattr(fake, kind.__name__, kind)
    distributed.cleanup_dist_env_and_memory = lambda: None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", fake)
    monkeypatch.setitem(sys.modules, "vllm.distributed", distributed)
    LLM.made.clear()
    return LLM


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vllm") / "tiny"
    tokenizer = byte_level_tokenizer(bos=True)
    made = module("llama", tokenizer, length=96)
    made.generation_config.repetition_penalty = 1.2
    made.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


REQUESTS = [
    *(
        Request("loglikelihood", f"Question {i}: what is seven?", f" {word} café")
        for i, word in enumerate(("yes", "no", "perhaps", "never"))
    ),
    Request("loglikelihood", "", "no prompt"),
    Request("loglikelihood_rolling", "The quick brown fox jumps over the lazy dog. " * 3),
    Request("loglikelihood_rolling", "Naïve"),
    *(Request("generate_until", f"The quick {i}", until=("q",), max_tokens=9) for i in range(5)),
    Request("generate_until", "A B C D", max_tokens=12),
]


def test_answers_are_those_of_the_transformers_engine(vllm: type[LLM], parent: Path) -> None:
    ours = VllmEngine(parent, PLAN)
    assert not isinstance(ours, StreamingEngine)
    local = TransformersEngine(load_parent(str(parent), EnginePlan(dtype="float32")), EnginePlan())
    expected = answers(local, REQUESTS)
    found = answers(ours, REQUESTS)
    for request, mine, theirs in zip(REQUESTS, found, expected, strict=True):
        assert mine.text == theirs.text, request
        assert mine.logprob == (
            None if theirs.logprob is None else pytest.approx(theirs.logprob, abs=1e-4)
        )
        assert mine.greedy == theirs.greedy
        assert (mine.tokens_in, mine.tokens_out) == (theirs.tokens_in, theirs.tokens_out)
        assert mine.truncated == theirs.truncated
    assert {bool(r.text) for r in found} == {True, False}
    assert ours.settings["repetition_penalty"] == 1.2
    assert ours.settings["engine"] == "vllm"
    ours.close()


def test_what_is_likeliest_counts_as_greedy(vllm: type[LLM], parent: Path) -> None:
    engine = VllmEngine(parent, PLAN)
    start = Request("generate_until", "The quick", max_tokens=1)
    (first,) = engine.answer([start])
    loaded = load_parent(str(parent), EnginePlan(dtype="float32"))
    ids = loaded.tokenizer("The quick")["input_ids"]
    with torch.inference_mode():
        best = int(loaded.module(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
    likeliest = loaded.tokenizer.decode([best])
    scored = [Request("loglikelihood", "The quick", c) for c in (likeliest, "@")]
    yes, no = engine.answer(scored)
    if len(loaded.tokenizer(likeliest, add_special_tokens=False)["input_ids"]) == 1:
        assert yes.greedy
    assert not no.greedy
    assert first.tokens_out == 1


def test_a_long_prompt_is_cut_to_leave_room(vllm: type[LLM], parent: Path) -> None:
    engine = VllmEngine(parent, PLAN)
    long = "A B C D " * 60
    scored, written = engine.answer(
        [Request("loglikelihood", long, " no"), Request("generate_until", long, max_tokens=5)]
    )
    assert scored.truncated
    assert written.truncated
    with pytest.raises(TaskError, match="longer than the model"):
        engine.answer([Request("loglikelihood", "A", " " + "yes no " * 100)])


def test_limits_and_faults(
    vllm: type[LLM], parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(PlanError, match="more than the 96 tokens"):
        VllmEngine(parent, PLAN.model_copy(update={"max_length": 200}))

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise ValueError("no CUDA device")

    monkeypatch.setattr(sys.modules["vllm"], "LLM", refuse)
    with pytest.raises(ParentError, match=r"vLLM cannot load .*no CUDA device"):
        VllmEngine(parent, PLAN)


def plan_data(parent: Path, workload: Path, out: Path) -> dict[str, Any]:
    return {
        "parent": str(parent),
        "workloads": [str(workload)],
        "variants": [{"method": "rtn", "bits": 4, "group_size": 32}],
        "fidelity": {"windows": 2, "length": 48},
        "cost": {"enabled": False},
        "engine": {"kind": "vllm", "dtype": "float32", "device": "cpu", "threads": 1},
        "out": str(out),
    }


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "questions.jsonl"
    rows: list[dict[str, Any]] = [
        {"prompt": f"{i} plus", "target": "x", "max_tokens": 6} for i in range(4)
    ]
    rows += [{"prompt": f"{i} is", "choices": ["odd", "even"], "answer": 0} for i in range(4)]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def test_a_run_through_vllm_has_one_model_in_memory_and_equal_items(
    vllm: type[LLM], parent: Path, questions: Path, tmp_path: Path
) -> None:
    data = plan_data(parent, questions, tmp_path / "vllm")
    through = load_run(run_plan(resolve_plan(data)))
    assert vllm.alive == 0
    assert [Path(m["model"]).name.split("-")[0] for m in vllm.made] == ["tiny", "rtn", "tiny"]
    data["engine"] = {**data["engine"], "kind": "transformers"}
    data["out"] = str(tmp_path / "local")
    local = load_run(run_plan(resolve_plan(data)))
    columns = ["variant", "item_id", "prompt_hash", "response", "score"]
    ours, theirs = (
        run.items[columns].astype(str).sort_values(columns[:2]).reset_index(drop=True)
        for run in (through, local)
    )
    assert len(ours) == 3 * 8
    assert ours.to_dict("records") == theirs.to_dict("records")
    assert not through.fidelity.empty


def test_without_vllm_nothing_is_loaded(parent: Path, questions: Path, tmp_path: Path) -> None:
    plan = resolve_plan(plan_data(parent, questions, tmp_path / "run"))
    with pytest.raises(MissingDependencyError, match="vLLM is not installed") as caught:
        run_plan(plan)
    assert "pip install vllm" in caught.value.hint
    assert not (tmp_path / "run").exists()
    with pytest.raises(MissingDependencyError, match="cannot be imported"):
        VllmEngine(parent, PLAN)


def test_what_the_vllm_engine_does_not_do(
    vllm: type[LLM], parent: Path, questions: Path, tmp_path: Path
) -> None:
    data = plan_data(parent, questions, tmp_path / "run")
    with pytest.raises(PlanError, match="rounds its KV cache"):
        run_plan(resolve_plan({**data, "variants": [{"kv_bits": 4}]}))
