"""The local page: what it answers, what it refuses, and that it keeps nothing."""

import asyncio
import base64
import hashlib
import io
import json
import os
import re
import sys
import tempfile
import threading
import zlib
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient

from cfmrfn import Predictor, checkpoint
from cfmrfn.analysis.explanation import attention_by_place
from cfmrfn.config import parse_config
from cfmrfn.demo.answers import Answers
from cfmrfn.demo.app import FORM_OVERHEAD, MOST_AT_A_TIME, application
from cfmrfn.demo.attention import AttentionMaps
from cfmrfn.inference import plain_face

CLASSES = ("surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral")
HOST = "127.0.0.1:8765"
MOST = 100_000  # bytes of a picture
ROOT = Path(__file__).parents[3]

pytestmark = pytest.mark.usefixtures("one_thread", "no_network")


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    """A run folder with a random network."""
    return write_run(tmp_path_factory.mktemp("runs") / "a run")


def write_run(folder, *options, layout=None):
    config = parse_config(["--image-size", "64", "--depth", "2", *options])
    torch.manual_seed(0)
    network = checkpoint.build_network(config, len(CLASSES))
    about = checkpoint.About.of_run(config, CLASSES, layout=layout).to_dict()
    folder.mkdir()
    checkpoint.save(folder / "best.pt", {"model": network.state_dict(), "about": about})
    return folder


@pytest.fixture(scope="module")
def predictor(run_folder):
    return Predictor(run_folder, "cpu")


@pytest.fixture
def client(predictor):
    return client_of(Answers(predictor, "a run"))


def client_of(answers, most_bytes=MOST, **options):
    return TestClient(application(answers, most_bytes), f"http://{HOST}", **options)


@pytest.fixture(scope="module")
def drawn(faces) -> Image.Image:
    """A drawn face of 64 x 64 pixels."""
    with Image.open(min((faces / "Image" / "aligned").iterdir())) as image:
        return image.convert("RGB")


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def post(client, data, name="face.png", headers=None, **fields):
    return client.post("/predict", files={"file": (name, data)}, data=fields, headers=headers)


def error_of(response, status):
    """The reason of a refusal, which is one line."""
    assert response.status_code == status, response.text
    assert list(response.json()) == ["error"]
    assert "\n" not in response.json()["error"]
    return response.json()["error"]


# Answers


def test_about(client):
    assert client.get("/about").json() == {
        "network": "cfmrfn_tiny",
        "run": "a run",
        "class_names": list(CLASSES),
        "trained_on": None,
        "attention": {
            "layers": 2,
            "streams": ["expression", "landmark"],
            "heads": ["all", "dilation 1", "dilation 2", "dilation 3"],
        },
        "most_bytes": MOST,
        "most_pixels": Image.MAX_IMAGE_PIXELS,
    }


@pytest.mark.parametrize(("layout", "said"), [("rafdb", "RAF-DB"), ("drawn", None)])
def test_what_the_network_was_trained_on_is_named_without_its_folder(tmp_path, layout, said):
    run = write_run(tmp_path / "run", "--data", str(tmp_path / "RAF-DB"), layout=layout)
    assert Answers(Predictor(run, "cpu"), "run").about()["trained_on"] == said


def test_a_crop_of_a_face(client, predictor, drawn):
    answer = post(client, encoded(drawn)).json()
    assert (answer["width"], answer["height"]) == drawn.size
    assert answer["seconds"] > 0
    (face,) = answer["faces"]
    (expected,) = predictor(drawn)
    crop = face.pop("crop")
    assert face == json.loads(json.dumps(plain_face(1, expected)))
    assert face["score"] is None
    assert list(face["probabilities"]) == list(CLASSES)
    assert crop == {"size": 64, "to_picture": [[1, 0, 0], [0, 1, 0]]}
    assert "picture" not in answer


def test_faces_in_a_photograph(predictor):
    data = pytest.importorskip("skimage.data")
    photograph = data.astronaut()
    client = client_of(Answers(predictor, "run"), most_bytes=10**6)
    answer = post(client, encoded(Image.fromarray(photograph)), picture="1").json()
    assert answer["faces"][0]["score"] > 0.99
    for face, expected in zip(answer["faces"], predictor(photograph), strict=True):
        assert face["box"] == pytest.approx(expected.box, abs=0.1)
        middle = np.array(face["crop"]["to_picture"]) @ [32, 32, 1]
        left, top, right, bottom = face["box"]
        assert left < middle[0] < right and top < middle[1] < bottom
    shown = decoded(answer["picture"])
    assert np.abs(np.asarray(shown, float) - photograph).mean() < 5


def test_no_face(client):
    answer = post(client, encoded(Image.new("RGB", (400, 300))), attention="1").json()
    assert answer["faces"] == []


def test_pictures_are_turned_and_made_smaller_for_the_page(client):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    data = encoded(Image.new("RGB", (3200, 200), "white"), "JPEG", exif=exif)
    answer = post(client, data, picture="1").json()
    assert (answer["width"], answer["height"]) == (200, 3200)
    assert decoded(answer["picture"]).size == (100, 1600)


def decoded(url):
    head, _, body = url.partition(",")
    assert head == "data:image/jpeg;base64"
    return Image.open(io.BytesIO(base64.b64decode(body)))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_kinds_of_files(client, drawn, kind):
    response = post(client, encoded(drawn, kind), name="name.of.no.meaning")
    assert response.status_code == 200
    assert len(response.json()["faces"]) == 1


# Attention


def test_attention_is_sent_where_it_is_asked_for(client, predictor, drawn):
    (face,) = post(client, encoded(drawn), attention="1").json()["faces"]
    layers, rollout = (np.array(face["attention"][name]) for name in ("layers", "rollout"))
    assert layers.shape == (2, 2, 4, 2, 2)
    images = predictor.prepare(drawn).images
    seen = predictor.classifier.network.describe(images)
    heads = predictor.classifier.network.head_dilations
    dilated = [head for head, dilation in enumerate(heads) if dilation == 2]
    expected = attention_by_place(seen.attention[0, 1, 0, dilated].mean(0), (2, 2))
    assert layers[1, 0, 2] == pytest.approx(expected.numpy(), abs=1e-6)
    expected = attention_by_place(seen.attention[0, 0, 1].mean(0), (2, 2))
    assert layers[0, 1, 0] == pytest.approx(expected.numpy(), abs=1e-6)
    assert rollout.shape == (2, 2, 2)
    assert rollout.sum() == pytest.approx(1, abs=1e-4)
    (face,) = post(client, encoded(drawn)).json()["faces"]
    assert "attention" not in face


@pytest.mark.parametrize(
    "options, streams, heads",
    [
        (["--tokens", "poster_view"], ["landmark"], 4),
        (["--streams", "expression"], ["expression"], 4),
        (["--attention", "global"], ["expression", "landmark"], 1),
        (["--attention", "window"], ["expression", "landmark"], 1),
    ],
)
def test_attention_of_other_networks(tmp_path, options, streams, heads, drawn):
    predictor = Predictor(write_run(tmp_path / "run", *options), "cpu")
    maps = AttentionMaps.of(predictor.classifier)
    assert maps.streams == streams
    (face,) = maps(predictor.prepare(drawn).images)
    assert np.shape(face["layers"]) == (2, len(streams), heads, 2, 2)
    assert np.shape(face["rollout"]) == (len(streams), 2, 2)


def test_no_attention_where_there_is_none_to_see(predictor, tmp_path, drawn):
    options = ["--tokens", "poster_view", "--streams", "expression"]
    nowhere = Predictor(write_run(tmp_path / "run", *options), "cpu")
    foreign = Predictor(tmp_path / "run", "cpu")
    network = predictor.classifier
    foreign.classifier = lambda images: network(images)
    foreign.classifier.about = network.about
    for each in (nowhere, foreign):
        client = client_of(Answers(each, "run"))
        assert client.get("/about").json()["attention"] is None
        (face,) = post(client, encoded(drawn), attention="1").json()["faces"]
        assert "attention" not in face


# Refusals


def png_of(width, height):
    """A PNG that says how large it is and has no pixels."""

    def chunk(name, data):
        crc = zlib.crc32(name + data)
        return len(data).to_bytes(4, "big") + name + data + crc.to_bytes(4, "big")

    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "data, status, reason",
    [
        (b"", 400, "the file is empty"),
        (b"some text", 415, "no picture"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415, "no picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", 415, "no picture"),
        (png_of(8, 8), 400, "damaged: "),
        (png_of(12_000, 8_000), 400, "too many pixels"),  # of which Pillow warns
        (png_of(100_000, 100_000), 400, "too many pixels"),
    ],
)
def test_what_is_no_picture(client, data, status, reason):
    said = error_of(post(client, data, name="photo.jpg"), status)
    assert reason in said
    assert "BytesIO" not in said


def test_a_picture_that_ends_early(client, drawn):
    data = encoded(drawn, "JPEG")
    assert "truncated" in error_of(post(client, data[: len(data) // 2]), 400)


def test_heic_says_what_it_needs(client, monkeypatch):
    monkeypatch.setattr("cfmrfn.demo.answers.heic_is_readable", lambda: False)
    said = error_of(post(client, b"\x00\x00\x00\x18ftypheic" + bytes(50)), 415)
    assert "pip install pillow-heif" in said


def test_forms_that_are_not_legal(client, drawn):
    data = encoded(drawn)
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    assert "`file`" in error_of(client.post("/predict", content=data), 415)
    assert "`file`" in error_of(client.post("/predict", json={}), 415)
    assert "`file`" in error_of(client.post("/predict", data={"attention": "1"}), 415)
    assert "`file`" in error_of(client.post("/predict", files={"other": data}), 400)
    assert "`file`" in error_of(
        client.post(
            "/predict",
            content=b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\na\r\n--x--',
            headers=form,
        ),
        400,
    )
    two = [("file", data), ("file", data)]
    assert "not legal: Too many files" in error_of(client.post("/predict", files=two), 400)
    assert "not legal" in error_of(client.post("/predict", content=b"no form", headers=form), 400)
    without = {"Content-Type": "multipart/form-data"}
    assert "boundary" in error_of(client.post("/predict", content=data, headers=without), 400)


def test_the_type_of_a_form_in_capitals(client):
    said = error_of(
        client.post(
            "/predict",
            content=(
                b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
                b"a\r\n--x--\r\n"
            ),
            headers={"Content-Type": "Multipart/Form-Data; boundary=x"},
        ),
        415,
    )
    assert "no picture" in said


def test_other_addresses_and_methods(client):
    assert error_of(client.get("/nowhere"), 404)
    assert error_of(client.get("/predict"), 405)
    assert error_of(client.post("/about"), 405)


def test_a_file_that_is_too_large(client):
    said = error_of(post(client, bytes(MOST + FORM_OVERHEAD + 1)), 413)
    assert said == "the file is too large; 0.1 MB are the most: make it smaller"
    assert error_of(post(client, bytes(MOST)), 415)  # it is read, and is no picture


@pytest.mark.parametrize("length", [None, 10**12, MOST])
def test_a_file_without_end_is_refused_while_it_comes(length, predictor):
    """Whatever length it claims."""
    app = application(Answers(predictor, "run"), MOST)
    received = 0

    async def receive():
        nonlocal received
        received += 10_000
        head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        return {"type": "http.request", "body": head.ljust(10_000, b"a"), "more_body": True}

    claimed = {} if length is None else {"Content-Length": str(length)}
    status, _ = asyncio.run(
        call(app, receive, {"Content-Type": "multipart/form-data; boundary=x", **claimed})
    )
    assert status == 413
    assert received < 20 * MOST


async def call(app, receive, headers, method="POST", path="/predict"):
    """Status and body of an answer, without a server."""
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    scope = {
        **{"type": "http", "method": method, "path": path, "query_string": b""},
        **{"scheme": "http", "http_version": "1.1", "headers": [(b"host", HOST.encode()), *raw]},
    }
    sent = []

    async def send(message):
        sent.append(message)

    await app(scope, receive, send)
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent)


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "127.0.0.1.evil.example",
        "evil.example:8765",
        "localhost@evil.example",
        "[::1",
        "",
    ],
)
def test_names_that_another_site_could_have_are_refused(client, host):
    for path in ("/", "/about"):
        assert "host" in error_of(client.get(path, headers={"Host": host}), 400)


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST:8765", "127.0.0.1", "192.168.0.7:80", "[::1]:8765", "box.local"],
)
def test_names_that_are_ours(predictor, host):
    app = application(Answers(predictor, "run"), MOST, ["Box.local"])
    assert TestClient(app).get("/", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "origin, status",
    [
        (f"http://{HOST}", 200),
        ("http://evil.example", 403),
        (f"http://{HOST}.evil.example", 403),
        ("http://127.0.0.1:9999", 403),  # another page on this machine
        ("null", 403),
        ("http://[", 403),
    ],
)
def test_forms_of_other_sites_are_refused(client, drawn, origin, status):
    response = post(client, encoded(drawn), headers={"Origin": origin})
    assert response.status_code == status
    assert "access-control-allow-origin" not in response.headers


# The page


@pytest.fixture(scope="module")
def page():
    return (ROOT / "cfmrfn" / "demo" / "page.html").read_text("utf-8")


def test_the_page_asks_nothing_of_others(client, page):
    response = client.get("/")
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert response.text == page
    addresses = re.findall(r"[\w:]*//[\w.\[][^\s'\"]*", re.sub(r"(?m)^\s*//.*|\s// .*$", "", page))
    assert set(addresses) == {
        "http://www.w3.org/2000/svg",
        "http://localhost",
    }  # a name, a sentence
    sources = re.findall(r"\b(?:src|href|srcset|action|poster|data)=[\"']?([^\s\"'>]*)", page)
    assert sources and all(source.startswith("data:") for source in sources)
    assert not re.search(r"@import|url\(|importScripts|\bimport\b|WebSocket|EventSource", page)
    assert set(re.findall(r"fetch\((.*?)[,)]", page)) == {'"predict"', '"about"'}


def test_its_policy_allows_its_own_parts_alone(client, page):
    policy = dict(
        rule.split(" ", 1)
        for rule in client.get("/").headers["content-security-policy"].split("; ")
    )
    for tag in ("script", "style"):
        (part,) = re.findall(rf"<{tag}[^>]*>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()
        assert policy.pop(f"{tag}-src") == f"'sha256-{digest}'"
    assert policy.pop("connect-src") == "'self'"
    assert policy.pop("img-src") == "data:"
    assert set(policy.values()) == {"'none'"}
    assert {"default-src", "base-uri", "form-action", "frame-ancestors"} == set(policy)
    assert not re.search(r"\son\w+=|\sstyle=|javascript:", page)  # which the policy forbids


def test_its_parts_are_named_for_those_who_do_not_see_it(page):
    assert '<html lang="en">' in page and 'name="viewport"' in page
    assert re.search(r'id="status" role="status" aria-live="polite"', page)
    for tag in re.findall(r"<(?:canvas|section|aside)\b[^>]*>", page):
        assert "aria-label" in tag, tag
    for tag in re.findall(r"<svg\b[^>]*>", page):
        assert "aria-hidden" in tag
    for tag, text in re.findall(r"(<label\b[^>]*>)(.*?)</label>", page):
        assert re.sub(r"<.*?>", "", text).strip(), tag
    inputs = re.findall(r"<(?:input|select)\b[^>]*>", page)
    labelled = [*re.findall(r"<label\b.*?</label>", page)]
    for tag in inputs:
        assert any(tag in label for label in labelled) or "aria-hidden" in tag, tag


def test_every_answer_has_the_headers(client, drawn):
    responses = [
        client.get("/"),
        client.get("/about"),
        client.get("/nowhere"),
        client.get("/", headers={"Host": "evil.example"}),
        post(client, encoded(drawn)),
        post(client, b"no picture"),
    ]
    failing = SimpleNamespace(about=dict, answer=None)
    responses.append(post(client_of(failing, raise_server_exceptions=False), b"a"))
    assert [each.status_code for each in responses] == [200, 200, 404, 400, 200, 415, 500]
    for response in responses:
        assert response.headers["cache-control"] == "no-store"
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["x-frame-options"] == "DENY"
        assert response.headers["cross-origin-resource-policy"] == "same-origin"
        assert response.headers["permissions-policy"].startswith("camera=(self)")


# Nothing is kept


written = None  # files opened to be written, where someone looks


def note_writing(event, arguments):
    if event == "open" and written is not None:
        path, mode, flags = arguments
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) or set(mode or "") & set("wax+"):
            written.append(path)


sys.addaudithook(note_writing)


@contextmanager
def watched_writing():
    global written
    written = []
    try:
        yield written
    finally:
        written = None


def test_nothing_is_written(predictor, drawn, capfd, caplog, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    client = client_of(Answers(predictor, "run"), most_bytes=4_000_000)
    noise = np.random.default_rng(0).integers(0, 255, (1000, 1000, 3), np.uint8)
    large = encoded(Image.fromarray(noise), "BMP")
    assert len(large) > 2_900_000  # such uploads, Starlette itself writes to the disk
    before = set(tmp_path.iterdir())
    post(client, b"no picture")  # after it, Pillow has imported, and Python compiled, all it needs
    with watched_writing() as opened:
        assert post(client, large, "secret.bmp", picture="1").status_code == 200
        assert post(client, encoded(drawn), "secret.png", attention="1").status_code == 200
        assert post(client, b"no picture", "secret.jpg").status_code == 415
        assert post(client, bytes(4_100_000), "secret.jpg").status_code == 413
        assert opened == []
        with tempfile.TemporaryFile():  # and this is how it would be seen
            assert opened
    assert set(tmp_path.iterdir()) == before
    printed = capfd.readouterr()
    assert printed.out + printed.err == ""
    assert "secret" not in caplog.text


# One at a time


class Held:
    """Answers that wait to be let go."""

    def __init__(self):
        self.begun = threading.Semaphore(0)
        self.go_on = threading.Event()
        self.at_a_time = self.most = self.count = 0

    def about(self):
        return {}

    def answer(self, data, **asked):
        self.at_a_time += 1
        self.most = max(self.most, self.at_a_time)
        self.begun.release()
        assert self.go_on.wait(60)
        self.at_a_time -= 1
        self.count += 1
        return {}


FORM = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\na\r\n--x--'


def test_one_prediction_at_a_time_and_the_rest_is_answered_meanwhile():
    held = Held()
    app = application(held, MOST)

    async def receive():
        return {"type": "http.request", "body": FORM, "more_body": False}

    def predict():
        return call(app, receive, {"Content-Type": "multipart/form-data; boundary=x"})

    async def many():
        waiting = [asyncio.create_task(predict()) for _ in range(MOST_AT_A_TIME)]
        await asyncio.sleep(0)  # each gets as far as it does without waiting
        status, body = await predict()
        assert status == 503
        assert "too many" in json.loads(body)["error"]
        assert await asyncio.to_thread(held.begun.acquire, timeout=60)
        status, _ = await call(app, receive, {}, "GET", "/about")
        assert status == 200
        assert not any(task.done() for task in waiting)
        held.go_on.set()
        return await asyncio.gather(*waiting)

    assert [status for status, _ in asyncio.run(many())] == [200] * MOST_AT_A_TIME
    assert (held.most, held.count) == (1, MOST_AT_A_TIME)


def test_a_form_that_does_not_come(predictor, monkeypatch):
    monkeypatch.setattr("cfmrfn.demo.app.MOST_SECONDS", 0.01)

    async def receive():
        await asyncio.sleep(3600)

    app = application(Answers(predictor, "run"), MOST)
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    status, body = asyncio.run(call(app, receive, headers))
    assert status == 408
    assert "did not come" in json.loads(body)["error"]


def test_a_sender_that_goes_away(predictor):
    async def receive():
        return {"type": "http.disconnect"}

    app = application(Answers(predictor, "run"), MOST)
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    for _ in range(MOST_AT_A_TIME + 1):  # none of them stays in the line
        status, _ = asyncio.run(call(app, receive, headers))
        assert status == 499


@pytest.mark.parametrize(
    "error, reason",
    [
        (MemoryError(), "out of memory: give a smaller picture"),
        (ZeroDivisionError("secret"), "an error within the server; its terminal shows it"),
    ],
)
def test_errors_within(error, reason):
    def answer(*args, **options):
        raise error

    client = client_of(SimpleNamespace(about=dict, answer=answer), raise_server_exceptions=False)
    assert error_of(post(client, b"a"), 500) == reason
