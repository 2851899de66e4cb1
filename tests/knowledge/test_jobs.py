"""Jobs: a task is done once with all its rows, whatever happens in between and whoever else works at it."""

from __future__ import annotations

import pytest

from mlxforge.knowledge.jobs import Job, Row, Task, Usage
from mlxforge.knowledge.store import open_store

PLAN = [Task(number, None, "factual", "train", {"count": 1}) for number in range(5)]
COST = Usage(1, 10, 20, 0.5)


@pytest.fixture
def store(tmp_path):
    with open_store(tmp_path / "kb.sqlite", create=True) as opened:
        yield opened


def row(text: str, gate: str = "") -> Row:
    return Row({"messages": [{"content": text}]}, gate, gate and "because")


def texts(job, verdict="accepted"):
    return [one["content"]["messages"][0]["content"] for one in job.rows(verdict)]


def test_a_job_goes_on_and_another_setting_is_another_job(store):
    job = Job.open(store, "qa", {"seed": 1}, PLAN[:3])
    for task in list(job.open_tasks())[:2]:
        assert job.finish(task, [row(f"{task.number}"), row(f"{task.number}!", "subject")], COST)
    again = Job.open(store, "qa", {"seed": 1}, PLAN)
    assert again.key == job.key
    assert [task.number for task in again.open_tasks()] == [2, 3, 4]
    assert [task.number for task in again.open_tasks(below=4)] == [2, 3]
    assert (texts(again), texts(again, "rejected")) == (["0", "1"], ["0!", "1!"])
    assert again.usage == Usage(2, 20, 40, 1.0)
    assert Job.open(store, "qa", {"seed": 2}, PLAN).states == {"open": 5}
    assert Job.open(store, "expand", {"seed": 1}, PLAN).key != job.key
    anew = Job.open(store, "qa", {"seed": 1}, PLAN, redo=True)
    assert (anew.states, anew.usage, texts(anew)) == ({"open": 5}, Usage(), [])


def test_who_is_second_changes_nothing(store):
    job = Job.open(store, "qa", {}, PLAN)
    task = next(job.open_tasks())
    assert job.finish(task, [row("first")], COST)
    assert not job.finish(task, [row("second"), row("third")], COST)
    job.fail(task, "too late", COST)
    assert (texts(job), job.states) == (["first"], {"done": 1, "open": 4})
    assert job.usage.calls == 3  # all were paid for


def test_a_task_is_kept_whole_or_not_at_all(store):
    job = Job.open(store, "qa", {}, PLAN)
    task = next(job.open_tasks())
    with pytest.raises(TypeError):
        job.finish(task, [row("one"), Row({"bad": object()})], COST)
    assert (texts(job), job.states["open"], job.usage) == ([], 5, Usage())


def test_what_failed_for_good_is_not_asked_again(store):
    job = Job.open(store, "qa", {}, PLAN)
    first, second, *_ = job.open_tasks()
    job.fail(first, "too long", COST)
    job.fail(second, "no answer", COST, later=True)
    assert [task.number for task in job.open_tasks()] == [1, 2, 3, 4]
    assert (job.errors, job.states["failed"]) == ({"too long": 1}, 1)


def test_duplicates_do_not_depend_on_the_order_of_answers(store):
    for order in ((0, 1, 2), (2, 1, 0)):
        job = Job.open(store, "qa", {}, PLAN[:3], redo=True)
        tasks = list(job.open_tasks())
        for number in order:
            job.finish(tasks[number], [row("same"), row(f"other {number}")], COST)
            seen: set[str] = set()

            def duplicate(content, seen=seen):
                text = content["messages"][0]["content"]
                return "met" if text in seen else seen.add(text) or ""

            job.decide_duplicates(duplicate)
        assert texts(job) == ["same", "other 0", "other 1", "other 2"]
        assert [one["gate"] for one in job.rows("rejected")] == ["duplicate"] * 2
