"""A tokenizer as llama.cpp's two kinds of vocabulary: byte-level BPE (``gpt2``) and BPE over characters (``llama``).

All comes from the tokenizer as transformers loads it, the one that training saw. What a GGUF file cannot say of a tokenizer is
refused where it would change common texts, else told in ``Vocabulary.limits``.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Union

from mlxforge.core.errors import ModelError
from mlxforge.export.portable import portable
from mlxforge.export.pretokenizers import Spaces, find_pre, find_spaces, steps
from mlxforge.models.detect import Detected, detect_folder, read_config, read_json
from mlxforge.models.load import load_tokenizer
from mlxforge.models.template import GENERATION_FILE, ChatTemplate

__all__ = ["Vocabulary", "portable", "read_vocabulary", "vocabulary"]

Key = tuple[Union[str, Any], ...]  # key, value, name of its GGUFValueType; of an array, the type of its items too
Added = dict[str, Any]

# GGUF's types of tokens.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")
UNREACHED = -1e9  # score of what no merge makes
# llama.cpp knows these by their text, whatever the file says: generation ends at them, and text never spells them.
ENDS_BY_NAME = frozenset((
    *("<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>"),
    *("<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>", "<end_of_utterance>"),
    *("<eos>", "<turn|>", "<|tool_response>", "<｜end▁of▁sentence｜>", "[e~["),
))  # fmt: skip
ALWAYS_PARSED = frozenset(("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"))


@dataclass(frozen=True)
class Vocabulary:
    """What goes into a GGUF file of a tokenizer, and what does not.

    Attributes:
        keys: (key, value, type) for the writer.
        limits: what llama.cpp will do otherwise than the tokenizer, in words.
        agreed: a text as both must agree on it: itself, a normalised form, or None where ``limits`` says that they do not.
    """

    keys: list[Key]
    limits: tuple[str, ...]
    agreed: Callable[[str], str | None]

    def comparable(self, texts: Iterable[str]) -> list[str]:
        """The texts on which llama.cpp and the tokenizer must give the same ids."""
        return [text for text in map(self.agreed, texts) if text is not None]


def vocabulary(folder: Path, rows: int, template: ChatTemplate | None = None) -> list[Key]:
    """The ``tokenizer.*`` keys of a model folder. See :func:`read_vocabulary`."""
    return read_vocabulary(folder, rows, template).keys


def read_vocabulary(folder: Path, rows: int, template: ChatTemplate | None = None) -> Vocabulary:
    """A folder's tokenizer for a model with ``rows`` rows in its embedding.

    Args:
        template: what training saw of chats; None for a model without chats.

    Raises:
        ModelError: llama.cpp has no such tokenizer, or ids lie beyond the rows.
    """
    detected = detect_folder(folder)
    tokenizer = load_tokenizer(folder, detected)._tokenizer
    if not getattr(tokenizer, "is_fast", False):
        fix = "use a copy of the model with tokenizer.json"
        raise ModelError(f"a slow tokenizer ({type(tokenizer).__name__}), which lists no merges", where=str(folder), fix=fix)
    named = {name: value for name, value in tokenizer.special_tokens_map.items() if isinstance(value, str)}
    plan = template.codec.plan if template else tokenizer.backend_tokenizer.to_str()
    return Tokens(folder, rows, json.loads(plan), named, detected, template).read()


@dataclass(frozen=True)
class Tokens:
    """A tokenizer's plan (tokenizer.json as it was loaded) on its way into GGUF keys."""

    folder: Path
    rows: int
    plan: dict[str, Any]
    named: dict[str, str]
    detected: Detected
    template: ChatTemplate | None

    def read(self) -> Vocabulary:
        """All keys; see :func:`read_vocabulary`."""
        self._check_model()
        keys, limits, agreed = self._characters() if self.model.get("byte_fallback") else self._bytes()
        ids, untold = self._special_ids()
        first, unlike = self._ends()
        chat: list[Key] = [("tokenizer.chat_template", portable(self.template), "STRING")] if self.template else []
        told = (*limits, *untold, *unlike, *self._added_limits())
        uncertain = self._uncertain()

        def compared(text: str) -> str | None:
            return None if uncertain.search(text) else agreed(text)

        return Vocabulary([*keys, *ids, *first, *chat], told, compared)

    @property
    def where(self) -> str:
        return str(self.folder / "tokenizer.json")

    @property
    def model(self) -> dict[str, Any]:
        model: dict[str, Any] = self.plan["model"]
        return model

    @cached_property
    def added(self) -> list[Added]:
        """Added tokens that have a row."""
        return [token for token in self.plan["added_tokens"] if token["id"] < self.rows]

    @cached_property
    def ids(self) -> dict[str, int]:
        return {**self.model["vocab"], **{token["content"]: token["id"] for token in self.added}}

    @cached_property
    def merges(self) -> list[tuple[str, str]]:
        """Pairs; tokenizer.json has them as ``"a b"`` or as ``["a", "b"]``."""
        pairs = (one.split(" ", 1) if isinstance(one, str) else one for one in self.model["merges"])
        return [(left, right) for left, right in pairs]

    @cached_property
    def controls(self) -> frozenset[str]:
        """Tokens that only a template may write."""
        if self.template:
            return frozenset(self.template.codec.special)
        return frozenset(token["content"] for token in self.added if token["special"] or token["content"] in self.detected.eot)

    def _check_model(self) -> None:
        """Raises ModelError for what is no BPE, or one with parts that llama.cpp lacks."""
        kind = self.model["type"]
        if kind != "BPE":
            fix = "llama.cpp runs it, mlxforge writes BPE vocabularies only" if kind in ("Unigram", "WordPiece") else "use BPE"
            raise ModelError(f"a tokenizer of type {kind}", where=self.where, fix=fix)
        for part in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
            if self.model.get(part):
                raise ModelError(f"the tokenizer has {part}={self.model[part]!r}, llama.cpp has no such", where=self.where)
        beyond = [token for token, at in self.model["vocab"].items() if at >= self.rows]
        beyond += [token["content"] for token in self.plan["added_tokens"] if token["id"] >= self.rows]
        unknown = [token for token in beyond if token not in self.detected.family.unembedded]
        if unknown:
            what = f"{len(unknown):,} tokens lie beyond the {self.rows:,} rows of the embedding, such as {unknown[0]!r}"
            raise ModelError(what, where=self.where, fix="use the model's own tokenizer")

    # Byte-level BPE

    def _bytes(self) -> tuple[list[Key], list[str], Callable[[str], str | None]]:
        normalizers = steps(self.plan["normalizer"])
        composed = normalizers == ("NFC",)
        if normalizers not in ((), ("NFC",)):
            what = f"the tokenizer normalises text by {' + '.join(normalizers)}, llama.cpp does not"
            raise ModelError(what, where=self.where, fix="export an MLX folder instead")
        whole = bool(self.model.get("ignore_merges"))
        row = find_pre(self.plan["pre_tokenizer"], whole, lambda: self._unmerged is None, self.where)
        spaced = next((pair for pair in self.merges if " " in pair[0] or " " in pair[1]), None)
        if spaced:
            raise ModelError(f"a merge of {spaced} holds a space, which GGUF cannot say", where=self.where)
        keys = [
            ("tokenizer.ggml.model", "gpt2", "STRING"),
            ("tokenizer.ggml.pre", row.name, "STRING"),
            *self._tokens(lambda token: token["content"]),
            ("tokenizer.ggml.merges", [" ".join(pair) for pair in self.merges], "ARRAY", "STRING"),
        ]
        limits = ["texts are not normalised to NFC: letters written with combining marks become other tokens"] * composed
        limits += [row.limit] if row.limit else []

        def agreed(text: str) -> str | None:
            text = unicodedata.normalize("NFC", text) if composed else text
            return None if row.outside and row.outside(text) else text

        return keys, limits, agreed

    @cached_property
    def _unmerged(self) -> str | None:
        """A token that its own text does not become by merging; None where there is none."""
        from tokenizers import Tokenizer

        bare = {"version": "1.0", "added_tokens": [], "model": {**self.model, "ignore_merges": False}}
        model = Tokenizer.from_str(json.dumps(bare)).model
        added = {token["content"] for token in self.added}
        return next((one for one in self.model["vocab"] if one and one not in added and len(model.tokenize(one)) != 1), None)

    # BPE over characters

    def _characters(self) -> tuple[list[Key], list[str], Callable[[str], str | None]]:
        row = find_spaces(self.plan["normalizer"], self.plan["pre_tokenizer"], self.where)
        if row.parted and (inner := next((one for one in self.model["vocab"] if "▁" in one[1:]), None)):
            what = f"words are parted at spaces, yet {inner!r} is a token: llama.cpp would write it"
            raise ModelError(what, where=self.where, fix="export an MLX folder instead")
        lacking = [f"<0x{value:02X}>" for value in range(256) if f"<0x{value:02X}>" not in self.ids]
        if lacking:
            raise ModelError(f"the vocabulary lacks {len(lacking)} byte tokens, such as {lacking[0]}", where=self.where)
        prefix = row.prefix and not (row.first_only and self.template)
        keys = [
            ("tokenizer.ggml.model", "llama", "STRING"),
            ("tokenizer.ggml.pre", "default", "STRING"),
            *self._tokens(self._as_written, self._scores()),
            ("tokenizer.ggml.add_space_prefix", prefix, "BOOL"),
        ]
        limits = self._unlisted_merges()
        if row.first_only:
            what = "no space goes before a text" if self.template else "a space goes after each special token too"
            limits.append(f"{what}: llama.cpp cannot put one at the very beginning only")
        elif row.once:
            limits.append("a text that begins with a space gets another one before it")
        return keys, limits, self._agreed_spaces(row, prefix)

    def _agreed_spaces(self, row: Spaces, prefix: bool) -> Callable[[str], str | None]:
        """``Vocabulary.agreed`` of a tokenizer over characters."""
        names = "|".join(re.escape(token["content"]) for token in self.added) or r"(?!)"
        named, spaced = re.compile(names), re.compile(rf"(?:\A|{names})[ ▁]")

        def agreed(text: str) -> str | None:
            if row.first_only and not prefix:
                return text if not text or text[0] in " ▁" or named.match(text) else " " + text
            if row.first_only and named.search(text):
                return None
            return None if row.once and spaced.search(text) else text

        return agreed

    def _as_written(self, token: Added) -> str:
        """An added token as it stands in raw text, where llama.cpp looks for it."""
        written: str = token["content"]
        return written.replace("▁", " ") if token["normalized"] and not token["special"] else written

    def _matched_raw(self, token: Added) -> bool:
        """Whether an added token is found in raw text: the others hold spaces as merges write them, which make them."""
        return bool(token["normalized"]) or not ("▁" in token["content"] and token["content"] in self._ranks)

    @cached_property
    def _ranks(self) -> dict[str, int]:
        """Of each token that a merge makes, the place of the first."""
        ranks: dict[str, int] = {}
        for place, (left, right) in enumerate(self.merges):
            ranks.setdefault(left + right, place)
        return ranks

    def _scores(self) -> list[float]:
        scores = [0.0 if at < len(self.ids) else UNREACHED for at in range(self.rows)]
        for token, at in self.ids.items():
            if at < self.rows and len(token) > 1:
                scores[at] = -float(self._ranks[token]) if token in self._ranks else UNREACHED
        return scores

    def _unlisted_merges(self) -> list[str]:
        """llama.cpp merges any two tokens that make a third; this tells where the tokenizer would not."""
        vocab, listed, added = self.model["vocab"], set(self.merges), {token["content"] for token in self.added}
        lacking = [
            token
            for token in vocab
            if token not in added and not BYTE_TOKEN.fullmatch(token)
            for cut in range(1, len(token))
            if token[:cut] in vocab and token[cut:] in vocab and (token[:cut], token[cut:]) not in listed
        ]
        if not lacking:
            return []
        return [f"llama.cpp merges {len(lacking):,} pairs that the tokenizer does not, as for {lacking[0]!r}"]

    # Both kinds

    def _tokens(self, written: Callable[[Added], str], scores: list[float] | None = None) -> list[Key]:
        texts = [f"[PAD{at}]" for at in range(self.rows)]
        types = [UNUSED] * self.rows
        for token, at in self.model["vocab"].items():
            if at < self.rows:
                texts[at], types[at] = token, BYTE if scores and BYTE_TOKEN.fullmatch(token) else NORMAL
        for token in self.added:
            texts[token["id"]], types[token["id"]] = written(token), self._type(token, bool(scores))
        for at in [at for at, kind in enumerate(types) if kind == UNUSED]:
            while texts[at] in self.ids:
                texts[at] += "_"
        keys: list[Key] = [("tokenizer.ggml.tokens", texts, "ARRAY", "STRING")]
        if scores:
            keys.append(("tokenizer.ggml.scores", scores, "ARRAY", "FLOAT32"))
        return [*keys, ("tokenizer.ggml.token_type", types, "ARRAY", "INT32")]

    def _type(self, token: Added, characters: bool) -> int:
        text = token["content"]
        # Byte-level tokenizers name the end of text here, which is a control token.
        if characters and text == (self.model.get("unk_token") or self.named.get("unk_token")):
            return UNKNOWN
        if text in self.controls:
            return CONTROL
        return USER_DEFINED if not characters or self._matched_raw(token) else NORMAL

    def _special_ids(self) -> tuple[list[Key], list[str]]:
        """The ids of named tokens, and those at which generation stops: an end of text, of a turn and of a message."""
        config = {**read_config(self.folder), **self._generation}
        nested = config.get("text_config")
        config = {**(nested if isinstance(nested, dict) else {}), **config}
        found = {name: self._id(self.named.get(f"{name}_token"), config.get(f"{name}_token_id")) for name in NAMED_IDS}
        stops = (
            list(self.template.stop) if self.template else [self.ids[token] for token in self.detected.eot if token in self.ids]
        )
        if found["eos"] is None:
            found["eos"] = stops[0] if stops else None
        if found["eos"] is None:
            raise ModelError("no token ends a text", where=str(self.folder), fix="name eos_token in tokenizer_config.json")
        # Without one llama.cpp would take token 11.
        found["bos"] = found["eos"] if found["bos"] is None else found["bos"]
        turn = [self.ids[token] for token in self.template.ends.values()] if self.template else []
        ordinary = {self.ids[token] for token in self._always}
        by_name = {self.ids[token] for token in ENDS_BY_NAME if token in self.ids}
        wanted = dict.fromkeys((*turn, *sorted(set(stops) - by_name), *sorted(stops)))
        rest = [at for at in wanted if at != found["eos"] and at not in ordinary]
        found.update(eot=rest[0] if rest else None, eom=rest[1] if rest[1:] else None)
        untold = (set(rest[2:]) - by_name) | (set(stops) & ordinary)
        names = ", ".join(repr(token) for token, at in self.ids.items() if at in untold)
        limits = [f"generation does not stop at {names}"] if untold else []
        kept = {GGUF_IDS.get(name, name): at for name, at in found.items() if at is not None}
        return [(f"tokenizer.ggml.{name}_token_id", at, "UINT32") for name, at in kept.items()], limits

    @property
    def _generation(self) -> dict[str, Any]:
        if self.template:
            return self.template.generation
        file = self.folder / GENERATION_FILE
        return read_json(file) if file.is_file() else {}

    def _id(self, token: str | None, configured: Any) -> int | None:
        """The id of a token's name, else the one that config.json gives, where it is a token."""
        if token in self.ids:
            return self.ids[str(token)]
        first = configured[0] if isinstance(configured, list) and configured else configured
        return first if isinstance(first, int) and first in self.ids.values() else None

    def _ends(self) -> tuple[list[Key], list[str]]:
        """Whether llama.cpp is to put BOS before a text and EOS after it, as the tokenizer does."""
        before, after = self._around
        bos, eos = self.named.get("bos_token"), self.named.get("eos_token")
        limits = []
        if before not in ([], [bos]) or after not in ([], [eos]):
            text = " ".join([*before, "TEXT", *after])
            limits.append(f"the tokenizer writes plain text as {text!r}, llama.cpp cannot")
        starts = before == [bos]
        if starts and self.template and self.template.bos is None:
            # llama.cpp takes a leading BOS off what the template writes and adds its own: here it would add one too many.
            starts = False
            limits.append(f"plain text gets no {bos!r}, since the chat template writes none")
        add_eos = after == [eos] and not self.template
        return [("tokenizer.ggml.add_bos_token", starts, "BOOL"), ("tokenizer.ggml.add_eos_token", add_eos, "BOOL")], limits

    @cached_property
    def _around(self) -> tuple[list[str], list[str]]:
        """Tokens that the tokenizer puts before and after a plain text."""
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_str(json.dumps(self.plan))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        bare = tokenizer.encode("a", add_special_tokens=False).tokens
        whole = tokenizer.encode("a").tokens
        place = next((at for at in range(len(whole)) if whole[at : at + len(bare)] == bare), 0)
        return whole[:place], whole[place + len(bare) :]

    def _added_limits(self) -> list[str]:
        """What llama.cpp cannot be told of added tokens."""
        named = {what: [token["content"] for token in self.added if token.get(flag)] for flag, what in FLAGS.items()}
        named["these names in a text become tokens"] = self._spelled
        named["these names in a text become tokens even where special ones may not"] = self._always
        named["a text that holds ▁ itself may become other tokens, for the sake of these"] = self._of_spaces
        named["these tokens are found without a space before them too"] = self._behind_space
        return [
            f"{what}: {', '.join(map(repr, names[:3]))}{', …' * (len(names) > 3)}" for what, names in named.items() if names
        ]

    @property
    def _behind_space(self) -> list[str]:
        """Added tokens to which the normaliser puts a space, as it does to texts."""
        prepends = any(step.startswith("prepend") for step in steps(self.plan["normalizer"]))
        return [token["content"] for token in self.added if token["normalized"] and prepends]

    @property
    def _of_spaces(self) -> list[str]:
        """Added tokens of spaces, which the tokenizer finds in a text of ``▁`` too."""
        names = (token["content"] for token in self.added if self._as_written(token) != token["content"])
        return list(names) if self.model.get("byte_fallback") else []

    def _uncertain(self) -> re.Pattern[str]:
        """Finds texts in which ``_added_limits`` come to bear."""
        forms = [re.escape(name) for name in (*self._spelled, *self._behind_space, *self._always)]
        forms += ["▁"] if self._of_spaces else []
        for token in self.added:
            name = re.escape(token["content"])
            forms += [form.format(name) for flag, form in BESIDE.items() if token.get(flag)]
        return re.compile("|".join(forms) or r"(?!)")

    @property
    def _always(self) -> list[str]:
        """Control tokens of gpt-oss that llama.cpp makes ordinary ones."""
        whole = ALWAYS_PARSED | ({"<|end|>"} if {"<|return|>", "<|call|>"} <= set(self.ids) else set())
        return sorted(whole & self.controls)

    @cached_property
    def _spelled(self) -> list[str]:
        """Names of tokens that llama.cpp makes of a text that spells them, and the tokenizer does not."""
        added, vocab = {token["content"] for token in self.added}, self.model["vocab"]
        names = ENDS_BY_NAME & set(vocab) - added
        if self.model.get("byte_fallback"):
            # It merges any two tokens that make a third, whatever the third is.
            unmade = {name for name in vocab if BYTE_TOKEN.fullmatch(name)} | (self.controls & set(vocab))
            names |= {
                name for name in unmade if any(name[:cut] in vocab and name[cut:] in vocab for cut in range(1, len(name)))
            }
        return sorted(names)


NAMED_IDS = ("bos", "eos", "unk", "sep", "pad", "mask")
GGUF_IDS = {"unk": "unknown", "sep": "seperator", "pad": "padding"}  # as GGUF spells them
FLAGS = {
    "lstrip": "spaces before these tokens are not swallowed",
    "rstrip": "spaces after these tokens are swallowed only where the model's name says Phi-3",
    "single_word": "these tokens are found inside words too",
}


BESIDE = {"lstrip": r"\s{}", "rstrip": r"{}\s", "single_word": r"\w{0}|{0}\w"}  # the text beside a token that shows a flag
