"""Files that are complete or absent: atomic writes, staged folders, locks, hashes; on local paths and `gs://`.

A file or folder gets its final name only when it is complete and on disk. A failed write (full disk, no permission)
leaves what was there before, and raises one sentence.
"""

import atexit
import contextlib
import difflib
import fcntl
import glob
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aigc_tf.errors import InputError, RunError, some_of


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether `path` is on an object store (`gs://...`), which TensorFlow's file layer reads and writes."""
    return "://" in os.fspath(path)


def _gfile() -> Any:
    import tensorflow as tf  # seconds to import, and only object stores need it

    return tf.io.gfile


def join(path: str | os.PathLike[str], *names: str) -> str:
    """Joins names to a local path or a URL."""
    return "/".join((os.fspath(path).rstrip("/"), *names)) if is_remote(path) else os.path.join(path, *names)


def exists(path: str | os.PathLike[str]) -> bool:
    if is_remote(path):
        with _reached(path):
            return bool(_gfile().exists(os.fspath(path)))
    return os.path.exists(path)


def list_folder(path: str | os.PathLike[str]) -> list[str]:
    """Returns the sorted names in a folder; empty if there is no folder."""
    if is_remote(path):
        with _reached(path):
            names = _gfile().listdir(os.fspath(path)) if _gfile().isdir(os.fspath(path)) else []
        return sorted(name.rstrip("/") for name in names)
    return sorted(os.listdir(path)) if os.path.isdir(path) else []


def nearest_path(path: str) -> str:
    """Returns a hint on a missing path or glob: the missing folder, the nearest name, or some names."""
    if is_remote(path):
        return ""
    parent, name = os.path.split(path.rstrip("/"))
    while glob.has_magic(parent):
        parent, name = os.path.split(parent)
    if not os.path.isdir(parent or "."):
        above = parent
        while not os.path.isdir(os.path.dirname(above) or "."):
            above = os.path.dirname(above)
        return f" There is no folder {above} either." if above else ""
    names = [entry for entry in list_folder(parent or ".") if entry != name and not entry.startswith(".")]
    near = difflib.get_close_matches(name, names, n=1)
    if near:
        return f" Did you mean {os.path.join(parent, near[0])!r}?"
    if not names and not list_folder(parent or "."):
        return f" The folder {parent or '.'} is empty."
    return f" The folder {parent or '.'} has {some_of(names)}." if names else ""


def make_folder(path: str | os.PathLike[str]) -> None:
    with one_sentence(path):
        if is_remote(path):
            _gfile().makedirs(os.fspath(path))
        else:
            os.makedirs(path, exist_ok=True)


def remove_file(path: str | os.PathLike[str]) -> None:
    """Removes a file, if it is there."""
    if is_remote(path):
        if _gfile().exists(os.fspath(path)):
            _gfile().remove(os.fspath(path))
    else:
        Path(path).unlink(missing_ok=True)


def remove_folder(path: str | os.PathLike[str]) -> None:
    """Removes a folder with all its content, if it is there."""
    if is_remote(path):
        if _gfile().exists(os.fspath(path)):
            _gfile().rmtree(os.fspath(path))
    else:
        shutil.rmtree(path, ignore_errors=True)


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    if is_remote(path):
        with remote_errors(), _gfile().GFile(os.fspath(path), "rb") as file:
            return bytes(file.read())
    return Path(path).read_bytes()


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Writes a whole file, or nothing.

    Raises:
        RunError: If the disk is full or the path cannot be written.
    """
    with one_sentence(path):
        if is_remote(path):  # an object appears whole, when it is closed
            with remote_errors():
                _write_object(os.fspath(path), content)
            return
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        # A random name, since two processes may write the same file at the same time.
        partial = f"{os.fspath(path)}.partial-{uuid.uuid4().hex[:8]}"
        try:
            with open(partial, "wb") as file:
                file.write(content)
                file.flush()
                # Before the rename: after a power cut the new name must not lead to an empty file.
                os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.remove(partial)


def _write_object(path: str, content: bytes) -> None:
    _gfile().makedirs(path.rpartition("/")[0])  # without it some file systems do not list the folder
    if path.startswith("ram://") and exists(path):
        _gfile().remove(path)  # TensorFlow's file system in memory would append to it
    with _gfile().GFile(path, "wb") as file:
        file.write(content)
    if read_bytes(path) != content:
        raise OSError("reading it back gives something else than was written")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Reads a JSON file.

    Raises:
        InputError: If the file is missing or not JSON.
    """
    if not exists(path):
        raise InputError(f"There is no file {os.fspath(path)}.")
    try:
        return json.loads(read_bytes(path))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{os.fspath(path)} is not valid JSON ({error}).") from error


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Writes JSON, indented by 2, NaN refused (it is not JSON)."""
    write_bytes(path, (json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


@contextlib.contextmanager
def staged_folder(path: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[Path]:
    """Yields an empty local folder beside `path` that replaces it when the block ends without an error.

    The remains of a killed attempt are removed first. With `overwrite` the old folder is removed only once the new one
    is complete.

    Raises:
        InputError: If `path` is there already and `overwrite` is False.
        RunError: If the disk is full or the path cannot be written.
    """
    final = Path(path)
    if final.exists() and not overwrite:
        raise InputError(f"{final} is there already; nothing was overwritten. Give --overwrite to replace it.")
    staging = final.with_name(f".{final.name}.partial")
    retired = final.with_name(f".{final.name}.retired")
    # FileNotFoundError passes: the block itself misses a file, which has nothing to do with this folder.
    with one_sentence(path, passing=(FileNotFoundError,)):
        _put_back(retired, final)  # from a process that was killed between the two renames below
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        try:
            yield staging
            _sync_tree(staging)
            shutil.rmtree(retired, ignore_errors=True)
            # Two renames, since a folder cannot be replaced in one; `_put_back` undoes the first if the second fails.
            if final.exists():
                final.rename(retired)
            staging.rename(final)
        except BaseException:
            _put_back(retired, final)
            shutil.rmtree(staging, ignore_errors=True)
            raise
        shutil.rmtree(retired, ignore_errors=True)


def _put_back(retired: Path, final: Path) -> None:
    if retired.exists() and not final.exists():
        retired.rename(final)


def _sync_tree(folder: Path) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            with open(file, "rb") as handle:
                os.fsync(handle.fileno())


def copy_folder(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Copies all files below a folder and replaces existing ones; either side may be an object store."""
    for name in _relative_files(source):
        write_bytes(join(target, *name.split("/")), read_bytes(join(source, *name.split("/"))))


def _relative_files(folder: str | os.PathLike[str]) -> list[str]:
    root = os.fspath(folder).rstrip("/")
    walk = _gfile().walk(root) if is_remote(root) else os.walk(root)
    return sorted(join(parent, file)[len(root) + 1 :] for parent, _, files in walk for file in files)


def as_local_folder(folder: str | os.PathLike[str]) -> Path:
    """Returns a folder that any library can open: itself, or a copy from an object store, removed at exit."""
    if not is_remote(folder):
        return Path(folder)
    copy = tempfile.mkdtemp(prefix="aigc_tf-")
    atexit.register(shutil.rmtree, copy, ignore_errors=True)
    copy_folder(folder, copy)
    return Path(copy)


@contextlib.contextmanager
def locked_file(path: str | os.PathLike[str], *, busy: str, advice: str = "", waits: bool = False) -> Iterator[None]:
    """Holds a lock that the operating system frees when the process ends; on an object store there is no lock.

    Args:
        path: A local file, which is created and stays.
        busy: The error if another process holds it.
        advice: What to do if the file cannot be created.
        waits: Print `busy` on standard error and wait for the other process, instead of raising it.
    Raises:
        RunError: If another process holds it, or the file cannot be created.
    """
    if is_remote(path):
        yield
        return
    with contextlib.ExitStack() as stack:
        folder = os.path.dirname(os.path.abspath(path))
        try:
            os.makedirs(folder, exist_ok=True)
            handle = stack.enter_context(open(path, "ab"))
        except OSError as error:
            raise RunError(f"Cannot write {folder}: {error.strerror}. {advice}".rstrip()) from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if not waits:
                raise RunError(busy) from error
            print(busy, file=sys.stderr, flush=True)
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:
            pass  # a network drive without locks: work without one rather than not at all
        yield


def cache_folder(name: str) -> Path:
    """Returns the folder of one kind of fetched files in the user's cache.

    The cache is `AIGC_TF_CACHE`, else `XDG_CACHE_HOME/aigc_tf`, else `~/.cache/aigc_tf`.

    Raises:
        RunError: If there is no home folder.
    """
    own, shared = os.environ.get("AIGC_TF_CACHE", ""), os.environ.get("XDG_CACHE_HOME", "")
    try:
        if own:
            cache = Path(own).expanduser().absolute()
        elif os.path.isabs(shared):  # the XDG specification: a relative path must be ignored
            cache = Path(shared, "aigc_tf")
        else:
            cache = Path.home() / ".cache" / "aigc_tf"
    except RuntimeError as error:
        raise RunError(f"There is no home folder for the cache of {name}; set AIGC_TF_CACHE to a folder.") from error
    return cache / name


def sha256_file(path: str | os.PathLike[str]) -> str:
    """Returns the sha256 of a local file, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_read_back(path: str | os.PathLike[str]) -> str:
    """Returns the sha256 of a file read from the disk or object store itself, not from the page cache."""
    if is_remote(path):
        return hashlib.sha256(read_bytes(path)).hexdigest()
    with open(path, "rb") as file:
        if hasattr(os, "posix_fadvise"):  # missing on macOS
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def remote_errors() -> Iterator[None]:
    """Turns the errors of TensorFlow's file layer into the errors of a local disk."""
    import tensorflow as tf  # seconds to import, and only object stores need it

    try:
        yield
    except tf.errors.NotFoundError as error:
        raise FileNotFoundError(2, error.message) from error
    except tf.errors.OpError as error:
        reason = re.sub(r"{{.*?}} ?| \[Op:.*", "", error.message)  # names of graph nodes do not help a user
        raise OSError(f"{type(error).__name__}: {reason}") from error


@contextlib.contextmanager
def _reached(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turns an object store's refusal, or a missing network, into one sentence."""
    try:
        with remote_errors():
            yield
    except OSError as error:
        raise RunError(f"{os.fspath(path)} cannot be reached: {str(error).splitlines()[0][:200]}") from error


@contextlib.contextmanager
def one_sentence(
    path: str | os.PathLike[str], *, advice: str = "What was there before is untouched.", passing: tuple[type, ...] = ()
) -> Iterator[None]:
    """Turns a write that the operating system refuses into one sentence.

    Args:
        path: The file or folder that is written.
        advice: Second sentence: what is left, or what to do.
        passing: Errors that pass unchanged.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, passing) or sys.is_finalizing():
            raise
        reason = error.strerror or str(error)
        raise RunError(f"Cannot write {os.fspath(path)}: {reason}. {advice}") from error
