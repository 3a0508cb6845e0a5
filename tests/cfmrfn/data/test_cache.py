"""Images kept in memory, and batches made of them: the same as those read one by one."""

from multiprocessing.reduction import ForkingPickler
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from cfmrfn.batches import BatchLoader, EpochBatches, training_loader
from cfmrfn.data import DataError, ExpressionDataset, Sample, cache, eval_transform, train_transform
from cfmrfn.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from cfmrfn.training.images import Splits, cache_splits

NAMES = ("surprise", "fear")
WORLD = SimpleNamespace(rank=0, size=1, device=torch.device("cpu"))
VARIED = {
    **{"rotation": 15, "translate": 0.1, "scale": (0.8, 1.2), "stretch": 0.1},
    **{"brightness": 0.2, "contrast": 0.3},
}
ALL = {**VARIED, "crop": True, "jitter": True}


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """Grey and coloured images, a large JPEG, one with a box, one that is broken."""
    folder = tmp_path_factory.mktemp("images")
    generator = torch.Generator().manual_seed(0)
    made = []
    for index, (mode, side) in enumerate(
        [("L", 48), ("RGB", 48), ("L", 48), ("RGB", 100), ("RGB", 400), ("RGB", 90), ("L", 48)]
    ):
        shape = (side, side + index, 3)[: 3 if mode == "RGB" else 2]
        pixels = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
        path = folder / f"{index}.{'jpg' if side == 400 else 'png'}"
        Image.fromarray(pixels.numpy()).save(path)
        box = (10, -5, 80, 70) if side == 90 else None
        made.append(Sample(str(path), index % 2, votes=(0.25, 0.75), box=box))
    (folder / "broken.png").write_bytes(b"not a picture")
    return [*made, Sample(str(folder / "broken.png"), 0, votes=(1.0, 0.0))]


@pytest.fixture(scope="module")
def kept(samples):
    return cache.cached(samples, 64, 1 << 20, threads=2)


def dataset(samples, kept=None, transform=None, **options):
    transform = transform or train_transform(64, **ALL)
    settings = {"on_broken": "skip", "at_least": 64, "seed": 3} | options
    return ExpressionDataset(samples, NAMES, transform, cache=kept, **settings)


def seen(images, keys):
    """What a loader gives for `keys`."""
    return next(iter(BatchLoader(images, WORLD, batch_sampler=[keys])))


def test_what_is_kept(samples, kept):
    assert len(kept) == len(samples)
    assert [
        None if image is None else image.shape[0] for image in map(kept.__getitem__, range(8))
    ] == [*(1, 3, 1, 3, 3, 3, 1, None)]
    # the JPEG is decoded at a quarter, the box cut out
    assert kept[4].shape == (3, 100, 101)
    assert kept[5].shape == (3, 70, 70)
    assert kept.nbytes == sum(kept[index].numel() for index in range(7))
    assert torch.equal(kept.part(slice(3, 5))[1], kept[4])
    assert not kept.is_grey
    assert kept.part(slice(6, 8)).is_grey


@pytest.mark.parametrize("piece_bytes, pieces", [(1, 7), (30_000, 3)])
def test_images_kept_in_several_pieces_are_the_same(
    samples, kept, piece_bytes, pieces, monkeypatch
):
    monkeypatch.setattr(cache, "_PIECE", piece_bytes)
    found = cache.cached(samples, 64, 1 << 20, threads=2)
    assert len(found.pieces) == pieces
    assert found[7] is None
    assert all(torch.equal(found[index], kept[index]) for index in range(7))


def test_processes_that_are_not_forked_may_keep_what_shared_memory_holds(monkeypatch):
    monkeypatch.setattr(cache.Path, "is_dir", lambda path: path == cache.Path("/dev/shm"))
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: SimpleNamespace(free=64 << 20))
    monkeypatch.setattr(cache.multiprocessing, "get_start_method", lambda **_: "fork")
    assert cache.memory_limit() > 32 << 20
    monkeypatch.setattr(cache.multiprocessing, "get_start_method", lambda **_: "spawn")
    assert cache.memory_limit() == 32 << 20


@pytest.mark.parametrize("color", ["RGB", "BGR"])
@pytest.mark.parametrize("options", [{}, VARIED, ALL], ids=["paper", "varied", "all"])
def test_images_are_the_same_however_they_are_read(samples, kept, color, options):
    keys = [(0, 5), (1, 4), (7, 9), (4, 0), (5, 1), (0, 6), (6, 2), (3, 3)]
    one_by_one = dataset(samples, transform=train_transform(64, **options), color=color)
    expected = torch.stack([one_by_one[key][0] for key in keys])
    assert one_by_one.is_broken.tolist() == [False] * 7 + [True]
    for source in (None, kept):
        images = dataset(samples, source, train_transform(64, **options), color=color)
        found, labels = seen(images, keys)
        assert torch.equal(found, expected)
        assert labels.tolist() == [0, 1, 0, 0, 1, 0, 0, 1]
        assert torch.equal(images.is_broken, one_by_one.is_broken)
        assert torch.equal(images[keys[0]][0], expected[0])
    # a batch of grey images has one channel until it is normalised
    grey, _ = dataset(samples, kept, train_transform(64, **options)).batch([(0, 5), (6, 2)])
    assert grey.images.shape[1] == (3 if "jitter" in options else 1)
    if color == "RGB":
        found, votes = seen(
            dataset(samples, kept, train_transform(64, **options), soft_labels=True), keys[::6]
        )
        assert torch.equal(found, expected[::6])
        assert votes.tolist() == [[0.25, 0.75]] * 2


def test_evaluation_images_are_the_same_and_broken_ones_are_marked(samples, kept):
    one_by_one = dataset(samples[:7], transform=eval_transform(64), seed=None)
    expected = torch.stack([one_by_one[index][0] for index in range(7)])
    images = dataset(samples, kept, eval_transform(64), seed=None, on_broken="mark")
    found, labels = seen(images, list(range(8)))
    assert torch.equal(found[:7], expected)
    assert labels.tolist() == [0, 1, 0, 1, 0, 1, 0, -100]
    with pytest.raises(DataError, match=r"cannot read image .*broken\.png"):
        seen(dataset(samples, kept, eval_transform(64), on_broken="error"), [7])


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_is_the_same_with_and_without_cache_for_any_workers(samples, kept, workers):
    labels = [sample.label for sample in samples]

    def epoch(source, workers, step):
        images = dataset(samples, source)
        batches = EpochBatches(labels, 2, 0, False, WORLD)
        batches.start(1, step)
        images.set_epoch(1)
        return [batch for batch, _ in training_loader(images, batches, workers)]

    expected = epoch(None, 0, 0)
    for step in (0, 3):
        found = epoch(kept, workers, step)
        assert len(found) == 4 - step
        assert all(map(torch.equal, found, expected[step:]))


def test_processes_that_are_not_forked_share_the_images(samples, kept):
    images = dataset(samples, kept)
    sent = ForkingPickler.loads(ForkingPickler.dumps(images))
    assert torch.equal(sent[1, 0][0], images[1, 0][0])
    sent.cache.pieces[0][0] ^= 255
    assert torch.equal(sent.cache.pieces[0], kept.pieces[0]), "the images were copied"
    sent.cache.pieces[0][0] ^= 255


def test_sets_that_do_not_fit_are_read_from_files(samples, monkeypatch):
    splits = Splits("set", NAMES, samples[:4], samples[4:5], samples[5:7])
    found = cache_splits(splits, 64, True)
    assert [len(part) for part in found[:3]] == [4, 1, 2]
    assert torch.equal(found.held_out[0], cache.cached(samples[5:6], 64, 1 << 20, 1)[0])
    assert "decoded images are kept in memory: 0.1 MB" in found.remark
    broken = Splits("set", NAMES, samples[6:], [], samples[:1])
    assert cache_splits(broken, 64, True).remark.endswith("; 1 of 3 cannot be read")
    assert cache_splits(splits, 64, False)[:3] == (None, None, None)

    monkeypatch.setattr(cache, "MEMORY_PART", 1e-9)
    found = cache_splits(splits, 64, True)
    assert found[:3] == (None, None, None)
    assert "read from their files in each epoch: about 0.1 MB would be more than" in found.remark


def test_options_of_former_runs_augment_as_they_did(samples):
    """Resumed runs see the images that they would have seen: bit for bit as torchvision alone."""
    former = v2.Compose(
        [
            *(v2.PILToTensor(), v2.RandomResizedCrop(64, (0.8, 1.0), (0.9, 1.1))),
            *(v2.RandomHorizontalFlip(0.5), v2.ColorJitter(0.2, 0.2, 0.2)),
            *(v2.ToDtype(torch.float32, scale=True), v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)),
            v2.RandomErasing(0.5, (0.02, 0.1)),
        ]
    )
    now = train_transform(64, crop=True, jitter=True)
    for index in range(7):
        image = Image.open(samples[index].path).convert("RGB")
        torch.manual_seed(index)
        expected = former(image)
        after = torch.get_rng_state()
        torch.manual_seed(index)
        assert torch.equal(now(image), expected)
        assert torch.equal(torch.get_rng_state(), after)


def square(**options):
    """What is left of a white square of 16 x 16 in the middle of a black image of 32 x 32."""
    image = Image.new("L", (32, 32))
    image.paste(255, (8, 8, 24, 24))
    plain = {"flip": 0, "erasing": 0, "mean": (0, 0, 0), "std": (1, 1, 1)}
    return train_transform(64, **plain, **options)(image.convert("RGB"))[0]


def test_each_warp_does_what_it_says():
    torch.manual_seed(0)
    assert square(scale=(0.5, 0.5)).sum() == pytest.approx(16**2, rel=0.05)
    assert square(scale=(1.5, 1.5)).sum() == pytest.approx(48**2, rel=0.05)
    widths, heights, turned, centres = [], [], [], []
    for _ in range(60):
        stretched = square(stretch=0.25)
        widths.append((stretched[32] > 0.5).sum().item())
        heights.append((stretched[:, 32] > 0.5).sum().item())
        turned.append(square(rotation=20))
        shifted = square(translate=0.1)
        centres.append(
            [(shifted.sum(axis) * torch.arange(64.0)).sum() / shifted.sum() for axis in (0, 1)]
        )
    assert set(heights) == {32}
    assert 24 <= min(widths) < 27 < 37 < max(widths) <= 40
    # to either side by up to a tenth of 64, and along both axes
    for along in torch.tensor(centres).T - 31.5:
        assert -6.5 < along.min() < -4 < 4 < along.max() < 6.5
    # turned by 20 degrees it reaches 32 (cos 20 + sin 20) / 2 = 20.5 pixels from its middle
    reach = [max(31.5 - (image.amax(0) > 0.5).nonzero().min().item(), 0) for image in turned]
    assert 15 < min(reach) < 17 < 19 < max(reach) <= 20.6
    areas = torch.stack(turned).sum((1, 2))
    assert ((areas - 32**2).abs() < 0.02 * 32**2).all()


def test_images_are_enlarged_up_to_their_edges_as_evaluation_does():
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (3, 48, 40), generator=generator, dtype=torch.uint8)
    identity = train_transform(128, flip=0, erasing=0, rotation=1e-9)
    found, expected = (t.pixels([pixels]).images.int() for t in (identity, eval_transform(128)))
    assert (found - expected).abs().max() <= 1  # rounded by two ways of resizing


def test_what_a_warp_uncovers_is_black():
    plain = {"flip": 0, "erasing": 0, "brightness": 0.5, "contrast": 0.5}
    shrunk = train_transform(64, scale=(0.5, 0.5), **plain)
    grey = torch.full((1, 32, 32), 128, dtype=torch.uint8)
    images = shrunk.pixels([grey] * 20, seeds=range(20)).images
    assert len(images[..., 16:48, 16:48].unique()) > 10  # of other brightness each
    images[..., 16:48, 16:48] = 0
    assert not images.any()


def test_brightness_and_contrast_keep_to_their_range():
    torch.manual_seed(0)
    image = Image.new("L", (32, 32), 120)
    image.paste(180, (0, 0, 16, 32))
    plain = {"flip": 0, "erasing": 0, "mean": (0, 0, 0), "std": (1, 1, 1)}

    def means_and_ranges(**options):
        transform = train_transform(32, **plain, **options)
        seen = torch.stack([transform(image.convert("RGB"))[0] for _ in range(60)]) * 255
        return seen.mean((1, 2)), seen.amax((1, 2)) - seen.amin((1, 2))

    means, ranges = means_and_ranges(brightness=0.2)
    assert 99 - 0.5 <= means.min() < 110 < 190 < means.max() <= 201 + 0.5
    assert (ranges - 60).abs().max() <= 1.01
    means, ranges = means_and_ranges(contrast=0.5)
    assert (means - 150).abs().max() <= 1.01
    assert 29 <= ranges.min() < 36 < 84 < ranges.max() <= 91
