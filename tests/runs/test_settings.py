"""Every setting changes something: the weights, the plan, the files or the story of a run."""

from __future__ import annotations

import hashlib
from functools import lru_cache

import msgspec
import pytest

from mlxforge import CptConfig, SftConfig, train
from mlxforge.core.config import from_dict, walk
from mlxforge.core.errors import MlxforgeError
from mlxforge.core.events import Evaluated, RunStarted, Sampled, Saved, StepDone
from mlxforge.core.files import embedded

GENERAL = "sample:general/retention.txt"
BASE = {
    "max_length": 64, "batch_tokens": 512, "learning_rate": 3e-3, "sample_tokens": 2, "steps": 3, "eval_every": 1,
    "valid_split": 0.2, "warmup": 0, "lora": {"rank": 2, "alpha": 4.0},
}  # fmt: skip

# setting -> the value tried, and what else must be set for it to matter.
CHANGES = {
    "model": ("made", {}),
    "adapter": ("trained", {}),
    "from_run": ("trained", {}),
    "data": ("fewer", {}),
    "map": ({"text": "body"}, {"data": "rows"}),
    "valid": ("fewer", {}),
    "valid_split": (0.5, {}),
    "retention": ("fewer", {}),
    "replay": ("sample:general/replay.jsonl", {"replay_ratio": 0.5, "replay": GENERAL}),
    "replay_ratio": (0.75, {"replay_ratio": 0.25, "replay": GENERAL}),
    "name": ("other", {}),
    "runs_dir": ("elsewhere", {}),
    "seed": (1, {}),
    "epochs": (2.0, {"steps": None, "epochs": 1.0}),
    "steps": (2, {}),
    "batch_tokens": (256, {}),
    "max_length": (32, {}),
    "batching": ("packed", {"batching": "bucketed"}),
    "accumulate": (2, {}),
    "learning_rate": (1e-3, {}),
    "schedule": ("constant", {}),
    "warmup": (2.0, {}),
    "min_lr_ratio": (0.5, {}),
    "optimizer": ("lion", {}),
    "weight_decay": (0.5, {}),
    "clip_norm": (0.01, {"optimizer": "sgd"}),
    "neftune_alpha": (5.0, {}),
    "dtype": ("bfloat16", {}),
    "grad_checkpoint": (True, {}),
    "eval_every": (2, {}),
    "save_every": (1, {"eval_every": 3}),
    "keep": (1, {"save_every": 1, "learning_rate": 1e-6}),
    "patience": (1, {"learning_rate": 0.3, "steps": 4}),
    "max_skipped": (2, {"learning_rate": 1e30, "clip_norm": None, "steps": 8}),
    "samples": (["The mill"], {}),
    "sample_tokens": (4, {}),
    "trackers": (["tensorboard"], {}),
    "lora.kind": ("dora", {}),
    "lora.rank": (4, {}),
    "lora.alpha": (8.0, {}),
    "lora.dropout": (0.5, {}),
    "lora.layers": (1, {}),
    "lora.targets": (["q_proj"], {}),
    "lora.plus_ratio": (8.0, {}),
}


# What the reader of conversations does with its settings, and with those that it shares.
CHAT_CHANGES = {
    "data": ("chats-fewer", {}),
    "map": ({"prompt": "q", "completion": "a"}, {"data": "mapped", "map": {"prompt": "q", "completion": "b"}}),
    "valid": ("chats-fewer", {}),
    "valid_split": (0.5, {}),
    "retention": ("fewer", {}),
    "replay": ("sample:general/replay.jsonl", {"replay_ratio": 0.5, "replay": GENERAL}),
    "replay_ratio": (0.75, {"replay_ratio": 0.25, "replay": GENERAL}),
    "max_length": (24, {}),
    "samples": (["Who keeps the mill?"], {}),
    "sample_tokens": (4, {}),
    "format": ("dolly", {"data": "mapped", "map": {"prompt": "q", "completion": "a"}, "format": None}),
    "skip_bad": (True, {"data": "chats-bad"}),
    "overlong": ("left", {"max_length": 24}),
    "task": ("chats-fewer", {}),
    "answer_tokens": (1, {"task": "chats-fewer", "steps": 40, "eval_every": 40, "learning_rate": 1e-2}),
    "match": ("start", {"task": "chats-start", "steps": 40, "eval_every": 40, "learning_rate": 1e-2}),
    "train_on": ("last", {}),
    "chat_replay": ("sample:general/chats.jsonl", {"chat_replay_ratio": 0.5, "chat_replay": "chats-fewer"}),
    "chat_replay_ratio": (0.75, {"chat_replay_ratio": 0.25, "chat_replay": "chats-fewer"}),
}


def test_no_setting_is_left_out():
    assert set(CHANGES) == {key for key, _, _ in walk(CptConfig)}
    assert set(CHANGES) | set(CHAT_CHANGES) == {key for key, _, _ in walk(SftConfig)}


@pytest.fixture(scope="module")
def places(documents, tmp_path_factory):
    """Names that stand for paths in CHANGES."""
    from mlxforge.models.tiny import make_tiny

    folder = tmp_path_factory.mktemp("places")
    texts = [path.read_text() for path in sorted(documents.iterdir())]
    rows = [msgspec.json.encode({"text": text, "body": text.upper()}).decode() for text in texts]
    (folder / "rows.jsonl").write_text("\n".join(rows))
    (folder / "fewer").mkdir()
    for index, text in enumerate(texts[:12]):
        (folder / "fewer" / f"{index:02d}.txt").write_text(text)
    chats = [chat(texts[i].split()[:6], texts[i + 1].split()[:9], texts[i].split()[-5:]) for i in range(12)]
    write(folder / "chats.jsonl", chats)
    write(folder / "chats-fewer.jsonl", chats[:6])
    write(folder / "chats-bad.jsonl", [*chats, {"messages": 1}])
    cut = [chat(texts[i].split()[:6], texts[i + 1].split()[:9], texts[i].split()[-5:]) for i in range(3)]
    for row in cut:
        row["messages"] = [row["messages"][0], {"role": "assistant", "content": row["messages"][1]["content"][:3]}]
    write(folder / "chats-start.jsonl", cut)
    write(folder / "mapped.jsonl", [{"q": " ".join(t.split()[:6]), "a": t.split()[-1], "b": t.split()[0]} for t in texts])
    made = make_tiny("qwen2", folder / "made")
    values = nested(BASE | {"data": str(documents), "name": "trained", "runs_dir": str(folder)})
    trained = train(from_dict(CptConfig, values)).path
    names = {
        name: str(folder / f"{name}.jsonl") for name in ("rows", "chats", "chats-fewer", "chats-bad", "chats-start", "mapped")
    }
    return names | {"trained": str(trained), "fewer": str(folder / "fewer"), "made": str(made)}


def chat(*turns):
    roles = ("user", "assistant") * 2
    messages = [{"role": role, "content": " ".join(words)} for role, words in zip(roles, (*turns, ["Yes."]), strict=True)]
    return {"messages": messages}


def write(path, rows):
    path.write_text("".join(msgspec.json.encode(row).decode() + "\n" for row in rows))


def nested(values):
    plain = {key: value for key, value in values.items() if "." not in key}
    lora = {key.partition(".")[2]: value for key, value in values.items() if "." in key}
    return plain | {"lora": plain.get("lora", {}) | lora}


def outcome(settings, folder, documents, places, kind=CptConfig):
    """All that a run leaves and says, but for times and memory."""
    data = str(documents) if kind is CptConfig else "chats"
    values = nested({"data": data, "name": "a", "runs_dir": "runs"} | BASE | settings)
    values = {key: places.get(value, value) if isinstance(value, str) else value for key, value in values.items()}
    values["runs_dir"] = str(folder / values["runs_dir"])
    events = []
    try:
        task = train(from_dict(kind, values), [events.append]).result["task"]
        ending = f"finished {task}"
    except MlxforgeError as error:
        ending = str(error)
    plan = next((event.plan for event in events if isinstance(event, RunStarted)), None)
    told = ("step", "name", "loss", "prompt", "text", "learning_rate", "skipped", "best")
    story = [
        [type(event).__name__, *(getattr(event, key) for key in told if hasattr(event, key))]
        for event in events
        if isinstance(event, (StepDone, Evaluated, Sampled, Saved))
    ]
    files = {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*.safetensors")
    }
    files |= {path.name: "" for path in folder.rglob("tensorboard")}
    return ending.replace(str(folder), ""), plan, story, files


@pytest.fixture(scope="module")
def reference(tmp_path_factory, documents, places):
    """The outcome without the change; the same for many settings, so computed once."""

    @lru_cache
    def find(key, kind):
        others = next(others for _, others in [*CHANGES.values(), *CHAT_CHANGES.values()] if repr(others) == key)
        return outcome(others, tmp_path_factory.mktemp("reference"), documents, places, kind)

    return lambda others, kind=CptConfig: find(repr(others), kind)


@pytest.mark.parametrize("key", sorted(set(CHANGES) - {"grad_checkpoint"}))
def test_a_setting_matters(key, tmp_path, documents, places, reference):
    value, others = CHANGES[key]
    assert outcome(others | {key: value}, tmp_path, documents, places) != reference(others)


@pytest.mark.parametrize("key", sorted(CHAT_CHANGES))
def test_a_setting_of_chats_matters(key, tmp_path, documents, places, reference):
    value, others = CHAT_CHANGES[key]
    assert outcome(others | {key: value}, tmp_path, documents, places, SftConfig) != reference(others, SftConfig)


def test_the_comparison_bites(tmp_path, documents, places, reference):
    """Two runs with the same settings differ in nothing."""
    assert outcome({}, tmp_path / "text", documents, places) == reference({})
    assert outcome({}, tmp_path / "chats", documents, places, SftConfig) == reference({}, SftConfig)


def test_recomputation_saves_memory_and_changes_no_result(tmp_path, documents):
    import mlx.core as mx

    peaks, losses = [], []
    for name, flag in (("a", False), ("b", True)):
        mx.clear_cache()
        mx.reset_peak_memory()
        values = BASE | {"runs_dir": str(tmp_path), "name": name, "data": str(embedded("data", "general", "retention.txt"))}
        values |= {"max_length": 256, "batch_tokens": 4096, "grad_checkpoint": flag, "steps": 1, "sample_tokens": 0}
        ended = train(from_dict(CptConfig, values | {"valid_split": 0}))
        peaks.append(ended.result["peak_memory_bytes"])
        losses.append(ended.result["train_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert peaks[1] < 0.8 * peaks[0]
