"""The memory of a step's tensors at its fullest moment, without running it.

A tensor takes memory from the start of its operation to the end of the last operation that reads it. As in TensorFlow,
reshapes and the like share their input's memory, and element-wise operations overwrite an input that nobody else will
read. Operations start in the order in which they become ready, one at a time; TensorFlow's parallel execution moves the
peak by a few per cent (docs/LOG.md).

Not counted: variables, scratch memory inside operations, and free memory in pieces that are too small.
"""

import collections
import dataclasses
import math

import tensorflow as tf

from aigc_tf.training.step.traced_step import StepGraph

_ALIGNMENT = 64  # bytes; tensors begin at multiples of it


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Their output shares their input's memory.
_SHARING = _names(
    """
    Identity Reshape ExpandDims Squeeze StopGradient PreventGradient Bitcast Snapshot EnsureShape CheckNumerics
    """
)
# They share it if they change no value: sums over axes of size 1, a single copy.
_SHARING_SAME_SIZE = _names(
    """
    Sum Mean Max Min Prod Tile BroadcastTo
    """
)
# tensorflow/core/kernels: those that call forward_input_or_allocate_output.
_IN_PLACE = _names(
    """
    Abs Add AddN AddV2 BiasAdd BitwiseAnd BitwiseOr Cos Div DivNoNan Elu Erf Erfc Exp Expm1 FloorDiv FloorMod
    InvGrad LeftShift Log Log1p LogSoftmax LogicalAnd LogicalNot LogicalOr Maximum Minimum Mul MulNoNan Neg Pow
    RealDiv Reciprocal ReciprocalGrad Relu Relu6 ReluGrad Rsqrt RsqrtGrad Select SelectV2 Selu Sigmoid SigmoidGrad
    Sign Sin Softmax Softplus Softsign Sqrt SqrtGrad Square SquaredDifference Sub Tanh TanhGrad Xdivy
    """
)
_NO_MEMORY = _names(
    """
    Const Placeholder ReadVariableOp VarHandleOp NoOp
    """
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Peak:
    """The fullest moment of a step."""

    num_bytes: int
    """Bytes of all tensors alive then."""
    by_operation: dict[str, int]
    """The same by the type of the operation that made them, largest first."""


def peak_memory(step: StepGraph) -> Peak:
    """Returns the memory of all tensors of a step together at its fullest moment."""
    return _Run(step).peak()


def tensor_bytes(tensor: tf.Tensor) -> int:
    """Returns the memory of a tensor; 0 for handles and text, a few bytes for indices of unknown number."""
    if not tensor.dtype.size or tensor.dtype in (tf.resource, tf.variant, tf.string):
        return 0
    size = tensor.shape.num_elements()
    if size is None:  # the gradient of a broadcast sum: its axes are computed, but the reshape after it knows its size
        shapes = [reader.outputs[0].shape for reader in tensor.consumers() if reader.type == "Reshape"]
        size = next((shape.num_elements() for shape in shapes if shape.is_fully_defined()), 1)
    return math.ceil(size * tensor.dtype.size / _ALIGNMENT) * _ALIGNMENT


@dataclasses.dataclass
class _Buffer:
    num_bytes: int
    maker: str
    readers: int = 0
    """Operations and fetches that have yet to read a tensor in it."""


class _Run:
    """One pass over the operations of a step."""

    def __init__(self, step: StepGraph):
        self._constants = step.constants
        self._operations = step.operations
        self._readers = collections.Counter(
            tensor.ref() for operation in step.operations for tensor in self._inputs(operation)
        )
        self._readers.update(tensor.ref() for tensor in step.fetches)
        self._buffers: dict[object, _Buffer | None] = {}
        self._alive: dict[int, _Buffer] = {}
        self._live = 0
        self._peak, self._at_peak = 0, collections.Counter[str]()

    def peak(self) -> Peak:
        waits, followers = {}, collections.defaultdict(list)
        for operation in self._operations:
            before = {tensor.op for tensor in self._inputs(operation)}
            if operation.name not in self._constants:
                before |= set(operation.control_inputs)
            waits[operation] = len(before)
            for earlier in before:
                followers[earlier].append(operation)
        ready = collections.deque(operation for operation, count in waits.items() if not count)
        while ready:
            operation = ready.popleft()
            self._start(operation)
            self._end(operation)
            for follower in followers[operation]:
                waits[follower] -= 1
                if not waits[follower]:
                    ready.append(follower)
        return Peak(num_bytes=self._peak, by_operation=dict(self._at_peak.most_common()))

    def _inputs(self, operation: tf.Operation) -> list[tf.Tensor]:
        return [] if operation.name in self._constants else list(operation.inputs)

    def _start(self, operation: tf.Operation) -> None:
        takes_none = operation.name in self._constants or operation.type in _NO_MEMORY
        for tensor in operation.outputs:
            buffer = None if takes_none else self._buffer_of(operation, tensor)
            self._buffers[tensor.ref()] = buffer
            if buffer is not None:
                buffer.readers += self._readers[tensor.ref()]
        if self._live > self._peak:
            self._peak, self._at_peak = self._live, collections.Counter()
            for buffer in self._alive.values():
                self._at_peak[buffer.maker] += buffer.num_bytes

    def _end(self, operation: tf.Operation) -> None:
        for tensor in self._inputs(operation):
            buffer = self._buffers[tensor.ref()]
            if buffer is not None:
                buffer.readers -= 1
                self._release(buffer)
        for tensor in operation.outputs:
            buffer = self._buffers[tensor.ref()]
            if buffer is not None:
                self._release(buffer)

    def _release(self, buffer: _Buffer) -> None:
        if not buffer.readers and id(buffer) in self._alive:
            del self._alive[id(buffer)]
            self._live -= buffer.num_bytes

    def _buffer_of(self, operation: tf.Operation, tensor: tf.Tensor) -> _Buffer | None:
        if _shares_input(operation, tensor):
            source = operation.inputs[1 if operation.type == "Split" else 0]
            return self._buffers[source.ref()]
        num_bytes = tensor_bytes(tensor)
        for source in _overwritten(operation, tensor):
            buffer = self._buffers[source.ref()]
            reads = sum(self._buffers[other.ref()] is buffer for other in operation.inputs)
            if buffer is not None and buffer.num_bytes == num_bytes and buffer.readers == reads:
                return buffer
        if not num_bytes:
            return None
        buffer = _Buffer(num_bytes, operation.type)
        self._alive[id(buffer)] = buffer
        self._live += num_bytes
        return buffer


def _shares_input(operation: tf.Operation, tensor: tf.Tensor) -> bool:
    kind = operation.type
    if kind in _SHARING:
        return True
    if kind == "Unpack":
        return operation.get_attr("axis") == 0
    if kind == "Split":
        return tf.get_static_value(operation.inputs[0]) == 0
    if kind == "Cast":
        return operation.inputs[0].dtype == tensor.dtype
    if kind in _SHARING_SAME_SIZE:
        return tensor_bytes(operation.inputs[0]) == tensor_bytes(tensor)
    if kind == "StridedSlice":
        source = operation.inputs[0].shape
        return source.rank and tensor.shape.rank and source[1:] == tensor.shape[tensor.shape.rank - source.rank + 1 :]
    return False


def _overwritten(operation: tf.Operation, tensor: tf.Tensor) -> list[tf.Tensor]:
    """Returns the inputs whose memory the output may take, if nobody else reads them."""
    if operation.type == "SparseSoftmaxCrossEntropyWithLogits":
        return [operation.inputs[0]] if tensor is operation.outputs[1] else []
    if operation.type not in _IN_PLACE:
        return []
    return [source for source in operation.inputs if source.dtype.size == tensor.dtype.size]
