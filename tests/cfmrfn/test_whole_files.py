"""Files appear when they are complete, or stay as they were."""

import pytest

from cfmrfn.whole_files import whole


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
