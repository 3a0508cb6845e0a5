"""The dataset: colours, boxes, augmentation that follows from the seed, and broken images."""

import pytest
import torch
from PIL import Image, ImageCms
from torch.utils.data import DataLoader

from cfmrfn.data import (
    DataError,
    ExpressionDataset,
    Sample,
    eval_transform,
    read_image,
    train_transform,
    why_unreadable,
)
from cfmrfn.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from tests.cfmrfn import public_sets

NAMES = ("surprise", "fear")
PLAIN = eval_transform(8, mean=(0, 0, 0), std=(1, 1, 1))


@pytest.fixture
def samples(tmp_path):
    """Eight noisy photographs, of two classes in turn."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for index in range(8):
        path = tmp_path / f"{index}.png"
        pixels = torch.randint(256, (40, 40, 3), dtype=torch.uint8, generator=generator)
        Image.fromarray(pixels.numpy()).save(path)
        made.append(Sample(str(path), index % 2))
    return made


def break_file(sample):
    """Cut a file in the middle, as an interrupted copy does."""
    with open(sample.path, "r+b") as file:
        file.truncate(600)


def test_items_are_normalised_images_with_labels(samples):
    dataset = ExpressionDataset(samples, NAMES, eval_transform(24))
    image, label = dataset[3]
    assert (image.shape, image.dtype, label) == ((3, 24, 24), torch.float32, 1)
    assert len(dataset) == 8
    assert dataset.class_names == NAMES


def test_normalisation_is_imagenets(tmp_path):
    public_sets.save_image(tmp_path / "grey.png", 102)
    dataset = ExpressionDataset([Sample(str(tmp_path / "grey.png"), 0)], NAMES, eval_transform(4))
    expected = (0.4 - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)
    torch.testing.assert_close(dataset[0][0], expected.view(3, 1, 1).expand(3, 4, 4))


@pytest.mark.parametrize("color, channels", [("RGB", (1.0, 0.4, 0.0)), ("BGR", (0.0, 0.4, 1.0))])
def test_colour_order(tmp_path, color, channels):
    public_sets.save_image(tmp_path / "orange.png", (255, 102, 0))
    sample = Sample(str(tmp_path / "orange.png"), 0)
    image, _ = ExpressionDataset([sample], NAMES, PLAIN, color=color)[0]
    torch.testing.assert_close(image.mean(dim=(1, 2)), torch.tensor(channels))


@pytest.mark.parametrize("mode, value", [("L", 90), ("P", 0), ("RGBA", (90, 90, 90, 255))])
def test_any_image_mode_becomes_rgb(tmp_path, mode, value):
    Image.new(mode, (10, 10), value).save(tmp_path / "image.png")
    assert read_image(Sample(str(tmp_path / "image.png"), 0)).mode == "RGB"


@pytest.mark.parametrize("mode", ["P", "RGBA", "LA", "1", "CMYK", "YCbCr", "HSV", "LAB", "I;16"])
def test_transforms_take_images_of_any_mode(mode):
    light = Image.new("RGB", (10, 10), (255, 255, 255))
    image = Image.new("I;16", (10, 10), 65535) if mode == "I;16" else as_mode(light, mode)
    torch.testing.assert_close(PLAIN(image), PLAIN(light), rtol=0, atol=0.02)


def as_mode(image, mode):
    if mode != "LAB":
        return image.convert(mode)
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    return ImageCms.profileToProfile(image, *profiles, outputMode="LAB")


@pytest.mark.parametrize("at_least", [None, 100, 20])
def test_the_box_is_the_face_however_the_file_is_decoded(tmp_path, at_least):
    """A red face of 200 x 200 at (300, 100) in a grey photograph of 800 x 600."""
    photograph = Image.new("RGB", (800, 600), (128, 128, 128))
    photograph.paste((255, 0, 0), (300, 100, 500, 300))
    photograph.save(tmp_path / "image.jpg", quality=95)
    face = read_image(Sample(str(tmp_path / "image.jpg"), 0, box=(300, 100, 500, 300)), at_least)
    assert min(face.size) >= (at_least or 200)
    assert max(face.size) <= (200 if at_least in (None, 100) else 50) or at_least == 100
    middle = face.resize((3, 3)).getpixel((1, 1))
    assert middle[0] > 240
    assert max(middle[1:]) < 15
    corner = face.getpixel((1, 1))
    assert corner[0] > 200


def test_large_jpegs_are_decoded_small(tmp_path):
    public_sets.save_image(tmp_path / "large.jpg", size=(1600, 1200))
    sample = Sample(str(tmp_path / "large.jpg"), 0)
    assert read_image(sample, at_least=112).size == (200, 150)
    assert read_image(sample).size == (1600, 1200)


def test_seeded_augmentation_depends_on_seed_epoch_index_and_draw_only(samples):
    def augmented(seed, epoch, key, before=()):
        dataset = ExpressionDataset(samples, NAMES, train_transform(24, crop=True), seed=seed)
        dataset.set_epoch(epoch)
        for other in before:
            dataset[other]
        return dataset[key][0]

    first = augmented(seed=1, epoch=2, key=3)
    torch.rand(5)
    assert torch.equal(first, augmented(1, 2, 3, before=(0, 1, 2)))
    assert torch.equal(first, augmented(1, 2, (3, 0)))
    for other in (augmented(2, 2, 3), augmented(1, 3, 3), augmented(1, 2, (3, 1))):
        assert not torch.equal(first, other)


def test_seeded_augmentation_leaves_the_global_random_state_alone(samples):
    dataset = ExpressionDataset(samples, NAMES, train_transform(24), seed=0)
    before = torch.get_rng_state()
    dataset[0]
    assert torch.equal(before, torch.get_rng_state())


def test_workers_do_not_change_what_is_seen(samples):
    dataset = ExpressionDataset(samples, NAMES, train_transform(24, crop=True), seed=0)
    worked = DataLoader(dataset, batch_size=4, num_workers=2, persistent_workers=True)
    for epoch in range(2):
        dataset.set_epoch(epoch)
        alone = torch.stack([dataset[index][0] for index in range(8)])
        # the workers outlive an epoch, and must hear of the next one
        assert torch.equal(torch.cat([images for images, _ in worked]), alone)


def test_a_broken_image_is_named(samples):
    break_file(samples[2])
    dataset = ExpressionDataset(samples, NAMES, PLAIN)
    with pytest.raises(DataError, match=r"cannot read image .*2\.png: .*truncated"):
        dataset[2]


def test_an_absent_image_is_named(samples, tmp_path):
    (tmp_path / "5.png").unlink()
    with pytest.raises(DataError, match=r"cannot read image .*5\.png"):
        ExpressionDataset(samples, NAMES, PLAIN)[5]


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_images_in_the_middle_of_an_epoch_are_skipped_counted_and_named(samples, workers):
    break_file(samples[2])
    break_file(samples[7])
    dataset = ExpressionDataset(samples, NAMES, PLAIN, on_broken="skip")
    loader = DataLoader(dataset, batch_size=3, num_workers=workers)
    images = torch.cat([images for images, _ in loader])
    labels = torch.cat([labels for _, labels in loader])
    assert dataset.is_broken.nonzero().flatten().tolist() == [2, 7]
    # the next readable sample stands in, with its own label; after the last comes the first
    assert torch.equal(images[2], dataset[3][0])
    assert torch.equal(images[7], dataset[0][0])
    assert labels.tolist() == [0, 1, 1, 1, 0, 1, 0, 0]


def test_nothing_readable_at_all_is_an_error(samples):
    for sample in samples:
        break_file(sample)
    with pytest.raises(DataError, match="not one of 8 images can be read"):
        ExpressionDataset(samples, NAMES, PLAIN, on_broken="skip")[0]


def test_why_unreadable(samples, tmp_path):
    break_file(samples[1])
    (tmp_path / "2.png").unlink()
    (tmp_path / "3.png").write_text("no image")
    reasons = [why_unreadable(sample) for sample in samples[:4]]
    assert reasons[0] is None
    assert "1.png: " in reasons[1]
    assert "truncated" in reasons[1]
    assert reasons[2] == f"{samples[2].path}: missing"
    assert reasons[3] == f"{samples[3].path}: cannot identify image file"


def test_soft_labels(samples):
    voted = [sample._replace(votes=(0.25, 0.75)) for sample in samples]
    _, target = ExpressionDataset(voted, NAMES, PLAIN, soft_labels=True)[0]
    torch.testing.assert_close(target, torch.tensor((0.25, 0.75)))
    with pytest.raises(DataError, match="only FERPlus has votes"):
        ExpressionDataset(samples, NAMES, PLAIN, soft_labels=True)


def test_bad_arguments(samples):
    with pytest.raises(ValueError, match=r"color must be .*got 'rgb'"):
        ExpressionDataset(samples, NAMES, PLAIN, color="rgb")
    with pytest.raises(ValueError, match=r"on_broken must be .*got 'ignore'"):
        ExpressionDataset(samples, NAMES, PLAIN, on_broken="ignore")
    with pytest.raises(DataError, match="the split is empty"):
        ExpressionDataset([], NAMES, PLAIN)
    with pytest.raises(DataError, match="label 1 needs 2 classes, but 1 are configured: surprise"):
        ExpressionDataset(samples, NAMES[:1], PLAIN)
    with pytest.raises(IndexError, match="index 8 is out of range for 8 samples"):
        ExpressionDataset(samples, NAMES, PLAIN)[8]


def test_flip_and_erasing_do_what_the_paper_says():
    torch.manual_seed(0)
    image = Image.new("RGB", (50, 50), (255, 255, 255))
    image.paste((0, 0, 0), (0, 0, 25, 50))
    flipping = train_transform(50, flip=0.5, erasing=0, mean=(0, 0, 0), std=(1, 1, 1))
    flipped = sum(flipping(image)[0, 0, 0] == 1 for _ in range(200))
    assert 70 < flipped < 130

    white = Image.new("RGB", (50, 50), (255, 255, 255))
    erasing = train_transform(50, flip=0, erasing=0.5)
    erased = [(erasing(white)[0] == 0).float().mean().item() for _ in range(200)]
    areas = [area for area in erased if area > 0]
    assert 70 < len(areas) < 130
    assert 0.015 < min(areas) < 0.04
    assert 0.08 < max(areas) < 0.11


@pytest.mark.parametrize("option", ["crop", "jitter"])
def test_optional_augmentations_change_the_image_within_its_range(option):
    torch.manual_seed(0)
    image = Image.radial_gradient("L").convert("RGB")
    plain = train_transform(32, flip=0, erasing=0, mean=(0, 0, 0), std=(1, 1, 1))
    varied = train_transform(32, flip=0, erasing=0, mean=(0, 0, 0), std=(1, 1, 1), **{option: True})
    first, second = varied(image), varied(image)
    assert first.shape == plain(image).shape == (3, 32, 32)
    assert not torch.equal(first, second)
    assert first.min() >= 0
    assert first.max() <= 1


def test_many_broken_files_in_a_row_are_opened_a_few_times_each(samples, monkeypatch):
    opened = []

    def read(sample, *_):
        opened.append(sample)
        if sample.path == "broken":
            raise OSError
        return read_image(sample)

    monkeypatch.setattr("cfmrfn.data.dataset.read_image", read)
    broken = [Sample("broken", 0)] * 300
    dataset = ExpressionDataset([*broken, *samples[:2]], NAMES, PLAIN, on_broken="skip")
    images = torch.stack([dataset[index][0] for index in range(302)])
    assert (images[:301] == images[300]).all()
    assert len(opened) < 3 * 302


def test_broken_files_at_the_end_are_replaced_by_the_first_image(samples):
    for sample in samples[5:]:
        break_file(sample)
    dataset = ExpressionDataset(samples, NAMES, PLAIN, on_broken="skip")
    for _ in range(2):  # in the second epoch they are known
        for index in (5, 6, 7):
            assert torch.equal(dataset[index][0], dataset[0][0])
    assert dataset.is_broken.tolist() == [False] * 5 + [True] * 3


def test_nothing_is_erased_where_no_rectangle_of_that_area_fits():
    white = Image.new("RGB", (50, 50), (255, 255, 255))
    erasing = train_transform(50, flip=0, erasing=1, erasing_scale=(1, 1))
    assert (erasing(white)[0] > 0).all()
