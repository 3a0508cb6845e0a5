"""Checks a data set on disk: its counts beside the published ones, every image, duplicates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cfmrfn.data.duplicates import Copy, Fingerprint, Group, find_groups, fingerprint
from cfmrfn.data.parallel import parallel_map
from cfmrfn.data.reading import UNREADABLE, read_image, reason
from cfmrfn.data.samples import ExpressionSet, Sample
from cfmrfn.errors import DataError, printable_name


@dataclass(frozen=True)
class Verification:
    """What `verify` found.

    Attributes:
        checked: the data set.
        problems: one line per missing or broken image.
        duplicates: groups of images that are one picture, the worst first.
        shown: how many of the groups `str` names.
        sizes: (width, height) of the images as they are seen -> their number, and one of them.
    """

    checked: ExpressionSet
    problems: tuple[str, ...]
    duplicates: tuple[Group, ...] = ()
    shown: int = 20
    sizes: Mapping[tuple[int, int], tuple[int, str]] = field(default_factory=dict)

    def __str__(self) -> str:
        total = sum(map(len, self.checked.splits.values()))
        verdict = f"{total} images, all readable"
        if self.problems:
            verdict = f"{len(self.problems)} of {total} images are missing or broken"
        lines = [count_table(self.checked), *why_not_for_training(self.checked)]
        lines += [self._about_sizes(), *self._about_duplicates(), *self.problems, verdict]
        return "\n".join(lines)

    def _about_sizes(self) -> str:
        sizes = sorted(self.sizes.items(), key=lambda size: -size[1][0])
        texts = [f"{count} of {width} x {height}" for (width, height), (count, _) in sizes[:3]]
        if rest := sizes[3:]:
            texts.append(f"{sum(count for _, (count, _) in rest)} of {len(rest)} other sizes")
        if 1 < len(sizes) < 10:  # a few among many others may be strays
            texts[-1] += f", such as {printable_name(sizes[-1][1][1])}"
        return f"sizes in pixels: {', '.join(texts) or 'none'}"

    def _about_duplicates(self) -> list[str]:
        lines = []
        for same, name in ((True, "the same"), (False, "nearly the same")):
            if groups := [group for group in self.duplicates if group.same == same]:
                images = sum(len(group.copies) for group in groups)
                across = sum(len(group.splits) > 1 for group in groups)
                differing = sum(len(group.class_names) > 1 for group in groups)
                lines.append(
                    f"duplicates: {len(groups)} groups of {name} picture, {images} images; "
                    f"{across} groups in several splits, {differing} with different labels"
                )
        lines += [f"duplicates: {group}" for group in self.duplicates[: self.shown]]
        more = len(self.duplicates) - self.shown
        if more > 0:
            lines.append(f"duplicates: {more} more groups; --duplicates FILE lists all of them")
        return lines


def verify(
    opened: ExpressionSet, *, workers: int, progress: bool = True, shown: int = 20
) -> Verification:
    """Decodes every image of every split in `workers` processes, and compares all pictures.

    Args:
        opened: the data set.
        workers: processes that decode.
        progress: show a progress bar.
        shown: how many groups of duplicates the text names.
    """
    samples = [sample for split in opened.splits.values() for sample in split]
    splits = [split for split, inside in opened.splits.items() for _ in inside]
    seen = parallel_map(
        look,
        samples,
        workers=workers,
        desc="opening images",
        unit="image",
        progress=progress,
    )
    copies, fingerprints, problems = [], [], []
    sizes: dict[tuple[int, int], tuple[int, str]] = {}
    for sample, split, found in zip(samples, splits, seen, strict=True):
        if isinstance(found, str):
            problems.append(found)
            continue
        seen_as, size = found
        copies.append(Copy(sample.path, split, opened.class_names[sample.label]))
        fingerprints.append(seen_as)
        sizes[size] = (sizes.get(size, (0, ""))[0] + 1, sample.path)
    groups = find_groups(copies, fingerprints)
    return Verification(opened, tuple(problems), tuple(groups), shown, sizes)


def look(sample: Sample) -> tuple[Fingerprint, tuple[int, int]] | str:
    """Fingerprint and size of an image, or `"path: reason"` why it cannot be decoded."""
    try:
        image = read_image(sample)
        return fingerprint(image), image.size
    except UNREADABLE as error:
        return f"{printable_name(sample.path)}: {reason(sample.path, error)}"


def why_not_for_training(opened: ExpressionSet) -> list[str]:
    """A line that says why a set can be evaluated on only; empty where it can be trained on."""
    try:
        opened.require_trainable()
    except DataError as error:
        return [f"for evaluation only: {error}"]
    return []


def count_table(opened: ExpressionSet) -> str:
    """Images of each split and class, beside the published counts where there are any."""
    lines = [f"{opened.name}, {len(opened.class_names)} classes"]
    differing = False
    for split in opened.splits:
        published = opened.published.get(split, {})
        rows = list(zip(opened.class_names, opened.counts(split), strict=True))
        rows.append(("all", len(opened.splits[split])))
        wanted = {**published, "all": sum(published.values())} if published else {}
        lines.append(f"{split:<8}{'class':<12}{'images':>8}{'published' if wanted else '':>11}")
        for name, count in rows:
            differs = name in wanted and wanted[name] != count
            differing |= differs
            mark = " differs" if differs else ""
            lines.append(f"{'':<8}{name:<12}{count:>8}{wanted.get(name, ''):>11}{mark}".rstrip())
    lines += opened.left_out()
    if differing:
        lines.append("counts differ from the published ones: an incomplete or changed copy")
    return "\n".join(lines)
