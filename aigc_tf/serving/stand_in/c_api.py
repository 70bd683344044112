"""TensorFlow's C API (tensorflow/c/c_api.h) through ctypes: loads a SavedModel as a session and runs it.

All memory that TensorFlow allocates is freed in the function that requested it. Calls from several threads run in
parallel: ctypes releases the interpreter's lock while TensorFlow computes.
"""

import ctypes
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

from aigc_tf.serving.stand_in.status import CODES, StatusError, invalid
from aigc_tf.serving.stand_in.tensors import STRING, Tensor
from aigc_tf.serving.stand_in.wire_format import Signature, TensorInfo, read_signatures

_DISABLE_XLA = "_ZN10tensorflow21DisableXlaCompilationEv"
"""tensorflow::DisableXlaCompilation(), which tensorflow_model_server calls unless a flag asks for XLA (main.cc)."""
_TSTRING_BYTES = 24

_int, _int64, _size, _text, _pointer = ctypes.c_int, ctypes.c_int64, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_void_p


class _Buffer(ctypes.Structure):
    _fields_ = (("data", _pointer), ("length", _size), ("deallocator", _pointer))


class _Output(ctypes.Structure):
    _fields_ = (("operation", _pointer), ("index", _int))


_outputs, _tensors = ctypes.POINTER(_Output), ctypes.POINTER(_pointer)

# Result and argument types of each used function.
_FUNCTIONS: dict[str, tuple[object, list[object]]] = {
    "TF_Version": (_text, []),
    "TF_NewStatus": (_pointer, []),
    "TF_DeleteStatus": (None, [_pointer]),
    "TF_GetCode": (_int, [_pointer]),
    "TF_Message": (_text, [_pointer]),
    "TF_NewBuffer": (ctypes.POINTER(_Buffer), []),
    "TF_DeleteBuffer": (None, [ctypes.POINTER(_Buffer)]),
    "TF_LoadLibrary": (_pointer, [_text, _pointer]),
    "TF_NewGraph": (_pointer, []),
    "TF_DeleteGraph": (None, [_pointer]),
    "TF_NewSessionOptions": (_pointer, []),
    "TF_DeleteSessionOptions": (None, [_pointer]),
    "TF_LoadSessionFromSavedModel": (
        _pointer,
        [
            *[_pointer, _pointer, _text, ctypes.POINTER(_text)],
            *[_int, _pointer, ctypes.POINTER(_Buffer), _pointer],
        ],
    ),
    "TF_CloseSession": (None, [_pointer, _pointer]),
    "TF_DeleteSession": (None, [_pointer, _pointer]),
    "TF_GraphOperationByName": (_pointer, [_pointer, _text]),
    "TF_SessionRun": (
        None,
        [
            *[_pointer, _pointer, _outputs, _tensors, _int],
            *[_outputs, _tensors, _int, _pointer, _int, _pointer, _pointer],
        ],
    ),
    "TF_AllocateTensor": (_pointer, [_int, ctypes.POINTER(_int64), _int, _size]),
    "TF_DeleteTensor": (None, [_pointer]),
    "TF_TensorType": (_int, [_pointer]),
    "TF_NumDims": (_int, [_pointer]),
    "TF_Dim": (_int64, [_pointer, _int]),
    "TF_TensorByteSize": (_size, [_pointer]),
    "TF_TensorData": (_pointer, [_pointer]),
    "TF_StringInit": (None, [_pointer]),
    "TF_StringCopy": (None, [_pointer, _text, _size]),
    "TF_StringDealloc": (None, [_pointer]),
    "TF_StringGetDataPointer": (_pointer, [_pointer]),
    "TF_StringGetSize": (_size, [_pointer]),
}


class Runtime:
    """The libraries of a TensorFlow wheel, and libraries of other ops, such as tensorflow-text's.

    Args:
        tensorflow: Folder with libtensorflow_framework.so.2 and libtensorflow_cc.so.2.
        op_libraries: Files that register ops.
    Raises:
        StatusError: If a library cannot be loaded.
    """

    def __init__(self, tensorflow: str, op_libraries: Sequence[str]):
        try:
            for name in ("libtensorflow_framework.so.2", "libtensorflow_cc.so.2"):
                # RTLD_GLOBAL, since op libraries look up TensorFlow's symbols there.
                self.c = ctypes.CDLL(os.path.join(tensorflow, name), mode=ctypes.RTLD_GLOBAL)
        except OSError as error:
            raise StatusError(
                "NOT_FOUND", f"TensorFlow's libraries cannot be loaded from {tensorflow}: {error}"
            ) from error
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(self.c, name)
            function.restype, function.argtypes = result, arguments
        self.version: str = self.c.TF_Version().decode()
        self.xla = self._disable_xla()
        """`off`, or `on` if these libraries cannot switch it off."""
        for path in op_libraries:
            with self.status() as status:
                self.c.TF_LoadLibrary(os.fsencode(path), status)

    @contextmanager
    def status(self) -> Iterator[int]:
        """Yields a TF_Status for one call.

        Raises:
            StatusError: If the status is not OK when the block ends.
        """
        status = self.c.TF_NewStatus()
        try:
            yield status
            code = self.c.TF_GetCode(status)
            if code:
                message = self.c.TF_Message(status).decode("utf-8", "replace")
                raise StatusError(CODES[code] if code < len(CODES) else "UNKNOWN", message)
        finally:
            self.c.TF_DeleteStatus(status)

    def _disable_xla(self) -> str:
        disable = getattr(self.c, _DISABLE_XLA, None)
        if disable is None:
            return "on"
        disable.restype, disable.argtypes = None, []
        disable()
        return "off"


class Model:
    """A SavedModel loaded with the tag `serve`.

    Args:
        runtime: The libraries of TensorFlow.
        folder: The SavedModel.
    Raises:
        StatusError: If it cannot be loaded.
    """

    def __init__(self, runtime: Runtime, folder: str):
        self._runtime, c = runtime, runtime.c
        self._graph, options, meta_graph = c.TF_NewGraph(), c.TF_NewSessionOptions(), c.TF_NewBuffer()
        try:
            with runtime.status() as status:
                self._session = c.TF_LoadSessionFromSavedModel(
                    *[options, None, os.fsencode(folder), (_text * 1)(b"serve")],
                    *[1, self._graph, meta_graph, status],
                )
            serialized = ctypes.string_at(meta_graph.contents.data, meta_graph.contents.length)
        finally:
            c.TF_DeleteBuffer(meta_graph)
            c.TF_DeleteSessionOptions(options)
        self.signatures = read_signatures(serialized)
        """The signatures by name."""
        self._nodes = {
            info.tensor: self._node(info.tensor)
            for signature in self.signatures.values()
            for info in [*signature.inputs.values(), *signature.outputs.values()]
        }

    def _node(self, tensor: str) -> tuple[int, int]:
        operation, _, index = tensor.partition(":")
        return self._runtime.c.TF_GraphOperationByName(self._graph, operation.encode()), int(index or 0)

    def run(self, signature: Signature, inputs: Mapping[str, Tensor], outputs: Sequence[str]) -> dict[str, Tensor]:
        """Computes outputs of a signature.

        Args:
            signature: One of this model.
            inputs: A tensor for each input of the signature.
            outputs: Names of outputs.
        Raises:
            StatusError: TensorFlow's error.
        """
        with ExitStack() as stack:
            self._check_tensors([*signature.inputs.values(), *(signature.outputs[name] for name in outputs)])
            fed = [stack.enter_context(self._allocated(inputs[name])) for name in signature.inputs]
            fetched = (_pointer * len(outputs))()
            with self._runtime.status() as status:
                self._runtime.c.TF_SessionRun(
                    *[self._session, None],
                    *[self._places(signature.inputs, signature.inputs), (_pointer * len(fed))(*fed), len(fed)],
                    *[self._places(signature.outputs, outputs), fetched, len(outputs)],
                    *[None, 0, None, status],
                )
            for tensor in fetched:
                stack.callback(self._runtime.c.TF_DeleteTensor, tensor)
            return {name: self._read(tensor) for name, tensor in zip(outputs, fetched, strict=True)}

    def _check_tensors(self, infos: Iterable[TensorInfo]) -> None:
        for info in infos:
            if not self._nodes[info.tensor][0]:  # a ragged or sparse tensor has no name
                raise invalid(
                    f"Tensor {info.tensor}:0, specified in either feed_devices or fetch_devices was not found in the "
                    "Graph"
                )

    def _places(self, infos: Mapping[str, TensorInfo], names: Iterable[str]) -> ctypes.Array[_Output]:
        nodes = [_Output(*self._nodes[infos[name].tensor]) for name in names]
        return (_Output * len(nodes))(*nodes)

    @contextmanager
    def _allocated(self, tensor: Tensor) -> Iterator[int]:
        c, strings = self._runtime.c, tensor.values if isinstance(tensor.values, list) else []
        size = _TSTRING_BYTES * len(strings) if tensor.dtype == STRING else len(tensor.values)
        allocated = c.TF_AllocateTensor(
            tensor.dtype, (_int64 * len(tensor.shape))(*tensor.shape), len(tensor.shape), size
        )
        data = c.TF_TensorData(allocated)
        places = range(data or 0, (data or 0) + _TSTRING_BYTES * len(strings), _TSTRING_BYTES)
        try:
            if isinstance(tensor.values, bytes):
                ctypes.memmove(data, tensor.values, size)
            for place, text in zip(places, strings, strict=True):
                c.TF_StringInit(place)
                c.TF_StringCopy(place, text, len(text))
            yield allocated
        finally:
            for place in places:
                c.TF_StringDealloc(place)
            c.TF_DeleteTensor(allocated)

    def _read(self, tensor: int) -> Tensor:
        c = self._runtime.c
        dtype, data = c.TF_TensorType(tensor), c.TF_TensorData(tensor)
        shape = tuple(c.TF_Dim(tensor, axis) for axis in range(c.TF_NumDims(tensor)))
        if dtype != STRING:
            return Tensor(dtype, shape, ctypes.string_at(data, c.TF_TensorByteSize(tensor)) if data else b"")
        places = [data + _TSTRING_BYTES * number for number in range(math.prod(shape))]
        strings = [ctypes.string_at(c.TF_StringGetDataPointer(place), c.TF_StringGetSize(place)) for place in places]
        return Tensor(dtype, shape, strings)

    def close(self) -> None:
        """Frees the session and all its variables."""
        for function in (self._runtime.c.TF_CloseSession, self._runtime.c.TF_DeleteSession):
            with self._runtime.status() as status:
                function(self._session, status)
        self._runtime.c.TF_DeleteGraph(self._graph)
