"""The family table holds: types exist, templates render and stop, and documents that share a line cannot see each other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

import mlxforge.models.families as table
from mlxforge.models.detect import mlx_lm_types, remapped_type, template_text
from mlxforge.models.families import FAMILIES, TEMPLATES, Family

USER, ANSWER = {"role": "user", "content": "QUESTION"}, {"role": "assistant", "content": "ANSWER"}
SYSTEM = {"role": "system", "content": "RULES"}
BY_NAME = pytest.mark.parametrize("family", FAMILIES.values(), ids=list(FAMILIES))


def render(family: Family, messages: list[dict[str, str]], trim: bool = True, **more: Any) -> str:
    """The family's template as transformers renders it; ``trim`` false is the plain Jinja environment."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=trim, lstrip_blocks=trim)
    tokens = {"eos_token": family.chat.eos} | ({"bos_token": family.chat.bos} if family.chat.bos else {})
    return environment.from_string(template_text(family.chat.template)).render(messages=messages, **tokens, **more)


def test_the_promised_families_are_there() -> None:
    promised = (
        "llama2 llama3 mistral mixtral qwen2 qwen3 qwen3_moe qwen3_5 gemma gemma2 gemma3 phi3 phi4 smollm2 smollm3 olmo2 "
        "granite stablelm deepseek deepseek_v2 deepseek_v3 glm4 cohere cohere2 lfm2 gpt_oss falcon_h1"
    )
    assert set(promised.split()) <= set(FAMILIES)


@BY_NAME
def test_mlx_lm_implements_every_type(family: Family) -> None:
    assert {remapped_type(kind) for kind in family.model_types} <= mlx_lm_types()


def test_types_read_without_importing_are_mlx_lms_own() -> None:
    from mlx_lm.utils import MODEL_REMAPPING

    assert {kind: remapped_type(kind) for kind in MODEL_REMAPPING} == MODEL_REMAPPING


def test_a_shared_type_has_evidence_for_all_but_one_row() -> None:
    for kind in {kind for family in FAMILIES.values() for kind in family.model_types}:
        rows = [family for family in FAMILIES.values() if kind in family.model_types]
        assert len(rows) == 1 or sum(row.tells is None for row in rows) <= 1


def test_every_template_is_a_file_and_is_used() -> None:
    files = {file.stem for file in (Path(table.__file__).parent / "templates").glob("*.jinja")}
    assert files == set(TEMPLATES)
    assert files == {family.chat.template for family in FAMILIES.values()}


@BY_NAME
def test_markers_written_by_a_template_are_required(family: Family) -> None:
    """A token in angle brackets that the template writes is required as a single token, or is plain text by intent."""
    written = set(re.findall(r"<[|｜][^|｜'>]+[|｜]>", template_text(family.chat.template)))
    plain_text = {"glm4": set(), "tulu": {"<|system|>", "<|user|>", "<|assistant|>"}, "zephyr": {"<|assistant|>"}}
    known = {*TEMPLATES[family.chat.template], family.chat.bos, family.chat.eos, *family.eot}
    assert written <= known | plain_text.get(family.chat.template, set())


@BY_NAME
def test_single_turn(family: Family) -> None:
    prompt = render(family, [USER], add_generation_prompt=True)
    whole = render(family, [USER, ANSWER])
    assert whole.startswith(prompt)
    assert whole[len(prompt) :].lstrip(" ").startswith("ANSWER")
    assert any(token in whole.split("ANSWER")[1] for token in family.eot)
    assert "None" not in prompt + whole


@BY_NAME
def test_many_turns(family: Family) -> None:
    whole = render(family, [USER, ANSWER, USER, ANSWER])
    assert (whole.count("QUESTION"), whole.count("ANSWER")) == (2, 2)
    pieces = whole.split("ANSWER")
    assert all(any(token in piece for token in family.eot) for piece in pieces[1:])
    assert family.chat.bos is None or whole.startswith(family.chat.bos) or family.chat.bos not in whole


@BY_NAME
def test_system_comes_before_the_question(family: Family) -> None:
    whole = render(family, [SYSTEM, USER, ANSWER])
    assert whole.count("RULES") == 1
    assert whole.index("RULES") < whole.index("QUESTION")
    if family.system == "fold":
        apart = whole[whole.index("RULES") : whole.index("QUESTION")]
        assert not any(token in apart for token in family.eot)


@BY_NAME
def test_rendering_does_not_hang_on_the_environment(family: Family) -> None:
    messages = [SYSTEM, USER, ANSWER, USER]
    for more in ({}, {"add_generation_prompt": True}):
        assert render(family, messages, trim=True, **more) == render(family, messages, trim=False, **more)


def test_content_is_never_changed() -> None:
    odd = "  two\n\n lines {{ braces }} \n"
    for family in FAMILIES.values():
        assert odd in render(family, [USER, {"role": "assistant", "content": odd}])
