"""What Ollama renders from our Modelfile is what training rendered: with Go's own text/template, for every template we know."""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from chat_makes import MAKES, write_make
from click.testing import CliRunner
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from mlxforge.cli.main import cli
from mlxforge.core.errors import ConfigError, ModelError
from mlxforge.core.rows import Message
from mlxforge.export.gotemplate import go_text, literal, quoted
from mlxforge.export.llama import LlamaCpp, available
from mlxforge.export.ollama import adds_bos, checked, model_name, modelfile, parameters, stops
from mlxforge.export.turns import (
    BEGUN,
    FIRST,
    LATE,
    NEXT,
    SAID,
    SYSTEM,
    THOUGHT,
    NoTable,
    Turns,
    conversations,
    plain,
    turns_of,
)
from mlxforge.models.families import FAMILIES, TEMPLATES
from mlxforge.models.template import ChatTemplate, load_template
from mlxforge.models.tiny import make_tiny, special_tokens, write_tokenizer
from mlxforge.runs.export_ollama import export_ollama
from mlxforge.runs.opening import Base

GO = shutil.which("go")
RENDER = Path(__file__).parent / "ollama_render.go"
UNUSUAL = (LATE, BEGUN, (FIRST, SAID), (SYSTEM, FIRST, SAID), (FIRST, THOUGHT), (FIRST, THOUGHT, NEXT), (SYSTEM,))


def installed(name: str, folder: Path) -> ChatTemplate:
    row = next((row for row in FAMILIES.values() if row.chat.template == name), FAMILIES["llama"])
    write_tokenizer(folder, row, special_tokens(row), chat_template=False)
    (folder / "config.json").write_text(json.dumps({"model_type": row.model_types[0]}))
    return load_template(folder)


@pytest.fixture(scope="module")
def templates(tmp_path_factory) -> dict[str, ChatTemplate]:
    """Every template that can be installed, those of 21 makes, and both with their switch of thoughts set."""
    folder = tmp_path_factory.mktemp("templates")
    found = {}
    for name in TEMPLATES:
        (folder / f"installed-{name}").mkdir()
        found[f"installed {name}"] = installed(name, folder / f"installed-{name}")
    for name in MAKES:
        found[name] = load_template(write_make(name, folder / name))
    for name, template in list(found.items()):
        for thinking in (False, True):
            if (locked := template.with_thinking(thinking)).thinks is not None:
                found[f"{name}, thinking {thinking}"] = locked
    return found


def rendered(cases: list[dict]) -> list[str]:
    done = subprocess.run([GO, "run", str(RENDER)], input=json.dumps(cases), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def case(go: str, messages: tuple[Message, ...], think: bool = False) -> dict:
    plain_messages = [{"Role": one.role, "Content": one.content, "Thinking": one.reasoning} for one in messages]
    return {"Template": go, "Messages": plain_messages, "Think": think, "IsThinkSet": True}


def test_every_template_becomes_a_table_that_renders_the_same(templates):
    assert len(templates) > 50
    for name, template in templates.items():
        turns, _ = turns_of(template)
        thinking = bool(template.thinks)
        for messages in conversations():
            own = template.render(messages, generation=True, thinking=thinking)
            assert turns.render(messages, thinking=thinking) == plain(template, own), name


@pytest.mark.skipif(GO is None, reason="there is no go on PATH: apt-get install golang-go, or brew install go")
def test_go_renders_what_the_jinja_renders(templates):
    cases, expected, names = [], [], []
    for name, template in templates.items():
        turns, _ = turns_of(template)
        go = go_text(turns)
        for messages in (*conversations(), *UNUSUAL):
            for thinking in (False, True):
                cases.append(case(go, messages, thinking))
                names.append((name, messages))
                usual = messages not in UNUSUAL and (turns.silent is not None or thinking == bool(template.thinks))
                own = template.render(messages, generation=True, thinking=thinking) if usual else None
                expected.append(turns.render(messages, thinking=thinking) if own is None else plain(template, own))
    wrong = [(*at, ours, text) for at, ours, text in zip(names, expected, rendered(cases), strict=True) if ours != text]
    assert not wrong, f"{len(wrong)} of {len(cases)}: {wrong[0]}"


@pytest.mark.skipif(GO is None, reason="there is no go on PATH: apt-get install golang-go, or brew install go")
def test_go_renders_any_table():
    draw = random.Random(7)
    pieces = [
        "",
        "<|im_end|>",
        "\n",
        "100% ",
        "%s",
        "{",
        "{{ .Role }}",
        "}}",
        '"',
        "\\n",
        " ",
        "\u3000",
        "- ",
        "<think>\n",
        "▁",
    ]

    def text() -> str:
        return "".join(draw.choices(pieces, k=draw.randrange(5)))

    def around() -> tuple[str, str]:
        return text(), text()

    cases, expected = [], []
    for _ in range(150):
        fold = draw.choice(["turn", "first", "last"])
        turns = Turns(around(), fold, around(), around(), around(), text())
        turns = replace(turns, silent=text() if draw.random() < 0.5 else None)
        turns = replace(turns, thoughts=around() if draw.random() < 0.5 else None, keeps=draw.random() < 0.5)
        for messages in (*draw.sample(conversations(), 4), *UNUSUAL):
            thinking = draw.random() < 0.5
            cases.append(case(go_text(turns), messages, thinking))
            expected.append(turns.render(messages, thinking=thinking))
    assert rendered(cases) == expected
    assert not any('"""' in one["Template"] for one in cases), "which would end the text in a Modelfile"


@pytest.mark.skipif(GO is None, reason="there is no go on PATH: apt-get install golang-go, or brew install go")
def test_go_reads_texts_that_look_like_actions():
    texts = ["{{ .Content }}", "{", "a{", "{{{", "}}", '"""', "\u2028\x07", "100%", "\\n", "{{- x -}}\n"]
    cases = [
        case(literal(text) + "{{ .System }}" + "{{ printf " + quoted(text.replace("%", "%%")) + " }}", ()) for text in texts
    ]
    assert rendered(cases) == [text * 2 for text in texts]
    assert not any('"""' in one["Template"] for one in cases)


def test_the_chatml_text_is_the_one_by_hand(templates):
    turn = "<|im_start|>%s\n{{ .Content }}<|im_end|>\n"
    assert go_text(turns_of(templates["installed chatml"])[0]) == (
        "{{ range $i, $_ := .Messages }}{{ $last := eq (len (slice $.Messages $i)) 1 }}"
        '{{ if eq .Role "system" }}' + turn % "system" + '{{ else if eq .Role "user" }}' + turn % "user"
        + '{{ else if eq .Role "assistant" }}<|im_start|>assistant\n{{ .Content }}{{ if not $last }}<|im_end|>\n{{ end }}'
        '{{ end }}{{ if and $last (ne .Role "assistant") }}<|im_start|>assistant\n{{ end }}{{ end }}'
    )  # fmt: skip


def test_thoughts_are_asked_for_as_in_training(templates):
    both, without, always = (
        go_text(turns_of(templates[f"qwen3{end}"])[0]) for end in ("", ", thinking False", ", thinking True")
    )
    assert "$.IsThinkSet" in both
    assert ".Think" not in without, "or Ollama would take it for a model that can think"
    assert "$.Think" not in always
    for text in (both, always):
        assert "{{ if .Thinking }}<think>\n{{ .Thinking }}\n</think>\n\n{{ end }}" in text


def test_what_differs_is_said(templates):
    assert turns_of(templates["installed llama3"])[1] == []
    assert any("white space" in note for note in turns_of(templates["llama31"])[1])
    assert any("tools" in note for note in turns_of(templates["qwen25"])[1])


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{% for m in messages %}{{ loop.index }}{{ m.content }}<|im_end|>{% endfor %}", "changes"),
        ("{% for m in messages %}{{ m.content }}|{{ m.content }}<|im_end|>{% endfor %}", "written twice"),
        ("{% for m in messages %}{{ m.content | upper }}<|im_end|>{% endfor %}", "left out"),
        ("{% for m in messages %}{{ m.content | replace('\\n', ' ') }}<|im_end|>{% endfor %}", "otherwise"),
    ],
)
def test_a_template_that_is_no_table_is_refused(text, why, tmp_path):
    with pytest.raises(NoTable, match=why):
        turns_of(load_template(write_make("chatml", tmp_path, text)))


def test_parameters_are_those_of_the_generation_config():
    given = {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "top_k": 20, "repetition_penalty": 1.05, "max_length": 4096}
    found = {"repeat_penalty": 1.05, "temperature": 0.6, "top_p": 0.95, "top_k": 20, "num_ctx": 4096}
    assert parameters(given) == found
    assert parameters({"max_length": 20, "eos_token_id": 1}) == {"repeat_penalty": 1.0}
    assert parameters({**given, "do_sample": False}) == {"repeat_penalty": 1.05, "temperature": 0, "num_ctx": 4096}


def read(text: str) -> dict[str, list[str]]:
    """A Modelfile as Ollama's reader takes it: a value ends with its line, or with its three quotation marks."""
    found: dict[str, list[str]] = {}
    pattern = r'^([A-Z]+) ("""(?:.|\n)*?"""$|.*)'
    for word, value in re.findall(pattern, re.sub(r"\A(#.*\n)+", "", text), re.MULTILINE):
        found.setdefault(word, []).append(value.removeprefix('"""').removesuffix('"""'))
    return found


def test_a_modelfile_says_all(templates):
    template = templates["llama31"]
    go = go_text(turns_of(template)[0])
    system = 'Say "yes".\n\nNothing else.'
    found = read(modelfile("m.gguf", go, stops(template), {"repeat_penalty": 1.0, "temperature": 0.6}, system=system))
    assert found["FROM"] == ["./m.gguf"]
    assert found["TEMPLATE"] == [go]
    assert found["SYSTEM"] == [system]
    ends = [f'stop "{one}"' for one in ("<|eot_id|>", "<|end_of_text|>", "<|eom_id|>")]
    assert sorted(found["PARAMETER"]) == sorted(["repeat_penalty 1", "temperature 0.6", *ends])
    assert stops(template)[0] == "<|eot_id|>"


def with_beginning(folder: Path) -> None:
    """Makes the tokenizer put its first token before every text, as most real ones do."""
    named = json.loads((folder / "tokenizer_config.json").read_text())["bos_token"]
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    bos = (named, tokenizer.token_to_id(named))
    tokenizer.post_processor = TemplateProcessing(single=f"{named} $A", special_tokens=[bos])
    tokenizer.save(str(folder / "tokenizer.json"))


@pytest.mark.skipif(not available(), reason="the extra 'gguf' is not installed")
@pytest.mark.parametrize(
    ("family", "begins"),
    [
        ("llama3", True),
        ("llama3", False),
        ("gemma2", True),
        pytest.param("mistral", True, marks=pytest.mark.slow),
        ("qwen3", False),
    ],
)
def test_llama_cpp_makes_the_ids_of_training_of_it(family, begins, tmp_path):
    """Ollama gives the text that Go renders to llama.cpp, with what the file says goes before a text."""
    folder = make_tiny(family, tmp_path / "model")
    if begins:
        with_beginning(folder)
    result = export_ollama(Base(str(folder)), tmp_path / "out", ["f16"], verify=False)
    file = Path(result["models"][0]["file"])
    template = load_template(folder)
    turns, _ = turns_of(template)
    assert adds_bos(file) is begins
    begin = str(template.renderer.variables["bos_token"]) if template.bos is not None and not begins else ""
    assert read(Path(result["models"][0]["modelfile"]).read_text())["TEMPLATE"] == [go_text(turns, begin)]
    with LlamaCpp(file) as llama:
        for messages in conversations()[-4:]:
            text = begin + turns.render(messages, thinking=False)
            assert llama.tokenize(text, special=True, bos=True) == template.prompt(messages)


def test_a_beginning_that_the_file_does_not_add_is_written(templates):
    template = templates["llama3"]
    turns, _ = turns_of(template)
    assert go_text(turns, "<|begin_of_text|>") == "<|begin_of_text|>" + go_text(turns)
    own = turns_of(templates["gpt_oss"])[0]
    assert go_text(own, "<s>").count("<s>") == 2, "before either beginning"


def test_the_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = ["export", "ollama", "tiny", "--no-verify", "--quant", "f16", "-o"]
    done = CliRunner().invoke(cli, [*line, "one two", "--name", "answers", "--system", "Be brief."])
    assert done.exit_code == 0, done.output
    assert "ollama create answers -f 'one two/Modelfile'\n      ollama run answers" in done.stdout
    found = read(Path("one two/Modelfile").read_text())
    assert found["FROM"] == ["./answers.f16.gguf"]
    assert found["SYSTEM"] == ["Be brief."]
    with pytest.raises(ConfigError, match="--force"):
        CliRunner().invoke(cli, [*line, "one two"], catch_exceptions=False)
    many = CliRunner().invoke(cli, [*line, "many", "--quant", "q8_0", "--lmstudio", "--json"])
    models = json.loads(many.stdout)["models"]
    assert [one["file"] for one in models] == [f"many/mlxforge/tiny/tiny.{quant}.gguf" for quant in ("f16", "q8_0")]
    assert [one["run"] for one in models] == ["ollama run tiny:f16", "ollama run tiny:q8_0"]
    for one in models:
        assert (tmp_path / "many" / read(Path(one["modelfile"]).read_text())["FROM"][0]).is_file()


def test_nothing_is_written_where_the_template_cannot_be(tmp_path):
    folder = make_tiny("qwen3", tmp_path / "model")
    own = "{% for m in messages %}{{ loop.index }}{{ m.content }}<|im_end|>{% endfor %}"
    (folder / "chat_template.jinja").write_text(own)
    with pytest.raises(ModelError, match=r"cannot be written in Go.*--template FILE"):
        export_ollama(Base(str(folder)), tmp_path / "out", ["f16"], verify=False)
    assert not (tmp_path / "out").exists()
    said = []
    result = export_ollama(Base(str(folder)), tmp_path / "out", ["f16"], verify=False, lmstudio=True, emit=said.append)
    assert result["models"][0]["modelfile"] is None
    assert "no Modelfile" in said[0].message
    go = "{{ range .Messages }}{{ .Content }}{{ end }}"
    mine = export_ollama(Base(str(folder)), tmp_path / "mine", ["f16"], go=go, verify=False)
    assert read(Path(mine["models"][0]["modelfile"]).read_text())["TEMPLATE"] == [go]


def test_a_refused_model_leaves_no_folder(tmp_path):
    folder = make_tiny("qwen2_moe", tmp_path / "model")
    with pytest.raises(ModelError, match="qwen2_moe"):
        export_ollama(Base(str(folder)), tmp_path / "out", ["f16"], verify=False)
    assert not (tmp_path / "out").exists()


def test_a_system_message_that_would_change_is_refused():
    with pytest.raises(ConfigError, match="three quotation marks"):
        checked('a """ b')
    with pytest.raises(ConfigError, match=r"U\+200D"):
        checked("family: 👨\u200d👩")


def test_names():
    assert model_name(None, "Qwen3 0.6B/Run!") == "qwen3-0.6b-run"
    assert model_name("me/answers", "x") == "me/answers"
    for bad in ("", "../x", "a b", "a:b"):
        with pytest.raises(ConfigError, match="--name"):
            model_name(bad, "x")


@pytest.fixture
def clone(tmp_path):
    """What `make export` needs of a checkout, with this environment as its own."""
    root = Path(__file__).resolve().parents[2]
    for name in ("Makefile", "pyproject.toml"):
        shutil.copyfile(root / name, tmp_path / name)
    (tmp_path / "scripts").mkdir()
    shutil.copyfile(root / "scripts" / "setup.sh", tmp_path / "scripts" / "setup.sh")
    (tmp_path / "venv").mkdir()
    (tmp_path / "venv" / "bin").symlink_to(Path(sys.executable).parent)
    for mark in (".installed", ".installed-gguf"):
        (tmp_path / "venv" / mark).touch()
    return tmp_path


def make(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["make", "VENV=venv", *words], cwd=folder, capture_output=True, text=True, check=False)


def test_make_export_without_a_run_says_what_to_do_first(clone):
    done = make("export", folder=clone)
    assert done.returncode == 2
    assert "make sft" in done.stderr
    assert not (clone / "exports").exists()


@pytest.mark.slow
@pytest.mark.skipif(not available(), reason="the extra 'gguf' is not installed")
def test_make_export_hands_over_the_last_run(clone):
    forge = Path(sys.executable).parent / "mlxforge"
    root = Path(__file__).resolve().parents[2]
    line = ["sft", "-c", str(root / "configs" / "handbook-sft.yaml"), "--steps", "2", "--name", "mini", "--plain"]
    subprocess.run([forge, *line], cwd=clone, check=True, capture_output=True)
    done = make("export", folder=clone)
    assert done.returncode == 0, done.stderr
    made = {path.name for path in (clone / "exports" / "mini").iterdir()}
    files = {f"mini.{quant}.{end}" for quant in ("f16", "q4_k_m") for end in ("gguf", "report.json")}
    assert made == {*files, "model", "Modelfile.f16", "Modelfile.q4_k_m"}
    assert "ollama create mini:q4_k_m" in done.stdout
