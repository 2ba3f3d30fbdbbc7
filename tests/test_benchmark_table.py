"""The table of `python -m benchmarks`: its arithmetic, its file, a row of it, memory that it shows.

`test_benchmarks.py` is about the benchmark of assignment.
"""

import dataclasses
import json
import re
import sys
import time
from contextlib import closing

import jax
import pytest

from benchmarks import (
    assignment,
    inference,
    machine,
    plan,
    reference,
    report,
    step,
    timing,
    training,
)
from benchmarks.measuring import Job, measure
from benchmarks.processes import CACHE, Compiled
from benchmarks.subject import Subject
from benchmarks.timing import Effort, Program, Times
from configs import coco
from nanodet_jax.errors import UserError
from nanodet_jax.losses.criterion import build_criterion
from nanodet_jax.runtime import backend

TINY = Subject("configs/shapes.py", batch=2, size=64)
H200, PLUS, M = "NVIDIA H200", "nanodet-plus-m_320", "nanodet-m_320"


def coco_config(variant, size=320):
    config = coco.get_config(variant)
    config.model.num_classes = 80
    config.input_size = (size, size)
    return config


@pytest.mark.parametrize(
    ("variant", "precision", "what", "thousands"),
    [  # images/s that the issue tracker states for one H200
        (M, "float32", "training", 12.4),
        (M, "bf16", "training", 24.7),
        (M, "float32", "inference", 43.0),
        (M, "bf16", "inference", 86.0),
        (PLUS, "highest", "training", 1.7),
        (PLUS, "float32", "training", 5.5),
        (PLUS, "bf16", "training", 11.1),
    ],
)
def test_limits(variant, precision, what, thousands):
    seconds = machine.seconds_at_limit(coco_config(variant), precision, what, H200)
    assert 1e-3 / seconds == pytest.approx(thousands, rel=0.01)


def test_limits_grow_with_the_pixels_and_need_a_known_device():
    small, large = (
        machine.seconds_at_limit(coco_config(M, size), "float32", "training", "NVIDIA H200 NVL")
        for size in (320, 640)
    )
    assert large == pytest.approx(4 * small)
    assert machine.seconds_at_limit(coco_config(M), "float32", "training", "cpu") is None
    assert machine.seconds_at_limit(coco_config(PLUS), "float32", "inference", H200) is None


def test_a_row_is_of_one_batch():
    program = Program(lambda: None, {"first_s": 2.0}, images=32, batches=4)
    times = [Times(0.4, 0.8), Times(0.2, 0.4), Times(1.2, 2.0)]
    assert timing.row_of(program, times, seconds_at_limit=1 / 160) == {
        "wall_ms": pytest.approx(100),
        "wall_min_ms": pytest.approx(50),
        "cpu_ms": pytest.approx(200),
        "images_per_second": pytest.approx(80),
        "of_limit": pytest.approx(0.5),
        "first_s": 2.0,
    }


@pytest.mark.parametrize(
    ("effort", "runs"),
    [(Effort(0, 3, 50), 3), (Effort(60, 2, 7), 7), (Effort(0.05, 1, 1000), None)],
)
def test_runs_alternate_within_the_effort(effort, runs):
    order = []

    def run(name):
        order.append(name)
        time.sleep(0.002)
        return Times(0.002, 0.0)

    times = timing.alternate({name: lambda name=name: run(name) for name in "ab"}, effort)
    assert order == ["a", "b"] * len(times["a"]) and len(times["a"]) == len(times["b"])
    assert runs is None or len(times["a"]) == runs
    assert 1 <= len(times["a"]) <= 50


def test_backward_by_difference():
    both = {"wall_ms": 30.0, "wall_min_ms": 25.0, "cpu_ms": 50.0, "first_s": 3.0}
    rows = {"forward": {**both, "wall_ms": 12.0, "cpu_ms": 20.0}, "forward + backward": both}
    added = step.with_backward(rows)["backward, by difference"]
    assert added == {"wall_ms": 18.0, "wall_min_ms": 0.0, "cpu_ms": 30.0}


def test_table_lines_up():
    columns = report.columns(accelerator=False, reference=True)
    assert "device_mb" not in columns and "speedup" in columns
    assert "speedup" not in report.columns(accelerator=True, reference=False)
    row = {"wall_ms": 12.34, "speedup": 1.5, "waiting": 0.042}
    header, line = report.header(columns), report.line("a name", row, columns)
    assert len(header) == len(line)
    for key, text in (("wall_ms", "12.3"), ("speedup", "1.50"), ("waiting", "4.2%")):
        assert line.split()[2 + columns.index(key)] == text  # after the two words of the name
    assert line.split().count("-") == len(columns) - len(row)


def test_json_and_markdown(tmp_path):
    described = {**machine.describe(), "cpu": "a CPU"}
    rows = {
        "m float32: training step, batch 8": {"wall_ms": 250.04, "resident_mb": 1100.0},
        "p float32: training step, batch 8": {"wall_ms": 99.94, "original_wall_ms": 150.0},
        "m float32: parts, batch 8: forward": {"wall_ms": 80.0},
        "m float32: first step, batch 8: compiled": {"start_s": 20.0, "first_s": 18.0},
        "m float32: training, batch 8, cache ram": {"images_per_second": 30.0, "waiting": 0.02},
    }
    path = tmp_path / "rows.json"
    report.write(path, described, rows)
    content = json.loads(path.read_text())
    assert set(content) == {"machine", "rows"} and content["rows"] == rows
    assert content["machine"]["platform"] == "cpu"
    assert report.read(path) == (described, rows)
    assert report.markdown(rows).splitlines() == [
        "|  | m float32 | p float32 |",
        "|---|---|---|",
        "| training step, batch 8 | 250 ms | 99.9 ms (original 150.0 ms) |",
        "| training step, batch 8: peak memory | 1.1 GB |  |",
        "| first step, batch 8: compiled | 20.0 s |  |",
        "| training, batch 8, cache ram | 30.0 images/s, waits 2% |  |",
    ]
    assert "cores of a CPU" in report.describe({**described, "load": 0.1}).splitlines()[-1]
    assert "load 3.2" in report.describe({**described, "load": 3.21}).splitlines()[-1]
    path.write_text("[]")
    with pytest.raises(UserError, match=re.escape(str(path))):
        report.read(path)


def test_every_row_has_a_name_of_its_own(tmp_path):
    setting = plan.Setting(
        configs=("configs/coco.py:nanodet-m_320", "configs/coco.py:nanodet-plus-m_320"),
        precisions=("float32",),
        scale=plan.ON_CPU,
        effort=Effort(),
        cache=tmp_path,
        files=tmp_path,
        cpus=6,
    )
    names = [task.name for task in plan.tasks(setting)]
    assert len(set(names)) == len(names)
    for network in (M, PLUS):
        mine = [name for name in names if name.startswith(f"{network} float32: ")]
        for what in ("first step", "training step", "parts", "assignment", "network, batch 32",
                     "network + suppression", "image files", "training, "):  # fmt: skip
            assert any(what in name for name in mine), (network, what)
    assert [name.split()[-1] for name in names if "loader, cache none" in name] == list("1246")
    quick = {task.name for task in plan.tasks(dataclasses.replace(setting, quick=True))}
    assert quick < set(names) and len(quick) < len(names) / 2


def test_a_row_of_a_tiny_network(tmp_path, monkeypatch):
    """A program that adds to the cache is not timed; once it is there, it is."""
    monkeypatch.setenv(CACHE, str(tmp_path))

    def build(subject):
        (tmp_path / "program").touch()
        return inference.network(subject)

    job = Job(build, TINY, Effort(0, least=2, most=2))
    with pytest.raises(Compiled):
        measure(job, insist=True)
    [(name, row)] = measure(job, insist=True).items()
    assert name == ""
    assert 0 < row["wall_min_ms"] <= row["wall_ms"] < 1e4
    assert row["images_per_second"] == pytest.approx(2e3 / row["wall_ms"])
    assert row["plan_mb"] > 2 * 64 * 64 * 3 * 4 / 1e6  # at least the images
    assert row["resident_mb"] > row["plan_mb"]


def planned_mb(variant, slots, cost=None):
    """Of loss and gradient, two images of 96 x 96 with so many slots for boxes."""
    config = coco_config(variant, 96)
    criterion = build_criterion(config)
    num_priors = len(criterion.priors.strides)
    branches = assignment.random_predictions(2, num_priors, 80)

    def loss(branches, truth):
        return criterion(branches, truth)[0]

    function = jax.grad(loss)
    if cost is not None:
        function = assignment.with_cost(function, cost)
    truth = assignment.random_truth(2, slots, 80, 96)
    branches = branches if config.model.guidance_channels else branches[:1]
    compiled = backend.jit(function).lower(branches, truth).compile()
    return timing.planned_mb(compiled), 4e-6 * 2 * num_priors * slots


@pytest.mark.parametrize("variant", [M, PLUS])
def test_memory_hardly_grows_with_padded_boxes(variant):
    """At most six float32 numbers a pair of prior and slot: an overlap, a cost, what ranks them.

    At 320 x 320 with 300 slots that is 15 MB an image, where the step of NanoDet-Plus takes 130;
    one number for every class of a pair would be 200 MB.
    """
    few, many = planned_mb(variant, 20), planned_mb(variant, 300)
    assert many[0] - few[0] < 6 * (many[1] - few[1])


def test_that_bound_sees_an_array_over_the_classes():
    cost = assignment.FORMS["direct, materialised"]
    few, many = planned_mb(PLUS, 20, cost), planned_mb(PLUS, 300, cost)
    assert many[0] - few[0] > 60 * (many[1] - few[1])


SCRIPT = """
import json, sys
print(json.dumps({"wall": 1.0, "cpu": 2.0}), flush=True)
for count, _ in enumerate(sys.stdin, start=1):
    assert count < 3, "no third run"
    print(json.dumps({"wall": 0.1 * count, "cpu": 0.2 * count}), flush=True)
"""


def test_the_original_answers_each_call_and_says_why_it_ends(tmp_path, monkeypatch):
    script = tmp_path / "original.py"
    script.write_text(SCRIPT)
    monkeypatch.setattr(reference, "SCRIPT", script)
    where = reference.Reference(tmp_path, sys.executable)
    with reference.Original(where, "step", Subject("configs/coco.py", batch=1)) as original:
        assert original.run() == Times(0.1, 0.2)
        assert original.run() == Times(0.2, 0.4)
        with pytest.raises(UserError, match="no third run"):
            original.run()


def test_an_original_that_cannot_run_is_told_at_once(tmp_path, monkeypatch):
    here = reference.Reference(tmp_path, sys.executable)
    with pytest.raises(UserError, match="no checkout"):
        here.check()
    (tmp_path / "nanodet" / "model").mkdir(parents=True)
    monkeypatch.setattr(reference, "NEEDED", ("json", "no_such_module"))
    with pytest.raises(UserError, match="'no_such_module'; name a Python that has json, no_such"):
        here.check()
    with pytest.raises(UserError, match="--reference-python nowhere: No such file"):
        here._replace(python="nowhere").check()


def test_a_run_that_ends_says_why(tmp_path):
    with (
        pytest.raises(UserError, match=r"nothing\.py"),
        closing(training.follow(["--config=nothing.py"], tmp_path)) as lines,
    ):
        next(lines)
