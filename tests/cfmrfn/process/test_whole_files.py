"""Files and folders appear when they are complete, or stay as they were."""

import errno
import os
import resource
import shutil
from pathlib import Path

import pytest
from PIL import Image

from cfmrfn.whole_files import is_picture_name, save_image, whole, whole_folder


def test_a_file_appears_when_it_is_written(tmp_path):
    target = tmp_path / "a.png"
    with whole(str(target)) as path:
        assert path.suffix == ".png"
        path.write_text("half")
        assert not target.exists()
    assert target.read_text() == "half"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_an_error_leaves_the_file_before(tmp_path, error):
    target = tmp_path / "a.txt"
    target.write_text("before")

    def fail():
        with whole(target) as path:
            path.write_text("half")
            raise error

    with pytest.raises(error):
        fail()
    assert target.read_text() == "before"
    assert list(tmp_path.iterdir()) == [target]


def test_what_is_no_file_is_written_as_it_is():
    with whole(os.devnull) as path:
        assert path.samefile(os.devnull)
        path.write_text("text")
    assert not Path(os.devnull).is_file()


@pytest.mark.skipif(os.name != "posix", reason="other systems have no /dev/fd")
def test_an_open_file_keeps_what_was_written_before_and_after(tmp_path):
    with (tmp_path / "log.txt").open("w") as log:
        log.write("before\n")
        log.flush()
        with whole(f"/dev/fd/{log.fileno()}") as path:
            path.write_text("text\n")
        with pytest.raises(FileNotFoundError), whole(f"/dev/fd/{log.fileno()}") as path:
            shutil.copy(tmp_path / "missing", path)
        log.write("after\n")
    assert (tmp_path / "log.txt").read_text() == "before\ntext\nafter\n"
    assert [path.name for path in tmp_path.iterdir()] == ["log.txt"]


def test_an_error_names_the_file_that_was_asked_for(tmp_path):
    target = tmp_path / "missing" / "a.txt"
    with pytest.raises(FileNotFoundError) as error, whole(target) as path:
        path.write_text("text")
    assert error.value.filename == str(target)


@pytest.mark.parametrize(
    "name, expected",
    [("a.png", True), ("a.JPG", True), ("a.psd", False), ("a.xbm", False), ("a", False)],
)
def test_names_that_pictures_can_have(name, expected):
    assert is_picture_name(Path(name)) == expected


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_half_a_picture_is_no_picture(tmp_path, monkeypatch, suffix):
    """As on a disk that takes a part of what is written before it is full."""
    image = Image.effect_noise((64, 64), 80)
    save_image(image, tmp_path / f"a{suffix}")
    size = (tmp_path / f"a{suffix}").stat().st_size
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size - 100, hard))
    try:
        with pytest.raises(OSError, match="File too large"), whole(tmp_path / f"b{suffix}") as path:
            save_image(image, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert [path.name for path in tmp_path.iterdir()] == [f"a{suffix}"]


def test_two_writers_of_one_file_do_not_mix(tmp_path):
    target = tmp_path / "a.txt"
    with whole(target) as first, whole(target) as second:
        first.write_text("first")
        second.write_text("second")
    assert target.read_text() == "first"
    assert list(tmp_path.iterdir()) == [target]


def test_a_full_disk_is_told_with_the_folder_that_was_asked_for(tmp_path):
    def fail():
        with whole_folder(tmp_path / "a") as folder:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder / "1"))

    with pytest.raises(OSError, match="No space left") as error:
        fail()
    assert error.value.filename == str(tmp_path / "a" / "1")


def test_a_folder_appears_with_the_folders_above_it(tmp_path):
    with whole_folder(tmp_path / "a" / "b") as folder:
        (folder / "1").write_text("one")
        assert not (tmp_path / "a" / "b").exists()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]
    assert (tmp_path / "a" / "b" / "1").read_text() == "one"


def test_files_get_their_places_in_a_folder_that_is_there(tmp_path):
    (tmp_path / "other").write_text("stays")
    with whole_folder(tmp_path) as folder:
        (folder / "1").write_text("one")
        assert not (tmp_path / "1").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "other"]
    assert not list(tmp_path.parent.glob(".*.partial"))


NAMES = ("model", "config", "README")


def write(folder, text):
    with whole_folder(folder, last=NAMES) as partial:
        for name in ("large", *reversed(NAMES)):
            (partial / name).write_text(text)


def contents(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


class Interrupting:
    """`os.replace`, which does something else at the call of a number."""

    def __init__(self, number, act):
        self.number, self.act, self.replace = number, act, os.replace

    def __call__(self, source, target):
        self.number -= 1
        if self.number == -1:
            self.act()
        self.replace(source, target)


def fail():
    raise OSError(errno.EIO, os.strerror(errno.EIO), "model")


@pytest.mark.parametrize("number", range(8))
def test_an_error_puts_back_what_was_replaced(tmp_path, monkeypatch, number):
    write(tmp_path / "a", "old")
    (tmp_path / "a" / "other").write_text("stays")
    before = contents(tmp_path / "a")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", Interrupting(number, fail))
        with pytest.raises(OSError, match="Input/output error"):
            write(tmp_path / "a", "new")
    assert contents(tmp_path / "a") == before
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("number", range(8))
def test_a_kill_leaves_no_file_beside_others(tmp_path, monkeypatch, number):
    before, after = tmp_path / "before", tmp_path / "after"
    write(before / "a", "old")
    with monkeypatch.context() as patch:
        # a copy is what a kill at that moment would leave
        copy = Interrupting(number, lambda: shutil.copytree(before, after))
        patch.setattr(os, "replace", copy)
        write(before / "a", "new")
    left = contents(after / "a")
    assert len(set(left.values())) <= 1
    assert "README" not in left or number == 0
    assert len(list(after.iterdir())) == 2
    write(after / "a", "new")
    assert contents(after / "a") == dict.fromkeys(["large", *NAMES], "new")
    assert [path.name for path in after.iterdir()] == ["a"]


def test_what_another_process_writes_stays(tmp_path):
    with whole_folder(tmp_path / "a") as first:
        (first / "1").write_text("first")
        with whole_folder(tmp_path / "a") as second:
            (second / "2").write_text("second")
    assert contents(tmp_path / "a") == {"1": "first", "2": "second"}


def test_a_folder_is_not_replaced_by_a_file(tmp_path):
    (tmp_path / "a" / "model").mkdir(parents=True)
    with pytest.raises(IsADirectoryError, match="a/model"):
        write(tmp_path / "a", "new")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["model"]


def test_an_error_leaves_no_folder(tmp_path):
    def fail():
        with whole_folder(tmp_path / "a" / "b") as folder:
            (folder / "1").write_text("one")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert not list(tmp_path.iterdir())
