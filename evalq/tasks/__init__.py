"""Suites, workloads and the bridge to lm-eval.

Importing this imports neither lm-eval nor datasets; the functions that need them do.
"""

from evalq.tasks.bridge import BuiltTask, build, build_task, build_workload
from evalq.tasks.items import ItemScore
from evalq.tasks.overlap import Evaluated, evaluated_items, find_overlap
from evalq.tasks.prompts import PromptSettings, chat_template_of
from evalq.tasks.suites import Suite, SuiteTask, list_suites, load_suite
from evalq.tasks.training import evaluated_hashes, training_documents, training_text
from evalq.tasks.workload_texts import WorkloadText, item_text, workload_texts

__all__ = [
    "BuiltTask",
    "Evaluated",
    "ItemScore",
    "PromptSettings",
    "Suite",
    "SuiteTask",
    "WorkloadText",
    "build",
    "build_task",
    "build_workload",
    "chat_template_of",
    "evaluated_hashes",
    "evaluated_items",
    "find_overlap",
    "item_text",
    "list_suites",
    "load_suite",
    "training_documents",
    "training_text",
    "workload_texts",
]
