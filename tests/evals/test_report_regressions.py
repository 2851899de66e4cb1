"""Worst first: a row that was lost comes before one that stayed bad, and that before one that was won."""

from __future__ import annotations

from report_makes import LABELS, line, report

from mlxforge.evals.regressions import Rows, lost, ranked, signs, worst
from mlxforge.evals.report import ROWS
from mlxforge.evals.write import write_rows

# row -> exact match of base, cpt, sft
SCORES = {0: (0, 0, 1), 1: (1, 1, 0), 2: (0, 0, 0), 3: (1, 1, 1), 4: (0, 1, 0), 5: (1, 0, 1)}


def known(tmp_path, scores=SCORES):
    lines = [line(row, label, "", float(one)) for row, all_ in scores.items() for label, one in zip(LABELS, all_, strict=True)]
    write_rows(lines, tmp_path / ROWS)
    return Rows(tmp_path / ROWS)


def test_against_the_first_model(tmp_path):
    order = [row for _, row in ranked(report(), known(tmp_path), "handbook")]
    # 1: sft lost it; 5: cpt lost it; then what no model lost, wrong answers of sft first.
    assert order == [1, 5, 2, 4, 0, 3]


def test_against_the_model_before(tmp_path):
    order = [row for _, row in ranked(report(), known(tmp_path), "handbook", previous=True)]
    assert set(order[:3]) == {1, 4, 5}


def test_the_page_takes_turns_between_both_orders_and_the_sets(tmp_path):
    lines = [line(row, label, "", float(one)) for row, all_ in SCORES.items() for label, one in zip(LABELS, all_, strict=True)]
    lines += [
        {**line(row, label, None, 0.0, name="retention"), "scores": {"bpb": 1.0 + (row == 3) * (label == "sft")}}
        for row in range(5)
        for label in ("base", "sft")
    ]
    write_rows(lines, tmp_path / ROWS)
    order = list(worst(report(), Rows(tmp_path / ROWS)))
    assert order[:2] == [("handbook", 1), ("retention", 3)]
    assert len(order) == len(set(order)) == 11


def test_lost_rows_of_one_model(tmp_path):
    rows = known(tmp_path)
    assert lost(report(), rows, "sft", "base", "handbook") == [("handbook", 1)]
    assert lost(report(), rows, "sft", "cpt", "handbook") == [("handbook", 1), ("handbook", 4)]
    assert lost(report(), rows, "sft", "nobody", "handbook") == []


def test_lower_is_better_where_it_is():
    assert signs(report(), "retention") == {"bpb": -1.0, "perplexity": -1.0}
    assert list(signs(report(), "handbook")) == ["exact_match", "bleu"]  # neither speed nor memory


def test_rows_are_read_from_the_file(tmp_path):
    rows = known(tmp_path)
    (found,) = rows.read([("handbook", 5)])
    assert [one.scores["exact_match"] for one in found.values()] == [1.0, 0.0, 1.0]
    assert list(Rows(tmp_path / "none.jsonl").read([])) == []


def test_the_order_of_a_single_model_is_worst_first(tmp_path):
    write_rows([line(row, "base", "", score) for row, score in enumerate((1.0, 0.0, 0.5))], tmp_path / ROWS)
    assert [row for _, row in ranked(report(), Rows(tmp_path / ROWS), "handbook")] == [1, 2, 0]
