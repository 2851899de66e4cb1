"""Fine-tuning on conversations from end to end: what is trained, what comes out, what is refused."""

from __future__ import annotations

import json
import shutil

import mlx.core as mx
import mlx_lm
import pytest

from mlxforge import Control, CptConfig, SftConfig, plan, resume, train
from mlxforge.core.config import from_dict
from mlxforge.core.errors import ConfigError, DataError, MlxforgeError, RunError
from mlxforge.core.events import Noted, RunStarted, Sampled, Scored, Warned
from mlxforge.core.files import embedded
from mlxforge.core.rows import Message
from mlxforge.models.tiny import make_tiny
from mlxforge.runs.opening import open_model, resolve_base
from mlxforge.runs.train import prepare

SMALL = {"max_length": 64, "batch_tokens": 512, "learning_rate": 3e-3, "sample_tokens": 4, "warmup": 0, "valid_split": 0,
         "lora": {"rank": 4, "alpha": 8.0}}  # fmt: skip
PAIRS = [("What opens at noon?", "The gate."), ("Who keeps the key?", "Nora."), ("Where is the mill?", "By the river."),
         ("What is sold here?", "Flour."), ("When do they close?", "At six.")]  # fmt: skip


def rows(pairs):
    return [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for q, a in pairs]


def write(path, found):
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return str(path)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write(tmp_path_factory.mktemp("data") / "pairs.jsonl", rows(PAIRS))


def config(data, runs, **settings):
    return from_dict(SftConfig, SMALL | {"data": [data], "runs_dir": str(runs), "name": "a", "steps": 2} | settings)


@pytest.fixture(scope="module")
def learnt(data, tmp_path_factory):
    """A run that knows the pairs by heart."""
    events = []
    runs = tmp_path_factory.mktemp("learnt")
    asked = {"task": data, "samples": ["Who keeps the key?"], "sample_tokens": 16, "eval_every": 60}
    settings = {"epochs": 60, "steps": None, "learning_rate": 1e-2, "lora": {"rank": 16, "alpha": 32.0}}
    return train(config(data, runs, **asked, **settings), [events.append]), events


def test_the_model_answers_and_stops(learnt):
    """The end-of-turn token is trained: an answer ends of itself, and is exact to the letter."""
    ended, events = learnt
    assert ended.result["task"]["exact_match"] == {"before": 0.0, "after": 1.0}
    assert [event.scores["exact_match"] for event in events if isinstance(event, Scored)] == [0.0, 1.0]
    assert [event.text for event in events if isinstance(event, Sampled)][-1] == "Nora."
    assert ended.result["objective"] == "sft"


def test_the_template_goes_with_the_adapter(learnt):
    ended, _ = learnt
    template = (ended.path / "chat_template.jinja").read_text()
    stop = json.loads((ended.path / "generation_config.json").read_text())["eos_token_id"]
    opened = open_model(f"run:{ended.path}", ended.path.parent)
    assert opened.template.text == template
    assert set(stop) == opened.template.stop
    assert opened.loaded.tokenizer.encode("<|im_end|>", add_special_tokens=False)[0] in stop


def test_the_loss_is_that_of_the_answers_alone(data, tmp_path):
    """Against mlx-lm's model and tokenizer, one row at a time, the mask made by hand."""
    before = train(
        config(
            data, tmp_path, valid=write(tmp_path / "valid.jsonl", rows([("Who?", "Me."), ("Why is that?", "No idea, sir.")]))
        )
    )
    model, tokenizer = mlx_lm.load(_tiny())
    total = count = 0
    for question, answer in (("Who?", "Me."), ("Why is that?", "No idea, sir.")):
        prompt = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        head = tokenizer.encode(prompt, add_special_tokens=False)
        ids = tokenizer.encode(f"{prompt}{answer}<|im_end|>", add_special_tokens=False)
        assert ids[: len(head)] == head
        logits = model(mx.array(ids[:-1])[None])[0].astype(mx.float32)
        losses = mx.logsumexp(logits, -1) - mx.take_along_axis(logits, mx.array(ids[1:])[:, None], -1)[:, 0]
        total += losses[len(head) - 1 :].sum().item()
        count += len(ids) - len(head)
    assert before.result["before"]["loss"] == pytest.approx(total / count, rel=1e-4)


def _tiny():
    from mlxforge.core.files import embedded

    return str(embedded("data", "tiny"))


def test_all_turns_or_the_last_or_the_whole(tmp_path):
    many = [{"messages": [m for q, a in PAIRS for m in rows([(q, a)])[0]["messages"]]}]
    file = write(tmp_path / "many.jsonl", many * 2)
    trained = {
        how: plan(config(file, tmp_path, train_on=how, max_length=256))["trained_tokens"] for how in ("all", "last", "whole")
    }
    assert trained["last"] < trained["all"] < trained["whole"]
    assert trained["whole"] == plan(config(file, tmp_path, max_length=256))["tokens"]


def test_long_conversations_are_split_by_turn_and_counted(tmp_path):
    many = [{"messages": [m for q, a in PAIRS for m in rows([(q, a)])[0]["messages"]]}]
    file, heard = write(tmp_path / "many.jsonl", many), []
    whole = plan(config(file, tmp_path, max_length=256))
    split = plan(config(file, tmp_path, max_length=48), [heard.append])
    assert split["trained_tokens"] == whole["trained_tokens"], "every answer is trained all the same"
    assert split["rows"] > whole["rows"] == 1
    assert any("split by turn: 1" in event.message for event in heard if isinstance(event, Noted))
    write(tmp_path / "many.jsonl", [*many, *rows(PAIRS[:1]), *many])
    with pytest.raises(DataError) as told:
        plan(config(file, tmp_path, max_length=48, overlong="error"))
    *lines, last = str(told.value).splitlines()
    assert [line.split(": ")[0].rpartition(":")[2] for line in lines] == ["1", "3"], "all of them, not the first alone"
    assert all("more than max_length 48" in line for line in lines)
    assert last == "2 problems in all"


def test_bad_rows_stop_the_run_or_are_counted(tmp_path):
    wrong = [{"messages": [{"role": "user", "content": "x"}, {"role": "assistent", "content": "y"}]}]
    file, heard = write(tmp_path / "mixed.jsonl", [*rows(PAIRS), *wrong]), []
    with pytest.raises(DataError, match=r"mixed.jsonl:6: .*assistent"):
        train(config(file, tmp_path))
    assert not (tmp_path / "a").exists()
    ended = train(config(file, tmp_path, skip_bad=True), [heard.append])
    assert ended.status == "finished"
    assert any("bad rows skipped: 1" in event.message for event in heard if isinstance(event, Warned))


def test_a_cached_set_tells_the_same_story(tmp_path, data):
    def story():
        heard = []
        plan_ = train(config(data, tmp_path, name=None), [heard.append])
        start = next(event for event in heard if isinstance(event, RunStarted))
        return [event.message for event in heard if isinstance(event, Noted)], start.plan, plan_.result["train_loss"]

    assert story() == story()


def test_validation_conversations_are_not_trained(tmp_path, data):
    file = write(tmp_path / "valid.jsonl", rows(PAIRS[:2]))
    heard = []
    found = plan(config(data, tmp_path, valid=file), [heard.append])
    assert (found["conversations"], found["valid_conversations"]) == (3, 2)
    assert any("2 training conversations left out" in event.message for event in heard if isinstance(event, Noted))


def test_text_and_chats_are_replayed_by_ratio(tmp_path, data):
    general = {"replay": "sample:general/replay.jsonl", "replay_ratio": 0.25}
    chats = {"chat_replay": "sample:handbook/questions.train.jsonl", "chat_replay_ratio": 0.25}
    found = plan(config(data, tmp_path, steps=None, epochs=20, **general, **chats))
    assert found["replay_tokens_per_epoch"] == pytest.approx(found["trained_tokens"], rel=0.01), "half of the whole"
    for alone in (general, chats):
        with pytest.raises(ConfigError, match="go together"):
            plan(config(data, tmp_path, **dict([next(iter(alone.items()))])))
    with pytest.raises(ConfigError, match="no share"):
        plan(config(data, tmp_path, **(general | chats | {"replay_ratio": 0.8})))


KINDS = {"lora": {"rank": 4, "alpha": 8.0}, "dora": {"kind": "dora", "rank": 4, "alpha": 8.0}, "full": {"kind": "full"}}


@pytest.mark.parametrize("below", KINDS)
def test_a_run_is_a_base(below, data, documents, tmp_path):
    """What is published is one adapter of the first base, for mlx-lm too; the run below stays as it was."""
    base = make_tiny("qwen2", tmp_path / "base")
    given = {"model": str(base), "runs_dir": str(tmp_path), "max_length": 64, "sample_tokens": 0, "steps": 2, "warmup": 0,
             "learning_rate": 1e-2}  # fmt: skip
    first = train(from_dict(CptConfig, given | {"name": "below", "data": [str(documents)], "lora": KINDS[below]}))
    kept = (first.path / "adapters.safetensors").read_bytes()
    over = train(
        config(data, tmp_path, model="run:below", name="over", sample_tokens=0, lora={"rank": 2, "alpha": 4.0, "layers": 1})
    )
    assert (first.path / "adapters.safetensors").read_bytes() == kept
    tokens = mx.array([[5, 70, 80, 90]])
    logits = [mlx_lm.load(str(base), adapter_path=str(path))[0](tokens) for path in (first.path, over.path)]
    ours = open_model("run:over", tmp_path).loaded.model(tokens)
    assert mx.allclose(logits[1], ours, atol=1e-5).item()
    assert not mx.allclose(logits[0], ours, atol=1e-3).item()
    record = json.loads((over.path / "run.json").read_text())
    assert record["lineage"]["parent"]["path"] == str(first.path)
    # What the loop scored at its end is what the published adapter gives: the two updates are one.
    again = train(config(data, tmp_path, model="run:over", name="again", sample_tokens=0, valid=data_copy(tmp_path), steps=1))
    assert again.result["before"]["loss"] > 0


def data_copy(folder):
    return write(folder / "other.jsonl", rows([("Who?", "Me."), ("Why?", "So.")]))


def test_the_published_adapter_scores_as_the_trained_model(data, documents, tmp_path):
    valid = data_copy(tmp_path)
    first = train(
        from_dict(CptConfig, SMALL | {"name": "below", "data": [str(documents)], "runs_dir": str(tmp_path), "steps": 2})
    )
    over = train(config(data, tmp_path, model="run:below", name="over", valid=valid, steps=3))
    again = train(config(data, tmp_path, model="run:over", name="again", valid=valid, steps=1))
    assert first.status == over.status == "finished"
    assert again.result["before"]["loss"] == pytest.approx(over.result["valid"]["loss"], rel=1e-5)


def test_an_interrupted_run_over_a_run_goes_on_to_the_same_bits(data, documents, tmp_path):
    from mlxforge import Control, resume
    from mlxforge.core.events import StepDone

    train(from_dict(CptConfig, SMALL | {"name": "below", "data": [str(documents)], "runs_dir": str(tmp_path), "steps": 2}))
    given = {"model": "run:below", "steps": 4, "valid": data_copy(tmp_path), "task": data}
    whole = train(config(data, tmp_path, name="whole", **given))
    control = Control()

    def stop(event):
        control.finish = control.finish or (isinstance(event, StepDone) and event.step == 2)

    train(config(data, tmp_path, name="part", **given), [stop], control)
    resumed = resume("part", runs_dir=str(tmp_path))
    assert resumed.result["task"] == whole.result["task"]
    for name in ("adapters.safetensors", "last/adapters.safetensors"):
        mine, theirs = mx.load(str(resumed.path / name)), mx.load(str(whole.path / name))
        assert mine.keys() == theirs.keys()
        assert all(mx.array_equal(mine[key], theirs[key]).item() for key in mine)


def test_dora_over_a_run_is_refused(data, documents, tmp_path):
    train(from_dict(CptConfig, SMALL | {"name": "below", "data": [str(documents)], "runs_dir": str(tmp_path), "steps": 1}))
    with pytest.raises(MlxforgeError, match="dora cannot be trained on top of a run"):
        train(config(data, tmp_path, model="run:below", name="over", lora=KINDS["dora"]))


def test_a_run_can_be_gone_on_with(learnt, data, tmp_path):
    first, _ = learnt
    again = train(config(data, tmp_path, from_run=str(first.path), task=data, learning_rate=1e-6, steps=1))
    assert again.result["task"]["exact_match"]["before"] == 1.0
    assert (again.path / "chat_template.jinja").read_text() == (first.path / "chat_template.jinja").read_text()


def test_a_task_needs_answers(data, tmp_path):
    file = write(tmp_path / "task.jsonl", [{"messages": [{"role": "user", "content": "x"}]}])
    with pytest.raises(DataError, match=r"task.jsonl:1"):
        train(config(data, tmp_path, task=file))
    empty = write(tmp_path / "empty.jsonl", [])
    with pytest.raises(DataError, match="no question"):
        train(config(data, tmp_path, task=empty))


def test_system_messages_and_thoughts_are_rendered_as_trained(tmp_path):
    """A run without thoughts answers without: the template that goes with it says so."""
    base = make_tiny("qwen3", tmp_path / "base")
    file = write(tmp_path / "rows.jsonl", rows(PAIRS))
    ended = train(config(file, tmp_path, model=str(base), max_length=128))
    opened = open_model("run:a", tmp_path)
    prompt = opened.template.render((Message("user", "Hi"),), generation=True)
    assert "<think>" not in prompt or "</think>" in prompt
    assert ended.status == "finished"


REFUSING = (
    "{% for m in messages %}{{ m.content }}{{ eos_token }}{% if m.content == 'bad' or WHEN %}"
    "{{ raise_exception('no way') }}{% endif %}{% endfor %}"
)


@pytest.mark.parametrize(
    ("when", "settings", "said"),
    [
        ("true", {}, r"line 1: .* refuses a plain question with its answer, and so any row: no way \(mend .*model"),
        ("false", {"data": "bad"}, r"bad.jsonl:1: the template refuses this conversation: no way"),
        ("false", {"task": "bad"}, r"bad.jsonl:1: the template refuses this conversation: no way"),
        ("false", {"samples": ["bad"]}, "samples: 'bad': the template refuses this conversation: no way"),
    ],
)
def test_what_a_template_refuses_is_named(when, settings, said, data, tmp_path):
    model = shutil.copytree(embedded("data", "tiny"), tmp_path / "model")
    (model / "chat_template.jinja").write_text(REFUSING.replace("WHEN", when))
    bad = write(tmp_path / "bad.jsonl", [{"prompt": "bad", "completion": "b"}])
    given = {key: bad if value == "bad" else value for key, value in settings.items()}
    with pytest.raises(MlxforgeError, match=said):
        plan(config(given.pop("data", data), tmp_path, model=str(model), **given))


def test_the_text_of_the_base_run_is_replayed(data, documents, tmp_path):
    train(from_dict(CptConfig, SMALL | {"name": "below", "data": [f"{documents}@2"], "runs_dir": str(tmp_path), "steps": 1}))
    given = {"replay": "run", "replay_ratio": 0.5, "runs_dir": str(tmp_path), "model": "run:below"}
    ended = train(config(data, tmp_path, **given))
    assert f"- {documents}\n" in (ended.path / "config.yaml").read_text(), "as a path, so that the run can be resumed anywhere"
    over = plan(config(data, tmp_path, **(given | {"model": "run:a"})))
    assert over["replay_tokens_per_epoch"] == pytest.approx(over["trained_tokens"], rel=0.01), "through a run in between"
    for named in ({"model": str(ended.path)}, {"model": "tiny", "from_run": "run:a"}):
        same = plan(config(data, tmp_path, **(given | named)))
        assert same["replay_tokens_per_epoch"] == over["replay_tokens_per_epoch"], "whichever way the run is named"
    with pytest.raises(ConfigError, match="no run of cpt"):
        train(config(data, tmp_path, name="b", **(given | {"model": "tiny"})))
    with pytest.raises(ConfigError, match="no weight"):
        train(config(data, tmp_path, name="b", **(given | {"replay": f"{documents}@2"})))


def test_the_text_of_a_mapped_run_is_replayed_as_it_was_read(data, documents, tmp_path):
    texts = [path.read_text() for path in sorted(documents.iterdir())]
    file = write(tmp_path / "rows.jsonl", [{"title": "A mill", "body": text} for text in texts])
    for name, given in (("plain", {"data": [str(documents)]}), ("mapped", {"data": [file], "map": {"text": "body"}})):
        train(from_dict(CptConfig, SMALL | {"name": name, "runs_dir": str(tmp_path), "steps": 1} | given))
    given = {"replay": ["run", "sample:general/replay.jsonl"], "replay_ratio": 0.5, "runs_dir": str(tmp_path), "steps": 2}
    ends = [train(config(data, tmp_path, name=f"over-{name}", model=f"run:{name}", **given)) for name in ("plain", "mapped")]
    hashes = [json.loads((ended.path / "run.json").read_text())["lineage"]["data"]["replay"] for ended in ends]
    assert hashes[0] == hashes[1], "and text beside it is read where it always is"


def test_each_verb_resumes_its_own_runs(data, documents, tmp_path):
    from mlxforge import Control
    from mlxforge.runs.train import resume

    control = Control()
    control.finish = True
    train(config(data, tmp_path, name="chats"), [], control)
    train(from_dict(CptConfig, SMALL | {"name": "text", "data": [str(documents)], "runs_dir": str(tmp_path), "steps": 1}))
    with pytest.raises(MlxforgeError, match="a run of cpt, not of sft"):
        resume("text", str(tmp_path), objective="sft")
    assert resume("last", str(tmp_path), objective="sft").path.name == "chats"


def test_a_task_is_scored_on_the_answer_without_its_thoughts(tmp_path):
    base = make_tiny("qwen3", tmp_path / "base")
    found = rows(PAIRS[:3])
    for row in found:
        row["messages"][1]["reasoning_content"] = "Let me see."
    file = write(tmp_path / "rows.jsonl", found)
    given = {"model": str(base), "task": file, "max_length": 128, "learning_rate": 2e-2, "steps": 40, "eval_every": 40}
    ended = train(config(file, tmp_path, **given, lora={"rank": 16, "alpha": 32.0}))
    assert ended.result["task"]["exact_match"] == {"before": 0.0, "after": 1.0}


CALL = {"type": "function", "function": {"name": "lamp", "arguments": '{"on": true}'}}
LAMP_ON = '{"name": "lamp", "arguments": {"on": true}}'
LAMP = {"type": "function", "function": {"name": "lamp", "parameters": {"type": "object", "properties": {}}}}


@pytest.mark.parametrize(
    ("family", "last", "answer"),
    [
        ("qwen3", {"content": "", "tool_calls": [CALL]}, f"<tool_call>\n{LAMP_ON}\n</tool_call>"),
        ("gpt_oss", {"content": "Two\nlines.\n", "reasoning_content": "Hm."}, "Two\nlines."),
    ],
)
def test_the_right_answer_is_as_the_template_writes_it(family, last, answer, tmp_path):
    base = make_tiny(family, tmp_path / "base")
    tools = {"tools": [LAMP]} if "tool_calls" in last else {}
    row = {**tools, "messages": [{"role": "user", "content": "Light!"}, {"role": "assistant", **last}]}
    file, heard = write(tmp_path / "rows.jsonl", [row]), []
    given = config(file, tmp_path, model=str(base), task=file, max_length=1024, answer_tokens=8)
    (question,) = prepare(given, heard.append, tmp_path / "cache").material.questions
    assert question.answer == answer
    assert any("longer than answer_tokens 8" in event.message for event in heard if isinstance(event, Warned))


def test_a_task_is_mapped_as_the_data(tmp_path):
    file = write(tmp_path / "qa.jsonl", [{"q": question, "a": answer} for question, answer in PAIRS])
    given = config(file, tmp_path, task=file, map={"prompt": "q", "completion": "a"})
    questions = prepare(given, lambda _: None, tmp_path / "cache").material.questions
    assert [question.answer for question in questions] == [answer for _, answer in PAIRS]


def test_a_run_over_another_kind_is_gone_on_with(data, tmp_path):
    """Over DoRA the published adapter holds the weights that changed, and no others."""
    base = str(make_tiny("qwen2", tmp_path / "base"))
    train(config(data, tmp_path, model=base, name="below", lora=KINDS["dora"]))
    train(config(data, tmp_path, model="run:below", name="over"))
    valid = data_copy(tmp_path)
    stays = train(config(data, tmp_path, model="run:over", name="stays", valid=valid, steps=1))
    again = train(config(data, tmp_path, from_run="over", name="again", valid=valid, steps=1))
    assert again.result["before"]["loss"] == pytest.approx(stays.result["before"]["loss"], rel=1e-5)


def half_done(settings):
    """A run that was stopped after its first step."""
    control = Control()
    control.finish = True
    return train(settings, [], control)


def test_runs_that_moved_together_go_on(data, documents, tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    train(from_dict(CptConfig, SMALL | {"name": "below", "data": [str(documents)], "runs_dir": str(old), "steps": 1}))
    whole = train(config(data, old, model="run:below", name="whole"))
    half_done(config(data, old, model="run:below", name="part"))
    old.rename(new)
    resumed = resume("part", runs_dir=str(new))
    assert (resumed.status, resumed.path) == ("finished", new / "part")
    mine, theirs = (mx.load(str(new / name / "adapters.safetensors")) for name in ("part", "whole"))
    assert all(mx.array_equal(mine[key], theirs[key]).item() for key in mine)
    assert whole.result["train_loss"] == resumed.result["train_loss"]
    replayed = config(data, new, model="run:part", name="over", replay="run", replay_ratio=0.5)
    assert plan(replayed)["replay_tokens_per_epoch"] > 0, "the text of the run two below"


def test_a_run_below_that_changed_is_noticed(data, documents, tmp_path):
    text = {"data": [str(documents)], "runs_dir": str(tmp_path), "name": "below", "steps": 3}
    half_done(from_dict(CptConfig, SMALL | text))
    half_done(config(data, tmp_path, model="run:below", name="over"))
    resume("below", runs_dir=str(tmp_path))
    with pytest.raises(RunError, match="the adapter below changed since the run began"):
        resume("over", runs_dir=str(tmp_path))


def test_the_shipped_model_is_named_through_all_runs(data, tmp_path):
    """Its place changes with an update of mlxforge."""
    train(config(data, tmp_path, name="first", steps=1))
    train(config(data, tmp_path, name="second", steps=1, model="run:first"))
    assert resolve_base("run:second", tmp_path).model == "tiny"


@pytest.mark.parametrize("name", ["last", "run:a", "../a", ".a"])
def test_a_name_that_would_mean_another_run_is_refused(name, data, tmp_path):
    with pytest.raises(ConfigError, match="no name for a run"):
        train(config(data, tmp_path, name=name))
    assert not list(tmp_path.iterdir())


def test_a_name_that_is_taken_is_told_before_anything_is_read(data, tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(RunError, match="a run of this name exists"):
        train(config(str(tmp_path / "missing.jsonl"), tmp_path))


def test_a_task_that_changed_is_noticed(data, tmp_path):
    task = write(tmp_path / "task.jsonl", rows(PAIRS[:2]))
    half_done(config(data, tmp_path, task=task))
    write(tmp_path / "task.jsonl", rows(PAIRS[:3]))
    with pytest.raises(RunError, match="the data changed"):
        resume("a", runs_dir=str(tmp_path))
