"""Training runs: files, logs, signals, resuming, and the order of batches."""

import copy
import itertools
import json
import os
import shutil
import signal
import time
from contextlib import closing
from itertools import islice

import cv2
import jax
import numpy as np
import pytest

from nanodet_jax import config as configs
from nanodet_jax import train_and_evaluate
from nanodet_jax.data.open_source import open_source
from nanodet_jax.data.pipeline import count_slots, training_batches
from nanodet_jax.errors import UserError
from nanodet_jax.evaluation import evaluate
from nanodet_jax.evaluation.coco_metrics import METRIC_DESCRIPTIONS, to_json
from nanodet_jax.io.checkpoint import Checkpoints
from nanodet_jax.structures import Detections
from nanodet_jax.training import build
from nanodet_jax.training import lock as locks
from nanodet_jax.training.lock import lock_workdir
from nanodet_jax.training.metric_logger import MetricLogger
from nanodet_jax.training.workdir import check_same_run, image_names, previous_leg
from tests.builders import tiny_config
from tests.runs import final_state, journal

STEPS, STEPS_EACH, BATCH = 8, 4, 4
NOTHING = Detections(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int), np.zeros(0, bool), False)
NO_EVALUATION = evaluate.Evaluation(
    {name: 0.0 for name in METRIC_DESCRIPTIONS} | {"per_class": {}}, [], {0: NOTHING}
)


@pytest.fixture(autouse=True, scope="module")
def one_device():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "local_device_count", lambda: 1)
        yield


@pytest.fixture(scope="module")
def unbroken(one_device, tmp_path_factory):
    """Train without interruption; return the workdir and the metrics."""
    workdir = tmp_path_factory.mktemp("unbroken") / "deep" / "run"
    config = tiny_config()
    before = copy.deepcopy(config)
    metrics = train_and_evaluate(config, workdir)
    assert config == before
    return workdir, metrics


def test_run_writes_its_files(unbroken):
    workdir, _ = unbroken
    assert {path.name for path in workdir.iterdir()} == {
        "config.json", "about.json", "data.json", "history.jsonl", "metrics.jsonl", "checkpoints",
        "pictures", "tensorboard", "lock",
    }  # fmt: skip
    assert {path.name for path in (workdir / "pictures").iterdir()} == {
        "train_0000000.jpg", "val_0000004.jpg", "val_0000008.jpg",
    }  # fmt: skip
    assert all(path.stat().st_size > 1000 for path in (workdir / "pictures").iterdir())
    assert any((workdir / "tensorboard").iterdir())
    expected = tiny_config()
    expected.model.num_classes = 4
    assert configs.from_json((workdir / "config.json").read_text()) == expected
    about = json.loads((workdir / "about.json").read_text())
    assert about["class_names"] == ["circle", "triangle", "square", "star"]
    assert about["leg"]["versions"]["jax"] == jax.__version__


def test_run_logs_every_step_and_evaluation(unbroken):
    workdir, metrics = unbroken
    lines = journal(workdir)
    order = [(line["kind"], line["step"], line["epoch"]) for line in lines]
    first = [("train", step, 1) for step in range(1, 5)] + [("eval", 4, 1)]
    assert order == first + [("train", step, 2) for step in range(5, 9)] + [("eval", 8, 2)]
    for line in lines:
        if line["kind"] == "train":
            parts = line["loss_qfl"] + line["loss_bbox"] + line["loss_dfl"]
            assert line["loss"] == pytest.approx(parts, rel=1e-5)
            assert line["positives"] > 0 < line["gradient_norm"]
    assert lines[1]["learning_rate"] > lines[0]["learning_rate"]  # warm-up
    last = {k: v for k, v in lines[-1].items() if k not in ("kind", "step", "epoch")}
    assert last == to_json(metrics)
    assert set(metrics) == {*METRIC_DESCRIPTIONS, "per_class"}


def test_finished_run_is_not_repeated(unbroken, monkeypatch):
    workdir, metrics = unbroken
    before = journal(workdir)

    def refuse(*_, **__):
        raise AssertionError("called in a finished run")

    monkeypatch.setattr(build, "make_adjustable_step", lambda *_, **__: refuse)
    monkeypatch.setattr(evaluate, "run_evaluation", refuse)
    assert train_and_evaluate(tiny_config(), workdir) == metrics
    assert journal(workdir) == before


def signal_at(patch, where, name, call, number):
    """Patch `where.name` to send signal `number` to this process in call number `call`."""
    real, calls = getattr(where, name), itertools.count(1)

    def wrapped(*args):
        if next(calls) == call:
            assert signal.getsignal(number) != signal.SIG_DFL  # else it would end the tests
            os.kill(os.getpid(), number)
        return real(*args)

    patch.setattr(where, name, wrapped)


@pytest.mark.slow
def test_resumed_run_equals_an_uninterrupted_one(unbroken, tmp_path, capsys):
    """SIGTERM in the third step, then SIGINT in the evaluation after the fourth."""
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.MonkeyPatch.context() as patch:
        signal_at(patch, MetricLogger, "advance", 3, signal.SIGTERM)
        with pytest.raises(SystemExit) as stopped:
            train_and_evaluate(tiny_config(), tmp_path)
    assert stopped.value.code == 128 + signal.SIGTERM
    assert "stopped and saved at step 3" in capsys.readouterr().out
    assert [line["step"] for line in journal(tmp_path)] == [1, 2, 3]

    with pytest.MonkeyPatch.context() as patch:
        signal_at(patch, evaluate, "evaluation_batches", 1, signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            train_and_evaluate(tiny_config(), tmp_path)
    said = capsys.readouterr().out
    assert "resuming at step 3" in said
    assert "stopped and saved at step 4" in said
    assert [line["kind"] for line in journal(tmp_path)] == ["train"] * 4
    assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]

    # Lines after the last checkpoint, as a crash leaves them, are removed.
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 5, "loss": 99}\n[5]\n{"kind": "tr')
    workdir, metrics = unbroken
    assert train_and_evaluate(tiny_config(), tmp_path) == metrics
    assert journal(tmp_path) == journal(workdir)
    ours, theirs = final_state(tmp_path, STEPS), final_state(workdir, STEPS)
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert int(ours.step) == STEPS


def test_device_cache_and_augmentation_train_like_the_host(unbroken, tmp_path, monkeypatch, capsys):
    config = tiny_config()
    config.data.augment = config.data.cache = "device"
    monkeypatch.setattr(evaluate, "run_evaluation", lambda *_, **__: NO_EVALUATION)
    train_and_evaluate(config, tmp_path)
    assert "cache: 16 images of 64x64 take 0.00 GB of device memory" in capsys.readouterr().out
    ours, theirs = journal(tmp_path), journal(unbroken[0])
    for one, other in zip(ours[:3], theirs[:3]):
        assert one["positives"] == other["positives"]  # the same boxes
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-3)
    assert all(np.isfinite(line["loss"]) for line in ours if line["kind"] == "train")
    sheets = [
        cv2.imread(str(workdir / "pictures" / "train_0000000.jpg")).astype(int)
        for workdir in (tmp_path, unbroken[0])
    ]
    assert np.abs(sheets[0] - sheets[1]).mean() < 1


def fake_step(loss):
    """Return a stand-in for `make_adjustable_step` whose step only counts."""

    def step(state, batch, _):
        names = ("loss", "loss_qfl", "loss_bbox", "loss_dfl", "learning_rate", "gradient_norm")
        metrics = dict.fromkeys(names, np.float32(loss))
        metrics["skipped"] = np.float32(not np.isfinite(loss))
        return state.replace(step=state.step + 1), metrics

    return lambda *args, **kwargs: step


def test_best_checkpoint_is_kept_after_its_evaluation_was_stopped(tmp_path, monkeypatch):
    scores = iter([None, 0.9, 0.1])  # at step 4, at step 4 again, at step 8

    def evaluation(*_, **__):
        score = next(scores)
        if score is None:
            os.kill(os.getpid(), signal.SIGTERM)
            return None
        metrics = {name: score for name in METRIC_DESCRIPTIONS} | {"per_class": {}}
        return NO_EVALUATION._replace(metrics=metrics)

    monkeypatch.setattr(build, "make_adjustable_step", fake_step(1.0))
    monkeypatch.setattr(evaluate, "run_evaluation", evaluation)
    with pytest.raises(SystemExit):
        train_and_evaluate(tiny_config(), tmp_path)
    assert train_and_evaluate(tiny_config(), tmp_path)["AP"] == 0.1
    checkpoints = Checkpoints(tmp_path)
    assert (checkpoints.best_step(), checkpoints.latest_step()) == (4, 8)
    assert checkpoints.metrics(4)["AP"] == 0.9
    checkpoints.close()


def test_signal_aborts_the_computation_of_metrics(tmp_path, monkeypatch, capsys):
    started = []

    def slow_metrics(*_, **__):
        started.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    monkeypatch.setattr(build, "make_adjustable_step", fake_step(1.0))
    monkeypatch.setattr(evaluate.coco_metrics, "coco_metrics", slow_metrics)
    with pytest.raises(SystemExit) as stopped:
        train_and_evaluate(tiny_config(), tmp_path)
    assert stopped.value.code == 128 + signal.SIGTERM
    assert len(started) == 1 and time.monotonic() - started[0] < 10
    assert "stopped and saved at step 4" in capsys.readouterr().out
    assert [line["kind"] for line in journal(tmp_path)] == ["train"] * 4
    assert int(final_state(tmp_path, 4).step) == 4


def test_non_finite_losses_stop_the_run_and_keep_the_weights(tmp_path, monkeypatch, capsys):
    config = tiny_config()
    config.training.max_skipped = 3
    monkeypatch.setattr(build, "make_adjustable_step", fake_step(np.inf))
    with pytest.raises(UserError, match=r"in 3 steps in a row: lower config.training.learning"):
        train_and_evaluate(config, tmp_path)
    said = capsys.readouterr().out
    message = "the loss, a gradient or a batch statistic is not finite"
    assert all(f"step {step}: {message}" in said for step in (1, 2, 3))
    assert "skipped; images: shapes-train-0" in said
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["loss"] for line in lines] == [None] * 2  # JSON has no infinity
    assert int(final_state(tmp_path, 3).step) == 3


def test_second_run_in_a_workdir_is_rejected(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(locks, "WAIT_S", 0.1)
    held = lock_workdir(tmp_path)
    with pytest.raises(UserError, match="in use by another run"):
        train_and_evaluate(tiny_config(), tmp_path)
    assert capsys.readouterr().out.count("waiting up to 0 s") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"lock"}
    held.release()
    lock_workdir(tmp_path).release()  # the file exists, but is not locked
    with pytest.raises(UserError, match=f"{tmp_path}/lock/deeper: cannot be written to"):
        train_and_evaluate(tiny_config(), tmp_path / "lock" / "deeper")


def test_sighup_saves_and_exits(tmp_path):
    handler = signal.getsignal(signal.SIGHUP)
    with pytest.MonkeyPatch.context() as patch:
        signal_at(patch, MetricLogger, "advance", 3, signal.SIGHUP)
        with pytest.raises(SystemExit) as stopped:
            train_and_evaluate(tiny_config(), tmp_path)
    assert stopped.value.code == 128 + signal.SIGHUP
    assert signal.getsignal(signal.SIGHUP) == handler
    assert int(final_state(tmp_path, 3).step) == 3


def test_checkpoint_saved_while_the_next_run_starts_is_resumed(
    unbroken, tmp_path, monkeypatch, capsys
):
    first, metrics = unbroken
    workdir = tmp_path / "run"
    lock_for_all_processes = build.lock_for_all_processes

    def lock_after_the_other_run_has_saved(path):
        assert path == workdir and not workdir.exists()
        shutil.copytree(first, workdir)
        return lock_for_all_processes(path)

    monkeypatch.setattr(build, "lock_for_all_processes", lock_after_the_other_run_has_saved)
    log = (first / "metrics.jsonl").read_bytes()
    assert train_and_evaluate(tiny_config(), workdir) == metrics
    assert f"{workdir}: already finished at step {STEPS}" in capsys.readouterr().out
    assert (workdir / "metrics.jsonl").read_bytes() == log
    assert int(final_state(workdir, STEPS).step) == STEPS


OTHERS = {
    "config.model.channels 32, not 64;": lambda config: setattr(config.model, "channels", 64),
    "config.training.optimizer": lambda config: setattr(config.training, "optimizer", "sgd"),
    "weight averaging": lambda config: setattr(config.training, "ema_decay", 0.99),
    "gradient clipping": lambda config: setattr(config.training, "clip_norm", 0.0),
    "config.input_size": lambda config: setattr(config, "input_size", (96, 96)),
}


@pytest.mark.parametrize("what", [*OTHERS, "classes"])
def test_run_with_another_config_is_not_resumed(unbroken, what):
    workdir, _ = unbroken
    config = tiny_config()
    config.model.num_classes = 4
    source = open_source(config, "train")
    classes = ("circle", "triangle", "square", "star")
    if what == "classes":
        classes = classes[::-1]
    else:
        OTHERS[what](config)
    names = image_names(source, open_source(config, "val"))
    with pytest.raises(UserError, match=f"{workdir} holds a run with {what} .*different --workdir"):
        check_same_run(workdir, previous_leg(workdir), config, classes, names)


def test_invalid_config_creates_no_workdir(tmp_path):
    config = tiny_config()
    config.model.num_classes = 7
    with pytest.raises(UserError, match=r"config\.model\.num_classes=7: the data has 4"):
        train_and_evaluate(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def first_batches(count, config, start_step=0, process=(0, 1)):
    source = open_source(config, "train")
    return list(islice(training_batches(source, config, 6, start_step, process), count))


def assert_equal_batches(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.fixture(scope="module")
def ten_batches():
    """Return two and a half epochs of augmented batches."""
    return first_batches(10, tiny_config())


@pytest.mark.parametrize("workers", [1, 3, 16])
def test_batches_do_not_depend_on_workers(ten_batches, workers):
    config = tiny_config()
    config.data.workers = workers
    assert_equal_batches(first_batches(10, config), ten_batches)


@pytest.mark.parametrize("start", [1, 3, 4, 9])
def test_batches_depend_only_on_the_step(ten_batches, start):
    assert_equal_batches(first_batches(10 - start, tiny_config(), start), ten_batches[start:])


def test_batches_depend_on_the_seed(ten_batches):
    config = tiny_config()
    config.training.seed = 1
    for ours, theirs in zip(first_batches(4, config), ten_batches):
        assert np.any(ours.images != theirs.images)


def test_every_image_is_augmented_differently_in_every_epoch(ten_batches):
    assert len(set(names(ten_batches))) == 10 * BATCH


def plain_config(train_size=STEPS_EACH * BATCH):
    """Return a config without augmentation, so that pixels identify an image."""
    config = tiny_config()
    config.augment = configs.Augment()
    config.data.train_size = train_size
    return config


def names(batches):
    return [image.tobytes() for batch in batches for image in batch.images]


def test_epoch_has_every_image_once_in_a_new_order():
    batches = first_batches(3 * STEPS_EACH, plain_config())
    epochs = [names(batches[i : i + STEPS_EACH]) for i in range(0, 3 * STEPS_EACH, STEPS_EACH)]
    for epoch in epochs:
        assert len(set(epoch)) == STEPS_EACH * BATCH
        assert set(epoch) == set(epochs[0])
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_each_epoch_drops_other_images_of_the_incomplete_batch():
    batches = first_batches(6 * STEPS_EACH, plain_config(STEPS_EACH * BATCH + 3))
    epochs = [names(batches[i : i + STEPS_EACH]) for i in range(0, 6 * STEPS_EACH, STEPS_EACH)]
    assert all(len(set(epoch)) == STEPS_EACH * BATCH for epoch in epochs)
    assert len(set().union(*epochs)) == STEPS_EACH * BATCH + 3


@pytest.mark.parametrize("train_size", [16, 17])
def test_two_processes_split_an_epoch(train_size):
    config = plain_config(train_size)
    first, second = (first_batches(8, config, process=(i, 2)) for i in range(2))
    assert first[0].images.shape[0] == BATCH // 2
    for epoch in (slice(0, 4), slice(4, 8)):
        images, other_images = set(names(first[epoch])), set(names(second[epoch]))
        assert len(images) == len(other_images) == 8
        assert not images & other_images


@pytest.mark.parametrize("count", [2, 4])
def test_parts_of_all_processes_form_the_batch_of_one(ten_batches, count):
    """Order and augmentation are equal too, from any step on."""
    parts = [first_batches(7, tiny_config(), 3, process=(i, count)) for i in range(count)]
    for step, whole in enumerate(ten_batches[3:]):
        together = jax.tree.map(lambda *leaves: np.concatenate(leaves), *(p[step] for p in parts))
        assert_equal_batches(together, whole)


def test_count_slots_reports_boxes_beyond_the_slots():
    source = open_source(tiny_config(), "train")
    counts = [source.num_boxes(i) for i in range(len(source))]
    assert count_slots(source, 0) == (max(counts), [])
    slots, over = count_slots(source, 2)
    assert slots == 2
    assert over == [(source[i].name, n - 2) for i, n in enumerate(counts) if n > 2]


def test_run_without_validation_ends_with_its_last_checkpoint(tmp_path, capsys):
    config = tiny_config()
    config.data.val = "none"
    assert train_and_evaluate(config, tmp_path) == {}
    output = capsys.readouterr().out
    assert "16 training and no validation images" in output
    assert "config.data.val=none: no evaluation; the last checkpoint is the result" in output
    assert train_and_evaluate(config, tmp_path) == {}
    assert f"already finished at step {STEPS}" in capsys.readouterr().out
    assert [line["kind"] for line in journal(tmp_path)] == ["train"] * STEPS
    with closing(Checkpoints(tmp_path, writing=False)) as checkpoints:
        assert checkpoints.latest_step() == STEPS


def test_run_with_a_split_resumes_with_the_same_validation_images(tmp_path, capsys, monkeypatch):
    evaluated = []

    def record_source(detect, variables, source, *args, **options):
        evaluated.append(sorted(record.name for record in source))
        return NO_EVALUATION

    monkeypatch.setattr(evaluate, "run_evaluation", record_source)
    config = tiny_config(steps=4)
    config.data.train_size, config.data.val_fraction = 22, 0.25
    train_and_evaluate(config, tmp_path)
    assert "16 training and 6 validation images" in capsys.readouterr().out
    split = json.loads((tmp_path / "split.json").read_text())
    config.data.train_size, config.training.steps = 26, 5
    train_and_evaluate(config, tmp_path)
    output = capsys.readouterr().out
    assert "20 training and 6 validation images" in output
    assert "split.json was written for 22 images, but now there are 26; the" in output
    assert json.loads((tmp_path / "split.json").read_text()) == split
    evaluate.evaluate(config, tmp_path, tmp_path / "eval")
    assert evaluated == [split["validation"]] * 3
    config.data.val_fraction = 0.1
    with pytest.raises(UserError, match=r"val_fraction=0\.1: the images of this run were split"):
        train_and_evaluate(config, tmp_path)
