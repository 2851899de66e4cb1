"""The page beside the rows: what an answer means, what to do with it, and how the rows were made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from mlxforge.knowledge.commands.grammar import Row
from mlxforge.knowledge.commands.line import command_line
from mlxforge.knowledge.commands.schema import Schema
from mlxforge.knowledge.commands.validate import written

CASES = {
    "plain": "says all that is needed",
    "context": "one value is in the context alone",
    "clarification": "fits several commands, or leaves a value open",
    "incomplete": "lacks something that the command needs",
    "off_topic": "is nothing for this program",
    "typo": "has slips of the keyboard",
}


def readme(schema: Schema, rows: Sequence[Row], result: Mapping[str, Any], seed: int) -> str:
    """The README of a folder of rows, in Markdown."""
    limits = result["thresholds"]
    figures = result["diversity"]
    total = max(1, len(rows))
    cases = [f"| {name} | {number:,} | {number / total:.1%} | {CASES[name]} |" for name, number in result["cases"].items()]
    parts = ", ".join(f"{name} {number:,}" for name, number in result["rows"].items())
    lines = [
        f"# Requests to commands of `{schema.cli_name}`",
        "",
        f"{len(rows):,} rows by `mlxforge synth commands`, seed {seed}: {parts}. Rows of one command with the same"
        " values are in one part. `schema.yaml` is what they were made from, `schema.json` the JSON schema of an answer.",
        "",
        "## A row",
        "",
        "`instruction` is the request, `context` an object or null (where somebody is, what is selected, what was done before),"
        " `output` the answer as JSON in a text, `source` how the row was made.",
        "",
        "## An answer",
        "",
        "| key | value |",
        "|---|---|",
        "| `command` | the command's full name, or null |",
        "| `arguments` | values by name; lists where something may be given several times |",
        "| `flags` | flags as they are written |",
        "| `confidence` | from 0 to 1, how clear the request is: a label by rule, not a measured probability |",
        "| `action` | `run`, `confirm`, `suggest` or `ask`, see below |",
        "| `missing` | of `suggest` and `ask`: the arguments whose values are not known |",
        "| `candidates` | of `suggest` and `ask`: the commands that may be meant |",
        "| `question` | of `suggest` and `ask`: what to ask |",
        "",
        "| action | confidence | what a program does with it |",
        "|---|---|---|",
        f"| `run` | from {limits['run']:g} on | runs the command |",
        f"| `confirm` | from {limits['confirm']:g} on | shows the command, runs it if the user agrees |",
        f"| `suggest` | from {limits['suggest']:g} on | shows what it may have been, and the question |",
        f"| `ask` | below {limits['suggest']:g} | asks the question |",
        "",
        "A command or a flag that the schema marks with `confirm: true` is never `run`, however clear the request is.",
        "",
        "## Cases",
        "",
        "| case | rows | share | a request that |",
        "|---|---|---|---|",
        *cases,
        "",
        *_examples(schema, rows),
        "## How different they are",
        "",
        f"Equal instructions {figures['equal']:.1%}; distinct-1, -2, -3: {figures['distinct_1']:.3f}, "
        f"{figures['distinct_2']:.3f}, {figures['distinct_3']:.3f}; {figures['templates']:,} sentences without their"
        f" values, the most used one {figures['template_uses']} times; {figures['reordered']:.0%} of the rows with several"
        f" parts in another order than the schema's; {figures['commands']} of {figures['commands_in_schema']} commands.",
        "",
        "Values keep to their type, bounds and choices. What else a program wants (a file that exists, options that exclude"
        " each other) no schema says: an answer may still be refused.",
        "",
    ]
    return "\n".join(lines)


def _examples(schema: Schema, rows: Sequence[Row]) -> list[str]:
    """The first row of each case, with its command line where it has one."""
    first: dict[str, Row] = {}
    for row in rows:
        first.setdefault(row.case, row)
    lines = ["```text"]
    for row in first.values():
        context = [f"  context: {msgspec.json.encode(row.context).decode()}"] if row.context else []
        runs = row.answer["action"] in ("run", "confirm")
        line = [f"  line:    {command_line(schema, row.answer)}"] if runs else []
        lines += [f"{row.case}: {row.instruction}", *context, f"  output:  {written(row.answer)}", *line]
    return [*lines, "```", ""]
