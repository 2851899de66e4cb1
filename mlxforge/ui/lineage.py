"""Trees of where models come from."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from rich.text import Text
from rich.tree import Tree

from mlxforge.ui.units import one_line

SHORT = 10  # digits of a hash
DIM, MARKED = "bright_black", "bold #4aa8ff"


def pictures(nodes: Iterable[Any], marked: str = "") -> Iterable[Tree]:
    """A tree a base, from the nodes of :func:`mlxforge.runs.lineage.lineage_tree`; the one at path ``marked`` stands out."""
    for node in nodes:
        tree = Tree(_line(node, marked), guide_style=DIM)
        _grow(tree, node, marked)
        yield tree


def _grow(tree: Tree, node: Any, marked: str) -> None:
    for child in node.children:
        _grow(tree.add(_line(child, marked)), child, marked)


def _line(node: Any, marked: str) -> Text:
    text = Text(one_line(node.name), MARKED if marked and node.path == marked else "bold", overflow="fold")
    text.append(f"  {node.kind}", "not bold")
    if node.hash:
        text.append(f"  {node.hash[:SHORT]}", f"not bold {DIM}")
    if node.created:
        text.append(f"  {datetime.fromtimestamp(node.created):%Y-%m-%d %H:%M}", f"not bold {DIM}")
    if node.note:
        text.append(f"  {one_line(node.note)}", "not bold yellow" if "changed" in node.note else "not bold")
    return text
