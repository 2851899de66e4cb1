"""Evaluation: what a model is asked, that nothing of it is lost or asked twice, and that its figures are those of training."""

from __future__ import annotations

import json
import math
import shutil

import mlx.core as mx
import pytest

from mlxforge.core.errors import ConfigError, DataError, Interrupted, MlxforgeError
from mlxforge.core.events import Noted, Progress
from mlxforge.core.rows import Chat, Message
from mlxforge.core.settings import CptConfig
from mlxforge.data import tokens
from mlxforge.data.sources import parse_spec
from mlxforge.data.windows import windows
from mlxforge.evals.report import load_report
from mlxforge.models.generate import answer_greedily, batches, greedy_batches, greedy_groups
from mlxforge.models.load import fast_tokenizer, load, resolve_model
from mlxforge.models.scoring import Scorer
from mlxforge.models.tiny import make_tiny
from mlxforge.runs.eval_job import EvalSettings, output_folder, prepare
from mlxforge.runs.eval_kept import Kept
from mlxforge.runs.eval_sets import Spec, parse_sets, read_set
from mlxforge.runs.evaluate import evaluate
from mlxforge.runs.passages import passages
from mlxforge.runs.subject import Asked
from mlxforge.runs.subjects import info_of, name_models, open_subject
from mlxforge.runs.talk import reply_to_chat
from mlxforge.runs.text import make_encoder
from mlxforge.training.evaluate import score
from mlxforge.training.losses import next_token
from mlxforge.training.streams import FixedBatches

QUESTIONS = "sample:handbook/questions.test.jsonl"
CHOICE = {"question": "Where does the mill stand?", "choices": ["By the river.", "On the hill.", "Nowhere."], "answer": 0}
TURNS = [{"role": "user", "content": "Hm?"}, {"role": "assistant", "content": "Yes."}]
PAIR = {"prompt": "Where does the mill stand?", "chosen": "By the river.", "rejected": "On the moon, as far as I know."}


def rows_file(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def settings(tmp_path, **changes):
    given = {"models": ["tiny"], "retention": "", "output": tmp_path / "report", "max_tokens": 8, "latency_prompts": 1}
    return EvalSettings(**{**given, **changes})


@pytest.fixture(scope="module")
def subject():
    (named,) = name_models(["tiny"], None)
    with open_subject(named, info_of(named), window=64) as opened:
        yield opened


# Texts


@pytest.mark.parametrize("text", ["", "One line.", "word " * 700, "A line.\n\n" * 300, "x" * 2500])
def test_passages_are_the_whole_text(text):
    assert "".join(passages(text)) == text
    assert all(len(part) <= 1000 for part in passages(text))


def test_perplexity_and_bits_a_byte_are_those_of_trainings_own_evaluation(documents, tmp_path):
    """The same documents, windows and targets, however the sums are made: also where documents take several windows."""
    long = tmp_path / "long.txt"
    long.write_text("\n\n".join((documents / f"{seed:02d}.txt").read_text() for seed in range(24)))
    loaded = load("tiny")
    encoder = make_encoder(loaded.tokenizer, loaded.path, fast_tokenizer(loaded.path))
    for spec in (str(documents), str(long)):
        rows = windows(tokens.prepare([parse_spec(spec)], encoder, cache=tmp_path / "cache"), 64)
        found = FixedBatches(rows, CptConfig(max_length=64), "bucketed")
        trained = score(Scorer(loaded.model), next_token, found, int(rows.bytes.sum()))
        report = evaluate(settings(tmp_path, data=[f"it={spec}"], max_length=64))
        told = report.results["tiny"]["it"]
        assert told["perplexity"].value == pytest.approx(trained.perplexity, rel=1e-4)
        assert told["bpb"].value == pytest.approx(trained.bpb, rel=1e-4)


def test_no_token_of_a_text_is_lost_and_none_counts_twice(subject):
    text = "The mill stands by the river. " * 80 + "\n\nÜber 12 Größen — 你好 😀.\n"
    ((place, found),) = subject.likelihoods([passages(text)])
    ids = subject.encoder.plain.encode(text, add_special_tokens=False).ids
    assert place == 0
    assert len(found) == len(passages(text)) == 3
    assert sum(one.tokens for one in found) == len(ids) + 1  # and the end of the text
    assert sum(one.bytes for one in found) == len(text.encode())


def test_the_likelihood_of_a_short_text_is_that_of_the_models_own_logits(subject):
    text = "The mill stands by the river."
    ((_, (found,)),) = subject.likelihoods([[text]])
    ids = [subject.encoder.start_id, *subject.encoder.plain.encode(text).ids, subject.encoder.end_id]
    logits = subject.opened.loaded.model(mx.array([ids[:-1]]))[0].astype(mx.float32)
    own = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    nats = -sum(own[place, token].item() for place, token in enumerate(ids[1:]))
    assert found.nats == pytest.approx(nats, rel=1e-4)
    assert found.tokens == len(ids) - 1


# Answers


@pytest.mark.parametrize("family", ["llama3", "gemma3", "lfm2", "qwen3_5", "gemma2"])
def test_answers_together_are_those_of_one_by_one(family, tmp_path):
    """Sliding windows (gemma3), recurrent layers (lfm2, qwen3_5), and one that the batch generator does not take (gemma2)."""
    model = load(str(make_tiny(family, tmp_path / "m"))).model
    prompts = [[40 + (7 * place + 3 * length) % 300 for place in range(length)] for length in (3, 9, 9, 17, 30)]
    lengths = [12, 12, 5, 12, 12]
    alone = [answer_greedily(model, [prompt], length, {2})[0] for prompt, length in zip(prompts, lengths, strict=True)]
    assert batches(model) == (family != "gemma2")
    for ask in (greedy_groups, greedy_batches) if batches(model) else (greedy_groups,):
        found = {place: tokens for place, tokens, _ in ask(model, prompts, lengths, {2}, together=3)}
        assert [found[place] for place in range(len(prompts))] == alone


def test_answers_are_those_of_the_chat(subject):
    from mlxforge.models.streaming import Sampling

    asked = read_set(Spec("q", QUESTIONS), limit=12).rows
    found = dict(subject.answers([row.prompt for row in asked], 24))
    for place, row in enumerate(asked):
        reply = reply_to_chat(subject.opened, row.prompt.messages, Sampling(24))
        assert "".join(piece.text for piece in reply).strip() == found[place].text
        assert (reply.finish, reply.tokens - (reply.finish == "stop")) == (found[place].finish, found[place].tokens)


def test_thoughts_are_no_part_of_an_answer(tmp_path):
    from mlxforge.models.streaming import answer_in, markers

    folder = make_tiny("qwen3", tmp_path / "m")
    (named,) = name_models([str(folder)], None)
    with open_subject(named, info_of(named)) as opened:
        template = opened.opened.template
        prompt = template.prompt((Message("user", "Hm?"),), thinking=True)
        reply = template.encode("<think>\nLet me see.\n</think>\n\nBy the river.")[0]
        cuts = markers(opened.opened.loaded.detected, template.think)
        assert answer_in(opened.opened.loaded.tokenizer, cuts, prompt, reply) == "By the river."


def test_a_prompt_that_fills_the_context_has_an_empty_answer(subject):
    long = Chat((Message("user", "word " * 4000),))
    ((place, found),) = subject.answers([long], 8)
    assert (place, found.text, found.finish, found.tokens) == (0, "", "length", 0)


def test_a_prompt_that_fills_the_context_stops_no_evaluation(tmp_path):
    """Its answer counts as wrong, and it has no latency."""
    turns = ([{"role": "user", "content": text}, TURNS[1]] for text in ("word " * 4000, "Hm?", "Hm hm?"))
    file = rows_file(tmp_path / "a.jsonl", *({"messages": turn} for turn in turns))
    figures = evaluate(settings(tmp_path, data=[file], latency_prompts=2)).results["tiny"]["a"]
    assert (figures["stop_rate"].n, figures["latency_p50"].n) == (3, 1)


# Choices and pairs


def test_a_continuation_is_scored_behind_its_prompt_alone(subject):
    prompt, said = (Message("user", "Where?"),), (Message("assistant", "By the river."),)
    three = tuple((Message("assistant", text),) for text in ("By the river.", "On the hill.", "Far away in the north."))
    ((_, found),) = subject.continuations([Asked(prompt, three)])
    ids = subject.opened.template.prompt(prompt)
    answer = subject.opened.template.encode("By the river.<|im_end|>")[0]
    logits = subject.opened.loaded.model(mx.array([ids + answer]))[0].astype(mx.float32)
    own = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    nats = -sum(own[len(ids) - 1 + place, token].item() for place, token in enumerate(answer))
    assert found[0].nats == pytest.approx(nats, rel=1e-4)
    assert (found[0].tokens, found[0].bytes) == (len(answer), len(b"By the river."))
    ((_, pair),) = subject.continuations([Asked(prompt, (said, three[2]))])
    assert pair[0].nats == pytest.approx(found[0].nats, rel=1e-4)
    assert pair[1].nats == pytest.approx(found[2].nats, rel=1e-4)


def test_choices_and_pairs_have_figures_and_rows(tmp_path):
    choices = rows_file(tmp_path / "choices.jsonl", CHOICE, {**CHOICE, "answer": "B"}, {**CHOICE, "answer": "Nowhere."})
    pairs = rows_file(tmp_path / "pairs.jsonl", PAIR, {**PAIR, "chosen": PAIR["rejected"], "rejected": PAIR["chosen"]})
    report = evaluate(settings(tmp_path, data=[choices, pairs]))
    assert report.results["tiny"]["choices"]["choice_accuracy"].value == pytest.approx(1 / 3)  # each is right once
    assert report.results["tiny"]["pairs"]["preference_accuracy"].value == 0.5  # the second is the first, turned round
    assert report.results["tiny"]["pairs"]["preference_margin"].value == pytest.approx(0, abs=1e-4)
    lines = [json.loads(line) for line in (tmp_path / "report" / "rows.jsonl").read_text().splitlines()]
    answered = {(line["set"], line["row"]): (line["answer"], line["reference"]) for line in lines}
    assert len({answered["choices", row][0] for row in range(3)}) == 1
    assert [answered["choices", row][1] for row in range(3)] == CHOICE["choices"]
    assert answered["pairs", 0][0] == answered["pairs", 1][0]


# Sets


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"text": "The mill."}, "text"),
        ({"messages": TURNS}, "chat"),
        ({"instruction": "Hm?", "input": "", "output": "Yes."}, "chat"),
        ({"instruction": "run it", "context": None, "output": '{"command": "run", "arguments": {}, "flags": []}'}, "commands"),
        (CHOICE, "choices"),
        ({"question": "Q?", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "B"}, "choices"),
        (PAIR, "pairs"),
    ],
)
def test_the_kind_of_a_set_is_found_by_its_rows(row, kind, tmp_path):
    found = read_set(Spec("it", rows_file(tmp_path / "it.jsonl", row)))
    assert found.kind == kind
    assert len(found.rows) == found.info.rows == 1


def test_a_knowledge_base_is_a_text(tmp_path):
    from mlxforge.knowledge.chunk import Text, chunks
    from mlxforge.knowledge.count import counter_of
    from mlxforge.knowledge.store import Document, open_store

    with open_store(tmp_path / "kb.sqlite", create=True) as store, store.writing() as connection:
        for name, text in (("a", "The gate is green.\n"), ("b", "The gate was red once.\n")):
            cut = chunks(Text(text, []), counter_of(resolve_model("tiny")), 16, 0)
            store.put(Document(f"/{name}.md", "/", "h", name, "markdown", "en", len(text), name, "{}"), cut)
        connection.execute("UPDATE documents SET removed = 'then' WHERE path = '/b.md'")
    found = read_set(Spec("kb", str(tmp_path / "kb.sqlite")))
    assert (found.kind, [row.text.strip() for row in found.rows]) == ("text", ["The gate is green."])


def test_commands_bring_their_schema_and_where_they_come_from(tmp_path):
    row = {
        "instruction": "go",
        "context": None,
        "output": '{"command": "go", "arguments": {}, "flags": []}',
        "source": {"row": 7},
    }
    file = rows_file(tmp_path / "test.jsonl", row)
    (tmp_path / "schema.json").write_text('{"type": "object"}')
    (found,) = read_set(Spec("it", file)).rows
    assert found.schema == {"type": "object"}
    assert found.source == {"row": 7}
    assert json.loads(found.references[0])["command"] == "go"


def test_sets_are_named_by_their_files():
    found = parse_sets(["a.jsonl", "b/a.jsonl", "mine=c.jsonl", "hub:org/name:test", "sample:handbook/documents"])
    assert [spec.name for spec in found] == ["a", "a-2", "mine", "name_test", "documents"]


# A whole evaluation


def test_models_stand_side_by_side_and_every_row_is_told(tmp_path):
    other = make_tiny("llama3", tmp_path / "other", chat_template=True)
    job = settings(tmp_path, models=["base=tiny", str(other)], data=[f"q={QUESTIONS}"], retention=None, limit=6)
    heard = []
    report = evaluate(job, heard.append)
    assert load_report(tmp_path / "report") == report
    assert [model.label for model in report.models] == ["base", "other"]
    assert [(one.name, one.kind, one.rows) for one in report.sets] == [("q", "chat", 6), ("retention", "text", 6)]
    lines = [json.loads(line) for line in (tmp_path / "report" / "rows.jsonl").read_text().splitlines()]
    assert len(lines) == 2 * (6 + 6)
    assert {line["model"] for line in lines} == {"base", "other"}
    first = lines[0]
    assert first["prompt"][0]["role"] == "user"
    assert first["reference"].startswith("Answer: ")
    assert set(first["scores"]) >= {"exact_match", "f1", "stop_rate"}
    told = {test.metric for test in report.tests if test.model == "other" and test.against == "base"}
    assert {"f1", "bpb"} <= told
    # Their tokens differ, and nobody asked for perplexity by its name.
    assert "perplexity" not in report.results["base"]["retention"]
    assert any("bpb" in note for note in report.notes)
    assert report.results["base"]["q"]["peak_memory"].value > 1e6
    ends = [event for event in heard if isinstance(event, Progress) and event.done == event.total]
    assert {event.task for event in ends} >= {"base: q", "other: retention"}


def test_perplexity_by_name_of_different_tokenizers_is_refused_before_anything_is_loaded(tmp_path):
    other = make_tiny("llama3", tmp_path / "other")
    (tmp_path / "a.txt").write_text("The mill.")
    job = settings(tmp_path, models=["tiny", str(other)], data=[str(tmp_path / "a.txt")], metrics=["perplexity"])
    with pytest.raises(ConfigError, match=r"different tokenizers.*--metrics bpb"):
        evaluate(job)
    assert not (tmp_path / "report").exists()


def test_what_was_answered_is_not_asked_again_after_a_stop(tmp_path):
    """Stopped in the middle: the second run asks for the rest alone, and its report is that of a run that never stopped."""
    asked = settings(tmp_path, data=[f"q={QUESTIONS}"], limit=40, max_tokens=9, metrics=["f1"])
    done = []

    def stop(event):
        if isinstance(event, Progress) and event.task == "tiny: q":
            done.append(event.done)
            if event.done == 5:
                raise KeyboardInterrupt

    with pytest.raises(Interrupted, match="the same command goes on"):
        evaluate(asked, stop)
    assert not (tmp_path / "report" / "report.json").exists()
    heard = []
    gone_on = evaluate(asked, heard.append)
    steps = [event.done for event in heard if isinstance(event, Progress) and event.task == "tiny: q"]
    assert steps == list(range(5, 41))
    assert any("5 of 40 rows were answered before" in event.message for event in heard if isinstance(event, Noted))
    whole = evaluate(settings(tmp_path, data=asked.data, limit=40, max_tokens=9, metrics=["f1"], fresh=True))
    assert gone_on.results == whole.results
    # Other settings are another question.
    heard = []
    evaluate(settings(tmp_path, data=asked.data, limit=5, max_tokens=3, metrics=["f1"]), heard.append)
    assert not any("answered before" in event.message for event in heard if isinstance(event, Noted))


def test_large_models_that_differ_where_their_hash_does_not_look_share_no_answers(tmp_path, monkeypatch):
    """Two fused models: the same header, size and sampled blocks, other weights between them."""
    for name, given in {"HASH_WHOLE": 0, "HASH_BLOCK": 64, "HASH_BLOCKS": 2}.items():
        monkeypatch.setattr(f"mlxforge.models.check.{name}", given)
    found = []
    for name in ("one", "two"):
        shutil.copytree(resolve_model("tiny"), tmp_path / name)
        if found:
            with open(tmp_path / name / "model.safetensors", "r+b") as weights:
                weights.seek(2_000_000)
                weights.write(bytes(400_000))
        job = settings(tmp_path, models=[str(tmp_path / name)], data=["sample:general/retention.txt"], limit=2)
        report = evaluate(job)
        found.append((report.models[0].hash, report.results[name]["retention"]["bpb"].value))
    assert found[0][0] == found[1][0]
    assert found[0][1] != found[1][1]


def test_a_general_set_of_conversations_has_no_bits_a_byte(tmp_path):
    file = rows_file(tmp_path / "general.jsonl", {"messages": TURNS}, {"messages": TURNS})
    job = prepare(settings(tmp_path, retention=file, metrics=["f1"], data=[f"q={QUESTIONS}"]))
    assert [metric.name for metric in job.metrics["retention"]] == ["f1"]


def test_a_line_that_broke_off_does_not_take_the_next_one_with_it():
    with Kept("cut") as kept:
        kept.add("one", [1])
        kept.add("two", [2])
    kept.path.write_bytes(kept.path.read_bytes()[:-4])
    with Kept("cut") as again:
        assert again.found == {"one": [1]}
        again.add("two", [2])
        again.add("three", [3])
    assert Kept("cut").found == {"one": [1], "two": [2], "three": [3]}


def test_a_model_whose_template_cannot_be_used_says_why_it_has_no_answers(tmp_path):
    plain = make_tiny("llama3", tmp_path / "plain")
    (plain / "chat_template.jinja").write_text("{{ raise_exception('no chats here') }}")
    report = evaluate(settings(tmp_path, models=[str(plain)], data=[f"q={QUESTIONS}"], retention=None, limit=2))
    answers = report.results["plain"]["q"]["exact_match"]
    assert answers.value is None
    assert "no chats here" in answers.why
    assert report.results["plain"]["retention"]["bpb"].value > 0


def test_the_seed_decides_intervals_alone(tmp_path):
    job = settings(tmp_path, data=[f"q={QUESTIONS}"], limit=12, metrics=["f1"])
    one, two = evaluate(job), evaluate(settings(tmp_path, data=job.data, limit=12, metrics=["f1"], seed=1))
    assert one.results["tiny"]["q"]["f1"].value == two.results["tiny"]["q"]["f1"].value
    assert math.isfinite(one.results["tiny"]["q"]["f1"].low)


# Bad input


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"models": []}, "no model"),
        ({"models": ["a=tiny", "a=tiny"]}, "'a' is given twice"),
        ({"models": ["a.b=tiny"]}, "label has no"),
        ({"models": ["=tiny"]}, "label or a model is empty"),
        ({"models": ["nowhere/at.gguf"]}, "no such file"),
        ({"models": ["run:never"]}, "no runs here"),
        ({"models": ["./nowhere"]}, "no such model"),
        ({"data": []}, "no data"),
        ({"data": ["nowhere.jsonl"]}, "no such file"),
        ({"data": ["a=x.jsonl", "a=y.jsonl"]}, "two sets are named 'a'"),
        ({"metrics": ["perplexity"]}, "does not fit"),
        ({"metrics": ["perplexity"], "retention": None}, "'perplexity' does not fit the set 'q'"),
        ({"data": [f"q={QUESTIONS}@0.5"]}, "weights are for training"),
        ({"metrics": ["exact_mtach"]}, "did you mean 'exact_match'"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line(changes, says, tmp_path):
    job = settings(tmp_path, **{"data": [f"q={QUESTIONS}"], "runs_dir": tmp_path / "runs", **changes})
    with pytest.raises(MlxforgeError, match=says) as refused:
        evaluate(job)
    assert refused.value.exit_code == 2
    assert len(str(refused.value).splitlines()) == 1
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (None, "no row to evaluate"),
        ({"messages": [*TURNS, {"role": "user", "content": "And?"}]}, "nothing answers it"),
        ({"messages": [TURNS[0], {**TURNS[1], "content": " "}]}, "empty"),
        ({**CHOICE, "answer": 3}, "none of the choices"),
        ({**CHOICE, "answer": True}, "none of the choices"),
        ({**CHOICE, "choices": ["one"]}, "two or more"),
        ({**CHOICE, "choices": ["one", "one"]}, "the same"),
        ({**CHOICE, "question": " "}, "no question"),
        ({"strange": 1}, "no format has these keys"),
        ({"messages": TURNS, "references": 5}, "'references' is no list of texts"),
        ({"messages": TURNS, "references": ["Yes.", None]}, "'references' is no list of texts"),
    ],
)
def test_bad_rows_are_told_by_their_line(row, says, tmp_path):
    file = rows_file(tmp_path / "bad.jsonl", *([row] if row else []))
    with pytest.raises(DataError, match=says) as refused:
        read_set(Spec("bad", file))
    assert "bad.jsonl" in str(refused.value)


@pytest.mark.parametrize(
    ("given", "known"), [("No.", ("No.",)), (["No.", "Never."], ("No.", "Never.")), ([], ("Yes.",)), (None, ("Yes.",))]
)
def test_references_of_a_row_are_a_text_or_several(given, known, tmp_path):
    (row,) = read_set(Spec("a", rows_file(tmp_path / "a.jsonl", {"messages": TURNS, "references": given}))).rows
    assert row.references == known


def test_a_folder_that_holds_other_things_is_not_written_into(tmp_path):
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(ConfigError, match="other things"):
        output_folder(tmp_path)
    assert output_folder(tmp_path / "new") == tmp_path / "new"
