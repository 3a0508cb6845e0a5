"""Checks a data set on disk: its counts beside the published ones, every image, duplicates."""

from __future__ import annotations

from dataclasses import dataclass

from cfmrfn.data.duplicates import Copy, Fingerprint, Group, find_groups, fingerprint
from cfmrfn.data.parallel import parallel_map
from cfmrfn.data.reading import UNREADABLE, read_image, reason
from cfmrfn.data.samples import ExpressionSet, Sample
from cfmrfn.errors import DataError, printable


@dataclass(frozen=True)
class Verification:
    """What `verify` found.

    Attributes:
        checked: the data set.
        problems: one line per missing or broken image.
        duplicates: groups of images that are one picture, the worst first.
        shown: how many of the groups `str` names.
    """

    checked: ExpressionSet
    problems: tuple[str, ...]
    duplicates: tuple[Group, ...] = ()
    shown: int = 20

    def __str__(self) -> str:
        total = sum(map(len, self.checked.splits.values()))
        verdict = f"{total} images, all readable"
        if self.problems:
            verdict = f"{len(self.problems)} of {total} images are missing or broken"
        lines = [count_table(self.checked), *why_not_for_training(self.checked)]
        lines += [*self._about_duplicates(), *self.problems, verdict]
        return "\n".join(lines)

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
        _look,
        samples,
        workers=workers,
        desc="opening images",
        unit="image",
        progress=progress,
    )
    copies, fingerprints, problems = [], [], []
    for sample, split, found in zip(samples, splits, seen, strict=True):
        if isinstance(found, Fingerprint):
            copies.append(Copy(sample.path, split, opened.class_names[sample.label]))
            fingerprints.append(found)
        else:
            problems.append(found)
    groups = find_groups(copies, fingerprints)
    return Verification(opened, tuple(problems), tuple(groups), shown)


def _look(sample: Sample) -> Fingerprint | str:
    """The fingerprint of an image, or `"path: reason"` why it cannot be decoded."""
    try:
        return fingerprint(read_image(sample))
    except UNREADABLE as error:
        return f"{printable(sample.path)}: {reason(sample.path, error)}"


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
