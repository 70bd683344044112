"""The bytes that the variables of a SavedModel take in each of their files, from `variables.index`.

The index is a table in LevelDB's format, without compression, whose values are TensorFlow's BundleEntryProto. Source:
https://github.com/google/leveldb/blob/main/doc/table_format.md and TensorFlow's tensor_bundle.cc. TensorFlow's own
reader (tf.train.load_checkpoint) does not give the files' sizes, and importing it takes seconds that the gate saves.
"""

from collections.abc import Iterator

from aigc_tf.serving.gate.saved_model_protos import DecodeError, tensor_bundle_pb2

_MAGIC = 0xDB4775248B80FB57.to_bytes(8, "little")
_FOOTER_BYTES = 48
_PLAIN = 0  # type of a block that is not compressed


def read_file_sizes(index: bytes) -> list[int]:
    """Returns the minimum size in bytes of each file `variables.data-NNNNN-of-NNNNN`, in their order.

    Raises:
        ValueError: If the index is damaged.
    """
    if len(index) < _FOOTER_BYTES or not index.endswith(_MAGIC):
        raise ValueError("it has no footer")
    try:
        handles = _varints(index[-_FOOTER_BYTES:], 4)
        entries = list(_entries(_block(index, handles[2], handles[3])))
        blocks = [_block(index, *_varints(handle, 2)) for _, handle in entries]
        values = dict(entry for block in blocks for entry in _entries(block))
        header = tensor_bundle_pb2.BundleHeaderProto.FromString(values.pop(b""))
        sizes = [0] * header.num_shards
        for value in values.values():
            entry = tensor_bundle_pb2.BundleEntryProto.FromString(value)
            sizes[entry.shard_id] = max(sizes[entry.shard_id], entry.offset + entry.size)
    except (DecodeError, IndexError, KeyError) as error:
        raise ValueError("it cannot be read") from error
    return sizes


def _block(index: bytes, offset: int, size: int) -> bytes:
    if index[offset + size] != _PLAIN:
        raise IndexError
    return index[offset : offset + size]


def _entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yields keys and values. A key shares a prefix with the previous key; restart points follow at the end."""
    num_restarts = int.from_bytes(block[-4:], "little")
    end, place, key = len(block) - 4 * (num_restarts + 1), 0, b""
    while place < end:
        shared, place = _varint(block, place)
        rest, place = _varint(block, place)
        length, place = _varint(block, place)
        key = key[:shared] + block[place : place + rest]
        yield key, block[place + rest : place + rest + length]
        place += rest + length


def _varints(data: bytes, count: int) -> list[int]:
    numbers, place = [], 0
    for _ in range(count):
        number, place = _varint(data, place)
        numbers.append(number)
    return numbers


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """Returns a number stored with seven bits per byte, the lowest first, and the place after it."""
    number = shift = 0
    while True:
        byte = data[place]
        number |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return number, place
