"""TensorFlow's protocol buffers of graphs and SavedModels, without TensorFlow.

Importing anything below `tensorflow` imports all of it, which takes seconds, while these generated modules need
protobuf only. So if TensorFlow is not loaded, an empty module takes the place of its package while they are
imported.
"""

import contextlib
import importlib.util
import sys
import types
from collections.abc import Iterator

from google.protobuf.message import DecodeError


@contextlib.contextmanager
def _bare_package(name: str) -> Iterator[None]:
    """Within it, modules of a package import without its `__init__`, which a later import still runs."""
    if name in sys.modules:
        yield
        return
    found = importlib.util.find_spec(name)
    package = types.ModuleType(name)
    package.__path__ = list(found.submodule_search_locations or ()) if found else []
    sys.modules[name] = package
    try:
        yield
    finally:
        # The submodules go as well: a later `import tensorflow` must run from the start and find no half-made package.
        for module in [key for key in sys.modules if key == name or key.startswith(f"{name}.")]:
            del sys.modules[module]


with _bare_package("tensorflow"):
    from tensorflow.core.framework import kernel_def_pb2, op_def_pb2, types_pb2
    from tensorflow.core.protobuf import saved_model_pb2, tensor_bundle_pb2

__all__ = ["DecodeError", "kernel_def_pb2", "op_def_pb2", "saved_model_pb2", "tensor_bundle_pb2", "types_pb2"]
