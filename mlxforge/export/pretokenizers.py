"""How a tokenizer cuts text into words before it merges, as llama.cpp calls it: ``tokenizer.ggml.pre``.

A wrong name is silent: the file loads and most texts keep their ids. So a name is looked up by the whole structure of the
pre-tokenizer, never guessed, and each row of the table is proven by llama.cpp itself in ``tests/export/test_vocabulary.py``.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mlxforge.core.errors import ModelError

Steps = tuple[str, ...]

ANY_CASE = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
ANY_CASE_SHORT = r"'(?i:[sdmt]|ll|ve|re)"
WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
SIGNS, SPACES = r" ?[^\s\p{L}\p{N}]+[\r\n]*", r"\s*[\r\n]+|\s+(?!\S)|\s+"
# The same cuts as tiktoken writes them: no backtracking into what a possessive quantifier took is ever needed.
TIKTOKEN_WORD, TIKTOKEN_SIGNS = r"[^\r\n\p{L}\p{N}]?+\p{L}+", r" ?[^\s\p{L}\p{N}]++[\r\n]*"
TIKTOKEN_SPACES = r"\s*[\r\n]|\s+(?!\S)|\s+"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+", rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*"
CASED_REST = r" ?[^\s\p{L}\p{N}]+[\r\n/]*", SPACES
EAST_ASIAN, HAN_KANA = "[一-龥ࠀ-一가-퟿]+", "[一-龥぀-ゟ゠-ヿ]+"
DEEPSEEK3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTES, GPT2 = "bytes", "gpt-2 words, bytes"  # ByteLevel without and with its own regex


def regex(*parts: str) -> str:
    """The step of a regex that cuts out what it matches."""
    return "split " + "|".join(parts)


def cased(number: str, ending: str) -> str:
    """The regex of o200k and its kin, which cuts words where lower case turns to upper."""
    return regex(*(word + ending for word in CASED), number, *CASED_REST)


@dataclass(frozen=True)
class Pre:
    """What llama.cpp offers for a structure.

    Attributes:
        name: value of ``tokenizer.ggml.pre``.
        whole_words: a word that is a token is taken as it is, without merging (``ignore_merges`` of tokenizer.json).
        outside: tells the texts that llama.cpp cuts otherwise; None where there are none.
        limit: what those texts are, in words.
    """

    name: str
    whole_words: bool = False
    outside: Callable[[str], bool] | None = None
    limit: str = ""


# Letters by what the two regexes ask of them: U, l are ASCII, V, k cased ones of other scripts, o uncased ones, m marks.
CLASSES = {"Lu": "V", "Lt": "V", "Ll": "k", "Lm": "o", "Lo": "o", "Mn": "m", "Mc": "m", "Me": "m"}
MEANT, DONE = re.compile("[UVo]*[lko]+|[UVo]+[lko]*"), re.compile("[UVok]*[lkoV]+|[UVok]+[lkoV]*")


def mixed_case(text: str) -> bool:
    """Whether a text has what llama.cpp's stand-in for the cased regexes cuts otherwise.

    It knows case of ASCII only, and counts no mark among the letters.
    """
    if text.isascii():
        return False
    classes = "".join(
        ("U" if letter.isupper() else "l" if letter.islower() else ".")
        if letter.isascii()
        else CLASSES.get(unicodedata.category(letter), ".")
        for letter in text
    )
    return "m" in classes or MEANT.findall(classes) != DONE.findall(classes)


def wide_space(text: str) -> bool:
    """Whether a text has spaces beyond Latin-1, which llama.cpp does not take for such in these regexes."""
    return any(letter.isspace() and letter > "\xff" for letter in text)


WIDE = "words after spaces other than ASCII's may become other tokens"
CASES = "marks that join a letter, and words that mix upper and lower case beyond ASCII, may become other tokens"

PRE: dict[Steps, tuple[Pre, ...]] = {
    (GPT2,): (Pre("gpt-2"),),
    ("digits", GPT2): (Pre("smollm"),),
    (regex(ANY_CASE, WORD, r"\p{N}{1,3}", SIGNS, SPACES), BYTES): (Pre("llama-bpe", True), Pre("dbrx")),
    (regex(ANY_CASE_SHORT, TIKTOKEN_WORD, r"\p{N}{1,3}", TIKTOKEN_SIGNS, TIKTOKEN_SPACES), BYTES): (
        Pre("llama-bpe", True),
        Pre("dbrx"),
    ),
    (regex(ANY_CASE, WORD, r"\p{N}", SIGNS, SPACES), BYTES): (Pre("qwen2"),),
    (regex(ANY_CASE_SHORT, TIKTOKEN_WORD, r"\p{N}", TIKTOKEN_SIGNS, TIKTOKEN_SPACES), BYTES): (Pre("bailingmoe"),),
    (regex(ANY_CASE, r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+", r"\p{N}", r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*", SPACES), BYTES): (
        Pre("qwen35"),
    ),
    (regex(ANY_CASE, WORD, r"\p{N}{1}", r" ?[^\s\p{L}\p{N}\r\n]+", SPACES), BYTES): (Pre("seed-coder"),),
    (cased(r"\p{N}{1,3}", f"{ANY_CASE}?"), BYTES): (Pre("gpt-4o", False, mixed_case, CASES),),
    (cased(r"\p{N}", ""), BYTES): (Pre("tekken", True, mixed_case, CASES),),
    (regex(r"\p{N}{1,3}"), regex(ANY_CASE, WORD, r"\p{N}+", SIGNS, SPACES), BYTES): (Pre("minicpm5", True),),
    (regex(r"[\r\n]"), regex(r"\s?\p{L}+"), regex(r"\s?\p{P}+"), regex(EAST_ASIAN), "digits", BYTES): (
        Pre("deepseek-coder", False, wide_space, WIDE),
    ),
    (regex(r"\p{N}{1,3}"), regex(HAN_KANA), regex(DEEPSEEK3), BYTES): (Pre("deepseek-v3"),),
}


def steps(node: dict[str, Any] | None) -> Steps:
    """The steps of a pre-tokenizer or normalizer, each in a form that is the same for all ways to write it."""
    if node is None:
        return ()
    if node["type"] == "Sequence":
        return tuple(step for inner in node.get("pretokenizers") or node.get("normalizers") or () for step in steps(inner))
    return (STEP[node["type"]](node) if node["type"] in STEP else str(node["type"]),)


def _byte_level(node: dict[str, Any]) -> str:
    step = GPT2 if node.get("use_regex", True) else BYTES
    return f"space before, {step}" if node.get("add_prefix_space", True) else step


def _split(node: dict[str, Any]) -> str:
    pattern, behaviour, inverted = node["pattern"], node["behavior"], bool(node.get("invert"))
    kind, text = next(iter(pattern.items()))
    text = text.replace("\r", "\\r").replace("\n", "\\n").replace("\t", "\\t")
    # What is matched is kept, what is not is a word too: tiktoken's regexes, written this way, match everything.
    whole = (behaviour, inverted) in (("Isolated", False), ("Removed", True))
    return f"split {text}" if kind == "Regex" and whole else f"split {kind} {behaviour} {'inverted ' * inverted}{text}"


def _metaspace(node: dict[str, Any]) -> str:
    mark = "" if node.get("replacement", "▁") == "▁" else f" {node['replacement']}"
    return f"metaspace {node.get('prepend_scheme', 'always')}{' split' * bool(node.get('split', True))}{mark}"


STEP: dict[str, Callable[[dict[str, Any]], str]] = {
    "ByteLevel": _byte_level,
    "Split": _split,
    "Metaspace": _metaspace,
    "Prepend": lambda node: f"prepend {node['prepend']}",
    "Replace": lambda node: f"replace {next(iter(node['pattern'].values()))!r} {node['content']}",
    "Digits": lambda node: "digits" if node.get("individual_digits") else "numbers",
    "Punctuation": lambda node: f"punctuation {node.get('behavior', 'Isolated')}",
}


def find_pre(node: dict[str, Any] | None, whole_words: bool, merges_reach_all: Callable[[], bool], where: str) -> Pre:
    """The row for a pre-tokenizer.

    Args:
        whole_words: the tokenizer's ``ignore_merges``.
        merges_reach_all: tells whether each token's own text becomes it by merging, so that ``ignore_merges`` changes nothing.

    Raises:
        ModelError: no row is the same; it names what was asked for.
    """
    found = PRE.get(steps(node), ())
    if row := next((row for row in found if row.whole_words == whole_words), None):
        return row
    if found and merges_reach_all():
        return found[0]
    fix = "llama.cpp cuts words in fixed ways only: export an MLX folder instead, or ask for a row in export/pretokenizers.py"
    if found:
        what = f"the tokenizer has ignore_merges={str(whole_words).lower()}, llama.cpp's '{found[0].name}' has the other"
        raise ModelError(what, where=where, fix=fix)
    what = f"no tokenizer of llama.cpp is known to cut words as {' + '.join(steps(node)) or 'no step'}"
    raise ModelError(what, where=where, fix=fix)


@dataclass(frozen=True)
class Spaces:
    """How a tokenizer over characters treats spaces, which it writes as ``▁``.

    Attributes:
        prefix: a space is put before a text.
        first_only: only before the whole text, not after a special token.
        once: not where there is one already.
        parted: no token goes beyond a space.
    """

    prefix: bool
    first_only: bool = False
    once: bool = False
    parted: bool = False


REPLACE, NO_SPACE = "replace ' ' ▁", "split String MergedWithPrevious  "
# (normalizer, pre-tokenizer) -> what becomes of spaces.
CHARACTERS: dict[tuple[Steps, Steps], Spaces] = {
    (("prepend ▁", REPLACE), ()): Spaces(True),
    ((REPLACE,), ()): Spaces(False),
    ((REPLACE,), (NO_SPACE,)): Spaces(False),  # no space is left to split at
    ((), ("metaspace always",)): Spaces(True, once=True),
    ((), ("metaspace first",)): Spaces(True, first_only=True, once=True),
    ((), ("metaspace never",)): Spaces(False),
    ((), ("metaspace always split",)): Spaces(True, once=True, parted=True),
    ((), ("metaspace first split",)): Spaces(True, first_only=True, once=True, parted=True),
    ((), ("metaspace never split",)): Spaces(False, parted=True),
}


def find_spaces(normalizer: dict[str, Any] | None, pre_tokenizer: dict[str, Any] | None, where: str) -> Spaces:
    """The row for a tokenizer over characters.

    Raises:
        ModelError: it does more to a text than to write its spaces.
    """
    asked = steps(normalizer), steps(pre_tokenizer)
    if asked in CHARACTERS:
        return CHARACTERS[asked]
    fix = "export an MLX folder instead"
    raise ModelError(f"llama.cpp knows no tokenizer that prepares text by {' + '.join(sum(asked, ()))}", where=where, fix=fix)
