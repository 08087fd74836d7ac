"""The release gate: a run and a policy in; a verdict, an exit code and reports for CI out."""

from evalq.gate.annotations import github_annotations
from evalq.gate.decide import gate
from evalq.gate.gitlab import code_quality
from evalq.gate.junit import junit_xml
from evalq.gate.markdown import render_markdown
from evalq.gate.policy import LoadedPolicy, Policy, load_policy, parse_policy
from evalq.gate.result import Check, Decision, GateResult, VariantResult
from evalq.gate.write import gate_json, write_outputs, write_step_summary

__all__ = [
    "Check",
    "Decision",
    "GateResult",
    "LoadedPolicy",
    "Policy",
    "VariantResult",
    "code_quality",
    "gate",
    "gate_json",
    "github_annotations",
    "junit_xml",
    "load_policy",
    "parse_policy",
    "render_markdown",
    "write_outputs",
    "write_step_summary",
]
