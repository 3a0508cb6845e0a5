"""Files that are damaged, foreign or hostile: checkpoints, images and label files."""

import copy
import io
import os
import pickle
import random
import resource
import shutil
import struct
import tarfile
import traceback
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from cfmrfn import checkpoint, errors, trained
from cfmrfn.data import affectnet, open_set
from cfmrfn.formats import onnx_file, timm_folder
from cfmrfn.weights import public_weights
from tests.cfmrfn import public_sets
from tests.cfmrfn.states import assert_equal, changed_at
from tests.faults.children import run
from tests.faults.counts import Counts
from tests.faults.training import Runs

LONGEST_MESSAGE = 2000
MEMORY = 6 << 30  # bytes of addresses that a tool may use where a file asks for more


def is_told(use: Callable[[], object]) -> None:
    """Asserts that `use` takes what it is given, or refuses it in a short line for the user."""
    told = ""
    try:
        use()
    except errors.USER_ERRORS as error:
        told = str(error)
    except Exception as error:
        raise AssertionError("".join(traceback.format_exception(error))[-1500:]) from error
    assert len(told) < LONGEST_MESSAGE, f"{told[:200]}..."
    assert "weights_only" not in told, told
    assert "allow_pickle" not in told, told


# Checkpoints

HOSTILE = [
    *(None, 1, -1, float("nan"), "x", "y" * 100_000, [], {}, [1, 2], 2**70, b"z", True),
    *(torch.ones(3), torch.ones(2).to_sparse(), torch.ones(1).expand(2**40), {1: torch.ones(1)}),
]
_nested: list = []
for _ in range(60):
    _nested = [_nested, _nested]  # 2 ** 60 lists to whoever writes them out
HOSTILE.append(_nested)


def values(runs: Runs, counts: Counts) -> None:
    """Checkpoints with any value anywhere."""
    whole = runs.folder / "whole"
    saved = torch.load(whole / "last.pt")
    network, about = trained.load(whole / "last.pt")
    folder = runs.folder / "values"
    folder.mkdir()
    shutil.copy(whole / "config.yaml", folder)
    file = folder / "last.pt"
    places = list(_places(saved))

    def start_from_it() -> None:
        public_weights.load_init(copy.deepcopy(network), public_weights.read_source(file), about)

    for number in range(120):
        place, value = runs.rng.choice(places), runs.rng.choice(HOSTILE)
        torch.save(changed_at(saved, place, value), file)
        with counts.trying("checkpoint with a foreign value", f"{place} = {type(value)}"):
            is_told(lambda: trained.load(file))
            if place[:1] != ("training",):
                is_told(start_from_it)
            if number % 2 == 0:  # each takes a second
                ended = run(["train", "--resume", folder, "--epochs", "3"], runs.folder)
                assert ended.status in (0, 2), ended.err
                assert "Traceback" not in ended.err, ended.err


def _places(value, place=()):
    if place:
        yield place
    inside = (
        list(value)[:12]
        if isinstance(value, dict)
        else range(min(len(value), 3))
        if isinstance(value, list | tuple)
        else ()
    )
    for name in inside:
        yield from _places(value[name], (*place, name))


def flipped_bits(runs: Runs, counts: Counts) -> None:
    """Checkpoints and exported folders with a bit changed, or cut off, or with bytes inserted."""
    folder = runs.folder / "exported"
    ended = run(
        [
            "export",
            runs.folder / "whole" / "best.pt",
            "--format",
            "safetensors",
            "--output",
            folder,
        ],
        runs.folder,
    )
    assert ended.status == 0, ended.err
    best = runs.folder / "flipped.pt"
    content = (runs.folder / "whole" / "best.pt").read_bytes()
    expected = checkpoint.load(runs.folder / "whole" / "best.pt")
    for _ in range(200):
        best.write_bytes(_damaged(content, runs.rng))
        with counts.trying("checkpoint with changed bytes, refused or the same"):
            found = []
            is_told(lambda found=found: found.append(checkpoint.load(best)))
            if found:
                assert_equal(found[0], expected)
    for name in ("config.json", "model.safetensors"):
        content = (folder / name).read_bytes()
        for _ in range(100):
            # headers, which say how the rest is read, are changed more often
            head = content[:4096]
            (folder / name).write_bytes(_damaged(head, runs.rng) + content[4096:])
            with counts.trying("exported folder with changed bytes"):
                is_told(lambda: timm_folder.load(folder))
        (folder / name).write_bytes(content)


def _damaged(content: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(content))
    kind = rng.randrange(4)
    if kind == 0:
        return content[:place]
    if kind == 1:
        return content[:place] + rng.randbytes(rng.randint(1, 100)) + content[place:]
    changed = bytearray(content)
    changed[place] ^= 1 << rng.randrange(8)
    return bytes(changed)


class Payload:
    """Makes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def hostile(runs: Runs, counts: Counts) -> None:
    """Files that would run code, or fill the memory, when they are read."""
    made = runs.folder / "code-was-run"
    payload = Payload(made)
    weights_with_it = {"format": 1, "model": {"a": torch.ones(2)}, "about": payload}
    contents = {f"pickle {n}": pickle.dumps(weights_with_it, n) for n in range(6)}
    for legacy in (False, True):
        contents[f"torch.save, legacy {legacy}"] = saved(
            weights_with_it, _use_new_zipfile_serialization=not legacy
        )
    innocent = saved({"format": 1, "a": torch.ones(4)})
    contents["pickle in another entry"] = repacked(
        innocent, {"constants.pkl": contents["pickle 2"]}
    )
    contents["pickle in place of data.pkl"] = repacked(innocent, {"data.pkl": contents["pickle 2"]})
    contents["zip in a zip"] = repacked(
        innocent, {"data.pkl": contents["torch.save, legacy False"]}
    )
    contents["compressed"] = repacked(contents["torch.save, legacy False"], {}, compressed=True)
    contents["legacy before a zip"] = contents["torch.save, legacy True"] + innocent
    contents["tar"] = tarred(contents["pickle 2"])
    arrays = io.BytesIO()
    np.savez(arrays, a=np.array([payload], dtype=object))
    contents["npz of objects"] = arrays.getvalue()
    array = io.BytesIO()
    np.save(array, np.array([payload], dtype=object), allow_pickle=True)
    contents["npy of objects"] = array.getvalue()
    header = b'{"a":{"dtype":"F32","shape":[%d],"data_offsets":[0,4]}}'
    for size in (0, 1, 100, 2**31, 2**40, 2**63 - 1, 2**64 - 1):
        contents[f"safetensors header of {size}"] = struct.pack("<Q", size) + header % 1 + b"1234"
    for shape in (2**40, 2**63, -1):
        text = header % shape
        contents[f"safetensors of shape {shape}"] = struct.pack("<Q", len(text)) + text + b"1234"
    deep = b'{"a":' + b"[" * 10**5 + b"]" * 10**5 + b"}"
    contents["safetensors, deep"] = struct.pack("<Q", len(deep)) + deep
    zeros = torch.zeros(2**28)
    contents["gigabyte of zeros, compressed"] = repacked(saved({"a": zeros}), {}, compressed=True)
    contents["npy of terabytes"] = npy_header("(1000000000000,)")
    contents["npy header, nested"] = npy_header("(" * 3000)
    contents["npy, empty"] = b""
    contents["archive without an end"] = b"PK\x03\x04" + bytes(100)
    for name, content in contents.items():
        for suffix in (".pt", ".safetensors", ".npy", ".onnx"):
            file = runs.folder / f"hostile{suffix}"
            file.write_bytes(content)

            def use(file=file) -> None:
                resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
                for read in {
                    ".npy": [lambda path: affectnet._read_array(str(path))],
                    ".onnx": [onnx_file.OnnxFile],
                }.get(file.suffix, [checkpoint.load, public_weights.read_tensors, trained.load]):
                    is_told(lambda read=read: read(file))

            with counts.trying("file that would run code or fill the memory", f"{name}{suffix}"):
                ended = run(use, runs.folder)
                assert ended.status == 0, ended.err[-1500:]
                assert not made.exists(), "its code was run"


def saved(content, **options) -> bytes:
    """What torch.save makes of it."""
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def repacked(archive: bytes, changed: dict[str, bytes], *, compressed: bool = False) -> bytes:
    """A file of torch.save with other entries."""
    file = io.BytesIO()
    method = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(file, "w", method) as new:
        for name in old.namelist():
            if name.partition("/")[2] not in changed:
                new.writestr(name, old.read(name))
        for name, content in changed.items():
            new.writestr(f"archive/{name}", content)
    return file.getvalue()


def tarred(content: bytes) -> bytes:
    """An archive with one file."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        entry = tarfile.TarInfo("data.pkl")
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    return file.getvalue()


def npy_header(shape: str) -> bytes:
    """A NumPy file that claims a shape, and has no numbers."""
    text = f"{{'descr': '<i8', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


# Images


def bombs(runs: Runs, faces: Path, counts: Counts) -> None:
    """Small files of images that claim to be huge, among good ones."""
    folder = runs.folder / "bombs"
    folder.mkdir()
    good = sorted((faces / "Image" / "aligned").iterdir())[:3]
    for number, file in enumerate(good):
        shutil.copy(file, folder / f"good-{number}.jpg")
    huge = {
        "wide.png": png(2**31 - 1, 1),
        "square.png": png(60_000, 60_000),
        "just-legal.png": png(13_000, 13_000, "RGBA"),
        "text.png": png(8, 8, text=zlib.compress(bytes(2**28))),
        "screen.gif": b"GIF89a" + struct.pack("<HH", 65535, 65535) + b"\xf0\0\0" + bytes(30) + b";",
        "huge.bmp": b"BM"
        + struct.pack("<IIIIiiHHIIiiII", 99, 0, 54, 40, 2**30, 2**30, 1, 24, *[0] * 6),
        "huge.ppm": b"P6 100000 100000 255\n",
        "huge.tiff": tiff(2**31, 2**31),
        "tiles.tiff": tiff(100_000, 100_000),
        "program.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n{} loop\n",
    }
    for name, content in huge.items():
        (folder / name).write_bytes(content)

    def predict() -> None:
        from cfmrfn import predict

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        best = runs.folder / "whole" / "best.pt"
        predict.main([str(best), str(folder), "--workers", "4", "--faces", "whole"])

    with counts.trying("images that claim to be huge"):
        ended = run(predict, runs.folder)
        assert ended.status == 1, ended.err
        assert ended.out.count("good-") == 3, ended.out
        for name in huge.keys() - {"just-legal.png"}:
            lines = [line for line in ended.told if name in line]
            assert len(lines) == 1, f"{name}: {ended.err}"
        counts.tried["images that claim to be huge"] += len(huge) - 1


def png(width: int, height: int, mode: str = "L", text: bytes | None = None) -> bytes:
    """A PNG whose pixels are 0, of which it has as many as compress into a few kilobytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    color = {"L": 0, "RGBA": 6}[mode]
    pixels = zlib.compressobj()
    row = bytes(min(1 + width * len(mode), 2**20))
    data = b"".join(pixels.compress(row) for _ in range(min(height, 1000))) + pixels.flush()
    start = struct.pack(">IIBBBBB", width, height, 8, color, 0, 0, 0)
    parts = [chunk(b"IHDR", start), chunk(b"IDAT", data), chunk(b"IEND", b"")]
    if text is not None:
        parts.insert(1, chunk(b"zTXt", b"comment\0\0" + text))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiff(width: int, height: int) -> bytes:
    """A TIFF of one strip."""
    entries = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: 9}
    table = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries.items())
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + table + bytes(4)


def many_broken(runs: Runs, faces: Path, counts: Counts) -> None:
    """10,000 broken files in a row among good ones: they cost little time and few words."""
    root = runs.folder / "many"
    good = sorted((faces / "Image" / "aligned").iterdir())
    for split in ("train", "test"):
        for label in ("anger", "happiness"):
            folder = root / split / label
            folder.mkdir(parents=True)
            for number in range(20):
                shutil.copy(good[number], folder / f"z{number}.jpg")
            for number in range(2500):
                (folder / f"a{number}.jpg").write_bytes(b"broken")
    best = runs.folder / "whole" / "best.pt"
    seven = ["--epochs", "1", "--batch-size", "256", "--validation", "0", "--checkpoint-every", "9"]
    commands = {
        "train": [*runs.options[:-2], "--data", root, "--on-broken", "skip", *seven, "--no-cache"],
        "evaluate": ["evaluate", best, "--data", root, "--on-broken", "skip", "--workers", "0"],
        "verify": ["data", "verify", root, "--workers", "1"],
        "predict": ["predict", best, root / "test", "--workers", "0"],
    }
    for name, args in commands.items():
        out = runs.folder / f"many-{name}"
        if name in ("train", "evaluate"):
            args = [*args, "--output", out]
        with counts.trying("tool over 10,000 broken files", name):
            ended = run(args, runs.folder)
            assert ended.status == {"verify": 1, "predict": 1}.get(name, 0), ended.err[-1500:]
            if name in ("train", "evaluate"):  # the others are asked to name all
                assert len((ended.out + ended.err).splitlines()) < 150, "thousands of lines"


# Label files


def labels(runs: Runs, counts: Counts) -> None:
    """Label files with other bytes in them."""
    sets = {
        "rafdb": public_sets.rafdb,
        "lists": public_sets.affectnet_lists,
        "arrays": public_sets.affectnet_arrays,
        "ferplus": public_sets.ferplus_of_all_classes,
    }
    for name, make in sets.items():
        root = make(runs.folder / name)
        files = [p for p in sorted(root.rglob("*")) if p.suffix in (".txt", ".csv", ".npy")]
        for file in files[:4]:
            content = file.read_bytes()
            for _ in range(60):
                file.write_bytes(_other_text(content, runs.rng))
                with counts.trying("label file with other bytes", str(file)):
                    is_told(lambda root=root: open_set(root, training=False))
            file.write_bytes(content)


def _other_text(content: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(content) + 1)
    put = rng.choice(
        [
            *(
                b"\0",
                b"\xff\xfe",
                b"\xe9",
                b"\r",
                b"\r\n",
                b"\n",
                b'"',
                b",",
                b"\xef\xbb\xbf",
                b"-",
            ),
            *(
                b"1" * 5000,
                b"x" * 200_000,
                b"../" * 9,
                "５".encode(),
                b"1e999",
                b"nan",
                b"\x1b[31m",
            ),
        ]
    )
    return rng.choice(
        [
            content[:place] + put + content[place:],
            content[:place],
            content.replace(b"\n", b"\r\n"),
            content.replace(b"\n", b"\r"),
            b"\xef\xbb\xbf" + content,
            content.decode("latin-1").encode("utf-16"),
            content.replace(rng.choice([b"1", b"0", b",", b" "]), put),
        ]
    )


def everything(runs: Runs, faces: Path, counts: Counts) -> None:
    """All of them."""
    values(runs, counts)
    flipped_bits(runs, counts)
    hostile(runs, counts)
    bombs(runs, faces, counts)
    labels(runs, counts)
    many_broken(runs, faces, counts)
