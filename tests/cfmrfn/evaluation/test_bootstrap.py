"""Bootstrap intervals against slow loops, and whether they hold the truth as often as they say."""

import numpy as np
import pytest

from cfmrfn.evaluation.bootstrap import (
    accuracy_intervals,
    difference_intervals,
    resampled_accuracies,
)


def some_results(images=60, classes=4, networks=2, seed=1):
    """Labels (images,) of unequal classes, and what each network gets right (networks, images)."""
    rng = np.random.default_rng(seed)
    labels = np.sort(rng.choice(classes, images, p=np.arange(1, classes + 1) / 10))
    return labels, rng.random((networks, images)) < 0.3 + 0.1 * labels


def plain_accuracies(labels, correct):
    """Accuracy and mean of the classes, image by image."""
    per_class = {}
    for label, right in zip(labels, correct, strict=True):
        per_class.setdefault(label, []).append(bool(right))
    means = [sum(values) / len(values) for values in per_class.values()]
    return sum(map(bool, correct)) / len(correct), sum(means) / len(means)


def test_resamples_are_those_of_a_slow_loop_with_the_same_seed():
    labels, correct = some_results()
    resampled = resampled_accuracies(labels, correct, 50, seed=3)
    images = sorted(zip(labels.tolist(), *correct.tolist(), strict=True))
    kinds = sorted(set(images))
    shares = [images.count(kind) / len(images) for kind in kinds]
    rng = np.random.default_rng(3)
    for number in range(50):
        drawn = []
        for kind, count in zip(kinds, rng.multinomial(len(images), shares), strict=True):
            drawn += [kind] * count
        assert len(drawn) == len(images)
        for network in range(2):
            expected = plain_accuracies(
                [kind[0] for kind in drawn], [kind[1 + network] for kind in drawn]
            )
            got = [values[network, number] for values in resampled.values()]
            assert got == pytest.approx(expected)


def test_resamples_are_distributed_as_those_of_images_drawn_one_by_one():
    labels, correct = some_results()
    resampled = resampled_accuracies(labels, correct, 20_000, seed=0)
    rng = np.random.default_rng(5)
    slow = []
    for _ in range(4000):
        drawn = rng.integers(0, len(labels), len(labels))
        first, second = (plain_accuracies(labels[drawn], c[drawn]) for c in correct)
        slow.append([first[0], first[1], second[0] - first[0], second[1] - first[1]])
    fast = [
        resampled["accuracy"][0],
        resampled["mean_class_accuracy"][0],
        resampled["accuracy"][1] - resampled["accuracy"][0],
        resampled["mean_class_accuracy"][1] - resampled["mean_class_accuracy"][0],
    ]
    parts = [0.025, 0.25, 0.5, 0.75, 0.975]
    for one, other in zip(fast, np.transpose(slow), strict=True):
        spread = other.std()
        np.testing.assert_allclose(
            np.quantile(one, parts), np.quantile(other, parts), atol=0.12 * spread
        )
        assert one.std() == pytest.approx(spread, rel=0.05)


def test_intervals_are_percentiles():
    labels, correct = some_results()
    resampled = resampled_accuracies(labels, correct[:1], 2000, seed=7)
    intervals = accuracy_intervals(labels, correct[0], 2000, seed=7)
    for name, interval in intervals.items():
        ordered = np.sort(resampled[name][0])
        assert ordered[48] <= interval.low <= ordered[51]
        assert ordered[1948] <= interval.high <= ordered[1951]
    assert accuracy_intervals(labels, correct[0]) == accuracy_intervals(labels, correct[0])
    assert intervals != accuracy_intervals(labels, correct[0], 2000, seed=8)


def test_a_class_that_a_resample_lacks_is_left_out_of_its_mean():
    labels, correct = np.array([0] * 20 + [1]), np.array([True] * 20 + [False])
    means = resampled_accuracies(labels, correct[None], 1000)["mean_class_accuracy"][0]
    assert set(means) == {0.5, 1.0}
    assert (means == 1).mean() == pytest.approx((20 / 21) ** 21, abs=0.05)


def test_networks_that_are_right_alike_do_not_differ():
    labels, correct = some_results()
    for interval in difference_intervals(labels, correct[0], correct[0]).values():
        assert interval == (0, 0)


def test_pairing_takes_out_what_both_have_in_common():
    labels, correct = some_results(images=400)
    better = correct[0].copy()
    better[np.flatnonzero(~better)[:8]] = True
    paired = difference_intervals(labels, better, correct[0])["accuracy"]
    assert 0 < paired.low < 8 / 400 < paired.high
    alone = accuracy_intervals(labels, correct[0])["accuracy"]
    assert paired.high - paired.low < (alone.high - alone.low) / 3


def test_intervals_hold_the_truth_about_95_times_in_100():
    """Test sets are drawn from a population whose accuracies are known."""
    rng = np.random.default_rng(11)
    share = np.array([0.5, 0.3, 0.2])
    first, gain = np.array([0.9, 0.7, 0.6]), np.array([0.05, 0.1, 0.0])
    truth = {"accuracy": share @ first, "mean_class_accuracy": first.mean()}
    true_gain = {"accuracy": share @ gain, "mean_class_accuracy": gain.mean()}
    held = dict.fromkeys([*truth, *(f"{name} gained" for name in truth)], 0)
    sets = 1000
    for number in range(sets):
        labels = rng.choice(3, 300, p=share)
        luck = rng.random(300)
        correct = luck < first[labels]
        better = luck < (first + gain)[labels]  # right wherever the first one is, and elsewhere
        for name, (low, high) in accuracy_intervals(labels, correct, 1000, number).items():
            held[name] += low <= truth[name] <= high
        for name, (low, high) in difference_intervals(
            labels, better, correct, 1000, number
        ).items():
            held[f"{name} gained"] += low <= true_gain[name] <= high
    # percentile intervals of 300 images hold a little less than they say; the error of a part of
    # 1000 is 0.7 points
    for name, count in held.items():
        assert 0.925 <= count / sets <= 0.97, (name, count)
