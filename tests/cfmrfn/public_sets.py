"""Small data sets in the exact layouts that their owners publish."""

import csv

import numpy as np
from PIL import Image

from cfmrfn.data import ferplus

AFFECTNET_HEADER = (
    "subDirectory_filePath,face_x,face_y,face_width,face_height,facial_landmarks,"
    "expression,valence,arousal"
)
FERPLUS_HEADER = (
    "Usage,Image name,neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF"
)
# Classes in the order of their labels.
RAFDB = ("surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral")
AFFECTNET = (
    *("neutral", "happiness", "sadness", "surprise"),
    *("fear", "disgust", "anger", "contempt"),
)
FERPLUS = (
    *("neutral", "happiness", "surprise", "sadness"),
    *("anger", "disgust", "fear", "contempt"),
)


def save_image(path, value=128, size=(100, 100), mode="RGB"):
    """One flat image; ``value`` is a grey level, or a colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    color = value if isinstance(value, tuple) or mode == "L" else (value,) * 3
    Image.new(mode, size, color).save(path)


def rafdb(root, train=(1, 2, 3, 4, 5, 6, 7), test=(5, 7)):
    """RAF-DB with one image for each label given (1..7, as on disk)."""
    lines = []
    for split, labels in (("train", train), ("test", test)):
        for number, label in enumerate(labels, start=1):
            lines.append(f"{split}_{number:05d}.jpg {label}\n")
            save_image(root / f"Image/aligned/{split}_{number:05d}_aligned.jpg", 20 * label)
    (root / "EmoLabel").mkdir(parents=True)
    (root / "EmoLabel/list_patition_label.txt").write_text("".join(lines))
    return root


def affectnet_lists(root, train=tuple(range(11)), val=tuple(range(8))):
    """AffectNet's CSV release with one image a label; the second list has no header."""
    lists = root / "Manually_Annotated_file_lists"
    lists.mkdir(parents=True)
    for name, labels, header in (
        ("training", train, f"{AFFECTNET_HEADER}\n"),
        ("validation", val, ""),
    ):
        rows = []
        for label in labels:
            image = f"{label + 1}/{name}{label}.jpg"
            save_image(root / "Manually_Annotated_Images" / image, 20 * label, size=(200, 150))
            rows.append(f"{image},10,20,100,80,1.5;2.5;3.5;4.5,{label},-0.1,0.2\n")
        (lists / f"{name}.csv").write_text(header + "".join(rows))
    return root


def affectnet_arrays(root, train=tuple(range(8)), val=tuple(range(8))):
    """AffectNet's reduced release: labels are strings in array files of no dimension."""
    for folder, labels in (("train_set", train), ("val_set", val)):
        (root / folder / "annotations").mkdir(parents=True)
        for number, label in enumerate(labels):
            save_image(root / folder / f"images/{number}.jpg", 20 * label)
            stem = root / folder / f"annotations/{number}"
            np.save(f"{stem}_exp.npy", np.array(str(label)))
            np.save(f"{stem}_val.npy", np.array("0.5"))
            np.save(f"{stem}_lnd.npy", np.zeros(136))
    return root


def ferplus_files(root, rows):
    """The two CSV files; ``rows`` are (Usage, Image name, ten votes). Row i's pixels are all i."""
    root.mkdir(parents=True, exist_ok=True)
    with open(root / "fer2013new.csv", "w", newline="") as file:
        file.write(f"{FERPLUS_HEADER}\n")
        for usage, name, votes in rows:  # Python 3.10's csv.writer refuses a null character
            file.write(",".join(map(str, [usage, name, *votes])) + "\r\n")
    with open(root / "fer2013.csv", "w", newline="") as file:
        file.write("emotion,pixels,Usage\n")
        csv.writer(file).writerows(
            [0, " ".join([str(i)] * 48 * 48), usage] for i, (usage, _, _) in enumerate(rows)
        )
    return root


def ferplus_of_all_classes(root):
    """FERPlus with one clear image of each class in each split, prepared."""
    rows = [
        (usage, f"fer{8 * split + label:07d}.png", [10 if i == label else 0 for i in range(10)])
        for split, usage in enumerate(("Training", "PublicTest", "PrivateTest"))
        for label in range(8)
    ]
    ferplus.prepare(str(ferplus_files(root, rows)), progress=False)
    return root


def class_folders(root, names, splits=("train", "test")):
    """One image in a folder for each class name; the grey level is 10 times its place in names."""
    for split in splits:
        for place, name in enumerate(names):
            save_image(root / split / name / "1.jpg", 10 * place)
    return root


LAYOUTS = {
    "rafdb": (rafdb, "RAF-DB", RAFDB),
    "affectnet-lists": (affectnet_lists, "AffectNet", AFFECTNET),
    "affectnet-arrays": (affectnet_arrays, "AffectNet (array files)", AFFECTNET),
    "ferplus": (ferplus_of_all_classes, "FERPlus (majority)", FERPLUS),
    "folder": (
        lambda root: class_folders(root, ["Angry", "Happy", "Neutral", "Surprise"]),
        "class folders",
        ("surprise", "happiness", "anger", "neutral"),
    ),
}


def names_by_file(opened, split):
    """File name -> class name."""
    return {
        sample.path.rsplit("/", 1)[1]: opened.class_names[sample.label]
        for sample in opened.splits[split]
    }
