"""Every record of the bridge against the samples that lm-eval's own evaluator logs."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from lm_eval import evaluator
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager
from lm_eval.tasks._factory import TaskFactory
from lm_eval.tasks._index import TaskIndex

from evalq.errors import PlanError, TaskError
from evalq.schema import ItemRecord, Response
from evalq.tasks.bridge import BuiltTask, build
from evalq.tasks.index import find_task
from evalq.tasks.inventory import data_status
from evalq.tasks.items import ItemScore
from evalq.tasks.prompts import PromptSettings
from evalq.tasks.requests import to_requests
from evalq.tasks.suites import load_suite
from tests.tasks.conftest import Oracle


@pytest.fixture(autouse=True)
def _no_inventory(monkeypatch: pytest.MonkeyPatch) -> None:
    """lm-eval lists every installed package with its results, which takes seconds."""
    monkeypatch.setattr(evaluator, "add_env_info", lambda results: None)


class OracleLM(LM):
    """The oracle as one of lm-eval's models."""

    tokenizer_name = "oracle"

    def __init__(self, oracle: Oracle, template: Callable[..., str] | None = None) -> None:
        super().__init__()
        self.oracle = oracle
        self.template = template

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        return [self.oracle.logprob(*r.args) for r in requests]

    def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
        return [self.oracle.logprob(r.args[0], "")[0] for r in requests]

    def generate_until(self, requests: list[Any]) -> list[str]:
        return [self.oracle.text(r.args[0]) for r in requests]

    def apply_chat_template(self, history: Any, add_generation_prompt: bool = True) -> str:
        assert self.template is not None
        return self.template(history, add_generation_prompt=add_generation_prompt)

    def chat_template(self, chat_template: Any = False) -> str:
        return "test"


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def hub(data: Path, path: str, name: str | None = None, **_: Any) -> Any:
    """What ``datasets.load_dataset`` gives for the datasets of the tests, made by hand."""
    rows: dict[str, list[dict[str, Any]]]
    if path == "openai/gsm8k":
        train = read_jsonl(data / "gsm8k/train-first-1000.jsonl")
        rows = {"train": train, "test": read_jsonl(data / "gsm8k/test.jsonl")}
    elif path == "juletxara/mgsm":
        pairs = [
            line.split("\t")
            for line in (data / f"mgsm/mgsm_{name}.tsv").read_text(encoding="utf-8").split("\n")
            if line
        ]
        test = [
            {
                "question": question,
                "answer": None,
                "answer_number": int(answer.replace(",", "")),
                "equation_solution": None,
            }
            for question, answer in pairs
        ]
        rows = {"train": test[:1], "test": test}
    elif path == "cambridgeltl/xcopa":
        rows = {
            "validation": read_jsonl(data / f"xcopa/val.{name}.jsonl"),
            "test": read_jsonl(data / f"xcopa/test.{name}.jsonl"),
        }
    else:
        assert path == "SaylorTwift/bbh"
        rows = {"test": json.loads((data / f"bbh/{name}.json").read_text())["examples"]}
    return datasets.DatasetDict({k: datasets.Dataset.from_list(v) for k, v in rows.items()})


def known_answers(built: BuiltTask) -> dict[str, str]:
    """The oracle knows every second answer, so that scores are neither all 0 nor all 1."""
    before = " So the answer is" if "_cot_" in built.name else ""
    after = "." if before else ""
    return {item.prompt: f"{before} {item.target}{after}" for item in built.items[::2]}


def lm_eval_samples(
    task: Any, oracle: Oracle, limit: int | None, **settings: Any
) -> list[dict[str, Any]]:
    template = settings.pop("template", None)
    out = evaluator.simple_evaluate(
        model=OracleLM(oracle, template),
        tasks=[task],
        limit=limit,
        bootstrap_iters=0,
        log_samples=True,
        task_manager=TaskManager(include_defaults=False),
        **settings,
    )
    assert out is not None
    return list(out["samples"][task.config.task])


def as_json(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [as_json(v) for v in value]
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def assert_equal(
    built: BuiltTask, oracle: Oracle, samples: list[dict[str, Any]]
) -> list[ItemScore]:
    records = built.records([oracle.answer(r) for r in built.requests])
    samples = [s for s in samples if s["filter"] == built.filter]
    assert len(records) == len(samples) > 0
    for record, sample in zip(records, samples, strict=True):
        assert record.item_id == str(sample["doc_id"])
        for key in ("doc_hash", "prompt_hash", "target_hash"):
            assert getattr(record, key) == sample[key]
        assert record.filter == sample["filter"]
        metrics = json.loads(record.metrics)
        assert set(metrics) == set(sample["metrics"])
        for name, value in metrics.items():
            expected = sample[name]
            assert value == as_json(expected)
        if record.score is not None:
            assert record.score == float(sample[record.metric])
        assert record.prompt == sample["arguments"][0][0]
    return records


SELECTIONS = [
    "math:gsm8k",
    "math:mgsm_direct_en",
    "multilingual:mgsm_direct_sw",
    "multilingual:mgsm_direct_zh",
    "multilingual:xcopa_sw",
    "multilingual:xcopa_it",
    "reasoning:bbh_cot_fewshot_navigate",
    "reasoning:bbh_cot_fewshot_word_sorting",
    "reasoning-zeroshot:bbh_zeroshot_word_sorting",
]


@pytest.mark.parametrize("selection", SELECTIONS)
def test_records_equal_lm_evals_samples(
    selection: str, shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (built,) = build([selection], data_dir=shared_data, limit=30)
    oracle = Oracle(known_answers(built))
    monkeypatch.setattr(
        datasets, "load_dataset", lambda path, name=None, **k: hub(shared_data, path, name, **k)
    )
    entry = TaskIndex.entry_from_path(find_task(built.name))
    assert entry is not None
    theirs = TaskFactory()._build_task(entry, None)
    records = assert_equal(built, oracle, lm_eval_samples(theirs, oracle, 30))
    assert len(records) == 30
    assert 0 < sum(r.score or 0.0 for r in records) < 30
    # A second variant is scored from scratch: nothing of the first is left.
    blank = [Response(logprob=-1.0, greedy=False, text="") for _ in built.requests]
    again = built.records(blank)
    assert sum(r.score or 0.0 for r in again) < 30
    assert built.records([oracle.answer(r) for r in built.requests]) == records


def template(messages: Any, add_generation_prompt: bool = True) -> str:
    text = "".join(f"<{m['role']}>{m['content']}</{m['role']}>\n" for m in messages)
    return text + ("<assistant>" if add_generation_prompt else "")


@pytest.mark.parametrize("multiturn", [False, True])
@pytest.mark.parametrize("selection", ["math:gsm8k", "multilingual:xcopa_it"])
def test_chat_prompts_equal_lm_evals(
    selection: str, multiturn: bool, shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = PromptSettings(chat_template=template, system="Be brief.", multiturn=multiturn)
    (built,) = build([selection], data_dir=shared_data, limit=5, prompts=prompts)
    oracle = Oracle(known_answers(built))
    monkeypatch.setattr(
        datasets, "load_dataset", lambda path, name=None, **k: hub(shared_data, path, name, **k)
    )
    entry = TaskIndex.entry_from_path(find_task(built.name))
    assert entry is not None
    samples = lm_eval_samples(
        TaskFactory()._build_task(entry, None),
        oracle,
        5,
        apply_chat_template=True,
        fewshot_as_multiturn=multiturn,
        system_instruction="Be brief.",
        template=template,
    )
    assert_equal(built, oracle, samples)
    assert "<system>Be brief." in built.requests[0].context


TASKS = {
    "rolling": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list:
  - {metric: word_perplexity, aggregation: weighted_perplexity, higher_is_better: false}
  - {metric: byte_perplexity, aggregation: weighted_perplexity, higher_is_better: false}
  - {metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}
""",
    "cloze": """
output_type: loglikelihood
doc_to_text: "{{text}}"
doc_to_target: " {{word}}"
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: perplexity, aggregation: perplexity, higher_is_better: false}
""",
    "choice": """
output_type: multiple_choice
doc_to_text: "{{text}}"
doc_to_target: "{{gold}}"
doc_to_choice: ["yes", "no indeed", "maybe ć"]
metric_list:
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_mutual_info, aggregation: mean, higher_is_better: true}
  - {metric: brier_score, aggregation: brier_score, higher_is_better: false}
""",
    "repeated": """
output_type: generate_until
doc_to_text: "{{text}}"
doc_to_target: "{{gold}}"
repeats: 3
generation_kwargs: {until: ["."], do_sample: true, temperature: 0.7, max_gen_toks: 9}
filter_list:
  - name: vote
    filter:
      - {function: regex, regex_pattern: "(\\\\d)", group_select: -1}
      - {function: majority_vote}
      - {function: take_first}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
""",
}


def write_suite(folder: Path, kind: str, **entry: Any) -> Path:
    lines = [
        {
            "text": f"Line number {i} of\nthe text, with ünïcode 象{i}.",
            "word": f"w{i}",
            "gold": i % 3,
        }
        for i in range(12)
    ]
    folder.joinpath("items.jsonl").write_text(
        "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8"
    )
    folder.joinpath("task.yaml").write_text(
        f"task: own_{kind}\ndataset_path: json\n"
        "dataset_kwargs: {data_files: {test: items.jsonl}}\ntest_split: test\n"
        "metadata: {version: 1.5}\n" + TASKS[kind],
        encoding="utf-8",
    )
    settings = {"task": f"own_{kind}", "file": "task.yaml", "slice": "own", **entry}
    path = folder / "suite.yaml"
    path.write_text(json.dumps({"suite": "own", "version": 1, "tasks": [settings]}))
    return path


@pytest.mark.parametrize("kind", sorted(TASKS))
def test_every_kind_of_task_equals_lm_eval(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = write_suite(tmp_path, kind, cluster="{word}")
    (built,) = build([str(suite)])
    monkeypatch.chdir(tmp_path)  # lm-eval reads data_files from the working directory
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    entry = TaskIndex.entry_from_path(tmp_path / "task.yaml")
    assert entry is not None
    oracle = Oracle()
    samples = lm_eval_samples(TaskFactory()._build_task(entry, None), oracle, None)
    records = assert_equal(built, oracle, samples)
    assert [r.cluster for r in records] == [f"w{i}" for i in range(12)]
    assert {r.task_version for r in records} == {"1.5"}


@pytest.mark.parametrize(
    "selection",
    ["builtin-math:builtin_chains", "builtin-reasoning:builtin_boolean", "builtin-text"],
)
def test_built_in_suites_equal_lm_eval(
    selection: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (built,) = build([selection], limit=20)
    (entry,) = load_suite(selection).tasks
    monkeypatch.chdir(Path(entry.file).parent)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    theirs = TaskIndex.entry_from_path(Path(entry.file))
    assert theirs is not None
    oracle = Oracle(known_answers(built))
    samples = lm_eval_samples(TaskFactory()._build_task(theirs, None), oracle, 20)
    assert_equal(built, oracle, samples)


@pytest.mark.parametrize("suite", ["math", "multilingual", "reasoning", "reasoning-zeroshot"])
def test_all_tasks_with_local_data_ask_what_lm_eval_asks(
    suite: str, shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = [
        entry
        for entry in load_suite(suite).tasks
        if data_status(entry, shared_data).status == "local"
    ]
    assert len(chosen) >= {"math": 2, "multilingual": 21}.get(suite, 27)
    monkeypatch.setattr(datasets, "load_dataset", partial(hub, shared_data))
    for entry in chosen:
        (built,) = build([f"{suite}:{entry.task}"], data_dir=shared_data, limit=2)
        index = TaskIndex.entry_from_path(find_task(entry.task))
        assert index is not None
        theirs = TaskFactory()._build_task(index, None)
        theirs.set_config(key="num_fewshot", value=built.num_fewshot)
        theirs.set_fewshot_seed(seed=1234)
        theirs.build_all_requests(limit=2)
        assert to_requests(theirs.instances, entry.task) == built.requests, entry.task
        assert str(theirs.VERSION) == entry.version


def test_rolling_tasks_give_nats_over_words(tmp_path: Path) -> None:
    (built,) = build([str(write_suite(tmp_path, "rolling"))])
    assert [r.kind for r in built.requests] == ["loglikelihood_rolling"] * 12
    records = built.records([Response(logprob=-2.5 * i - 1) for i in range(12)])
    assert [r.nll for r in records] == [2.5 * i + 1 for i in range(12)]
    assert {r.units for r in records} == {9}  # "Line number i of the text, with ünïcode 象i."
    assert {r.score for r in records} == {None}


def test_repeats_are_sampled_with_seeds_of_their_own(tmp_path: Path) -> None:
    (built,) = build([str(write_suite(tmp_path, "repeated"))])
    assert len(built.requests) == 36
    assert [r.seed for r in built.requests[:4]] == [0, 1, 2, 0]
    assert built.requests[0].temperature == 0.7
    assert built.requests[0].until == (".",)
    assert built.requests[0].max_tokens == 9
    answers = [Response(text=t) for t in ("1", "0", "0")] * 12
    assert [r.score for r in built.records(answers)] == [1.0, 0.0, 0.0] * 4


def test_the_option_chosen_follows_the_metric(tmp_path: Path) -> None:
    (built,) = build([str(write_suite(tmp_path, "choice"))])
    # Normalized by 3, 9 and 7 characters the second is best, by itself the first.
    one = [Response(logprob=x, greedy=False) for x in (-3.0, -4.0, -7.0, -1.0, -1.0, -1.0)]
    assert built.metric == "acc_norm"
    assert {r.response for r in built.records(one * 12)} == {"no indeed"}
    assert [r.target for r in built.records(one * 12)][:3] == ["yes", "no indeed", "maybe ć"]
    (plain,) = build([str(write_suite(tmp_path, "choice", metric="acc"))])
    assert {r.response for r in plain.records(one * 12)} == {"yes"}


def test_item_scores_have_the_fields_of_item_records() -> None:
    ours = [f.name for f in fields(ItemScore)]
    assert ours == [f.name for f in fields(ItemRecord)][2:]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"metric": "brier_score"}, "better when lower"),
        ({"metric": "accuracy"}, "no metric 'accuracy'"),
        ({"filter": "strict"}, "no filter 'strict'"),
        ({"version": "2.0"}, "is version 1.5"),
        ({"task": "own_other"}, "defines task 'own_choice'"),
        ({"cluster": "{passage}"}, "no column 'passage'"),
        ({"num_fewshot": 40}, "prompts cannot be built"),
    ],
)
def test_a_suite_that_does_not_fit_its_task_is_refused(
    entry: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(TaskError, match=message):
        build([str(write_suite(tmp_path, "choice", **entry))])


@pytest.mark.parametrize(
    ("responses", "message"),
    [
        ([Response(logprob=-1.0, greedy=True)], "given 1 responses"),
        ([Response(logprob=float("nan"), greedy=True)] * 72, "log-probability nan"),
        ([Response(text="yes")] * 72, "log-probability None"),
        ([Response(logprob=-1.0)] * 72, "does not say whether"),
    ],
)
def test_unusable_responses_are_refused(
    responses: list[Response], message: str, tmp_path: Path
) -> None:
    (built,) = build([str(write_suite(tmp_path, "choice"))])
    with pytest.raises(TaskError, match=message):
        built.records(responses)


def test_tasks_that_shuffle_are_built_alike_each_time(tmp_path: Path) -> None:
    suite = write_suite(tmp_path, "choice")
    (tmp_path / "shuffle.py").write_text(
        "import random\n\ndef docs(d):\n"
        "    return d.map(lambda x: {'text': x['text'] + str(random.random())}, "
        "load_from_cache_file=False)\n"
    )
    with (tmp_path / "task.yaml").open("a") as file:
        file.write("process_docs: !function shuffle.docs\n")
    state = random.getstate()
    first = build([str(suite)], allow_code=True)[0]
    assert random.getstate() == state
    random.random()
    second = build([str(suite)], allow_code=True)[0]
    assert [i.prompt_hash for i in first.items] == [i.prompt_hash for i in second.items]
    assert len({i.prompt for i in first.items}) == 12


def test_limits_take_the_first_documents(tmp_path: Path) -> None:
    suite = str(write_suite(tmp_path, "choice", limit=5))
    assert [i.item_id for i in build([suite])[0].items] == list("01234")
    assert len(build([suite], limit=3)[0].items) == 3
    assert len(build([suite], limit=30)[0].items) == 5


def test_a_task_is_built_once_however_often_it_is_selected(shared_data: Path) -> None:
    picks = ["multilingual:xcopa_it", "multilingual:xcopa_*,mgsm_direct_sw"]
    built = build(picks, data_dir=shared_data, limit=1)
    assert [b.name for b in built].count("xcopa_it") == 1
    assert len(built) == 12
    with pytest.raises(PlanError, match="no task 'xcopa_xx'"):
        build(["multilingual:xcopa_xx"])


def test_shared_clusters(shared_data: Path) -> None:
    built = build(["math", "multilingual:mgsm_direct_sw"], data_dir=shared_data, limit=4)
    assert len({tuple(i.cluster for i in b.items) for b in built}) == 1
    # The claim behind them: the first items of GSM8K's test split are MGSM's.
    gsm8k, mgsm, _ = (b.task.eval_docs for b in built)
    ours = [q.strip() for q in mgsm["question"]]
    assert ours == [q.strip() for q in gsm8k["question"]][: len(ours)]
