"""``mlxforge data convert``: what is written, what is lost and said, and that nothing is half-written."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from mlxforge.cli.main import run

USER, REPLY = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
RICH = {
    "messages": [
        {"role": "system", "content": "s"},
        USER,
        {**REPLY, "reasoning_content": "hm", "weight": 0},
        {"role": "user", "content": "r"},
        {"role": "assistant", "content": "", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{}"}}]},
        {"role": "tool", "content": "4", "name": "f", "tool_call_id": "1"},
        REPLY,
    ],
    "tools": [{"type": "function", "function": {"name": "f"}}],
}


@pytest.fixture
def convert(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """``convert(rows, to, *words)`` -> (exit code, result or stdout, stderr, rows written)."""
    monkeypatch.chdir(tmp_path)

    def call(rows: list[Any], to: str, *words: str) -> tuple[int, Any, str, list[Any]]:
        Path("in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        code = run(["data", "convert", "in.jsonl", "--to", to, "-o", "out.jsonl", *words], debug=False)
        out, err = capsys.readouterr()
        output = Path("out.jsonl")
        written = [json.loads(line) for line in output.read_text("utf-8").splitlines()] if output.exists() else []
        return code, json.loads(out) if "--json" in words and out else out, err, written

    return call


def test_a_format_that_holds_all_loses_nothing(convert: Any) -> None:
    code, result, err, written = convert([RICH], "messages", "--json")
    assert (code, err) == (0, "")
    assert result == {
        "output": "out.jsonl",
        "to": "messages",
        "rows": 1,
        "lost": {},
        "ignored": {},
        "left_out": {},
        "skipped": 0,
    }
    assert written[0]["messages"][4]["tool_calls"][0]["function"]["arguments"] == "{}"
    assert convert(written, "messages", "--json", "--force")[3] == written


@pytest.mark.parametrize(
    ("to", "row", "lost"),
    [
        ("sharegpt", RICH, {"ids of tool calls", "names of speakers"}),
        ("dolly", {"messages": [{"role": "system", "content": "s"}, USER, REPLY]}, {"system prompts"}),
        ("alpaca", {"messages": [USER, REPLY, USER, {**REPLY, "weight": 0}]}, {"which answers are trained"}),
        ("alpaca", {"messages": [USER, REPLY], "tools": RICH["tools"]}, {"tools"}),
        ("prompt-completion", {"messages": [USER, REPLY, USER, REPLY]}, {"which answers are trained"}),
        ("prompt-completion", {"messages": [USER, {**REPLY, "reasoning_content": "hm"}]}, set()),
        ("messages", {"prompt": "p", "chosen": "c", "rejected": "r"}, {"rejected answers"}),
        ("preference", {"chosen": [USER, REPLY], "rejected": [USER, {**REPLY, "content": "b"}]}, set()),
    ],
)
def test_what_is_lost_is_named(convert: Any, to: str, row: Any, lost: set[str]) -> None:
    code, result, _, written = convert([row], to, "--json")
    assert (code, len(written)) == (0, 1)
    assert result["lost"] == dict.fromkeys(lost, 1)


def test_the_page_tells_rows_losses_and_what_comes_next(convert: Any) -> None:
    code, out, _, _ = convert([{"messages": [{"role": "system", "content": "s"}, USER, REPLY], "id": 3}], "dolly")
    assert code == 0
    assert out.splitlines() == [
        "wrote out.jsonl: 1 row of dolly",
        "lost, as it has no place for them: system prompts (1 row)",
        "keys that nothing reads: id (1 row)",
        "next: mlxforge data check out.jsonl",
    ]


def test_a_row_that_the_target_cannot_hold_is_bad(convert: Any) -> None:
    rows = [{"messages": [USER, REPLY]}, RICH]
    code, _, err, written = convert(rows, "alpaca")
    assert (code, written) == (2, [])
    assert err == "error: in.jsonl:2: alpaca has no place for tool calls (convert to messages or sharegpt)\n"
    code, result, _, written = convert(rows, "alpaca", "--skip-bad", "--json")
    assert (code, len(written), result["skipped"]) == (0, 1, 1)


def test_pairs_and_judged_answers(convert: Any) -> None:
    pair = {"prompt": [USER], "chosen": [REPLY], "rejected": [{**REPLY, "content": "b"}]}
    _, _, _, kto = convert([pair], "kto")
    assert [row["label"] for row in kto] == [True, False]
    assert convert(kto, "preference", "--force")[3] == [pair]
    _, result, _, chats = convert(kto, "messages", "--force", "--json")
    assert chats == [{"messages": [USER, REPLY]}]
    assert sum(result["left_out"].values()) == 1


def test_trees_become_pairs(convert: Any) -> None:
    rows = [
        {"message_id": "1", "role": "prompter", "text": "q"},
        *({"message_id": t, "parent_id": "1", "role": "assistant", "text": t, "rank": n} for n, t in enumerate("abc")),
    ]
    written = convert(rows, "preference")[3]
    assert [(row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in written] == [("a", "b"), ("a", "c")]


@pytest.mark.parametrize(
    ("to", "words", "message"),
    [
        ("mesages", (), "no format 'mesages' (did you mean 'messages'?)"),
        ("oasst", (), "oasst rows can be read, not written"),
        ("text", (), "messages rows (chat) cannot be read as text rows (they can be written as messages, sharegpt, "),
        ("alpaca", ("-o", "out.csv"), "cannot write '.csv' files (name a .jsonl file)"),
        ("alpaca", ("-o", "in.jsonl"), "in.jsonl: is there already (--force replaces it)"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_writes_nothing(
    convert: Any, to: str, words: tuple[str, ...], message: str
) -> None:
    code, _, err, _ = convert([{"messages": [USER, REPLY]}], to, *words)
    assert code == 2
    assert message in err
    assert len(err.splitlines()) == 1
    assert [path.name for path in Path.cwd().iterdir()] == ["in.jsonl"]


def test_a_bad_row_leaves_an_earlier_output_as_it_was(convert: Any) -> None:
    Path("out.jsonl").write_text('"before"\n')
    code, _, err, written = convert([{"messages": [USER, REPLY]}, {"messages": [USER]}], "alpaca", "--force")
    assert (code, written) == (2, ["before"])
    assert err.startswith("error: in.jsonl:2: no assistant turn")


def test_an_input_may_be_replaced(convert: Any) -> None:
    assert convert([{"messages": [USER, REPLY]}], "alpaca", "--force", "-o", "in.jsonl")[0] == 0
    assert json.loads(Path("in.jsonl").read_text()) == {"instruction": "q", "input": "", "output": "a"}


def test_trees_become_judged_answers_by_their_ranks(convert: Any) -> None:
    replies = [{"role": "assistant", "text": text, "rank": rank} for rank, text in enumerate(["best", "worse"])]
    tree = {"prompt": {"role": "prompter", "text": "q", "replies": replies}}
    _, _, _, written = convert([tree], "kto")
    assert [(row["completion"][0]["content"], row["label"]) for row in written] == [("best", True), ("worse", False)]


def test_sigterm_leaves_nothing_half_written(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"prompt": "Who keeps the mill?", "completion": "Pim."}\n' * 400_000)
    words = [sys.executable, "-m", "mlxforge", "data", "convert", "in.jsonl", "--to", "messages", "-o", "out.jsonl"]
    process = subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    until = time.time() + 60
    while not list(tmp_path.glob(".out.jsonl.*")):
        assert process.poll() is None
        assert time.time() < until
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]
