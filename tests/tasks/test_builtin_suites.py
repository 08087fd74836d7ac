"""The suites of the built-in parent, from any working directory."""

from collections import Counter
from pathlib import Path

import pytest

from evalq.schema import Response, slice_ancestors
from evalq.tasks import build
from evalq.tasks.bridge import BuiltTask

SUITES = ["builtin-math", "builtin-multilingual", "builtin-reasoning", "builtin-text"]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, BuiltTask]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("elsewhere"))
        return {task.name: task for task in build(SUITES)}


def answer(text: str) -> Response:
    return Response(text=text, tokens_in=1, tokens_out=1)


def test_every_top_slice_has_three_hundred_items_and_every_language_forty(
    tasks: dict[str, BuiltTask],
) -> None:
    count: Counter[str] = Counter()
    for task in tasks.values():
        for name in slice_ancestors(task.slice):
            count[name] += len(task.items)
    for top in ("math", "multilingual", "reasoning"):
        assert count[top] >= 300
    languages = [name for name in count if name.startswith("multilingual/")]
    assert {f"multilingual/{c}" for c in ("en", "de", "sw", "te", "am", "yo")} <= set(languages)
    assert len(languages) >= 8
    assert all(count[name] >= 40 for name in languages)


def test_all_three_output_types_are_there_and_no_examples(tasks: dict[str, BuiltTask]) -> None:
    kinds = Counter(request.kind for task in tasks.values() for request in task.requests)
    assert set(kinds) == {"generate_until", "loglikelihood", "loglikelihood_rolling"}
    assert kinds["loglikelihood"] == 2 * len(tasks["builtin_boolean"].items)
    assert all(task.num_fewshot == 0 for task in tasks.values())


def test_no_prompt_is_asked_twice(tasks: dict[str, BuiltTask]) -> None:
    for task in tasks.values():
        assert len({item.prompt_hash for item in task.items}) == len(task.items)


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("builtin_products_short", " 11 + 22 = {}", " {} + 22 = 7"),
        ("builtin_chains", " 5, 7, {}", " {}, 5"),
        ("builtin_stories", " 3 * 4 = {} ", " {} pens are left"),
        ("builtin_swaps", " A, AB B, AC {}", " {}, BF "),
        ("builtin_words_sw", " {}", " {}."),
        ("builtin_ordering", " {}", " {}, Zed"),
    ],
)
def test_only_the_final_answer_counts(
    tasks: dict[str, BuiltTask], name: str, right: str, wrong: str
) -> None:
    task = tasks[name]
    targets = [item.target for item in task.items]
    assert all(r.score == 1 for r in task.records([answer(right.format(t)) for t in targets]))
    assert all(r.score == 0 for r in task.records([answer("")] * len(targets)))
    scores = [r.score for r in task.records([answer(wrong.format(t)) for t in targets])]
    # a wrong answer of fixed text may be right for an item by chance
    assert sum(s == 0 for s in scores) / len(scores) > 0.8


def test_the_longest_right_answer_fits_into_the_tokens_allowed() -> None:
    import json

    from evalq.tasks.suites import suites_folder

    folder = Path(suites_folder()) / "builtin" / "items"
    for path in folder.glob("multilingual-*.jsonl"):
        for line in path.read_text(encoding="utf-8").split("\n"):
            if line:
                assert len(json.loads(line)["target"].encode()) + 2 <= 72
