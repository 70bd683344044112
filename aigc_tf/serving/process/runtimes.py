"""The native libraries that a TensorFlow Serving is built from, from the wheels of the same versions.

No package index has a server, but TensorFlow's wheels hold the C API with the kernels that it runs, and the wheels of
tensorflow-text and tensorflow-decision-forests hold the ops that it links. pip fetches them, pinned by sha256, and only
the libraries are kept: 0.6 to 1 GB in `<cache>/runtimes/<packages>`, where `<cache>` is `storage.cache_folder`'s.
"""

import dataclasses
import os
import platform
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from aigc_tf import storage
from aigc_tf.errors import InputError, RunError

# Package, version, sha256 of the wheel for CPython 3.11 on x86-64 Linux; its libraries need no Python.
RUNTIMES: dict[str, tuple[tuple[str, str, str], ...]] = {
    "2.12": (
        ("tensorflow-cpu", "2.12.1", "7ffb595707a8fb376deaddc768784c7a0242b16cbc6e06393b1733b2ce19f855"),
        ("tensorflow-text", "2.12.1", "9d5751ff8ad3eea2f32641e65bf29814a1b6059f0dc0ccb09d44676f26fbf6ac"),
        ("tensorflow-decision-forests", "1.3.0", "b3b5456bd7bf72c14061e2c141087f8ac9d801dd4e428aa50ea0048a6070cd3e"),
    ),
    "2.19": (
        ("tensorflow-cpu", "2.19.1", "0b6d72bd09c267e7573757bd309f5b1e2cdb02577339991da751f3a1411e4dae"),
        ("tensorflow-text", "2.19.0", "23468daf9ccc8220317b0457e9a72e199a78894fda269dec68e5188e153887e6"),
    ),
    "2.20": (
        ("tensorflow-cpu", "2.20.0", "cf756bbe2d256e942ab5d0ad2c858fb40017581494febdb4387c149b1afde780"),
        ("tensorflow-text", "2.20.0", "89ce9e6821411e46b9f7323b17216b5c088e67fdf12236128cc27107241adcfd"),
    ),
    "2.21": (
        ("tensorflow-cpu", "2.21.0", "2b847d217b02ee7731ed91431daf3250daa0196c3c94614d23be27232e6e5b6c"),
        ("tensorflow-text", "2.21.1", "c9fdeb93208b2fa4d6e5ecc0ca7da4a492bfd30e03b7219fbcbcbc7a2ce5070c"),
    ),
}

_HEADER = "include/tensorflow/core/public/version.h"
_LIBRARIES = (
    "tensorflow/libtensorflow_cc.so.2",
    "tensorflow/libtensorflow_framework.so.2",
    f"tensorflow/{_HEADER}",
    "tensorflow_text/python/ops/",
    "tensorflow_text/python/metrics/",
    "tensorflow_decision_forests/tensorflow/ops/inference/",
)
_PLATFORMS = ("manylinux_2_27_x86_64", "manylinux2014_x86_64")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Runtime:
    """The TensorFlow libraries that run a model."""

    folder: Path
    """Holds libtensorflow_framework.so.2 and libtensorflow_cc.so.2, as in a wheel."""
    op_libraries: tuple[Path, ...]
    """The .so files of other packages' ops."""

    def graph_def_version(self) -> int:
        """Returns `TF_GRAPH_DEF_VERSION`, the newest graph version that it reads."""
        header = (self.folder / _HEADER).read_text(encoding="utf-8")
        return int(header.split("#define TF_GRAPH_DEF_VERSION ")[1].split()[0])


def fetch_runtime(name: str) -> Runtime:
    """Returns a runtime, from the cache if it is there.

    Args:
        name: A key of `RUNTIMES`.
    Raises:
        InputError: If there is no such runtime.
        RunError: If it cannot be fetched, or this machine cannot run it.
    """
    if name not in RUNTIMES:
        raise InputError(f"There is no runtime {name!r}; there are {', '.join(RUNTIMES)}.")
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise RunError("The libraries of other TensorFlow versions are fetched for x86-64 Linux only.")
    packages = "_".join(f"{package}-{version}" for package, version, _ in RUNTIMES[name])
    final = storage.cache_folder("runtimes") / packages
    final.parent.mkdir(parents=True, exist_ok=True)
    busy = f"Another process is fetching the libraries of TensorFlow {name}; try again later."
    with storage.locked_file(os.fspath(final.parent / f".{name}.lock"), busy=busy):
        if not final.is_dir():
            with storage.staged_folder(final) as folder:
                for package, version, sha256 in RUNTIMES[name]:
                    _fetch(package, version, sha256, folder)
    return Runtime(folder=final / "tensorflow", op_libraries=tuple(sorted(final.rglob("*.so"))))


def _fetch(package: str, version: str, sha256: str, folder: Path) -> None:
    """Unpacks the libraries of a wheel into a folder."""
    with tempfile.TemporaryDirectory(prefix="aigc_tf-wheel-") as scratch:
        requirements = Path(scratch, "requirements.txt")
        requirements.write_text(f"{package}=={version} --hash=sha256:{sha256}\n", encoding="utf-8")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes", "--no-input"]
        command += ["--disable-pip-version-check", "--only-binary", ":all:", "--python-version", "3.11"]
        command += [word for name in _PLATFORMS for word in ("--platform", name)]
        command += ["--dest", scratch, "--requirement", os.fspath(requirements)]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        wheels = sorted(Path(scratch).glob("*.whl"))
        if done.returncode or len(wheels) != 1:
            reason = ([line for line in done.stderr.splitlines() if line.strip()] or ["no wheel came"])[-1]
            raise RunError(f"pip cannot fetch {package} {version}: {reason.removeprefix('ERROR: ')[:200]}")
        with zipfile.ZipFile(wheels[0]) as wheel:
            for member in wheel.namelist():
                if member.startswith(_LIBRARIES) and member.endswith((".so", ".so.2", ".h")):
                    wheel.extract(member, folder)  # zipfile removes path parts that leave the folder
