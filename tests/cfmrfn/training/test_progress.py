"""What a run resumes from, where a file has values that cannot be such."""

import dataclasses
import math

import pytest

from cfmrfn.training.progress import Progress

ROW = {
    **{"epoch": 1, "lr": 0.1, "train_loss": 0.5, "train_accuracy": 0.9},
    **{"test_loss": 0.7, "test_accuracy": 0.8, "test_macro_f1": math.nan},
    "test_matrix": [[3, 1], [0, 2]],
}
PROGRESS = Progress(epoch=1, step=2, loss_sum=1.5, correct=3, history=[ROW])


def read(**changed):
    values = dataclasses.asdict(PROGRESS) | changed
    return Progress.from_dict(values, steps=4, classes=2, splits=["test"])


def test_a_run_begins_at_its_first_step():
    assert Progress() == Progress(epoch=0, step=0, loss_sum=0.0, correct=0, history=[])


def test_what_was_saved_is_read():
    assert read() == PROGRESS
    assert read(epoch=0, history=[]).history == []
    assert read(step=4).step == 4  # its evaluation is left


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"step": None}, "step of progress must be a whole number from 0 on, got None"),
        ({"step": 5}, "step of progress must be 4 at most, got 5"),
        ({"epoch": -1}, "epoch of progress must be a whole number from 0 on, got -1"),
        ({"epoch": 2}, "history of progress must be a list of 2 rows"),
        ({"correct": True}, "correct of progress must be a whole number from 0 on, got True"),
        ({"loss_sum": math.nan}, "loss_sum of progress must be a number, got nan"),
        ({"history": {"a": ROW}}, "history of progress must be a list of 1 rows, got {'a': "),
        ({"history": [3]}, "a row of history of progress must be a dictionary, got 3"),
        ({"history": [{}]}, "a row of history of progress must be with epoch, lr, test_accuracy"),
    ],
)
def test_other_values_are_named(changed, message):
    with pytest.raises(ValueError, match=message):
        read(**changed)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"lr": "x"}, "lr of progress must be a number, got 'x'"),
        ({"test_matrix": [[3, 1]]}, "test_matrix of progress must be counts, class by class, got"),
        ({"test_matrix": [[3, 1], [0, 2.5]]}, "test_matrix of progress must be counts"),
        ({"test_matrix": [[3, 1], [0, -2]]}, "test_matrix of progress must be counts"),
        ({"test_matrix": [[3, 1], 5]}, "test_matrix of progress must be counts"),
    ],
)
def test_other_values_of_rows_are_named(changed, message):
    with pytest.raises(ValueError, match=message):
        read(history=[ROW | changed])


def test_a_row_may_lack_what_others_have():
    second = ROW | {"epoch": 2, "test_without_duplicates_matrix": [[1, 1], [0, 2]]}
    with pytest.raises(ValueError, match="must be with test_without_duplicates_loss"):
        read(epoch=2, history=[ROW, second])
    second["test_without_duplicates_loss"] = 0.6
    for history in ([ROW, second], [second, ROW]):
        assert read(epoch=2, history=history).history == history


def test_former_runs_have_no_digest_of_the_best_weights():
    values = dataclasses.asdict(PROGRESS)
    del values["best_weights"]
    assert Progress.from_dict(values, steps=4, classes=2, splits=["test"]) == PROGRESS
    with pytest.raises(ValueError, match="best_weights of progress must be a text, got 3"):
        read(best_weights=3)


def test_what_is_missing_is_named():
    with pytest.raises(ValueError, match="progress lacks correct, epoch, loss_sum, step"):
        Progress.from_dict({"history": []}, steps=4, classes=2, splits=[])
