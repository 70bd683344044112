"""Text files as whole lines, in constant memory, or as one text: unzipped, hashed in the same pass, decoded.

Text is not changed, since the hash split hashes it: only a byte order mark at the file's start and the ends of lines
(\\n or \\r\\n) are removed. A line ends with \\n alone; Unicode's other line breaks (U+2028, \\x0b) are text.
"""

import codecs
import gzip
import hashlib
import unicodedata
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

from aigc_tf.data.sources.records import Reading, SourceReport
from aigc_tf.errors import InputError, RunError

MAX_RECORD_BYTES = 64 << 20
"""A longer line or field is a broken row. Without a bound, one missing newline or quote could fill the memory."""

MAX_DOCUMENT_BYTES = 4 << 30
"""A longer file is a broken row, since a document is held in memory."""

_BLOCK_BYTES = 1 << 20
_BYTES_LOOKED_AT = 8192
_NO_TEXT = ("Cc", "Cn", "Co", "Cs")

# Files that users give by mistake, by their first bytes. Only files that are not text are checked: text may start with
# PAR1.
_OTHER_KINDS = {
    b"PAR1": "a Parquet file; set data.format to 'parquet'",
    b"PK\x03\x04": "a ZIP archive (or a spreadsheet); unpack it, or save it as CSV",
    b"BZh": "compressed with bzip2; unpack it or use gzip",
    b"\xfd7zXZ\x00": "compressed with xz; unpack it or use gzip",
    b"\x28\xb5\x2f\xfd": "compressed with zstd; unpack it or use gzip",
    b"\x1f\x8b": "compressed twice with gzip; unpack it once",
    b"%PDF": "a PDF document; extract its text",
    b"\x89PNG": "an image; text is needed, so leave it out",
    b"\x89HDF": "an HDF5 file; text is needed, so leave it out",
    b"ARROW1": "an Arrow file; save it as Parquet",
    b"SQLite format 3": "a SQLite database; export it as CSV",
}


def check_encoding(encoding: str) -> str:
    """Returns the normal name of an encoding of text files.

    Raises:
        InputError: If the encoding is unknown, or not one of text files.
    """
    try:
        "\n".encode(encoding)  # refuses codecs that do not encode text, such as base64
        name = codecs.lookup(encoding).name
    except (LookupError, UnicodeError, ValueError):
        name = "undefined"
    if name in ("undefined", "unicode_escape", "raw_unicode_escape", "punycode", "idna"):
        raise InputError(
            f"data.encoding is {encoding!r}, which is not an encoding of text files that Python knows; "
            "fitting ones are 'utf-8', 'utf-16', 'latin-1', 'cp1252', 'gb18030', 'shift_jis'."
        )
    return "utf-8" if name == "utf-8-sig" else name  # the byte order mark is removed in any case


def open_file(path: str) -> Any:
    """Opens a file to read its bytes.

    Raises:
        InputError: If it cannot be opened.
    """
    try:
        return open(path, "rb", buffering=0)
    except FileNotFoundError as error:
        raise InputError(f"There is no file {path}.") from error
    except IsADirectoryError as error:
        raise InputError(f"{path} is a folder; a file is needed.") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error


class _Hashed:
    """A file whose bytes are hashed and counted as they pass; all that gzip needs of a file is `read`."""

    def __init__(self, file: Any, report: SourceReport) -> None:
        self._file, self._report = file, report
        self.digest = hashlib.sha256()

    def read(self, size: int) -> bytes:
        block: bytes = self._file.read(size)
        self.digest.update(block)
        self._report.bytes_read += len(block)
        return block


def _blocks(reading: Reading) -> Iterator[bytes]:
    """Yields the unpacked bytes of a file and, in the same pass, takes its sha256."""
    uri = reading.source.uri
    with open_file(reading.path) as file:
        hashed = _Hashed(file, reading.report)
        try:
            zipped = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            stream = gzip.GzipFile(fileobj=hashed) if zipped else hashed  # type: ignore[call-overload]
            block = stream.read(_BLOCK_BYTES)
            _refuse_other_kinds(reading, block, zipped)
            while block:
                yield block
                block = stream.read(_BLOCK_BYTES)
            while hashed.read(_BLOCK_BYTES):
                pass
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise InputError(f"{uri} is damaged gzip ({error}); fetch or write it again.") from error
        except OSError as error:
            raise RunError(f"{uri} could not be read to its end: {error.strerror}.") from error
    reading.report.sha256 = hashed.digest.hexdigest()


def _refuse_other_kinds(reading: Reading, head: bytes, zipped: bool) -> None:
    uri = reading.source.uri
    if not head:
        if reading.source.format == "document" or reading.source.part_of:
            return  # an empty document, or a part without rows
        raise InputError(f"{uri} is empty; a file with records is needed.")
    if uri.lower().endswith(".gz") and not zipped:
        raise InputError(f"{uri} is not gzip, though its name ends in .gz; rename it.")
    encoding = check_encoding(reading.data.encoding)
    if encoding == "utf-8" and head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise InputError(f"{uri} starts like UTF-16; set data.encoding to 'utf-16'.")
    if reading.source.format in ("csv", "tsv") and b"\r" in head and b"\n" not in head:
        raise InputError(f"{uri} ends its lines with \\r alone, as old Macs did; convert them to \\n.")
    if b"\x00" not in head[:_BYTES_LOOKED_AT] and _decodes(head[:_BYTES_LOOKED_AT], "utf-8"):
        return
    for magic, kind in _OTHER_KINDS.items():
        if head.startswith(magic):
            raise InputError(f"{uri} is {kind}.")
    if head[257:262] == b"ustar":
        raise InputError(f"{uri} is a tar archive; unpack it.")
    wide = find_wide_encoding(head[:_BYTES_LOOKED_AT])
    if wide and not _agrees(wide, encoding, head):
        raise InputError(f"{uri} is {wide}, as its bytes say, not {encoding}; set data.encoding to {wide!r}.")
    if b"\x00" in head[:_BYTES_LOOKED_AT] and not _decodes(head[:_BYTES_LOOKED_AT], encoding):
        raise InputError(f"{uri} looks like a binary file; text in {encoding} is needed.")


def find_wide_encoding(head: bytes) -> str:
    """Returns the kind of UTF-16 or UTF-32 that bytes are, judged by the bytes alone; empty if they are neither.

    Valid UTF-8 proves nothing: NUL is a character of UTF-8, and Latin, Cyrillic or Arabic letters in UTF-16 are valid
    UTF-8 too. But then every second byte is below 32, the high byte of scripts before U+2000. The text must also be
    readable: the same bytes in the other order, and numbers of two or four bytes, hardly ever are.
    """
    if b"\x00" not in head or len(head) < 4:
        return ""
    is_utf8 = _decodes(head, "utf-8")
    for name, width, high in (("utf-32-le", 4, 3), ("utf-32-be", 4, 0), ("utf-16-le", 2, 1), ("utf-16-be", 2, 0)):
        whole = head[: len(head) // width * width]
        high_bytes = whole[high::width]
        num_small = sum(byte < 32 and byte != 10 for byte in high_bytes)
        if (num_small * 2 >= len(high_bytes) or not is_utf8) and _is_readable(whole, name):
            return name
    return ""


def _is_readable(head: bytes, encoding: str) -> bool:
    """Whether bytes are text of assigned characters, without control characters except white space."""
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(head)
    except UnicodeDecodeError:
        return False
    # isspace() also for form feeds and vertical tabs, which text from word processors has.
    return all(character.isspace() or unicodedata.category(character) not in _NO_TEXT for character in text)


def _agrees(wide: str, encoding: str, head: bytes) -> bool:
    is_marked = head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE))
    return wide.startswith(encoding) if is_marked else wide == encoding  # Python's utf-16 needs the mark


def _decodes(head: bytes, encoding: str) -> bool:
    """Whether bytes, perhaps cut in the middle of a character, are text."""
    try:
        codecs.getincrementaldecoder(encoding)().decode(head)
    except UnicodeDecodeError:
        return False
    return True


def _as_utf8(blocks: Iterable[bytes], uri: str, encoding: str) -> Iterator[bytes]:
    """Re-encodes encodings that cannot be cut at the byte of a newline: UTF-16, UTF-32, and encodings with a state."""
    decoder = codecs.getincrementaldecoder(encoding)()
    try:
        for block in blocks:
            yield decoder.decode(block).encode("utf-8", "surrogatepass")
        yield decoder.decode(b"", final=True).encode("utf-8", "surrogatepass")
    except UnicodeError as error:  # not UnicodeDecodeError: for UTF-16 without a mark Python raises the base class
        reason = getattr(error, "reason", error)
        raise InputError(f"{uri} is not valid {encoding} ({reason}); set data.encoding to its encoding.") from error


def _whole_lines(blocks: Iterable[bytes], report: SourceReport) -> Iterator[tuple[int, bytes]]:
    """Yields the number of the first line, and whole lines; every block except the last ends with a newline."""
    line, size = 1, 0
    pieces: list[bytes] = []  # of the unfinished line; dropped if it exceeds the limit
    for block in blocks:
        cut = block.rfind(b"\n") + 1
        if not cut:
            size += len(block)
            pieces = [*pieces, block] if size <= MAX_RECORD_BYTES else []
            continue
        if size > MAX_RECORD_BYTES:
            report.count_broken(line, f"line over {MAX_RECORD_BYTES >> 20} MB")
            line += 1
            block = block[block.index(b"\n") + 1 :]
            cut = block.rfind(b"\n") + 1
        whole = b"".join((*pieces, block[:cut]))
        if whole:
            yield line, whole
        line += whole.count(b"\n")
        pieces, size = [block[cut:]], len(block) - cut
    if size > MAX_RECORD_BYTES:
        report.count_broken(line, f"line over {MAX_RECORD_BYTES >> 20} MB")
    elif size:
        yield line, b"".join(pieces)


def read_lines(reading: Reading) -> Iterator[tuple[int, str]]:
    """Yields the number of the first line, and the decoded text of whole lines.

    Bytes that cannot be decoded become lone surrogates, which no valid text has, and the reading is marked tainted.
    """
    encoding, blocks = check_encoding(reading.data.encoding), _blocks(reading)
    has_state = encoding.startswith(("iso2022", "hz", "utf-7"))
    if has_state or "\n".encode(encoding) != b"\n":
        blocks, encoding = _as_utf8(blocks, reading.source.uri, encoding), "utf-8"
    for line, whole in _whole_lines(blocks, reading.report):
        try:
            text = whole.decode(encoding)
        except UnicodeDecodeError:
            text = whole.decode(encoding, "surrogateescape")
            reading.tainted = True
        yield line, text.removeprefix("\ufeff") if line == 1 else text


def read_whole(reading: Reading) -> str | None:
    """Returns the decoded text of a file. A file that is not text is counted as broken and gives None."""
    encoding, content, size = check_encoding(reading.data.encoding), bytearray(), 0
    for block in _blocks(reading):
        size += len(block)
        if size <= MAX_DOCUMENT_BYTES:
            content += block
    if size > MAX_DOCUMENT_BYTES:
        reading.report.count_broken(1, f"document over {MAX_DOCUMENT_BYTES >> 30} GB")
        return None
    try:
        return content.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        reading.report.count_broken(1, f"not valid {reading.data.encoding}", f"{error.reason} at byte {error.start}")
        return None


def split_lines(text: str) -> list[str]:
    """Splits at \\n and removes a \\r before it."""
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()  # after the last newline there is no line
    if "\r" in text:
        lines = [line[:-1] if line.endswith("\r") else line for line in lines]
    return lines


def is_text(*cells: str) -> bool:
    """Whether the cells can be encoded, that is, have no lone surrogates."""
    try:
        for cell in cells:
            cell.encode()
    except UnicodeEncodeError:
        return False
    return True
