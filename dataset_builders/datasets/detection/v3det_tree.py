"""V3Det's category tree: where each category stands, and which others it keeps from being absent.

File ``v3det_2023_v1_category_tree.json``, described in https://github.com/V3Det/V3Det (README.md):
mappings `categoryid2treeid`, `id2name`, `id2synonym_list` and `child2father`, keyed by text. A node
may have several fathers. Categories of one name are one label here, so a label may stand at several
nodes.
"""

import json
import random
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from dataset_builders.errors import SettingError
from dataset_builders.names import normalised
from dataset_builders.seeds import seed_of
from dataset_builders.tasks.absence import Nearness, tree_nearness

MIN_AGREEING = 0.5
"""Share of the categories that the tree must know by the name of the annotation file. ours

An early release of the tree had wrong `categoryid2treeid` for nearly all of them (V3Det issue 3).
"""
MAX_COUSINS = 256
"""Most labels remembered as near to one: under the tree's root they would be thousands. ours"""
_KEYS = ("categoryid2treeid", "id2name", "id2synonym_list", "child2father")
_NODE = "\0"  # in front of node ids, so that none can be the name of a category


@dataclass(kw_only=True)
class CategoryTree:
    """The tree over the labels of one annotation file; `read_tree` makes it."""

    nodes: Mapping[str, Collection[str]]
    """Nodes by label; a label that the tree does not know by its name is not there."""
    fathers: Mapping[str, Collection[str]]
    """The nodes right above each node."""
    terms: Mapping[str, Collection[str]]
    """Name and synonyms of each label, `normalised`."""
    _below: dict[str, frozenset[str]] = field(default_factory=dict)

    @cached_property
    def children(self) -> Mapping[str, Collection[str]]:
        """The nodes right below each node."""
        found: dict[str, list[str]] = {}
        for child, fathers in self.fathers.items():
            for father in fathers:
                found.setdefault(father, []).append(child)
        return found

    @cached_property
    def labels(self) -> Mapping[str, Collection[str]]:
        """The labels of each node."""
        return _turned(self.nodes)

    @cached_property
    def called(self) -> Mapping[str, Collection[str]]:
        """The labels that each name or synonym may stand for."""
        return _turned(self.terms)

    def above(self, node: str) -> set[str]:
        """Return a node and all above it."""
        return _reached(node, self.fathers)

    def below(self, node: str) -> frozenset[str]:
        """Return the labels of a node and of all below it."""
        if node not in self._below:
            nodes = _reached(node, self.children)
            self._below[node] = frozenset(label for n in nodes for label in self.labels.get(n, ()))
        return self._below[node]

    def related(self, label: str) -> frozenset[str]:
        """Return the labels that may not be called absent where `label` is, itself included.

        These are the labels with a name or synonym in common, all above it, and the whole subtree
        of its father: itself, its siblings and what lies below them. Everything lies below the
        root, so right under it only the label's own subtree and its siblings count.
        """
        found = {label}
        for term in self.terms.get(label, ()):
            found.update(self.called[term])
        for node in self.nodes.get(label, ()):
            found |= self.below(node)
            for higher in self.above(node):
                found.update(self.labels.get(higher, ()))
            for father in self.fathers.get(node, ()):
                if self.fathers.get(father):
                    found |= self.below(father)
                else:
                    found.update(
                        other
                        for child in self.children[father]
                        for other in self.labels.get(child, ())
                    )
        return frozenset(found)

    def cousins(self, label: str) -> tuple[str, ...]:
        """Return the labels nearest to `label` in the tree that may be absent where it is present.

        They are found below the lowest node above it that has any.

        Returns:
            The labels, sorted; a draw of `MAX_COUSINS` where there are more.
        """
        level = set(self.nodes.get(label, ()))
        seen = set(level)
        related = self.related(label)
        while level := {f for node in level for f in self.fathers.get(node, ())} - seen:
            seen |= level
            if found := sorted(frozenset().union(*(self.below(node) for node in level)) - related):
                drawn = random.Random(seed_of("cousins", label)).sample(
                    found, min(MAX_COUSINS, len(found))
                )
                return tuple(sorted(drawn))
        return ()

    def nearness(self) -> Nearness:
        """Return how near two labels are in the tree, by first node and first father of each."""
        parent = {
            _NODE + node: _NODE + min(fathers) for node, fathers in self.fathers.items() if fathers
        }
        parent |= {label: _NODE + min(nodes) for label, nodes in self.nodes.items()}
        return tree_nearness(parent)


def read_tree(path: Path, categories: Mapping[int, str], names: Mapping[int, str]) -> CategoryTree:
    """Read the tree for the categories of an annotation file.

    Args:
        path: The tree's JSON file.
        categories: Category id -> label.
        names: Category id -> name as stored.

    Raises:
        SettingError: The file is not of its form, or knows the categories by other names.
    """
    try:
        tree = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise SettingError(f"{path.name} is not valid JSON: {error}") from error
    if not isinstance(tree, dict) or not all(isinstance(tree.get(key), dict) for key in _KEYS):
        raise SettingError(f"{path.name}: want an object with the mappings {', '.join(_KEYS)}")
    tree_ids, tree_names, synonyms, fathers = (tree[key] for key in _KEYS)
    nodes: dict[str, list[str]] = {}
    terms: dict[str, set[str]] = {}
    placed = 0
    for number, label in categories.items():
        terms.setdefault(label, set()).add(normalised(label))
        node = str(tree_ids.get(str(number)))
        called = {normalised(name) for name in _texts(tree_names.get(node))}
        also = {normalised(name) for name in _texts(synonyms.get(node))}
        if normalised(names[number]) in called | also:
            placed += 1
            nodes.setdefault(label, []).append(node)
            terms[label] |= called | also
    if placed < MIN_AGREEING * len(categories):
        raise SettingError(
            f"{path.name}: only {placed} of {len(categories)} categories stand in it under their "
            f"names. "
            f"An early release had wrong categoryid2treeid: get the current one"
        )
    above = {child: tuple(_texts(found)) for child, found in fathers.items()}
    return CategoryTree(nodes=nodes, fathers=above, terms=terms)


def _texts(value: Any) -> list[str]:
    """Return one text or a list of them as a list; ids may be numbers."""
    values = value if isinstance(value, list) else [value]
    return [str(item) for item in values if isinstance(item, str | int)]


def _turned(mapping: Mapping[str, Collection[str]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for key, values in mapping.items():
        for value in sorted(values):
            found.setdefault(value, []).append(key)
    return found


def _reached(start: str, steps: Mapping[str, Collection[str]]) -> set[str]:
    found, pending = {start}, [start]
    while pending:
        new = set(steps.get(pending.pop(), ())) - found
        found |= new
        pending.extend(new)
    return found
