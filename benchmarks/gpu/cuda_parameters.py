"""Where the kernels' parameters lie, from their structs in csrc/cuda.

Of a struct only what the parameters use is understood: numbers, pointers, other structs, arrays of
a constant length. Whoever asks checks the size against the compiled kernel.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

SOURCES = Path(__file__).parents[2] / "csrc" / "cuda"
_SIZES = {"float": 4, "double": 8, "bool": 1, "int": 4}
_SIZES |= {f"{sign}int{bits}_t": bits // 8 for sign in ("", "u") for bits in (8, 16, 32, 64)}
# Type, asterisk, and names with lengths of arrays, of a declaration without an initial value.
_MEMBERS = re.compile(
    r"(?:^|;)\s*(?:const )?([\w:]+(?:<[^<>]*>)?)(\*?) ((?:\w+(?:\[\w+\])?(?:, )?)+)\s*(?=;)"
)


@dataclass(frozen=True)
class Layout:
    size: int
    alignment: int
    offsets: Mapping[str, int]  # of each number and pointer, by names such as `work.head_dim`


@dataclass(frozen=True)
class Sources:
    """Texts of C++ files by name."""

    files: Mapping[str, str]

    @classmethod
    def read(cls, folder: Path = SOURCES) -> Sources:
        paths = sorted(p for p in folder.glob("*") if p.suffix in (".cu", ".cuh", ".h"))
        return cls({path.name: path.read_text() for path in paths})

    def parameters(self, kernel: str, accumulation: str = "float") -> Layout | None:
        """Of a kernel; None where the sources do not hold it.

        Args:
            kernel: its name, without template arguments.
            accumulation: the type that `A` and `Accumulation<T>` stand for.
        """
        for name, text in self.files.items():
            found = re.search(rf"\b{kernel}\(const __grid_constant__ (\w+)", text)
            if found:
                return self._layout(found[1], name, accumulation)
        return None

    @cached_property
    def _constants(self) -> dict[str, int]:
        text = "\n".join(self.files.values())
        return {n: int(v) for n, v in re.findall(r"constexpr \w+ (\w+) = (\d+);", text)}

    def _layout(self, struct: str, file: str, accumulation: str) -> Layout | None:
        """Of a struct, in that file if several have one of the name."""
        texts = [self.files[file], *self.files.values()]
        bodies = (_body_of(struct, text) for text in texts)
        found = next((body for body in bodies if body is not None), None)
        if found is None:
            return None
        base, body = found
        inherited = self._layout(base, file, accumulation) if base else Layout(0, 1, {})
        if inherited is None:
            return None
        size, alignment, offsets = inherited.size, inherited.alignment, dict(inherited.offsets)
        for kind, pointer, names in _MEMBERS.findall(body):
            member = self._member(kind, pointer, file, accumulation)
            if member is None:
                return None
            for name, _, count in re.findall(r"(\w+)(\[(\w+)\])?", names):
                size = -(-size // member.alignment) * member.alignment
                offsets |= {
                    f"{name}.{inner}" if inner else name: size + offset
                    for inner, offset in member.offsets.items()
                }
                size += member.size * (self._constants.get(count, 1) if count else 1)
            alignment = max(alignment, member.alignment)
        return Layout(-(-size // alignment) * alignment, alignment, offsets)

    def _member(self, kind: str, pointer: str, file: str, accumulation: str) -> Layout | None:
        name = accumulation if kind in ("A", "Accumulation<T>") else kind.split("<", 1)[0]
        size = 8 if pointer else _SIZES.get(name)
        return Layout(size, size, {"": 0}) if size else self._layout(name, file, accumulation)


def _body_of(struct: str, text: str) -> tuple[str | None, str] | None:
    """The struct that one inherits from, and the declarations of its own members."""
    text = re.sub(r"//.*", "", text)
    start = re.search(rf"struct (?:alignas\(\w+\) )?{struct}(?: : (\w+))? \{{", text)
    if start is None:
        return None
    body, depth = "", 1
    for character in text[start.end() :]:
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth == 0:
            break
        if depth == 1:
            body += ";" if character == "}" else character
    # Declarations of functions, types and constants are no members.
    statements = re.sub(r"\s+", " ", body.replace("#pragma unroll", "")).split(";")
    skipped = r"\(|\b(using|static|template|typedef|private|public)\b"
    kept = [s.split("=")[0].strip() for s in statements if not re.search(skipped, s)]
    return start[1], ";".join(kept) + ";"
