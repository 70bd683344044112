"""Laws: token ids at prepare time == in the exported graph, and == Hugging Face `tokenizers`, but for what is listed.

The reference is `tokenizers` with the tokenizer.json of the model, or with ours; special tokens that a text spells are
plain text to it here (`encode_special_tokens`), since it would otherwise take them from any user.
"""

import base64
import csv
import json
import os
import subprocess
import sys
import unicodedata

import pytest
import tensorflow as tf
import tokenizers as hugging_face

from aigc_tf.data.sources.samples import fetch_sample
from aigc_tf.data.tokenizers.tokenizers import Tokenizer, load_tokenizer
from aigc_tf.data.tokenizers.vocabularies import (
    SPECIAL_TOKENS,
    Vocabulary,
    hugging_face_tokenizer,
    read_hugging_face_folder,
)
from aigc_tf.data.tokenizers.wordpiece import WordPiece
from aigc_tf.errors import RunError

BOUND_ON_VADER = 2
"""Of 23,703 texts; measured: 0."""

# Texts that both split alike. Names are for the reader of a failure.
ALIKE = {
    "empty": "",
    "only spaces": "  \t\n\r ",
    "tabs and lines": "a\tb\nc\r\nd\x0be\x0cf",
    "other spaces": "a\u00a0b\u2003c\u202fd\u205fe\u3000f\u1680g",
    "line and paragraph separators": "a\u2028b\u2029c\x85d",
    "NUL": "a\0b \0 c\0",
    "control characters": "a\x01b\x08c\x1bd\x7fe\x9ff",
    "soft hyphen, zero-width space, byte order mark": "a\u00adb\u200bc\ufeffd\u2060e",
    "replacement character": "a\ufffdb \ufffd c",
    "private use": "a\ue000b\U000f0000c\U0010fffd",
    "noncharacters": "a\ufdd0b\uffffc\U0010ffff",
    "emoji": "good 😀😃 👍bad 🦊! ☺️ ©®™",
    "zero-width joiners": "👩\u200d👩\u200d👧\u200d👦 🏳️\u200d🌈 می\u200cخواهم क\u094d\u200dष",
    "skin tones, flags, keycaps": "👍🏽 🇫🇷 #️⃣ 1️⃣",
    "Chinese": "中文abc漢字,你好。",
    "Chinese outside the basic plane": "a\U00020000b\U0002a6d6c\U0002b740d\U0002b920e",
    "Chinese compatibility characters": "a\uf900b\U0002f800c",
    "Japanese": "カタカナ ガ が 平仮名 ｶﾞ ー々〆〇",
    "Hangul": "한국어 한글 가각",
    "Jamo": "\u1112\u1161\u11ab \uffa1\u3131",
    "accents": "café naïve Ångström ÀÉÎÕÜ ñ ø ł đ",
    "combining marks": "cafe\u0301 a\u0300\u0316\u0345b q\u0307\u0323 \u0301x",
    "Vietnamese": "Tiếng Việt phở",
    "Hebrew with points": "שָׁלוֹם עֲלֵיכֶם״",
    "Arabic": "السَّلامُ عليكم، كيف؟ ١٢٣",
    "marks of direction": "a\u200fb\u202ec\u2066d\u061ce",
    "Devanagari": "नमस्ते दुनिया।",
    "Thai": "สวัสดีชาวโลกน้ำ",
    "Thai without a space, 90 characters": "สวัสดี" * 15,
    "Thai without a space, 108 characters": "สวัสดี" * 18,
    "fullwidth": "ＡＢＣ １２３ ！？，",
    "compatible characters": "½ ¼ ² ³ ℃ ﬁ Ⅳ ① ㍿ ªº µ …",
    "Turkish": "İstanbul ISPARTA ılık iğne I\u0307",
    "German": "Straße STRASSE STRAẞE ẞ Öl",
    "Greek": "ΟΔΥΣΣΕΥΣ Σ ΑΣ. Άλφα ΐ ᾳ",
    "Lithuanian": "Ì Í Ĩ J\u0301 Į\u0303",
    "Dutch, Croatian": "Ĳ ĳ Ǆ ǅ ǆ Ǉ",
    "Georgian, Cherokee, Coptic": "ᲐᲑ აბ ꭰꮁ Ꭰ Ⲁ",
    "mathematical letters": "𝐀𝒷𝕮 𝟏𝟐",
    "punctuation": "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~",
    "punctuation of Unicode": "“a” ‘b’ «c» —d– e… ¿f? ¡g! h·i § ¶ † ‰ ⁄ ′ ‹j›",
    "signs that are no punctuation": "a€b£c¥d¢e°f×g÷h±i¬j¦k",
    "spelled special tokens": "[CLS] a [SEP] b[PAD] [UNK][MASK] [cls] ##a [unused1]",
    "repeated": "," * 500 + "中" * 500,
    "100 characters": "x" * 100 + " y",
    "101 characters": "x" * 101 + " y",
    "100 characters of 4 bytes": "𝐀" * 100,
    "100 characters once accents are dropped": "e\u0301" * 100,
    "100 kB without a space": "ab" * 50_000,
    "100 kB of Chinese": "中文" * 16_667,
    "a hash": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08" * 2,
    "a link": "https://example.org/a_b?c=d&e=%20#f @user #tag a@b.cd",
    "code": "if (a<b && c!=d) { x[0] += 1; } // €",
}

# Texts that the two split in different ways, and how: (text, ours, theirs). Most are characters younger than the tables
# of Unicode in one of the two.
UNLIKE = {
    "dashes of Unicode 14": ("a\u2e5db", "a \u2e5d b", "a ##\u2e5d ##b"),
    "Arabic end of text": ("a\u061db", "a \u061d b", "a ##\u061d ##b"),
    "no longer punctuation": ("a\u166db", "a ##\u166d ##b", "a \u166d b"),
    "Chinese that theirs forgets": ("a\U0002b820b", "a \U0002b820 b", "a ##\U0002b820 ##b"),
}
UNLIKE_IN_LOWER_CASE = {
    "accents of Unicode 15": ("a\u0eceb", "a ##b", "a ##\u0ece ##b"),
    "accents of Unicode 11": ("a\u07fdb", "a ##b", "a ##\u07fd ##b"),
    "no longer an accent": ("a\u1734b", "a ##\u1734 ##b", "a ##b"),
    "no longer punctuation, now an accent": ("a\U000111c9b", "a ##b", "a \U000111c9 b"),
    "decomposed since Unicode 13": ("a\U00011938b", "a ##\U00011935 ##\U00011930 ##b", "a ##\U00011938 ##b"),
    "small letters of Unicode 14": ("a\ua7c0b", "a ##\ua7c0 ##b", "a ##\ua7c1 ##b"),
}
# All of Unicode that the two treat in different ways, in hexadecimal.
UNLIKE_CHARACTERS_IN_LOWER_CASE = """
    61d 7fd 898-89f 8ca-8e1 9fd-9fe a76 afa-aff b55 c04 c3c c77 c84 d00 d3b-d3c d81 eba ece 166d 1734 180f 1885-1886
    1abf-1ace 1b4e-1b4f 1b7d-1b7f 1c89 1df6-1dfb 2c2f 2e43-2e4f 2e52-2e5d a7c0 a7cb-a7cc a7ce a7d0 a7d2 a7d4 a7d6
    a7d8 a7da a7dc a82c a8c5 a8ff a9bd 10570-1057a 1057c-1058a 1058c-10592 10594-10595 105c9 105e4 10d24-10d27
    10d50-10d65 10d6e 10eab-10ead 10efd-10eff 10f46-10f50 10f55-10f59 10f82-10f89 11070 11073-11074 110c2 111c9
    111cf 1123e 11241 1133b 11383 11385 1138e 11391 113c5 113c7-113c8 113d4-113d5 113d7-113d8 11438-1143f
    11442-11444 11446 1144b-1144f 1145a-1145b 1145d-1145e 11660-1166c 116b9 1182f-11837 11839-1183b 11938
    1193b-1193c 1193e 11943-11946 119d4-119d7 119da-119db 119e0 119e2 11a01-11a0a 11a33-11a38 11a3b-11a47
    11a51-11a56 11a59-11a5b 11a8a-11a96 11a98-11a9c 11a9e-11aa2 11b00-11b09 11be1 11c30-11c36 11c38-11c3d 11c3f
    11c41-11c45 11c70-11c71 11c92-11ca7 11caa-11cb0 11cb2-11cb3 11cb5-11cb6 11d31-11d36 11d3a 11d3c-11d3d
    11d3f-11d45 11d47 11d90-11d91 11d95 11d97 11ef3-11ef4 11ef7-11ef8 11f00-11f01 11f36-11f3a 11f40 11f42-11f4f
    11fff 12ff1-12ff2 13440 13447-13455 16121-16128 16d68-16d6a 16d6d-16d6f 16e97-16e9a 16ea0-16eb8 16f4f 16fe2
    16fe4 1cf00-1cf2d 1cf30-1cf46 1e000-1e006 1e008-1e018 1e01b-1e021 1e023-1e024 1e026-1e02a 1e08f 1e130-1e136
    1e2ae 1e2ec-1e2ef 1e4ec-1e4ef 1e5ff 1e944-1e94a 1e95e-1e95f 2b820-2b91f
"""
UNLIKE_CHARACTERS = """
    61d 9fd a76 c77 c84 166d 1b4e-1b4f 1b7d-1b7f 2e43-2e4f 2e52-2e5d 10d6e 10ead 10f55-10f59 10f86-10f89 111c9
    113d4-113d5 113d7-113d8 1144b-1144f 1145a-1145b 1145d 11660-1166c 116b9 1183b 11944-11946 119e2 11a3f-11a46
    11a9a-11a9c 11a9e-11aa2 11b00-11b09 11be1 11c41-11c45 11c70-11c71 11ef7-11ef8 11f43-11f4f 11fff 12ff1-12ff2
    16d6d-16d6f 16e97-16e9a 16fe2 1e5ff 1e95e-1e95f 2b820-2b91f
"""

# Bytes that a client can send to a server and that no Python string holds.
BROKEN = {
    "Latin-1": b"caf\xe9 ol\xe9",
    "cut off": b"abc\xe2\x82",
    "surrogates": b"a\xed\xa0\xbd\xed\xb8\x80b",
    "too long a form": b"a\xc0\xafb",
    "beyond Unicode": b"a\xf4\x90\x80\x80b",
    "any byte": bytes(range(256)),
}


def vocabulary_of(texts, *, lowercase):
    """Every character as a word and inside of words, so that no difference hides behind [UNK]."""
    characters = set()
    for text in texts:
        plain = text + text.lower()
        characters.update(plain, unicodedata.normalize("NFD", plain), unicodedata.normalize("NFKC", plain))
    characters -= set("\0\x11\n\r")  # no token can hold these
    tokens = (*SPECIAL_TOKENS, *sorted(characters), *(f"##{character}" for character in sorted(characters)))
    return Vocabulary(tokens, lowercase, strip_accents=lowercase)


def ours(vocabulary, texts):
    rows = WordPiece(vocabulary).tokenize(tf.constant(texts)).to_list()
    return [[vocabulary.tokens[index] for index in row] for row in rows]


def theirs(vocabulary, texts):
    reference = hugging_face_tokenizer(vocabulary)
    reference.encode_special_tokens = True
    return [row.tokens for row in reference.encode_batch(texts, add_special_tokens=False)]


@pytest.mark.parametrize("lowercase", [True, False])
def test_hostile_texts_are_split_as_by_hugging_face(lowercase, measure):
    texts = list(ALIKE.values())
    vocabulary = vocabulary_of(texts, lowercase=lowercase)
    pairs = zip(ALIKE, ours(vocabulary, texts), theirs(vocabulary, texts), strict=True)
    unlike = [name for name, mine, reference in pairs if mine != reference]
    assert unlike == []
    measure("ids == Hugging Face's tokenizers, hostile texts that differ", len(unlike), 0)


@pytest.mark.parametrize(
    ("lowercase", "name", "row"),
    [(lowercase, *item) for lowercase in (True, False) for item in UNLIKE.items()]
    + [(True, *item) for item in UNLIKE_IN_LOWER_CASE.items()],
)
def test_the_known_differences_from_hugging_face_are_these(lowercase, name, row):
    text, mine, reference = row
    vocabulary = vocabulary_of([text], lowercase=lowercase)
    assert ours(vocabulary, [text]) == [mine.split()], name
    assert theirs(vocabulary, [text]) == [reference.split()], name


def test_special_tokens_in_a_text_are_special_to_hugging_face_unless_told_otherwise():
    vocabulary = vocabulary_of(["[SEP] a"], lowercase=True)
    reference = hugging_face_tokenizer(vocabulary)
    assert reference.encode("a [SEP]", add_special_tokens=False).tokens == ["a", "[SEP]"]
    assert ours(vocabulary, ["a [SEP]"]) == [["a", "[", "s", "##e", "##p", "]"]]
    assert theirs(vocabulary, ["a [SEP]"]) == ours(vocabulary, ["a [SEP]"])


def test_bytes_that_are_no_utf8_are_left_out_as_unknown_characters_are():
    for lowercase in (True, False):
        vocabulary = vocabulary_of([bytes(range(128)).decode(), "éÀ"], lowercase=lowercase)
        for name, content in BROKEN.items():
            mine = ours(vocabulary, [content])
            assert mine == theirs(vocabulary, [content.decode(errors="replace")]), name
            assert mine == theirs(vocabulary, [content.decode(errors="ignore")]), name


def code_points(ranges):
    found = set()
    for part in ranges.split():
        first, _, last = part.partition("-")
        found.update(range(int(first, 16), int(last or first, 16) + 1))
    return found


@pytest.mark.parametrize(("lowercase", "ranges"), [(True, UNLIKE_CHARACTERS_IN_LOWER_CASE), (False, UNLIKE_CHARACTERS)])
def test_every_character_of_unicode_is_treated_as_by_hugging_face_but_these(lowercase, ranges):
    # Planes 4 to 13 are empty and 15 and 16 private: all their characters are alike, a few stand for them.
    named = [code for plane in (0, 1, 2, 3, 14) for code in range(plane << 16, (plane + 1) << 16)]
    empty = [code for plane in (*range(4, 14), 15, 16) for code in range(plane << 16, (plane + 1) << 16, 257)]
    characters = [chr(code) for code in named + empty if not 0xD800 <= code < 0xE000]
    unlike = set()
    for start in range(0, len(characters), 32768):
        some = characters[start : start + 32768]
        texts = [f"a{character}b" for character in some]
        vocabulary = vocabulary_of(texts, lowercase=lowercase)
        pairs = zip(some, ours(vocabulary, texts), theirs(vocabulary, texts), strict=True)
        unlike.update(ord(character) for character, mine, reference in pairs if mine != reference)
    assert unlike == code_points(ranges)


SERVER = """
import base64, json, sys
import tensorflow as tf
import tensorflow_text
texts = [base64.b64decode(text) for text in json.load(open(sys.argv[1]))]
served = {}
for folder in sys.argv[2:]:
    model = tf.saved_model.load(folder)
    answer = model.signatures["serving_default"](text=tf.constant(texts))
    alone = [model.signatures["serving_default"](text=tf.constant([text]))["ids"] for text in texts]
    assert sum([ids.numpy().tolist() for ids in alone], []) == answer["ids"].numpy().tolist()
    served[folder] = tf.RaggedTensor.from_row_lengths(answer["ids"], answer["lengths"]).to_list()
print(json.dumps(served))
"""


def export(tokenizer, folder):
    module = tf.Module()
    module.tokenizer = tokenizer

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="text")])
    def serve(text):
        ids = tokenizer.tokenize(text)
        return {"ids": ids.values, "lengths": ids.row_lengths()}

    tf.saved_model.save(module, folder, signatures=serve)


def test_the_exported_graph_gives_the_ids_of_prepare_time_in_a_process_of_another_locale(tmp_path, measure):
    rows = {**UNLIKE, **UNLIKE_IN_LOWER_CASE}
    texts = [*ALIKE.values(), *(text for text, _, _ in rows.values()), "half a pair \ud83d of surrogates"]
    expected = {}
    for settings in ((True, True), (True, False), (False, False)):
        tokens = vocabulary_of(texts[:-1], lowercase=settings[0]).tokens
        Tokenizer(WordPiece(Vocabulary(tokens, *settings))).save(tmp_path / "tokenizer" / str(settings))
        tokenizer = load_tokenizer(tmp_path / "tokenizer" / str(settings))
        folder = str(tmp_path / "model" / str(settings))
        export(tokenizer, folder)
        broken = tokenizer.tokenize(tf.constant(list(BROKEN.values()))).to_list()
        expected[folder] = [row.tolist() for row in tokenizer.encode(texts)] + broken

    content = [text.encode(errors="ignore") for text in texts] + list(BROKEN.values())
    (tmp_path / "texts.json").write_text(json.dumps([base64.b64encode(text).decode() for text in content]))
    done = subprocess.run(
        [sys.executable, "-c", SERVER, str(tmp_path / "texts.json"), *expected],
        env=os.environ | {"LC_ALL": "tr_TR.UTF-8", "LANG": "tr_TR.UTF-8"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    served = json.loads(done.stdout.splitlines()[-1])
    assert served.keys() == expected.keys()
    pairs = [pair for name in expected for pair in zip(served[name], expected[name], strict=True)]
    measure("ids at prepare time == in the exported graph, hostile texts", sum(a != b for a, b in pairs), 0)


@pytest.fixture(scope="module")
def samples():
    """Folder of the model, and the texts of vader."""
    try:
        model, vader = fetch_sample("minilm"), fetch_sample("vader")
    except RunError as error:
        pytest.skip(f"needs the samples: {error}")
    texts = []
    for path in sorted(vader.glob("*_GroundTruth.txt")):
        with open(path, encoding="utf-8", newline="") as file:
            rows = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            texts += [row[2] for row in rows]
    assert len(texts) == 23_703
    return model, texts


def test_token_ids_are_those_of_hugging_face_on_vader(samples, measure):
    folder, texts = samples
    reference = hugging_face.Tokenizer.from_file(str(folder / "tokenizer.json"))
    reference.no_truncation()
    reference.no_padding()
    tokenizer = Tokenizer(WordPiece(read_hugging_face_folder(folder, lowercase=False)))
    expected = [row.ids for row in reference.encode_batch(texts, add_special_tokens=False)]
    pairs = zip(tokenizer.encode(texts), expected, strict=True)
    unlike = sum(mine.tolist() != ids for mine, ids in pairs)
    measure("ids == Hugging Face's tokenizers, texts of vader that differ", unlike, BOUND_ON_VADER)


def test_a_saved_tokenizer_gives_its_own_ids_in_hugging_face(samples, tmp_path):
    folder, texts = samples
    for lowercase in (True, False):
        found = read_hugging_face_folder(folder, lowercase=False)
        tokenizer = Tokenizer(WordPiece(Vocabulary(found.tokens, lowercase, lowercase)))
        tokenizer.save(tmp_path)
        reference = hugging_face.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
        expected = [row.ids for row in reference.encode_batch(texts, add_special_tokens=False)]
        assert [row.tolist() for row in tokenizer.encode(texts)] == expected
