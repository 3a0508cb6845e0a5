"""Whatever lies in the place of a checkpoint or of weights is called what it is."""

import gzip
import io
import pickle
import tarfile
import zipfile

import pytest
import safetensors.torch
import torch
from PIL import Image

from cfmrfn import checkpoint
from cfmrfn.errors import CheckpointError
from cfmrfn.weights.public_weights import read_tensors

WEIGHTS = {"a.weight": torch.arange(3.0)}


def saved(content, **options):
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def zipped(*names):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, "content")
    return file.getvalue()


def tarred():
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("weights.pth"))
    return file.getvalue()


def picture(kind):
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, kind)
    return file.getvalue()


def compressed():
    """A file of `torch.save` that was packed anew."""
    file = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(saved(WEIGHTS))) as old,
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return file.getvalue()


def with_a_changed_bit():
    content = bytearray(saved(WEIGHTS))
    content[content.index(WEIGHTS["a.weight"].numpy().tobytes()) + 4] ^= 1
    return bytes(content)


def claiming_much():
    """An archive whose directory says that one of them has 4 GB."""
    content = bytearray(saved(WEIGHTS))
    place = content.rindex(b"PK\x01\x02") + 24  # size of the last entry
    content[place : place + 4] = b"\xf0\xff\xff\xff"
    return bytes(content)


def nested(value):
    for _ in range(60):
        value = [value, value]
    return value


IN_ITSELF: list = []
IN_ITSELF.append(IN_ITSELF)
LINEAR = "holds an object of the class or function 'torch.nn.modules.linear.Linear'"
LFS = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)
FOREIGN = {
    "empty": (b"", "is empty; download or copy it again"),
    "web page": (b"\n<!DOCTYPE html>\n<html>", r"is a web page \(HTML\), .*; download"),
    "bare web page": (b"<html><head>", r"is a web page \(HTML\)"),
    "Git LFS": (LFS, r"is a Git LFS pointer.* \(12,345 bytes\); run `git lfs pull`"),
    "text": (b"Not found", "is text, which begins with 'Not found'"),
    "text with codes": (b"\x1b[1mNot\nfound", r"is text, which begins with '\\x1b\[1mNot found'"),
    "zip": (
        zipped("a.pth", "b", "c", "d"),
        r"is a zip archive of other files \('a.pth', 'b', 'c', and 1 more\).*; unpack it",
    ),
    "TorchScript": (zipped("m/data.pkl", "m/constants.pkl"), "is a TorchScript program"),
    "torch.export": (
        zipped("model/archive_format", "model/data/weights/weight_0"),
        "is a program that torch.export wrote, .*so no tool reads it. Give the run, or",
    ),
    "ONNX": (b"\x08\x0a\x12\x07pytorch\x1a\x052.14\xff", "is an ONNX file, .* predict"),
    "gzip": (gzip.compress(saved(WEIGHTS)), "is a gzip archive; unpack it first"),
    "tar": (tarred(), "is a tar archive; unpack it first"),
    "JPEG": (picture("JPEG"), "is a JPEG image"),
    "PNG": (picture("PNG"), "is a PNG image"),
    "pickle": (pickle.dumps({"a": 1}), "is a Python pickle; .* run code"),
    "whole module": (saved(torch.nn.Linear(1, 1)), LINEAR),
    "whole module, legacy": (
        saved(torch.nn.Linear(1, 1), _use_new_zipfile_serialization=False),
        LINEAR,
    ),
    "cut off": (saved(WEIGHTS)[:-100], r"is cut off or damaged: it has [\d,]+ bytes and no end"),
    "a changed bit": (with_a_changed_bit(), r"is damaged: 'archive/data/0' in it has changed"),
    "compressed": (compressed(), "is compressed, which torch.save does not"),
    "claiming much": (claiming_much(), "is damaged: its parts claim more bytes than it has"),
    "nested": (saved({"format": 1, "a": nested(1)}), "holds containers that hold one another"),
    "in itself": (saved({"format": 1, "a": IN_ITSELF}), "holds containers that hold one another"),
    "beginning lost": (saved(WEIGHTS)[100:], "is damaged"),
    "cut off, legacy": (saved(WEIGHTS, _use_new_zipfile_serialization=False)[:-9], "is damaged"),
    "cut off, safetensors": (safetensors.torch.save(WEIGHTS)[:-5], "is damaged"),
}


@pytest.mark.parametrize("load", [checkpoint.load, read_tensors])
@pytest.mark.parametrize("content, message", FOREIGN.values(), ids=FOREIGN)
def test_what_is_no_file_of_tensors_is_called_what_it_is(tmp_path, load, content, message):
    path = tmp_path / "best.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"best.pt {message}") as caught:
        load(path)
    # neither PyTorch's advice to let the file run code, nor the codes that it prints bold with
    error: BaseException | None = caught.value
    while error is not None:
        assert "weights_only" not in str(error) or error.__suppress_context__
        error = error.__cause__
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "content",
    [
        saved(WEIGHTS),
        saved(WEIGHTS, _use_new_zipfile_serialization=False),
        safetensors.torch.save(WEIGHTS),
    ],
    ids=["zip", "legacy", "safetensors"],
)
@pytest.mark.parametrize("name", ["a.pth", "a.safetensors", "a"])
def test_weights_are_told_by_content_and_not_by_suffix(tmp_path, content, name):
    path = tmp_path / name
    path.write_bytes(content)
    assert read_tensors(str(path))["a.weight"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "content, message",
    [
        (saved(WEIGHTS), "weights alone, 1 tensors; here a file is needed that cfmrfn.train wrote"),
        (
            saved(WEIGHTS, _use_new_zipfile_serialization=False),
            "weights alone, 1 tensors; here a file is needed that cfmrfn.train wrote",
        ),
        (safetensors.torch.save(WEIGHTS), r"weights alone, 1 tensors \(safetensors\)"),
        (saved({"state_dict": WEIGHTS, "epoch": 3}), "a dictionary of 'state_dict', 'epoch'"),
        (saved(torch.ones(2)), "a Tensor"),
    ],
    ids=["flat", "legacy", "safetensors", "wrapped", "tensor"],
)
def test_weights_in_the_place_of_a_checkpoint(tmp_path, content, message):
    path = tmp_path / "a.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"a.pt is no checkpoint of cfmrfn, but {message}"):
        checkpoint.load(path)


def test_containers_nested_deeper_than_python_goes(tmp_path):
    path = tmp_path / "a.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02" + 9999 * b"]" + 9998 * b"a" + b".")
        archive.writestr("a/version", b"3\n")
    with pytest.raises(CheckpointError, match="hold one another without end"):
        checkpoint.load(path)


def test_checksums_that_were_left_out_are_not_missed(tmp_path):
    path = tmp_path / "a.pt"
    torch.serialization.set_crc32_options(False)
    try:
        path.write_bytes(saved(WEIGHTS))
    finally:
        torch.serialization.set_crc32_options(True)
    assert read_tensors(path)["a.weight"].tolist() == [0, 1, 2]


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    path = tmp_path / "a.pt"
    path.write_bytes(saved(WEIGHTS))

    def refuse(*_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(CheckpointError, match=r"cannot read .*a\.pt: Permission denied"):
        read_tensors(path)
