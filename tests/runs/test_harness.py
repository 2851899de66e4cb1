"""lm-evaluation-harness in our reports: tasks found, results as sets with rows and tests, and the adapter on our models."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from mlxforge.cli.main import run
from mlxforge.core.errors import ConfigError
from mlxforge.evals.report import Report, load_report
from mlxforge.runs import harness, harness_sets
from mlxforge.runs.eval_job import EvalSettings, SuiteSettings, prepare
from mlxforge.runs.subjects import info_of, name_models, open_subject

ROWS = [
    {"question": "Where does the mill stand?", "choices": ["By the river.", "On the hill.", "Nowhere."], "answer": 0},
    {"question": "What is green?", "choices": ["The gate.", "The sky."], "answer": 0},
    {"question": "Who keeps it?", "choices": ["Nobody", "Cora Vane"], "answer": 1},
]
CHOICE = """task: mill_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}\\nAnswer:"
doc_to_target: "{{{{answer}}}}"
doc_to_choice: "{{{{choices}}}}"
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
"""
ANSWER = """task: mill_answer
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}\\nAnswer:"
doc_to_target: "{{{{choices[answer]}}}}"
generation_kwargs: {{until: "\\n"}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
  - {{metric: bleu, aggregation: bleu, higher_is_better: true}}
"""


@pytest.fixture
def tasks(tmp_path):
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    for name, text in (("choice", CHOICE), ("answer", ANSWER)):
        (folder / f"{name}.yaml").write_text(text.format(rows=folder / "rows.jsonl"))
    (folder / "_common.yaml").write_text("output_type: multiple_choice\n")
    return folder


# Without the harness


def test_tasks_are_names_files_and_folders(tasks):
    file = str(tasks / "choice.yaml")
    assert harness._found(["arc_easy", file, file]) == (["arc_easy", "mill_choice"], [str(tasks)])
    assert harness._found([str(tasks)]) == (["mill_answer", "mill_choice"], [str(tasks)])


def sample(doc, label="none", **scores):
    said = {"arguments": [(f"Question {doc}?", {})], "filtered_resps": [f"answer {doc}"], "target": "right"}
    return {"doc_id": doc, "filter": label, "metrics": list(scores), **said, **scores}


def results(scores, corpus=0.5):
    """As the harness gives them: a mean over rows, the same by another filter, and a figure that is no mean."""
    samples = [sample(doc, acc=score, bleu=["a", "b"], f1=score) for doc, score in enumerate(scores)]
    samples += [sample(doc, "strict", acc=0.0) for doc in range(len(scores))]
    mean = sum(scores) / len(scores)
    told = {"alias": "mill", "sample_len": len(scores), "acc,none": mean, "acc_stderr,none": "N/A", "acc,strict": 0.0}
    return {
        "results": {"mill": {**told, "bleu,none": corpus, "f1,none": corpus, "bleu_stderr,none": "N/A"}},
        "samples": {"mill": samples},
        "higher_is_better": {"mill": {"acc": True, "bleu": True}},
        "n-shot": {"mill": 2},
    }


def test_a_task_is_a_set_with_intervals_over_its_rows_and_tests_between_models():
    one, two = [1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]
    job = SimpleNamespace(
        models=[SimpleNamespace(label="one"), SimpleNamespace(label="two")],
        settings=SimpleNamespace(seed=0),
        suite={
            "one": {"mill": harness_sets.plain("mill", results(one))},
            "two": {"mill": harness_sets.plain("mill", results(two))},
        },
    )
    report = Report(results={"one": {}, "two": {}})
    lines = list(harness_sets.add(report, job))
    assert [(found.name, found.kind, found.rows) for found in report.sets] == [("mill", "lm-eval", 4)]
    acc = report.results["one"]["mill"]["acc"]
    assert (acc.value, acc.n, acc.better) == (0.25, 4, "higher")
    assert 0 <= acc.low < acc.value < acc.high <= 1
    assert report.results["two"]["mill"]["acc"].low == pytest.approx(0.025**0.25)  # of four of four, Clopper and Pearson
    # Rows of a figure that is no mean of them cannot be redrawn, with or without numbers of their own.
    for name, better in (("bleu", "higher"), ("f1", "")):
        corpus = report.results["one"]["mill"][name]
        assert (corpus.value, corpus.low, corpus.n, corpus.better) == (0.5, None, 4, better)
    assert report.results["one"]["mill"]["acc_strict"].value == 0.0
    (test,) = [test for test in report.tests if test.metric == "acc"]
    assert (test.model, test.against, test.difference, test.n) == ("two", "one", 0.75, 4)
    assert test.p == pytest.approx(0.25)  # three rows differ: 2 of the 8 ways to swap them
    assert [(line["model"], line["row"], line["scores"]) for line in lines[:2]] == [
        ("one", 0, {"acc": 1.0, "f1": 1.0, "acc_strict": 0.0}),
        ("one", 1, {"acc": 0.0, "f1": 0.0, "acc_strict": 0.0}),
    ]
    assert (lines[0]["prompt"], lines[0]["answer"], lines[0]["reference"]) == ("Question 0?", "answer 0", "right")


def test_of_choices_the_likeliest_is_the_answer():
    asked = [("Where?\nAnswer:", " By the river."), ("Where?\nAnswer:", " Nowhere.")]
    row = harness_sets._row({"arguments": asked, "filtered_resps": [(-3.0, False), (-2.0, True)], "target": 0})
    assert row == {"prompt": "Where?\nAnswer:", "reference": "By the river.", "answer": "Nowhere."}


def test_what_a_task_leaves_open_is_settled():
    assert harness._options({"until": "\n", "temperature": 0}, 9) == {"until": ["\n"], "temperature": 0, "max_gen_toks": 9}
    assert harness._options({"max_gen_toks": 3}, 9) == {"until": [], "max_gen_toks": 3}


@pytest.mark.parametrize(
    ("text", "until", "thought", "answer"),
    [
        (" Yes.\nNo.", ["\n"], "", " Yes."),
        ("Yes, no; so", [";", ","], "", "Yes"),
        ("Yes", ["\n", ""], "", "Yes"),
        ("Hm, so\n</think>\n Yes\n", [" Y", "x"], "</think>", "\n"),
        ("no thoughts here", [], "</think>", "no thoughts here"),
    ],
)
def test_an_answer_ends_where_its_task_says(text, until, thought, answer):
    assert harness._cut(text, until, thought) == answer


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--tasks", "arc_easy"], "--tasks needs --suite"),
        (["--shots", "0"], "--shots needs --suite"),
        (["--apply-chat-template"], "--apply-chat-template needs --suite"),
        (["--suite", "helm", "--tasks", "x"], "unknown suite 'helm'"),
        (["--suite", "lm-eval"], "--tasks: no task"),
        (["--suite", "lm-eval", "--tasks", "none.yaml"], "no such file or folder"),
        (["--suite", "lm-eval", "--tasks", "EMPTY"], "holds no task"),
    ],
)
def test_what_cannot_be_run_is_refused_in_one_line(words, says, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(harness, "find_spec", lambda name: True)
    (tmp_path / "empty").mkdir()
    line = ["eval", "tiny", *(str(tmp_path / "empty") if word == "EMPTY" else word for word in words)]
    assert run([*line, "--no-retention", "-o", str(tmp_path / "report")], debug=False) == 2
    assert says in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "report").exists()


def test_without_the_package_the_extra_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(harness, "find_spec", lambda name: None)
    assert run(["eval", "tiny", "--suite", "lm-eval", "--tasks", "arc_easy", "-o", str(tmp_path / "r")], debug=False) == 2
    assert "pip install 'mlxforge[lm-eval]'" in capsys.readouterr().err


def test_a_gguf_file_is_refused(tmp_path, capsys):
    pytest.importorskip("xllamacpp")
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    line = ["eval", str(tmp_path / "a.gguf"), "--suite", "lm-eval", "--tasks", "arc_easy", "--no-retention"]
    assert run([*line, "-o", str(tmp_path / "r")], debug=False) == 2
    assert "lm-eval runs models in MLX" in capsys.readouterr().err


# With it: pip install 'mlxforge[lm-eval]'


@pytest.fixture(scope="module")
def subject():
    pytest.importorskip("lm_eval")
    (named,) = name_models(["tiny"], None)
    with open_subject(named, info_of(named)) as opened:
        yield opened


def asked(*args):
    return SimpleNamespace(args=args)


def log_probability(subject, context, continuation):
    """By the model's own logits, without the adapter."""
    import mlx.core as mx

    loaded = subject.opened.loaded
    before, whole = (loaded.tokenizer.encode(text) for text in (context, context + continuation))
    logits = loaded.model(mx.array([whole[:-1]]))[0].astype(mx.float32)
    own = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    return sum(own[place - 1, whole[place]].item() for place in range(len(before), len(whole)))


@pytest.mark.slow
def test_log_probabilities_are_those_of_the_models_own_logits(subject):
    made = harness.adapter(subject)
    pairs = [("Where does the mill stand?\nAnswer:", " By the river."), ("What is green?\nAnswer:", " The gate.")]
    for (found, _), pair in zip(made.loglikelihood([asked(*pair) for pair in pairs]), pairs, strict=True):
        assert found == pytest.approx(log_probability(subject, *pair), rel=1e-3)
    # mlx-lm's own leaves a question without a context out, as minus infinity, and so it would one longer than it thinks.
    begin = subject.opened.loaded.tokenizer.bos_token or subject.opened.loaded.tokenizer.eos_token
    ((empty, _),) = made.loglikelihood([asked("", "The mill stands.")])
    assert empty == pytest.approx(log_probability(subject, begin, "The mill stands."), rel=1e-3)
    ((long, _),) = made.loglikelihood([asked("word " * 5000, "and more.")])
    assert -1e3 < long < 0
    (whole,) = made.loglikelihood_rolling([asked("The mill stands.")])
    assert whole == pytest.approx(empty, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama3", "gemma2"])  # the second has no batches
def test_answers_are_those_of_one_by_one(family, tmp_path):
    from mlxforge.models.generate import answer_greedily
    from mlxforge.models.tiny import make_tiny

    pytest.importorskip("lm_eval")
    folder = make_tiny(family, tmp_path / "m", chat_template=True)
    (named,) = name_models([str(folder)], None)
    with open_subject(named, info_of(named)) as opened:
        loaded, made = opened.opened.loaded, harness.adapter(opened)
        texts = ["Where?", "What is green and stands by the river?", "word " * 5000]
        found = made.generate_until([asked(text, {"until": [], "max_gen_toks": 5}) for text in texts])
        for text, answer in zip(texts, found, strict=True):
            prompt = loaded.tokenizer.encode(text)[-(opened.limit - 5) :]
            (tokens,) = answer_greedily(loaded.model, [prompt], 5, loaded.tokenizer.eos_token_ids)
            assert answer == loaded.tokenizer.decode(tokens)


@pytest.mark.slow
def test_a_task_of_ones_own_is_a_set_of_the_report(tasks, tmp_path, capsys):
    pytest.importorskip("lm_eval")
    questions = tmp_path / "q.jsonl"
    questions.write_text(
        json.dumps({"messages": [{"role": "user", "content": "Hm?"}, {"role": "assistant", "content": "Yes."}]})
    )
    words = ["--suite", "lm-eval", "--tasks", str(tasks), "-d", str(questions), "--metrics", "f1", "--no-retention", "--json"]
    assert run(["eval", "a=tiny", "b=tiny", *words, "--max-tokens", "4", "-o", str(tmp_path / "report")], debug=False) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["sets"][1]["name"] == "mill_answer"
    assert "it/s" not in err
    assert "fatal" not in err
    report = load_report(tmp_path / "report")
    assert [one.name for one in report.sets] == ["q", "mill_answer", "mill_choice"]
    one, two = report.results["a"], report.results["b"]
    assert one["mill_choice"] == two["mill_choice"]
    assert set(one["mill_answer"]) == {"exact_match", "bleu"}
    assert {(test.set, test.metric, test.difference) for test in report.tests} >= {("mill_choice", "acc", 0.0)}
    lines = [json.loads(line) for line in (tmp_path / "report" / "rows.jsonl").read_text().splitlines()]
    chosen = [line for line in lines if line["set"] == "mill_choice" and line["model"] == "a"]
    right = [line["answer"] == line["reference"] for line in chosen]
    assert one["mill_choice"]["acc"].value == pytest.approx(sum(right) / 3)
    assert [line["scores"]["acc"] for line in chosen] == [float(one) for one in right]


@pytest.mark.slow
def test_a_run_is_loaded_with_its_adapter_and_its_chat_template(tasks, tmp_path, documents):
    pytest.importorskip("lm_eval")
    words = ["cpt", "--data", str(documents), "--steps", "3", "--max-length", "64", "--sample-tokens", "0", "--plain"]
    assert run([*words, "--set", "learning_rate=0.05", "--name", "a", "--runs-dir", str(tmp_path / "runs")], debug=False) == 0
    line = ["eval", "tiny", "a=run:a@last", "--runs-dir", str(tmp_path / "runs"), "--suite", "lm-eval", "--tasks", str(tasks)]
    scores = {}
    for more in ([], ["--apply-chat-template", "--shots", "0"]):
        folder = tmp_path / f"report{len(more)}"
        assert run([*line, "--no-retention", "--max-tokens", "4", "-o", str(folder), *more], debug=False) == 0
        lines = [json.loads(one) for one in (folder / "rows.jsonl").read_text().splitlines()]
        scores[len(more)] = {(one["set"], one["model"], one["row"]): (one["prompt"], one["answer"]) for one in lines}
    plain, chat = scores[0], scores[3]
    assert any(plain["mill_answer", "tiny", row][1] != plain["mill_answer", "a", row][1] for row in range(3))
    assert "<|im_start|>" in chat["mill_answer", "tiny", 0][0]
    assert "<|im_start|>" not in plain["mill_answer", "tiny", 0][0]


@pytest.mark.slow
def test_unknown_tasks_and_lost_data_are_told_before_any_model_is_asked(tasks, tmp_path):
    pytest.importorskip("lm_eval")
    with pytest.raises(ConfigError, match=r"no task 'arc_eazy'.*did you mean 'arc_easy'"):
        harness.Suite(SuiteSettings(tasks=["arc_eazy"]))
    (tasks / "rows.jsonl").unlink()
    with pytest.raises(Exception, match="lm-eval mill_choice") as refused:
        harness.Suite(SuiteSettings(tasks=[str(tasks / "choice.yaml")]))
    assert refused.value.exit_code == 2
    assert len(str(refused.value).splitlines()) == 1


def test_tasks_alone_need_no_data():
    job = prepare(EvalSettings(models=["tiny"], retention="", suite=SuiteSettings(tasks=["x"])))
    assert job.sets == []
    assert Path(job.infos["tiny"].path).is_dir()
