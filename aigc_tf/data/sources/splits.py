"""The split of an example, which is decided before anything is done to its text.

With `data.split` "hash" it depends on the text alone, so equal texts are in the same split, in any file and beside any
other data.
"""

import hashlib


def hash_bucket(text: bytes) -> int:
    """Returns 0 to 9: the first 8 bytes of the sha256, big-endian, modulo 10. It is 0 for test, 1 for validation.

    Args:
        text: The raw UTF-8 text of the source; for a pair `text + b"\\0" + text_b`.

    >>> hash_bucket(b"")
    2
    """
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") % 10


def split_of(texts: tuple[bytes, ...], given: str, *, validation_from_train: bool) -> str:
    """Returns the split of an example.

    Args:
        texts: The text, or the two of a pair, as UTF-8.
        given: The split that its source states; empty if the hash decides.
        validation_from_train: Whether a tenth of the training data, by the hash, is the validation split.
    """
    if given and not (given == "train" and validation_from_train):
        return given
    bucket = hash_bucket(b"\0".join(texts))
    if bucket == 1:
        return "validation"
    return "test" if bucket == 0 and not given else "train"
