"""The ops that each TensorFlow Serving knows, read from the libraries it is built from.

`server_ops.json` beside this file holds every op with its attributes by package, and what each server lacks.
`python -m aigc_tf.serving.gate.server_ops` writes it again: it fetches the wheels (1.2 GB) and queries their C API.
tensorflow/serving states at each tag, in `tensorflow_serving/workspace.bzl`, which versions the server links:
2.19.1 and 2.20.0 link tensorflow-text 2.12.1 and 2.20.0, both with decision-forests 1.3.0. There was no tag of 2.21
when this was written; its branch links tensorflow-text of the same release.
"""

import dataclasses
import functools
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aigc_tf import storage
from aigc_tf.errors import InputError, RunError
from aigc_tf.serving.gate.saved_model_protos import kernel_def_pb2, op_def_pb2, types_pb2
from aigc_tf.serving.process.runtimes import RUNTIMES, fetch_runtime

TABLE = Path(__file__).with_name("server_ops.json")
# Server -> package -> the runtime of `RUNTIMES` that has its ops.
_SOURCES = {
    "2.19": {"tensorflow-cpu": "2.19", "tensorflow-text": "2.12", "tensorflow-decision-forests": "2.12"},
    "2.20": {"tensorflow-cpu": "2.20", "tensorflow-text": "2.20", "tensorflow-decision-forests": "2.12"},
    "2.21": {"tensorflow-cpu": "2.21", "tensorflow-text": "2.21", "tensorflow-decision-forests": "2.12"},
}

# Runs in its own process, which can hold only one TensorFlow library. It prints sizes, then the bytes, of the op list
# before and after the other op libraries are loaded, and of the kernel list.
_READ_LISTS = r"""
import ctypes, os, sys
folder, *op_libraries = sys.argv[1:]
class Buffer(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("length", ctypes.c_size_t), ("deallocator", ctypes.c_void_p)]
ctypes.CDLL(os.path.join(folder, "libtensorflow_framework.so.2"), ctypes.RTLD_GLOBAL)
api = ctypes.CDLL(os.path.join(folder, "libtensorflow_cc.so.2"), ctypes.RTLD_GLOBAL)
api.TF_NewStatus.restype = ctypes.c_void_p
api.TF_GetCode.argtypes = api.TF_Message.argtypes = [ctypes.c_void_p]
api.TF_Message.restype = ctypes.c_char_p
api.TF_LoadLibrary.argtypes = [ctypes.c_char_p, ctypes.c_void_p]
api.TF_GetAllOpList.restype = api.TF_GetAllRegisteredKernels.restype = ctypes.POINTER(Buffer)
api.TF_GetAllRegisteredKernels.argtypes = [ctypes.c_void_p]
status = api.TF_NewStatus()
content = lambda buffer: ctypes.string_at(buffer.contents.data, buffer.contents.length)
lists = [content(api.TF_GetAllOpList())]
for path in op_libraries:
    api.TF_LoadLibrary(path.encode(), status)
    if api.TF_GetCode(status):
        sys.exit(api.TF_Message(status).decode())
    lists.append(content(api.TF_GetAllOpList()))
lists.append(content(api.TF_GetAllRegisteredKernels(status)))
os.write(1, " ".join(str(len(part)) for part in lists).encode() + b"\n")
sys.stdout.buffer.write(b"".join(lists))
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServerOps:
    """The ops of one server."""

    target: str
    """Version of TensorFlow Serving, such as 2.20."""
    versions: Mapping[str, str]
    """Version of each package that it links."""
    graph_def_version: int
    """`TF_GRAPH_DEF_VERSION`: graphs that need a newer reader are refused."""
    ops: Mapping[str, tuple[str, ...]]
    """Op -> its attributes."""
    lacking: Mapping[str, str]
    """Op that newer packages have -> the package."""
    lacking_types: Mapping[str, Mapping[str, tuple[int, ...]]]
    """Op -> attribute -> data types (`types_pb2.DataType`) that only newer packages take there."""
    without_cpu_kernel: frozenset[str]
    """Ops that are declared and cannot run on a CPU."""


@functools.cache
def load_server_ops(target: str) -> ServerOps:
    """Returns the ops of a server.

    Args:
        target: Version of TensorFlow Serving, one of config.SERVERS.
    Raises:
        InputError: If there is no table for it.
    """
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    if target not in table["servers"]:
        raise InputError(
            f"There is no table of ops for TensorFlow Serving {target!r}; there are {', '.join(table['servers'])}."
        )
    server = table["servers"][target]
    package_of = {op: package for package, ops in table["ops"].items() for op in ops}
    lacks = server["lacks"]
    return ServerOps(
        target=target,
        versions=server["versions"],
        graph_def_version=server["graph_def_version"],
        ops={
            op: tuple(name for name in attributes if name not in lacks["attributes"].get(op, ()))
            for ops in table["ops"].values()
            for op, attributes in ops.items()
            if op not in lacks["ops"]
        },
        lacking={op: package_of[op] for op in lacks["ops"]},
        lacking_types={
            op: {name: tuple(map(types_pb2.DataType.Value, types)) for name, types in attributes.items()}
            for op, attributes in lacks["types"].items()
        },
        without_cpu_kernel=frozenset(table["without_cpu_kernel"]) | frozenset(lacks["cpu_kernels"]),
    )


def _read_runtime(name: str) -> tuple[dict[str, dict[str, Any]], dict[str, set[str]]]:
    """Returns the OpDefs of each package of a runtime, and the devices that each op has a kernel for."""
    runtime = fetch_runtime(name)
    wanted = {package for sources in _SOURCES.values() for package, source in sources.items() if source == name}
    op_libraries = [path for path in runtime.op_libraries if _package_of(path) in wanted]
    paths = [os.fspath(path) for path in (runtime.folder, *op_libraries)]
    done = subprocess.run([sys.executable, "-I", "-c", _READ_LISTS, *paths], capture_output=True, check=False)
    if done.returncode:
        raise RunError(f"The libraries of TensorFlow {name} cannot be read: {done.stderr.decode()[-300:]}")
    sizes, _, rest = done.stdout.partition(b"\n")
    parts = []
    for size in map(int, sizes.split()):
        parts.append(rest[:size])
        rest = rest[size:]
    # The first list is TensorFlow's own; each further list adds the ops of one more library.
    packages: dict[str, dict[str, Any]] = {}
    known: set[str] = set()
    for number, content in enumerate(parts[:-1]):
        package = _package_of(op_libraries[number - 1]) if number else "tensorflow-cpu"
        new = [op for op in op_def_pb2.OpList.FromString(content).op if op.name not in known]
        known |= {op.name for op in new}
        packages.setdefault(package, {}).update({op.name: op for op in new})
    devices: dict[str, set[str]] = {}
    for kernel in kernel_def_pb2.KernelList.FromString(parts[-1]).kernel:
        devices.setdefault(kernel.op, set()).add(kernel.device_type)
    return packages, devices


def _package_of(library: Path) -> str:
    """Returns `tensorflow-text` for `.../tensorflow_text/python/ops/_ngrams_op.so`."""
    return next(part for part in reversed(library.parts) if part.startswith("tensorflow_")).replace("_", "-")


def build_table() -> dict[str, Any]:
    """Returns the table of all servers, read from the wheels."""
    read = {name: _read_runtime(name) for name in RUNTIMES}
    servers: dict[str, dict[str, Any]] = {}  # server -> package -> op -> OpDef
    no_kernel: dict[str, set[str]] = {}
    for server, sources in _SOURCES.items():
        servers[server] = {package: read[runtime][0][package] for package, runtime in sources.items()}
        no_kernel[server] = {
            op
            for package, runtime in sources.items()
            for op in servers[server][package]
            if not read[runtime][1].get(op, set()) & {"CPU", "DEFAULT"}
        }
    newest: dict[str, dict[str, Any]] = {}  # package -> op -> OpDef; later servers override
    for packages in servers.values():
        for package, ops in packages.items():
            newest.setdefault(package, {}).update(ops)
    everywhere = set.intersection(*no_kernel.values())
    pinned = {(runtime, package): version for runtime, parts in RUNTIMES.items() for package, version, _ in parts}
    return {
        "servers": {
            server: {
                "versions": {package: pinned[runtime, package] for package, runtime in _SOURCES[server].items()},
                "graph_def_version": fetch_runtime(_SOURCES[server]["tensorflow-cpu"]).graph_def_version(),
                "lacks": _lacks(packages, newest) | {"cpu_kernels": sorted(no_kernel[server] - everywhere)},
            }
            for server, packages in servers.items()
        },
        "without_cpu_kernel": sorted(everywhere),
        "ops": {
            package: {name: [attribute.name for attribute in ops[name].attr] for name in sorted(ops)}
            for package, ops in newest.items()
        },
    }


def _lacks(packages: Mapping[str, Mapping[str, Any]], newest: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Returns what a server's packages lack of the newest ones."""
    ops: list[str] = []
    attributes: dict[str, list[str]] = {}
    types: dict[str, dict[str, list[str]]] = {}
    for package, definitions in newest.items():
        for name, definition in sorted(definitions.items()):
            if name not in packages[package]:
                ops.append(name)
                continue
            have = {attribute.name: attribute.allowed_values.list.type for attribute in packages[package][name].attr}
            for attribute in definition.attr:
                allowed = set(attribute.allowed_values.list.type)
                if attribute.name not in have:
                    attributes.setdefault(name, []).append(attribute.name)
                elif have[attribute.name] and (more := allowed - set(have[attribute.name])):
                    names = sorted(types_pb2.DataType.Name(value) for value in more)
                    types.setdefault(name, {})[attribute.name] = names
    return {"ops": ops, "attributes": attributes, "types": types}


if __name__ == "__main__":
    storage.write_bytes(TABLE, (json.dumps(build_table(), separators=(",", ":")) + "\n").encode())
