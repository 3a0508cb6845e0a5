"""What sdist and wheel hold: the files of the repository that belong in them, and what is built."""

import re
import runpy
import subprocess
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
SUFFIXES = runpy.run_path(str(ROOT / "sdwa" / "_sources.py"))["SUFFIXES"]  # without PyTorch
WRITTEN_INTO_SDISTS = r"PKG-INFO|setup\.cfg|MANIFEST\.in|sdwa\.egg-info/[\w.-]+"
WRITTEN_INTO_WHEELS = (
    r"sdwa/_lib/(build\.json|libsdwa_cuda\.(so|dll))|sdwa/_build\.[\w.-]+\.so|"
    r"sdwa-[^/]+\.dist-info/(WHEEL|RECORD|top_level\.txt)"
)
NEEDED_IN_WHEELS = {
    r"sdwa/_lib/libsdwa_cpu\.(so|dll)",
    r"sdwa-[^/]+\.dist-info/METADATA",
    r"sdwa-[^/]+\.dist-info/entry_points\.txt",
    r"sdwa-[^/]+\.dist-info/licenses/LICENSE",
}
NO_PLACE = re.compile(r"(^|/)(tests?|benchmarks|__pycache__)/|(^|/)(test_|conftest)[^/]*\.py$")


def tracked() -> set[str]:
    """The files of the repository."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    return {name for name in listed.stdout.decode().split("\0") if (ROOT / name).is_file()}


def names(archive: Path) -> set[str]:
    """The files in an archive; those of an sdist below its only folder."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as files:
            return set(files.namelist())
    with tarfile.open(archive) as files:
        return {member.name.partition("/")[2] for member in files if member.isfile()}


def wrong(archive: Path) -> list[str]:
    """What is missing in an archive and what does not belong there."""
    held, packages = names(archive), {n for n in tracked() if n.startswith(("sdwa/", "cfmrfn/"))}
    if archive.suffix == ".whl":
        needed, written = packages, WRITTEN_INTO_WHEELS
        patterns = NEEDED_IN_WHEELS
    else:
        kernels = {n for n in tracked() if n.startswith("csrc/") and n.endswith(SUFFIXES)}
        needed = packages | kernels | {"pyproject.toml", "setup.py", "README.md", "LICENSE"}
        written, patterns = WRITTEN_INTO_SDISTS, {"PKG-INFO"}
    found = {p: {name for name in held if re.fullmatch(p, name)} for p in patterns}
    missing = needed - held | {pattern for pattern, names in found.items() if not names}
    surplus = {name for name in held - needed if not re.fullmatch(written, name)}
    surplus = surplus.difference(*found.values()) | {n for n in held if NO_PLACE.search(n)}
    messages = [f"{name} is missing" for name in sorted(missing)]
    return messages + [f"{name} does not belong there" for name in sorted(surplus)]


def older(wheel: Path, folder: Path) -> Path:
    """The wheel as if of version 0.0.1, with a module and a library that it no longer has."""
    version = wheel.name.split("-")[1]
    path = folder / wheel.name.replace(f"-{version}-", "-0.0.1-")
    with zipfile.ZipFile(wheel) as new, zipfile.ZipFile(path, "w") as old:
        files = {name: new.read(name) for name in new.namelist()}
        files |= {"sdwa/removed.py": b"", "sdwa/removed/__init__.py": b"", "sdwa/_lib/old.so": b""}
        record = f"sdwa-{version}.dist-info/RECORD"
        del files[record]
        metadata = f"sdwa-{version}.dist-info/METADATA"
        said = f"\nVersion: {version}\n".encode()
        files[metadata] = files[metadata].replace(said, b"\nVersion: 0.0.1\n", 1)
        # digests and sizes may be left out
        files[record] = "".join(f"{name},,\n" for name in [*files, record]).encode()
        for name, content in files.items():
            old.writestr(name.replace(f"sdwa-{version}.", "sdwa-0.0.1."), content)
    return path
