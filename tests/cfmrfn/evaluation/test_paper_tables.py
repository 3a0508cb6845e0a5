"""The paper's tables beside ours."""

import numpy as np
import pytest

from cfmrfn import sweep
from cfmrfn.data.samples import EXPRESSIONS
from cfmrfn.evaluation import paper_tables
from tests.cfmrfn import public_sets

CLASSES = EXPRESSIONS[:7]

pytestmark = pytest.mark.usefixtures("one_thread", "no_network")


@pytest.mark.parametrize(
    ("make", "class_names", "name", "rows"),
    [
        (public_sets.rafdb, CLASSES, "RAF-DB", 17),
        (public_sets.affectnet_lists, CLASSES, "AffectNet-7", 13),
        (public_sets.affectnet_lists, (*CLASSES, "contempt"), "AffectNet-8", 7),
        (public_sets.ferplus_of_all_classes, (*CLASSES, "contempt"), "FERPlus", 9),
    ],
)
def test_the_papers_rows_and_ours(save_run, run_tool, tmp_path, make, class_names, name, rows):
    root = make(tmp_path / "data")
    results, printed = run_tool(save_run(class_names=class_names), "--data", root)
    (result,) = results.values()
    lines = printed.out[printed.out.index("**Table 1") :].splitlines()
    table_1 = [line for line in lines[2:] if line.startswith("| ")][: rows + 3]
    assert lines[0] == f"**Table 1 of the paper, {name}**"
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table_1]
    assert [row[3] for row in cells[2:]] == [*["the paper"] * rows, "measured here"]
    printed_by_the_paper = paper_tables.TABLE_1[-1][2][list(paper_tables.SETS).index(name)]
    assert cells[-2] == ["CFMRFN", "-", f"{printed_by_the_paper:.2f}", "the paper"]
    assert cells[-1][:3] == ["run/best.pt", "-", f"{100 * result['accuracy']:.2f}"]
    assert "not the paper's images" in printed.out
    if name == "AffectNet-8":
        assert "Table 2 of the paper has no row for AffectNet-8" in printed.out
        return
    start = next(i for i, line in enumerate(lines) if line.startswith("**Table 2"))
    table_2 = [line for line in lines[start:] if line.startswith("| ")]
    header, _, paper, _, ours = (
        [cell.strip() for cell in line.strip("|").split("|")] for line in table_2
    )
    assert header[-2:] == ["mean", "from"]
    assert paper[-1] == "the paper"
    for column, value in zip(header[1:-2], ours[1:-2], strict=True):
        recall = result["per_class"][column]
        assert value == ("-" if recall is None else f"{100 * recall:.2f}")
    assert ours[-2] == f"{100 * result['mean_class_accuracy']:.2f}"


@pytest.mark.parametrize(
    ("class_names", "args", "words"),
    [
        (CLASSES[:6], [], "split test, 6 classes"),
        (CLASSES, ["--split", "train"], "split train, 7 classes"),
    ],
)
def test_other_classes_or_splits_are_not_the_papers(
    save_run, run_tool, tmp_path, class_names, args, words
):
    root = public_sets.rafdb(tmp_path / "data", test=(5, 6))
    _, printed = run_tool(save_run(class_names=class_names), "--data", root, *args)
    assert f"The paper has no table for RAF-DB, {words}" in printed.out
    assert "92.14" not in printed.out


def test_rows_say_how_they_were_measured(save_run, run_tool, tmp_path):
    root = public_sets.rafdb(tmp_path / "data")
    public_sets.save_image(root / "Image/aligned/test_00001_aligned.jpg", 99)
    run = save_run(class_names=(*CLASSES, "contempt"))
    _, printed = run_tool(run, "--data", root, "--flip")
    note = printed.out.splitlines()[-1]
    assert note.startswith("run/best.pt: cfmrfn_tiny, epoch 3, the last, on 2 images of RAF-DB, ")
    assert "the published split has 3068: not" in note
    assert "1 of them training images too, without which accuracy is" in note
    assert note.endswith("predicted among 8 classes, mean of image and mirror image.")
    _, printed = run_tool(run, "--data", root, "--shared-classes")
    assert printed.out.endswith("predicted among these classes only of its 8.\n")


def test_the_papers_numbers_agree_with_each_other():
    place = {name: index for index, name in enumerate(paper_tables.SETS)}
    method, _, own = paper_tables.TABLE_1[-1]
    assert method == "CFMRFN"
    in_sweep = sweep.TABLES["table6"]
    for name, value in zip(in_sweep.paper, in_sweep.rows[0].paper, strict=True):
        assert own[place[name]] == value
    for _, _, accuracies in paper_tables.TABLE_1:
        assert len(accuracies) == len(place)
        for best, value in zip(own, accuracies, strict=True):
            assert value is None or value <= best
    for name, rows in paper_tables.TABLE_2.items():
        for values in rows.values():
            each = [value for value in values[:-1] if value is not None]
            assert len(each) == paper_tables.SETS[name].classes
            assert np.mean(each) == pytest.approx(values[-1], abs=0.01)
