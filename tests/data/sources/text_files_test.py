"""Text files: which encoding their bytes say they are in, where none is named or the wrong one."""

import array
import random
from pathlib import Path

import pytest

from aigc_tf.config import DataConfig
from aigc_tf.data.sources.sources import find_sources, read_records
from aigc_tf.data.sources.text_files import find_wide_encoding
from aigc_tf.errors import InputError
from tests.source_columns import columns_of

CASES = Path(__file__).parents[1] / "cases"

WIDE = ("utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be")

TEXTS = {
    "english": "this lamp fits at the office 43.\n" * 20,
    "german": "Grüße aus Köln, Straße 5\r\n",
    "chinese": "这盏灯很好\n我不喜欢\n" * 9,
    "japanese": "日本語のテキスト。\n",
    "russian": "мне нравится эта лампа\n",
    "arabic": "أعجبني هذا المصباح\n",
    "hindi": "मुझे यह दीपक पसंद है\n",
    "emoji": "ok \U0001f600\n",
    "table": "text\tlabel\na\tx\n",
    "pages": "the end of a page\f\nthe next\vone\n",
    "short": "ab",
}


def read(path, **fields):
    data = DataConfig(sources=(str(path),), **fields)
    return list(read_records(find_sources(data), data, [], columns=columns_of(data)))


def test_utf_16_without_a_mark_is_named_and_read_when_named():
    path = CASES / "utf16le_without_mark.txt"
    with pytest.raises(
        InputError, match=r"is utf-16-le, as its bytes say, not utf-8; set data.encoding to 'utf-16-le'"
    ):
        read(path)
    found = read(path, encoding="utf-16-le")
    assert len(found) == 120
    assert found[0].cells[0] == "this lamp looks great at the office 43."


@pytest.mark.parametrize("encoding", WIDE)
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_text_without_a_mark_tells_its_encoding(encoding, text):
    assert find_wide_encoding(text.encode(encoding)) == encoding
    assert find_wide_encoding((text * 99).encode(encoding)[:999]) == encoding  # cut within a character
    assert find_wide_encoding(text.encode()) == ""


def test_every_format_of_text_and_every_other_encoding_is_refused(tmp_path):
    for name in ("a.csv", "a.tsv", "a.jsonl", "a.txt"):
        (tmp_path / name).write_bytes("text,label\na,x\n".encode("utf-16-be"))
        for encoding in ("utf-8", "latin-1", "cp1252", "gb18030", "utf-16-le", "utf-16", "utf-32"):
            for format_name in ("auto", "document"):
                with pytest.raises(InputError, match=r"set data.encoding to 'utf-16-be'"):
                    read(tmp_path / name, encoding=encoding, format=format_name)


def test_a_marked_text_is_read_by_the_name_with_and_without_an_order(tmp_path):
    for name in WIDE:
        (tmp_path / "a.txt").write_bytes("\ufeffab\n".encode(name))
        for encoding in (name, name[: len("utf-16")]):
            assert [record.cells[0] for record in read(tmp_path / "a.txt", encoding=encoding)] == ["ab"]


def test_utf_16_without_a_mark_or_a_zero_is_one_sentence(tmp_path):
    (tmp_path / "a.txt").write_bytes("这盏灯很好".encode("utf-16-le"))
    with pytest.raises(InputError, match=r"is not valid utf-16 .*BOM"):
        read(tmp_path / "a.txt", encoding="utf-16")


def test_other_bytes_with_zeros_are_no_wide_text():
    generator = random.Random(0)
    numbers = [generator.randrange(-3000, 3000) for _ in range(4000)]
    small = [generator.randrange(0, 128) for _ in range(4000)]
    for values in (numbers, small):
        for kind in ("h", "i", "f", "d"):
            assert find_wide_encoding(array.array(kind, values).tobytes()) == ""
    assert find_wide_encoding(bytes(range(256))) == ""
    assert find_wide_encoding(generator.randbytes(8192)) == ""
    for text in ("nul \x00 inside", "\x00\n", "a\x00b\x00c\x00 and more of it\n", "\x00"):
        assert find_wide_encoding(text.encode()) == ""
