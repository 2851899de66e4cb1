"""Vocabularies in llama.cpp itself: every row of the tables proven on texts, and the checks shown to bite."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import gguf
import numpy as np
import pytest
from chat_makes import CALL, MAKES, RESULT, TOOL, write_make
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from mlxforge.core.errors import ModelError
from mlxforge.core.rows import Message
from mlxforge.export.fuzz import PIECES, fuzz_texts
from mlxforge.export.general import honest_name
from mlxforge.export.llama import LlamaCpp, available
from mlxforge.export.pretokenizers import (
    BYTES,
    CHARACTERS,
    GPT2,
    NO_SPACE,
    PRE,
    REPLACE,
    find_pre,
    find_spaces,
    mixed_case,
    steps,
)
from mlxforge.export.vocabulary import BYTE, BYTE_TOKEN, CONTROL, NORMAL, UNUSED, USER_DEFINED, portable, read_vocabulary
from mlxforge.models.codec import Codec
from mlxforge.models.families import FAMILIES
from mlxforge.models.render import compiled
from mlxforge.models.template import ChatTemplate, load_template
from mlxforge.models.tiny import make_tiny

needs_llama = pytest.mark.skipif(not available(), reason="needs the extra 'gguf'")
ROWS = [(structure, row) for structure, rows in PRE.items() for row in rows]
ALIKE = ({"qwen2", "bailingmoe"}, {"llama-bpe", "minicpm5"})  # the same regex, or one that cuts the same
SPECIAL = ("<s>", "</s>", "<unk>", "<|call|>")
PIECE = Message("user", "Hm?  What's 2024? <b>é</b> \n")
ANSWER = Message("assistant", "It is 12.\n\nOk")
THOUGHT = Message("assistant", "Forty two.", reasoning="Let me think.\nYes.")
SYSTEM = Message("system", "Be brief.")
CHATS = {
    "user": (PIECE,),
    "system": (SYSTEM, PIECE),
    "turns": (SYSTEM, PIECE, ANSWER, PIECE),
    "thoughts": (PIECE, THOUGHT, PIECE),
    "calls": (PIECE, CALL, RESULT),
}
# Words that are tokens, though no merge makes them; Ġ is the space.
UNMERGED = ("CamelCase", "ĠHTTPServer", "ĠMcDonald", "Hello", "Ġriver", "ĠWorld", "iPhone")
# Thousands of texts in one process; the server of llama.cpp takes one at a time.
TOKENIZE = """
import ctypes, json, sys
import xllamacpp.xllamacpp as extension

class Params(ctypes.Structure):
    _fields_ = [("room", ctypes.c_byte * 1024)]  # larger than the real one: it is filled and handed on, never read

llama = ctypes.CDLL(extension.__file__)
llama.llama_model_default_params.restype = Params
llama.llama_model_load_from_file.restype = llama.llama_model_get_vocab.restype = ctypes.c_void_p
llama.llama_model_load_from_file.argtypes = [ctypes.c_char_p, Params]
llama.llama_model_get_vocab.argtypes = llama.llama_model_free.argtypes = [ctypes.c_void_p]
llama.llama_tokenize.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int32, ctypes.c_void_p, ctypes.c_int32,
                                 ctypes.c_bool, ctypes.c_bool]
llama.llama_vocab_is_eog.argtypes = [ctypes.c_void_p, ctypes.c_int32]
llama.llama_vocab_is_eog.restype = ctypes.c_bool
silent = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)
llama.llama_log_set(silent, None)
llama.llama_backend_init()
ids = (ctypes.c_int32 * 10000)()
for line in sys.stdin:
    job = json.loads(line)
    model = llama.llama_model_load_from_file(job["file"].encode(), llama.llama_model_default_params())
    vocab, made = llama.llama_model_get_vocab(model), []
    for text in job["texts"]:
        content = text.encode()
        count = llama.llama_tokenize(vocab, content, len(content), ids, len(ids), job["bos"], job["special"])
        made.append(ids[:count])
    ends = [at for at in range(job["rows"]) if llama.llama_vocab_is_eog(vocab, at)]
    llama.llama_model_free(model)
    print(json.dumps([made, ends]), flush=True)
"""


def write(file: Path, keys: list, name: str = "tiny") -> dict:
    """A GGUF file of a llama of one layer, with a vocabulary; returns what TOKENIZE is told of it."""
    rows = len(next(key[1] for key in keys if key[0] == "tokenizer.ggml.tokens"))
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_name(name)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    for key, value, kind, *item in keys:
        writer.add_key_value(key, value, gguf.GGUFValueType[kind], *(gguf.GGUFValueType[one] for one in item))
    for part in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        writer.add_tensor(f"blk.0.{part}.weight", np.eye(32, dtype=np.float32))
    for part in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        writer.add_tensor(f"{part}.weight", np.ones(32, np.float32))
    writer.add_tensor("token_embd.weight", np.ones((rows, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return {"file": str(file), "rows": rows, "special": True, "bos": False}


def tokenized(jobs: list[dict]) -> list[list]:
    """[ids of each text, ids that end generation] of each job."""
    lines = "\n".join(map(json.dumps, jobs))
    done = subprocess.run([sys.executable, "-c", TOKENIZE], input=lines, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def different(job: dict, made: list, expected: list) -> list[str]:
    """Texts whose ids differ, shortest first."""
    found = [text for text, one, other in zip(job["texts"], made[0], expected, strict=True) if one != other]
    return sorted(found, key=len)


def of(keys: list, name: str):
    return next((key[1] for key in keys if key[0] == f"tokenizer.{name}"), None)


def changed(keys: list, name: str, value) -> list:
    return [(key[0], value, *key[2:]) if key[0] == f"tokenizer.{name}" else key for key in keys]


# Tokenizers


def node(step: str):
    known = {
        GPT2: lambda: pre_tokenizers.ByteLevel(False, use_regex=True),
        BYTES: lambda: pre_tokenizers.ByteLevel(False, use_regex=False),
        "digits": lambda: pre_tokenizers.Digits(True),
        "prepend ▁": lambda: normalizers.Prepend("▁"),
        REPLACE: lambda: normalizers.Replace(" ", "▁"),
        NO_SPACE: lambda: pre_tokenizers.Split(" ", "merged_with_previous"),
    }
    if step in known:
        return known[step]()
    if step.startswith("metaspace"):
        _, scheme, *split = step.split()
        return pre_tokenizers.Metaspace(prepend_scheme=scheme, split=bool(split))
    return pre_tokenizers.Split(Regex(step.removeprefix("split ")), "isolated")


def sequence(structure) -> dict | None:
    nodes = [json.loads(node(step).__getstate__()) for step in structure]
    kind = "normalizers" if any(one["type"] in ("Prepend", "Replace") for one in nodes) else "pretokenizers"
    return {"type": "Sequence", kind: nodes} if nodes else None


@cache
def trained() -> str:
    """Byte-level BPE trained on whole texts: its merges go across every border, so each cut that is wrong shows."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(False, use_regex=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=1500, initial_alphabet=alphabet, show_progress=False, special_tokens=list(SPECIAL))
    tokenizer.train_from_iterator([text for text in fuzz_texts(99, 3000) if "<" not in text], trainer)
    return tokenizer.to_str()


def byte_plan(structure=(GPT2,), whole_words=False, **parts) -> dict:
    plan = json.loads(trained())
    plan |= {"pre_tokenizer": sequence(structure), **parts}
    model = plan["model"]
    for word in UNMERGED:
        model["vocab"].setdefault(word, len(model["vocab"]))
    model["merges"] = [pair for pair in model["merges"] if "".join(pair) not in UNMERGED]
    plan["model"]["ignore_merges"] = whole_words
    return plan


@cache
def trained_characters(parted: bool) -> str:
    """As sentencepiece's BPE is converted: every pair of tokens that makes a third is a merge, in the order of the thirds."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace() if parted else None
    trainer = trainers.BpeTrainer(vocab_size=1200, limit_alphabet=250, show_progress=False)
    texts = (text if parted else text.replace(" ", "▁") for text in fuzz_texts(99, 2500) if "<" not in text)
    tokenizer.train_from_iterator(texts, trainer)
    words = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    order = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    vocab = {token: at for at, token in enumerate(order)}
    cuts = ((one[:at], one[at:]) for one in words for at in range(1, len(one)))
    plan = json.loads(tokenizer.to_str())
    plan["added_tokens"] = [added(token, at, special=True) for at, token in enumerate(SPECIAL)]
    plan["model"] |= {"vocab": vocab, "merges": [pair for pair in cuts if set(pair) <= vocab.keys()]}
    plan["model"] |= {"byte_fallback": True, "unk_token": "<unk>", "fuse_unk": True}
    return json.dumps(plan)


def character_plan(normalizer=("prepend ▁", REPLACE), pre_tokenizer=(), **parts) -> dict:
    plan = json.loads(trained_characters(any("split" in step for step in pre_tokenizer if step != NO_SPACE)))
    return plan | {"normalizer": sequence(normalizer), "pre_tokenizer": sequence(pre_tokenizer), **parts}


def added(content: str, at: int, **flags) -> dict:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    return {"id": at, "content": content, **plain, **flags}


def folder(path: Path, plan: dict, **settings) -> Path:
    path.mkdir(exist_ok=True, parents=True)
    (path / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 4000}))
    (path / "tokenizer.json").write_text(json.dumps(plan))
    named = {"bos_token": "<s>", "eos_token": "</s>", "tokenizer_class": "PreTrainedTokenizerFast", **settings}
    (path / "tokenizer_config.json").write_text(json.dumps(named))
    return path


def room(plan: dict) -> int:
    return max([*plan["model"]["vocab"].values(), *(token["id"] for token in plan["added_tokens"])]) + 4


def compare(path: Path, plans: list[dict], count: int, seed: int = 1) -> list[tuple[list[str], int, tuple[str, ...]]]:
    """For each tokenizer, special tokens read and not read: (texts whose ids differ, texts asked, limits)."""
    jobs, expected, limits = [], [], []
    for number, plan in enumerate(plans):
        found = read_vocabulary(folder(path / str(number), plan), room(plan))
        job = write(path / f"{number}.gguf", found.keys)
        names = [token["content"] for token in plan["added_tokens"]]
        job["texts"] = found.comparable(fuzz_texts(seed, count, names))
        codec = Codec(json.dumps(plan))
        for special in (True, False):
            jobs.append({**job, "special": special})
            expected.append([codec.encode(text if special else codec.guard(text))[0] for text in job["texts"]])
            limits.append(found.limits)
    return [
        (different(job, made, ids), len(ids), told)
        for job, made, ids, told in zip(jobs, tokenized(jobs), expected, limits, strict=True)
    ]


# The tables


@needs_llama
@pytest.mark.parametrize("count", [250, pytest.param(4000, marks=pytest.mark.slow)])
def test_each_row_cuts_words_as_its_tokenizer_does(tmp_path, count):
    plans = [byte_plan(structure, row.whole_words) for structure, row in ROWS]
    for (wrong, asked, _), at in zip(compare(tmp_path, plans, count), range(2 * len(ROWS)), strict=True):
        row = ROWS[at // 2][1]
        assert not wrong, f"{row.name}: {len(wrong)} of {asked}: {wrong[:5]}"
        assert asked > count * (0.4 if row.outside else 0.9), row.name


@needs_llama
@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_wrong_name_shows_in_the_texts(tmp_path, every):
    jobs, expected = [], []
    for number, (structure, row) in enumerate(ROWS[:: 1 if every else 4]):
        found = read_vocabulary(folder(tmp_path / "m", plan := byte_plan(structure, row.whole_words)), room(plan))
        texts = found.comparable(fuzz_texts(2, 400))
        encoded = Tokenizer.from_str(json.dumps(plan)).encode_batch(texts, add_special_tokens=False)
        others = sorted({other.name for _, other in ROWS if {other.name, row.name} not in ALIKE and other.name != row.name})
        for other in others if every else others[number % 3 :: 4]:
            job = write(tmp_path / f"{len(jobs)}.gguf", changed(found.keys, "ggml.pre", other))
            jobs.append({**job, "texts": texts, "names": (row.name, other)})
            expected.append([one.ids for one in encoded])
    for job, made, ids in zip(jobs, tokenized(jobs), expected, strict=True):
        assert different(job, made, ids), f"{job['names']} look the same"


@needs_llama
def test_what_is_kept_out_of_the_comparison_differs(tmp_path):
    structure, row = next((key, row) for key, row in ROWS if row.name == "gpt-4o")
    plan = byte_plan(structure)
    found = read_vocabulary(folder(tmp_path / "m", plan), room(plan))
    texts = ["e\u0301a", "ÉCOLE", "HelloПривет", "iPhone", "Привет"]
    assert found.comparable(texts) == texts[3:]
    assert [mixed_case(text) for text in texts] == [True, True, True, False, False]
    assert row.limit in found.limits
    texts = fuzz_texts(6, 300)
    job = {**write(tmp_path / "a.gguf", found.keys), "texts": texts}
    codec = Codec(json.dumps(plan))
    wrong = different(job, tokenized([job])[0], [codec.encode(text)[0] for text in texts])
    assert wrong
    assert not found.comparable(wrong)


@needs_llama
@pytest.mark.slow
def test_every_space_of_unicode_beside_every_kind(tmp_path):
    spaces = [chr(code) for code in range(0x3001) if chr(code).isspace() or code in (0x180E, 0x200B)]
    texts = [
        before + space + after
        for space in spaces
        for before in ("", "x", "1", ".", "\n", "ä")
        for after in ("a", "1", ".", "\n")
    ]
    plans = []
    for structure, row in ROWS:
        plan = byte_plan(structure, row.whole_words)
        known, merges = plan["model"]["vocab"], {tuple(pair) for pair in plan["model"]["merges"]}
        for pair in [edge for space in spaces for letter in "a1.\n" for edge in (space + letter, letter + space, space * 2)]:
            letters = "".join(part for part, _ in node(BYTES).pre_tokenize_str(pair))
            for end in range(2, len(letters) + 1):
                known.setdefault(letters[:end], len(known))
                cut = (letters[: end - 1], letters[end - 1])
                if cut not in merges:
                    plan["model"]["merges"].append(list(cut))
                merges.add(cut)
        plans.append(plan)
    jobs, expected = [], []
    for number, plan in enumerate(plans):
        found = read_vocabulary(folder(tmp_path / "m", plan), room(plan))
        jobs.append({**write(tmp_path / f"{number}.gguf", found.keys), "texts": found.comparable(texts)})
        encoded = Tokenizer.from_str(json.dumps(plan)).encode_batch(jobs[-1]["texts"], add_special_tokens=False)
        expected.append([one.ids for one in encoded])
    for (_, row), job, made, ids in zip(ROWS, jobs, tokenized(jobs), expected, strict=True):
        assert not different(job, made, ids), row.name


@needs_llama
@pytest.mark.parametrize("count", [250, pytest.param(4000, marks=pytest.mark.slow)])
def test_each_way_to_write_spaces(tmp_path, count):
    made = compare(tmp_path, [character_plan(*structure) for structure in CHARACTERS], count)
    for (wrong, asked, _), at in zip(made, range(2 * len(CHARACTERS)), strict=True):
        assert not wrong, f"{list(CHARACTERS)[at // 2]}: {len(wrong)} of {asked}: {wrong[:5]}"
        assert asked > count // 3


def test_an_unknown_way_to_cut_words_is_refused_by_name(tmp_path):
    plan = byte_plan(("split \\p{N}{1,2}|x", BYTES))
    with pytest.raises(ModelError, match=r"split \\p\{N\}\{1,2\}\|x \+ bytes"):
        read_vocabulary(folder(tmp_path, plan), room(plan))
    with pytest.raises(ModelError, match="space before"):
        find_pre({"type": "ByteLevel", "add_prefix_space": True}, False, lambda: True, "here")
    with pytest.raises(ModelError, match="Whitespace"):
        find_pre({"type": "Whitespace"}, False, lambda: True, "here")
    with pytest.raises(ModelError, match="Strip"):
        find_spaces({"type": "Strip", "strip_left": True, "strip_right": True}, None, "here")
    with pytest.raises(ModelError, match="Lowercase"):
        read_vocabulary(folder(tmp_path, byte_plan(normalizer={"type": "Lowercase"})), 4000)


def test_a_structure_is_the_same_however_it_is_written():
    split = {"type": "Split", "pattern": {"Regex": "[\r\n]"}, "behavior": "Isolated", "invert": False}
    inverted = {**split, "pattern": {"Regex": r"[\r\n]"}, "behavior": "Removed", "invert": True}
    nested = {"type": "Sequence", "pretokenizers": [{"type": "Sequence", "pretokenizers": [split]}]}
    assert steps(split) == steps(inverted) == steps(nested) == (r"split [\r\n]",)
    assert steps({**split, "behavior": "Removed"}) != steps(split)


def test_whole_words_matter_only_where_no_merge_makes_them(tmp_path):
    structure = next(key for key, row in ROWS if row.name == "tekken")
    plan = byte_plan(structure, whole_words=False)
    with pytest.raises(ModelError, match="ignore_merges=false"):
        read_vocabulary(folder(tmp_path, plan), room(plan))
    plan["model"] = json.loads(trained())["model"]
    assert of(read_vocabulary(folder(tmp_path, plan), room(plan)).keys, "ggml.pre") == "tekken"


# Tokens


def test_types_padding_and_both_forms_of_merges(tmp_path):
    plan = byte_plan()
    top = len(plan["model"]["vocab"])
    plan["added_tokens"] += [added("<tool>", top), added(f"[PAD{top + 3}]", top + 1, special=True)]
    found = read_vocabulary(folder(tmp_path, plan), top + 6)
    tokens, types = of(found.keys, "ggml.tokens"), of(found.keys, "ggml.token_type")
    assert len(tokens) == len(types) == len(set(tokens)) == top + 6
    assert types[:4] == [CONTROL] * 4
    assert types[4] == NORMAL
    assert types[top:] == [USER_DEFINED, CONTROL, UNUSED, UNUSED, UNUSED, UNUSED]
    assert tokens[top:-2] == ["<tool>", f"[PAD{top + 3}]", f"[PAD{top + 2}]", f"[PAD{top + 3}]_"]
    pairs = plan["model"]["merges"]
    plan["model"]["merges"] = [" ".join(pair) for pair in pairs]
    assert read_vocabulary(folder(tmp_path, plan), top + 6).keys == found.keys
    assert of(found.keys, "ggml.merges") == plan["model"]["merges"]


def test_character_vocabularies_have_bytes_and_scores(tmp_path):
    plan = character_plan()
    keys = read_vocabulary(folder(tmp_path, plan), room(plan)).keys
    tokens, types, scores = (of(keys, f"ggml.{name}") for name in ("tokens", "token_type", "scores"))
    assert [types[at] == BYTE for at in range(len(tokens))] == [bool(BYTE_TOKEN.fullmatch(token)) for token in tokens]
    first, last = ("".join(plan["model"]["merges"][at]) for at in (0, -1))
    assert scores[tokens.index(first)] == 0 > scores[tokens.index(last)] > -len(plan["model"]["merges"])
    assert of(keys, "ggml.model") == "llama"
    assert of(keys, "ggml.add_space_prefix") is True


@needs_llama
def test_wrong_types_of_special_tokens_show(tmp_path):
    plan = byte_plan()
    found = read_vocabulary(folder(tmp_path / "m", plan), room(plan))
    texts, codec = found.comparable(fuzz_texts(3, 400, SPECIAL)), Codec(json.dumps(plan))
    types = of(found.keys, "ggml.token_type")
    at = of(found.keys, "ggml.tokens").index("<s>")
    for kind, special in ((NORMAL, True), (USER_DEFINED, False)):
        wrong = changed(found.keys, "ggml.token_type", [*types[:at], kind, *types[at + 1 :]])
        job = {**write(tmp_path / "a.gguf", wrong), "texts": texts, "special": special}
        ids = [codec.encode(text if special else codec.guard(text))[0] for text in texts]
        assert all("<s>" in text for text in different(job, tokenized([job])[0], ids))
        assert different(job, tokenized([job])[0], ids)


@needs_llama
def test_added_tokens_of_spaces_as_in_gemma(tmp_path):
    plan = character_plan((REPLACE,), (NO_SPACE,))
    top = len(plan["model"]["vocab"])
    plan["added_tokens"] += [added("\n\n", top), added("▁▁▁▁", top + 1, normalized=True), added("<tool>", top + 2)]
    for wrong, asked, _ in compare(tmp_path, [plan], 400):
        assert not wrong, wrong[:5]
        assert asked > 300


@needs_llama
def test_flags_of_added_tokens_that_llama_cpp_lacks_are_told(tmp_path):
    plan = byte_plan()
    top = len(plan["model"]["vocab"])
    plan["added_tokens"] += [added("<l>", top, lstrip=True), added("<r>", top + 1, rstrip=True)]
    plan["added_tokens"] += [added("<w>", top + 2, single_word=True)]
    made = compare(tmp_path, [plan], 400)
    assert not made[0][0]
    assert not made[1][0]
    assert [any(name in limit for limit in made[0][2]) for name in ("'<l>'", "'<r>'", "'<w>'")] == [True] * 3
    found = read_vocabulary(folder(tmp_path / "m", plan), room(plan))
    assert found.comparable(["a <l>", "<r> a", "a<w>", "a <w> a", "<l> <r>."]) == ["a <w> a", "<l> <r>."]
    job = {**write(tmp_path / "b.gguf", found.keys), "texts": ["a <l>", "<r> a", "a<w>"]}
    assert len(different(job, tokenized([job])[0], [Codec(json.dumps(plan)).encode(text)[0] for text in job["texts"]])) == 3


@needs_llama
def test_letters_are_composed_before_they_are_compared(tmp_path):
    plan = byte_plan(normalizer={"type": "NFC"})
    made = compare(tmp_path, [plan], 400)
    assert not made[0][0]
    assert made[0][1] > 350
    assert "NFC" in made[0][2][0]
    found = read_vocabulary(folder(tmp_path / "m", plan), room(plan))
    assert found.comparable(["e\u0301"]) == ["é"]


def test_ids_beyond_the_embedding_and_other_models_are_refused(tmp_path):
    plan = byte_plan()
    rows = len(plan["model"]["vocab"]) - 1
    with pytest.raises(ModelError, match=f"1 tokens lie beyond the {rows:,} rows"):
        read_vocabulary(folder(tmp_path, plan), rows)
    for model in (
        models.Unigram([("a", 0.0)], unk_id=0),
        models.WordPiece({"[UNK]": 0}, unk_token="[UNK]"),
        models.WordLevel({"a": 0}, unk_token="a"),
    ):
        tokenizer = Tokenizer(model)
        plan = json.loads(tokenizer.to_str())
        with pytest.raises(ModelError, match=type(model).__name__):
            read_vocabulary(folder(tmp_path, plan, bos_token=None, eos_token=None), 100)


# What stands around texts, and where they end


def test_bos_is_added_where_the_tokenizer_adds_it(tmp_path):
    before = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    both = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    strange = processors.TemplateProcessing("<s> <|call|> $A", special_tokens=[("<s>", 0), ("<|call|>", 3)])
    for processor, expected in (
        (None, (False, False)),
        (before, (True, False)),
        (both, (True, True)),
        (strange, (False, False)),
    ):
        made = json.loads(processor.__getstate__()) if processor else None
        found = read_vocabulary(folder(tmp_path, plan := byte_plan(post_processor=made)), room(plan))
        assert tuple(of(found.keys, f"ggml.add_{name}_token") for name in ("bos", "eos")) == expected
        assert any("llama.cpp cannot" in limit for limit in found.limits) == (processor is strange)
    assert of(found.keys, "ggml.bos_token_id") == 0
    assert of(found.keys, "ggml.eos_token_id") == 1


@needs_llama
def test_a_folder_with_sentencepiece_only(tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    texts = [text.replace("\n", " ").replace("\0", "") for text in fuzz_texts(1, 3000) if "<" not in text]
    (tmp_path / "texts").write_text("\n".join(texts))
    kept = {"byte_fallback": True, "normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "texts"), model_prefix=str(tmp_path / "tokenizer"), vocab_size=1200, model_type="bpe",
        character_coverage=0.98, minloglevel=2, **kept,
    )  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 1200}))
    settings = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**settings, "add_bos_token": True}))
    found = read_vocabulary(tmp_path, 1200)
    assert of(found.keys, "ggml.add_bos_token") is True
    job = {**write(tmp_path / "a.gguf", found.keys), "texts": found.comparable(fuzz_texts(5, 400))}
    original = sentencepiece.SentencePieceProcessor(str(tmp_path / "tokenizer.model"))
    assert not different(job, tokenized([job])[0], [original.encode(text) for text in job["texts"]])


# Chats


def openai(message: Message, template: ChatTemplate) -> dict:
    plain = {"role": message.role, "content": message.content}
    if message.reasoning:
        plain["reasoning_content"] = message.reasoning
    if message.tool_calls:
        call = message.tool_calls[0]
        function = {"name": call.name, "arguments": json.dumps(call.arguments)}
        plain["tool_calls"] = [{"type": "function", "id": template.renderer._call_id(call, 1, 0), "function": function}]
    return plain


def chats_agree(path: Path, base: Path, thinking_default: bool | None) -> int:
    """llama.cpp's own rendering and ids equal ours on every kind of chat that the template takes; returns their number."""
    template = load_template(base, thinking_default=thinking_default)
    rows = max(template.codec.tokenizer.get_vocab().values()) + 4
    found = read_vocabulary(base, rows, template)
    write(path, found.keys, honest_name("tiny", base))
    asked = 0
    with LlamaCpp(path) as llama:
        for kind, messages in CHATS.items():
            if kind == "calls" and not {"calls", "results"} <= template.writes:
                continue
            tools = (TOOL,) if kind == "calls" and "tools" in template.writes else ()
            given = [openai(message, template) for message in messages]
            if kind == "calls":
                given[-1] |= {"tool_call_id": given[-2]["tool_calls"][0]["id"], "name": "area"}
            for thinking in (True, False):
                switches = {"enable_thinking": thinking, "thinking": thinking, "force_thinking": thinking}
                body = {"messages": given, "chat_template_kwargs": switches} | ({"tools": list(tools)} if tools else {})
                text = llama.ask("/apply-template", body)["prompt"]
                ids = llama.tokenize(text, special=True, bos=True)
                assert ids == template.prompt(messages, tools, thinking=thinking), (kind, thinking, text)
                asked += 1
    return asked


LOCKS = (None, True, False)
FEW = ("gemma2", "deepseek_r1", "mistral_nemo", "llama31")
# Its tokens swallow spaces, and it lacks the four names by which llama.cpp would do the same.
SWALLOWS = {"phi3"}


@needs_llama
@pytest.mark.parametrize(
    "make", [pytest.param(one, marks=[] if one in FEW else pytest.mark.slow) for one in MAKES if one not in SWALLOWS]
)
def test_chats_of_other_makes_have_the_same_ids(tmp_path, make):
    base = write_make(make, tmp_path / "m")
    switched = load_template(base, thinking_default=True).thinks is not None
    for lock in LOCKS if switched and make not in FEW else LOCKS[:1]:
        assert chats_agree(tmp_path / "a.gguf", base, lock) >= 8


@needs_llama
@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_chats_and_ends_of_each_family(tmp_path, family):
    base = make_tiny(family, tmp_path / "m")
    switched = load_template(base, thinking_default=True).thinks is not None
    for lock in LOCKS if switched else LOCKS[:1]:
        assert chats_agree(tmp_path / "a.gguf", base, lock) >= 8
    family_agrees(tmp_path, [base], 1000)


def family_agrees(path: Path, bases: list[Path], count: int) -> None:
    jobs, expected, stops = [], [], []
    for base in bases:
        template = load_template(base)
        found = read_vocabulary(base, 512, template)
        assert not any("does not stop" in limit for limit in found.limits)
        texts = found.comparable(fuzz_texts(4, count, sorted(template.codec.special)))
        job = {**write(path / f"{base.parent.name}.gguf", found.keys), "texts": texts}
        for special in (True, False):
            jobs.append({**job, "special": special})
            codec = template.codec
            expected.append([codec.encode(text if special else codec.guard(text))[0] for text in texts])
            stops.append(template.stop)
    for job, made, ids, stop in zip(jobs, tokenized(jobs), expected, stops, strict=True):
        assert not different(job, made, ids)[:5], job["file"]
        assert stop <= set(made[1]), job["file"]


@needs_llama
def test_families_as_they_are_loaded(tmp_path):
    family_agrees(tmp_path, [make_tiny(name, tmp_path / name / "m") for name in ("llama3", "qwen2", "gemma3", "glm4")], 300)


@pytest.mark.parametrize("make", MAKES)
def test_the_portable_template_renders_the_same(tmp_path, make):
    template = load_template(write_make(make, tmp_path / "m"))
    text = portable(template)
    for messages in (CHATS["turns"], CHATS["thoughts"]):
        plain = [openai(message, template) for message in messages]
        variables = {name: value for name, value in template.renderer.variables.items() if name in ("bos_token", "eos_token")}
        shared = {"messages": plain, "add_generation_prompt": True}
        ours = compiled(template.text).render(shared, tools=None, documents=None, **template.renderer.variables)
        # Where llama.cpp gives a variable that the tokenizer lacks, or today's date, nothing changes.
        given = {"bos_token": "<no>", "eos_token": "<no>", "date_string": "1 Jan 1970", **variables}
        assert compiled(text).render(shared, **given) == ours


# The texts


def test_texts_are_the_same_for_the_same_seed_and_hold_every_kind():
    texts = fuzz_texts(7, 2000, ["<|im_end|>"])
    assert texts == fuzz_texts(7, 2000, ["<|im_end|>"]) != fuzz_texts(8, 2000, ["<|im_end|>"])
    assert len(texts) == 2000
    assert "" in texts
    assert "<|im_end|>" in texts
    assert all(piece in texts for pieces in PIECES.values() for piece in pieces)
    assert {len(run) for text in texts for run in "".join(c if c in "0123456789" else " " for c in text).split()} >= set(
        range(1, 21)
    )
    assert fuzz_texts(7, 3) == texts[:3]
    "".join(texts).encode()
