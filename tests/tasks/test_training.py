from __future__ import annotations

import json
from pathlib import Path

import pytest

from evalq.errors import TaskError
from evalq.tasks import build, evaluated_hashes, load_suite, training_documents, training_text


def texts(selection: str, data: Path) -> list[str]:
    (task,) = load_suite(selection).tasks
    return list(training_text(task, data))


def test_the_training_split_is_written_as_few_shot_examples_are(shared_data: Path) -> None:
    found = texts("math:gsm8k", shared_data)
    assert len(found) == 1000
    first = json.loads((shared_data / "gsm8k/train-first-1000.jsonl").open().readline())
    assert found[0] == f"Question: {first['question']}\nAnswer: {first['answer']}"
    (built,) = build(["math:gsm8k"], data_dir=shared_data, limit=1)
    examples = built.requests[0].context.split("\n\n")[:5]
    assert set(examples) <= set(found)


def test_worked_examples_and_validation_splits_come_next(shared_data: Path) -> None:
    assert len(texts("reasoning:bbh_cot_fewshot_navigate", shared_data)) == 3
    italian = texts("multilingual:xcopa_it", shared_data)
    assert len(italian) == 100
    assert italian[0] == "L'uomo aprì il rubinetto quindi dell'acqua fluì dal beccuccio."


def test_a_task_without_them_gives_nothing(shared_data: Path) -> None:
    assert texts("multilingual:mgsm_direct_sw", shared_data) == []
    assert texts("reasoning-zeroshot:bbh_zeroshot_navigate", shared_data) == []


def test_training_documents_are_told_from_evaluated_ones(shared_data: Path, tmp_path: Path) -> None:
    built = build(["math:gsm8k"], data_dir=shared_data)
    train = {d.doc_hash for d in training_documents(built[0])}
    assert not train & evaluated_hashes(built)
    # The same problem in both splits is found out.
    folder = tmp_path / "gsm8k"
    folder.mkdir()
    line = '{"question": "1+1?", "answer": "#### 2"}\n'
    (folder / "train.jsonl").write_text(line * 6)
    (folder / "test.jsonl").write_text(line)
    built = build(["math:gsm8k"], data_dir=tmp_path)
    train = {d.doc_hash for d in training_documents(built[0])}
    assert train == evaluated_hashes(built)


def test_a_failing_template_is_named(tmp_path: Path) -> None:
    (tmp_path / "items.jsonl").write_text('{"q": "a", "a": "b"}\n')
    (tmp_path / "train.jsonl").write_text('{"q": null, "a": "b"}\n')
    (tmp_path / "t.yaml").write_text(
        "task: t\ndataset_path: json\noutput_type: generate_until\n"
        "dataset_kwargs: {data_files: {train: train.jsonl, test: items.jsonl}}\n"
        'training_split: train\ntest_split: test\ndoc_to_text: "{{q.upper()}}"\n'
        'doc_to_target: "{{a}}"\n'
        "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n"
    )
    (tmp_path / "s.yaml").write_text(
        "{suite: s, version: 1, tasks: [{task: t, file: t.yaml, slice: s}]}"
    )
    (task,) = load_suite(tmp_path / "s.yaml").tasks
    with pytest.raises(TaskError, match="a training document fails"):
        list(training_text(task))
