"""Tags in YAML files that make Python run when the file is read, found without reading them so."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from evalq.errors import TaskError

__all__ = ["code_tags"]

_PLAIN = ("tag:yaml.org,2002:", "!!")


def code_tags(path: Path, trusted: Sequence[Path], seen: set[Path] | None = None) -> Iterator[str]:
    """Each tag that is more than data in a YAML file and its includes, as ``FILE: !function x.y``.

    Args:
        path: the file, resolved.
        trusted: folders whose files are not looked into, resolved.
        seen: files looked into already.

    Raises:
        TaskError: no such file, or no YAML.
    """
    seen = set() if seen is None else seen
    if path in seen or any(path.is_relative_to(folder) for folder in trusted):
        return
    seen.add(path)
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(f"{path} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise TaskError(f"{path} is no YAML: {error}") from None
    if root is None:
        return
    for node in _nodes(root):
        if not node.tag.startswith(_PLAIN):
            yield f"{path}: {node.tag} {getattr(node, 'value', '')}"
    if isinstance(root, yaml.MappingNode):
        for key, value in root.value:
            if getattr(key, "value", None) == "include":
                for node in _nodes(value):
                    if isinstance(node, yaml.ScalarNode):
                        yield from code_tags((path.parent / node.value).resolve(), trusted, seen)


def _nodes(root: yaml.Node) -> Iterator[yaml.Node]:
    """Every node once; YAML's anchors can make a small file a large tree."""
    pending, seen = [root], set()
    while pending:
        node = pending.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        yield node
        if isinstance(node, yaml.MappingNode):
            pending += [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            pending += node.value
