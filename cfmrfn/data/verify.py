"""Checks a data set on disk: what it is, its counts beside the published ones, every image."""

from __future__ import annotations

from dataclasses import dataclass

from cfmrfn.data.parallel import parallel_map
from cfmrfn.data.reading import why_unreadable
from cfmrfn.data.samples import ExpressionSet


@dataclass(frozen=True)
class Verification:
    """What `verify` found.

    Attributes:
        checked: the data set.
        problems: one line per missing or broken image.
    """

    checked: ExpressionSet
    problems: tuple[str, ...]

    def __str__(self) -> str:
        total = sum(map(len, self.checked.splits.values()))
        verdict = f"{total} images, all readable"
        if self.problems:
            verdict = f"{len(self.problems)} of {total} images are missing or broken"
        return "\n".join([count_table(self.checked), *self.problems, verdict])


def verify(opened: ExpressionSet, *, workers: int, progress: bool = True) -> Verification:
    """Decodes every image of every split in `workers` processes."""
    samples = [sample for split in opened.splits.values() for sample in split]
    answers = parallel_map(
        why_unreadable,
        samples,
        workers=workers,
        desc="opening images",
        unit="image",
        progress=progress,
    )
    return Verification(opened, tuple(answer for answer in answers if answer is not None))


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
    lines += [f"left out: {count}, {reason}" for reason, count in opened.dropped.items()]
    if differing:
        lines.append("counts differ from the published ones: an incomplete or changed copy")
    return "\n".join(lines)
