"""What `PreparedSplit` offers, from lists."""

import numpy as np

from aigc_tf.data.prepared.columns import DenseColumn, RaggedColumn, Shards


def ragged(*rows, dtype=np.uint16):
    """A ragged column in memory."""
    rows = [np.array(row, dtype) for row in rows]
    offsets = np.cumsum([0, *map(len, rows)], dtype=np.int64)
    return RaggedColumn([np.concatenate([np.zeros(0, dtype), *rows])], [offsets], Shards([len(rows)]))


def dense(values):
    """A dense column in memory."""
    return DenseColumn([np.asarray(values)], Shards([len(values)]))


class MemorySplit:
    """Columns by name; the size of an example is that of its ragged ones."""

    def __init__(self, **columns):
        self._columns = columns
        texts = [column.lengths for column in columns.values() if isinstance(column, RaggedColumn)]
        any_column = next(iter(columns.values()))
        self.num_examples = len(any_column.lengths if texts else any_column.all())
        self.sizes = sum(texts) if texts else np.ones(self.num_examples, np.int64)

    def column(self, name):
        return self._columns[name]
