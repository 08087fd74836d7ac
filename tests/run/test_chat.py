"""Chat templates: lm-eval's own prompts, and the same ones from local models and endpoints."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import datasets
import pytest
from lm_eval import evaluator
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from lm_eval.tasks._factory import TaskFactory
from lm_eval.tasks._index import TaskIndex

from evalq.compare.runs import load_run
from evalq.errors import PlanError, TaskError
from evalq.models.load import load_parent
from evalq.plan import EnginePlan, Plan, parse_plan
from evalq.run import resolve_plan, run_plan
from evalq.run.prompts import prompt_record, prompt_settings, prompts_key
from evalq.serve.app import ServeSettings
from evalq.serve.engine import ServeEngine
from evalq.serve.server import running
from evalq.tasks.bridge import build
from evalq.tasks.index import find_task
from tests.models.tiny import byte_level_tokenizer, module
from tests.tasks.conftest import shared_data  # noqa: F401
from tests.tasks.test_bridge import hub

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content | trim }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
SHORT = "{% for m in messages %}{{ m.role[0] }}: {{ m.content }}\n{% endfor %}"


@pytest.fixture(scope="module")
def chat_parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("chat") / "talker"
    tokenizer = byte_level_tokenizer()
    tokenizer.chat_template = TEMPLATE
    module("llama", tokenizer, length=512).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def talk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("talk") / "talk.jsonl"
    rows: list[dict[str, Any]] = [
        {"prompt": f"What is {i} plus one? ", "target": str(i + 1), "max_tokens": 8}
        for i in range(5)
    ]
    rows += [
        {
            "messages": [
                {"role": "user", "content": f"Say {i}."},
                {"role": "assistant", "content": str(i)},
                {"role": "user", "content": "Again."},
            ],
            "target": str(i),
            "max_tokens": 8,
        }
        for i in range(3)
    ]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


class Watched(HFLM):
    """lm-eval's own engine, which writes down what it is asked and answers at random."""

    def __init__(self, parent: Path) -> None:
        loaded = load_parent(str(parent), EnginePlan(device="cpu"))
        super().__init__(pretrained=loaded.module, tokenizer=loaded.tokenizer, batch_size=1)
        self.asked: list[tuple[Any, ...]] = []

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        self.asked += [(r.args[0], "") for r in requests]
        return ["7"] * len(requests)

    def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        self.asked += [tuple(r.args) for r in requests]
        return [(-1.0, False)] * len(requests)


def chat_plan(parent: Path, **prompts: Any) -> Plan:
    return parse_plan({"parent": str(parent), "prompts": {"chat_template": True, **prompts}})


@pytest.mark.parametrize("multiturn", [True, False])
@pytest.mark.parametrize("selection", ["math:gsm8k", "multilingual:xcopa_sw"])
def test_prompts_are_those_of_lm_evals_apply_chat_template(
    selection: str,
    multiturn: bool,
    chat_parent: Path,
    shared_data: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watched = Watched(chat_parent)
    plan = chat_plan(chat_parent, system="Be brief.", multiturn=multiturn)
    prompts = prompt_settings(plan, watched.tokenizer)
    (built,) = build([selection], data_dir=shared_data, limit=4, prompts=prompts)
    monkeypatch.setattr(evaluator, "add_env_info", lambda results: None)
    monkeypatch.setattr(
        datasets, "load_dataset", lambda path, name=None, **k: hub(shared_data, path, name, **k)
    )
    entry = TaskIndex.entry_from_path(find_task(built.name))
    assert entry is not None
    evaluator.simple_evaluate(
        model=watched,
        tasks=[TaskFactory()._build_task(entry, None)],
        limit=4,
        bootstrap_iters=0,
        apply_chat_template=True,
        fewshot_as_multiturn=multiturn,
        system_instruction="Be brief.",
        task_manager=TaskManager(include_defaults=False),
    )
    ours = [(r.context, r.continuation) for r in built.requests]
    assert ours == watched.asked
    assert ours[0][0].startswith("[system] Be brief.")
    if selection == "math:gsm8k":
        turns = built.requests[0].messages
        assert turns[0] == ("system", "Be brief.")
        assert [role for role, _ in turns[1:]] == (
            ["user", "assistant"] * built.num_fewshot + ["user"] if multiturn else ["user"]
        )


def run_with(tmp_path: Path, **data: Any) -> Path:
    plan = resolve_plan(
        {
            "fidelity": {"enabled": False},
            "cost": {"enabled": False},
            "control": {"enabled": False},
            "engine": {"threads": 1},
            "out": str(tmp_path / "run"),
            **data,
        }
    )
    return run_plan(plan)


def test_local_chat_and_completions_read_the_same_prompts(
    chat_parent: Path, talk: Path, choices: Path, tmp_path: Path
) -> None:
    """Our own server has the parent's template: all three give the same text, token for token."""
    served = ServeEngine(load_parent(str(chat_parent), EnginePlan(device="cpu")))
    with running({"a": served}, ServeSettings("talker", {"a": 1.0})) as url:
        path = run_with(
            tmp_path,
            parent=str(chat_parent),
            variants=[
                {"name": "chat", "endpoint": {"url": url, "api": "chat"}},
                {"name": "plain", "endpoint": {"url": url}},
            ],
            workloads=[str(talk)],
            prompts={"chat_template": True, "system": "Be brief."},
        )
    run = load_run(path)
    table = run.items.pivot(index="item_id", columns="variant", values="response").astype(str)
    assert (table["parent"] == table["chat"]).all()
    assert (table["parent"] == table["plain"]).all()
    assert len(set(table["parent"])) > 1
    tokens = run.items.pivot(index="item_id", columns="variant", values="tokens_in")
    assert (tokens["parent"] == tokens["chat"]).all()
    assert (tokens["parent"] == tokens["plain"]).all()
    prompt = str(run.items["prompt"].iloc[5])
    assert prompt == (
        "[system] Be brief.\n[user] Say 0.\n[assistant] 0\n[user] Again.\n[assistant] "
    )
    assert run.info["prompts"]["chat_template"]["source"] == "the tokenizer's"
    assert run.info["warnings"] == []


def test_a_served_models_log_likelihoods_are_the_local_ones(
    chat_parent: Path, choices: Path, tmp_path: Path
) -> None:
    served = ServeEngine(load_parent(str(chat_parent), EnginePlan(device="cpu")))
    with running({"a": served}, ServeSettings("talker", {"a": 1.0})) as url:
        path = run_with(
            tmp_path,
            parent=str(chat_parent),
            variants=[{"name": "served", "endpoint": {"url": url}}],
            workloads=[str(choices)],
            prompts={"chat_template": True},
        )
    run = load_run(path)
    table = run.items.pivot(index="item_id", columns="variant", values="response").astype(str)
    assert len(table) == 24
    assert (table["parent"] == table["served"]).all()
    with sqlite3.connect(path / "journal.sqlite") as journal:
        rows = journal.execute("SELECT logprob FROM responses ORDER BY logprob").fetchall()
    values = [v for (v,) in rows]
    assert len(values) == 2 * 48
    assert values[::2] == pytest.approx(values[1::2], abs=1e-4)


def test_another_template_is_asked_anew(chat_parent: Path, talk: Path, tmp_path: Path) -> None:
    def keys(plan: Plan) -> tuple[str, set[str]]:
        tokenizer = load_parent(plan.parent, EnginePlan(device="cpu")).tokenizer
        record = prompt_record(plan, tokenizer)
        built = build([], [talk], prompts=prompt_settings(plan, tokenizer))
        return prompts_key(record), {r.hash for task in built for r in task.requests}

    same, other = tmp_path / "same.jinja", tmp_path / "other.jinja"
    same.write_text(TEMPLATE)
    other.write_text(SHORT)
    own, own_hashes = keys(chat_plan(chat_parent))
    copied, copied_hashes = keys(chat_plan(chat_parent, chat_template=str(same)))
    changed, changed_hashes = keys(chat_plan(chat_parent, chat_template=str(other)))
    told, told_hashes = keys(chat_plan(chat_parent, system="Be brief."))
    assert own == copied
    assert own_hashes == copied_hashes
    assert len({own, changed, told, ""}) == 4
    assert not own_hashes & changed_hashes
    assert not own_hashes & told_hashes
    plain = parse_plan({"parent": str(chat_parent)})
    assert prompts_key(prompt_record(plain, None)) == ""


def test_a_chat_endpoint_beside_plain_text_is_said(
    chat_parent: Path, workload: Path, tmp_path: Path
) -> None:
    served = ServeEngine(load_parent(str(chat_parent), EnginePlan(device="cpu")))
    with running({"a": served}, ServeSettings("talker", {"a": 1.0})) as url:
        path = run_with(
            tmp_path,
            parent=str(chat_parent),
            variants=[{"endpoint": {"url": url, "api": "chat", "model": "talker"}}],
            workloads=[str(workload)],
            limit=2,
        )
    assert "part of any difference is the template's" in load_run(path).info["warnings"][0]


def test_messages_need_a_template_or_a_chat_endpoint(
    chat_parent: Path, talk: Path, tmp_path: Path
) -> None:
    with pytest.raises(TaskError, match="has messages, and no chat template is applied"):
        run_with(
            tmp_path,
            parent=str(chat_parent),
            variants=[{"method": "rtn", "bits": 4, "group_size": 32}],
            workloads=[str(talk)],
        )
    served = ServeEngine(load_parent(str(chat_parent), EnginePlan(device="cpu")))
    with running({"a": served}, ServeSettings("talker", {"a": 1.0})) as url:
        path = run_with(
            tmp_path,
            parent={"endpoint": {"url": url, "api": "chat"}},
            variants=[{"name": "v", "endpoint": {"url": url, "api": "chat", "body": {"top_k": 1}}}],
            workloads=[str(talk)],
        )
    run = load_run(path)
    assert run.info["prompts"]["chat_template"]["source"] == "the endpoint's own"
    table = run.items.pivot(index="item_id", columns="variant", values="response").astype(str)
    assert (table["parent"] == table["v"]).all()


def test_templates_that_are_not_there(chat_parent: Path, talk: Path, tmp_path: Path) -> None:
    missing = tmp_path / "none.jinja"
    for prompts, message in (
        ({"chat_template": str(missing)}, "cannot read the chat template"),
        ({"chat_template": str(tmp_path)}, "cannot read the chat template"),
    ):
        with pytest.raises(PlanError, match=message):
            run_with(tmp_path, parent=str(chat_parent), workloads=[str(talk)], prompts=prompts)
    plan = parse_plan(
        {
            "parent": {"endpoint": {"url": "http://h:1", "model": "m"}},
            "variants": [{"endpoint": {"url": "http://h:2", "model": "m"}}],
            "prompts": {"chat_template": True},
        }
    )
    with pytest.raises(PlanError, match="no tokenizer here"):
        prompt_settings(plan, None)
    written = tmp_path / "t.jinja"
    written.write_text(TEMPLATE)
    named = plan.model_copy(
        update={"prompts": plan.prompts.model_copy(update={"chat_template": str(written)})}
    )
    render = prompt_settings(named, None).chat_template
    assert render is not None
    assert render([{"role": "user", "content": "hi"}]) == "[user] hi\n[assistant] "
