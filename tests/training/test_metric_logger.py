"""What a run logs to `metrics.jsonl`, to a terminal, a notebook and elsewhere."""

import json
from contextlib import closing

import pytest

from nanodet_jax.evaluation.coco_metrics import METRIC_DESCRIPTIONS
from nanodet_jax.training import metric_logger
from nanodet_jax.training.metric_logger import MetricLogger

TRAIN = {"loss": 2.5, "loss_qfl": 0.5, "loss_bbox": 1.5, "loss_dfl": 0.5, "learning_rate": 1e-3,
         "images_per_second": 41.7}  # fmt: skip
METRICS = dict.fromkeys(METRIC_DESCRIPTIONS, 0.25) | {
    "APl": -1.0, "per_class": {"cat": {"AP": 0.25, "AP50": 0.5}, "dog": {"AP": -1.0, "AP50": -1.0}},
}  # fmt: skip


def logged(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_without_a_terminal_each_log_is_a_whole_line(tmp_path, capsys):
    with closing(MetricLogger(tmp_path, 0, 20)) as logger:
        for _ in range(10):
            logger.advance()
        logger.log_train(10, 1, TRAIN, 0.25)
        logger.log_evaluation(10, 1, METRICS)
    assert capsys.readouterr() == (
        "step 10 of 20 (epoch 1): loss 2.500 (qfl 0.500 box 1.500 dfl 0.500) lr 0.001 42 img/s "
        "data 25%\nstep 10 (epoch 1): AP 0.2500  AP50 0.2500  AP75 0.2500\n",
        "",
    )


@pytest.mark.parametrize(("kind", "rows"), [("terminal", 0), ("notebook", 1)])
def test_bar_replaces_the_lines_of_steps_and_a_table_those_of_evaluations(
    tmp_path, capsys, monkeypatch, kind, rows
):
    table = []
    monkeypatch.setattr(metric_logger, "output", lambda: kind)
    monkeypatch.setattr(
        metric_logger.EvaluationTable, "add", lambda _, *values: table.append(values)
    )
    with closing(MetricLogger(tmp_path, 0, 20)) as logger:
        logger.log_train(10, 1, TRAIN, 0.25)
        logger.log_evaluation(10, 1, METRICS)
    said = "" if rows else "step 10 (epoch 1): AP 0.2500  AP50 0.2500  AP75 0.2500\n"
    assert capsys.readouterr().out == said
    assert table == [(10, 1, METRICS)] * rows


def test_metrics_without_objects_are_null_in_the_log_and_a_dash_in_the_line(tmp_path, capsys):
    with closing(MetricLogger(tmp_path, 0, 20)) as logger:
        logger.log_evaluation(10, 1, METRICS)
        logger.log_evaluation(20, 2, METRICS | {"AP": -1.0})
    first, second = logged(tmp_path)
    assert (first["AP"], first["APl"], second["AP"]) == (0.25, None, None)
    assert first["per_class"] == {
        "cat": {"AP": 0.25, "AP50": 0.5},
        "dog": {"AP": None, "AP50": None},
    }
    assert METRICS["APl"] == -1.0
    assert "step 20 (epoch 2): AP -  AP50 0.2500" in capsys.readouterr().out


def test_lines_with_minus_one_of_earlier_versions_are_kept(tmp_path):
    line = {"kind": "eval", "step": 10, "epoch": 1, **METRICS}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    with closing(MetricLogger(tmp_path, 10, 20)) as logger:
        logger.log_evaluation(20, 2, METRICS)
    assert logged(tmp_path) == [line, line | {
        "step": 20, "epoch": 2, "APl": None,
        "per_class": {"cat": {"AP": 0.25, "AP50": 0.5}, "dog": {"AP": None, "AP50": None}},
    }]  # fmt: skip
