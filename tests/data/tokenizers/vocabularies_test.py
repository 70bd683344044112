"""Vocabulary files and Hugging Face folders: what is read, what is refused and in which words."""

import json

import pytest
import tokenizers

from aigc_tf.data.tokenizers import vocabularies
from aigc_tf.data.tokenizers.vocabularies import (
    Vocabulary,
    build_vocabulary,
    holds_word_piece,
    hugging_face_tokenizer,
    missing_path,
    read_hugging_face_folder,
    read_vocabulary_file,
    write_vocabulary,
)
from aigc_tf.errors import InputError

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CAPITALS = [f"Z{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]
TOKENS = (*SPECIAL, "the", "fox", "##es", "caf", "##e", "##é", ",")


def one_sentence(error):
    text = str(error.value)
    assert "\n" not in text
    assert text.endswith((".", "?"))
    return text


def test_a_vocabulary_file_may_have_the_line_ends_of_windows_and_a_byte_order_mark(tmp_path):
    for name, content in {
        "plain": "\n".join(TOKENS) + "\n",
        "no_last_line_end": "\n".join(TOKENS),
        "windows": "\r\n".join(TOKENS) + "\r\n",
        "mark": "\ufeff" + "\n".join(TOKENS) + "\n",
    }.items():
        path = tmp_path / name
        path.write_bytes(content.encode())
        assert read_vocabulary_file(path, lowercase=True) == Vocabulary(TOKENS, lowercase=True, strip_accents=True)


def test_a_token_may_be_a_line_separator_of_unicode(tmp_path):
    tokens = [*SPECIAL, "\u2028", "\x85", "a"]
    (tmp_path / "vocab.txt").write_bytes("\n".join(tokens).encode())
    assert read_vocabulary_file(tmp_path / "vocab.txt", lowercase=True).tokens == tuple(tokens)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no tokens"),
        (b"\n", "has no tokens"),
        ("\n".join([*SPECIAL, "a", "", "b"]).encode(), "Line 7 of .* is empty"),
        ("\n".join([*SPECIAL, "a"]).encode() + b"\n\n", "Line 7 of .* is empty"),
        ("\n".join([*SPECIAL, "a", "[PAD]"]).encode(), r"Line 7 of .* repeats the token '\[PAD\]' of line 1"),
        (b"[PAD]\n[UNK]\na\n", r"lacks \[CLS\], \[SEP\]; a WordPiece vocabulary has \[PAD\], "),
        (b"<s>\n</s>\nthe\n", r"lacks \[PAD\], \[UNK\], \[CLS\], \[SEP\]"),
        ("\n".join(SPECIAL).encode() + b"\na\ncaf\xe9\n", "Line 7 of .* is not valid UTF-8"),
        ("\n".join([*SPECIAL, "a\0b"]).encode(), r"Line 6 of .* control character U\+0000"),
        ("\n".join([*SPECIAL, "\x11"]).encode(), r"Line 6 of .* control character U\+0011"),
        ("\n".join([*SPECIAL, "é" * 129]).encode(), "Line 6 of .* longer than the 256 bytes"),
        ("\n".join([*SPECIAL, *CAPITALS, "a"]).encode(), "26 tokens with capital letters, such as 'Za'.* to False"),
    ],
)
def test_a_broken_vocabulary_file_is_refused_in_one_sentence(tmp_path, content, message):
    path = tmp_path / "vocab.txt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        read_vocabulary_file(path, lowercase=True)
    assert str(path) in one_sentence(error)


def test_capital_letters_are_fine_where_text_keeps_its_case_or_they_are_few(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIAL, *CAPITALS]))
    assert read_vocabulary_file(tmp_path / "vocab.txt", lowercase=False).tokens[-1] == "Zz"
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIAL, "The", "[USER]"]))
    assert read_vocabulary_file(tmp_path / "vocab.txt", lowercase=True).tokens[-1] == "[USER]"


def test_a_missing_or_unreadable_file_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match="There is no file") as error:
        read_vocabulary_file(tmp_path / "vocab.txt", lowercase=True)
    one_sentence(error)
    with pytest.raises(InputError, match="Is a directory") as error:
        read_vocabulary_file(tmp_path, lowercase=True)
    one_sentence(error)


def test_a_missing_path_names_the_nearest_name_of_its_folder(tmp_path):
    (tmp_path / "vocab.txt").touch()
    assert "Did you mean 'vocab.txt'?" in str(missing_path(str(tmp_path / "vocabs.txt")))
    assert str(missing_path(str(tmp_path / "zzz"))).endswith("zzz'.")
    assert "the folder " in str(missing_path(str(tmp_path / "no" / "vocab.txt")))


def write_folder(folder, *, tokens=TOKENS, config=None, pipeline=None, added=None):
    folder.mkdir(exist_ok=True)
    if tokens:
        (folder / "vocab.txt").write_bytes("".join(f"{token}\n" for token in tokens).encode())
    for name, content in {
        "tokenizer_config.json": config,
        "tokenizer.json": pipeline,
        "added_tokens.json": added,
    }.items():
        if content is not None:
            (folder / name).write_text(json.dumps(content))
    return folder


def pipeline(tokens=TOKENS, *, lowercase=True, **changes):
    vocabulary = build_vocabulary(tokens, "test", lowercase=lowercase, strip_accents=lowercase)
    content = json.loads(hugging_face_tokenizer(vocabulary).to_str())
    for name, value in changes.items():
        content[name] = {**content[name], **value} if isinstance(value, dict) else value
    return content


def test_a_hugging_face_folder_says_whether_text_is_lower_cased(tmp_path):
    def read(name, *, lowercase=True, **content):
        vocabulary = read_hugging_face_folder(write_folder(tmp_path / name, **content), lowercase=lowercase)
        assert vocabulary.tokens == TOKENS
        return vocabulary.lowercase, vocabulary.strip_accents

    assert read("config", config={"do_lower_case": False}) == (False, False)
    assert read("pipeline", pipeline=pipeline(lowercase=False)) == (False, False)
    # tokenizer_config.json wins, as in transformers.
    assert read("both", config={"do_lower_case": False}, pipeline=pipeline(lowercase=True)) == (False, True)
    assert read("accents", config={"do_lower_case": True, "strip_accents": False}) == (True, False)
    assert read("null", config={"do_lower_case": True, "strip_accents": None}) == (True, True)
    assert read("neither", lowercase=False) == (False, False)
    assert read("neither", lowercase=True) == (True, True)


def test_without_vocab_txt_the_vocabulary_of_tokenizer_json_is_read(tmp_path):
    folder = write_folder(tmp_path / "json", tokens=None, pipeline=pipeline())
    assert holds_word_piece(folder)
    assert read_hugging_face_folder(folder, lowercase=False) == Vocabulary(TOKENS, lowercase=True, strip_accents=True)


@pytest.mark.parametrize("name", ["PreTrainedTokenizerFast", "TokenizersBackend"])
def test_the_classes_that_take_tokenizer_json_as_it_is_are_read(tmp_path, name):
    config = {"tokenizer_class": name, "do_lower_case": True, "strip_accents": None}  # as transformers 5 writes it
    folder = write_folder(tmp_path / "same", tokens=None, config=config, pipeline=pipeline())
    assert read_hugging_face_folder(folder, lowercase=False) == Vocabulary(TOKENS, lowercase=True, strip_accents=True)
    cased = write_folder(tmp_path / "cased", tokens=None, config=config, pipeline=pipeline(lowercase=False))
    # BertTokenizer would be lower-cased here; these classes do not look at do_lower_case.
    assert read_hugging_face_folder(cased, lowercase=True) == Vocabulary(TOKENS, lowercase=False, strip_accents=False)
    null = pipeline(normalizer={"lowercase": True, "strip_accents": None})
    accents = write_folder(tmp_path / "null", tokens=None, config=config, pipeline=null)
    assert read_hugging_face_folder(accents, lowercase=False).strip_accents


def test_a_folder_of_another_kind_of_tokenizer_holds_no_word_piece(tmp_path):
    assert not holds_word_piece(write_folder(tmp_path / "empty", tokens=None))
    assert not holds_word_piece(write_folder(tmp_path / "bpe", tokens=None, pipeline={"model": {"type": "BPE"}}))
    assert not holds_word_piece(write_folder(tmp_path / "keras", tokens=None, pipeline={"class_name": "BertTokenizer"}))
    old = {"model": {"max_input_chars_per_word": 100, "vocab": {}}}
    assert holds_word_piece(write_folder(tmp_path / "old", tokens=None, pipeline=old))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"config": {"tokenizer_class": "BertJapaneseTokenizer"}}, "BertJapaneseTokenizer, which is not BERT's"),
        ({"pipeline": pipeline(model={"type": "BPE"})}, "model of its tokenizer.json is BPE, not WordPiece"),
        ({"pipeline": pipeline(normalizer=None)}, "normalizer of its tokenizer.json is None, not BertNormalizer"),
        ({"pipeline": pipeline(pre_tokenizer={"type": "Whitespace"})}, "pre_tokenizer .* Whitespace"),
        ({"config": {"tokenize_chinese_chars": False}}, "has tokenize_chinese_chars False; only True is supported"),
        ({"config": {"do_basic_tokenize": False}}, "has do_basic_tokenize False"),
        ({"config": {"never_split": ["<b>"]}}, "has never_split"),
        ({"config": {"cls_token": "<s>"}}, r"has cls_token '<s>'; only '\[CLS\]' is supported"),
        ({"config": {"unk_token": {"content": "<unk>"}}}, "has unk_token '<unk>'"),
        ({"pipeline": pipeline(normalizer={"clean_text": False})}, "has clean_text False"),
        ({"pipeline": pipeline(model={"max_input_chars_per_word": 50})}, "has max_input_chars_per_word 50"),
        ({"pipeline": pipeline(model={"continuing_subword_prefix": ""})}, "has continuing_subword_prefix ''"),
        ({"added": {"[E1]": 12}}, r"adds 1 tokens to WordPiece, such as '\[E1\]'"),
        ({"pipeline": pipeline(added_tokens=[{"content": "[E1]"}, {"content": "[PAD]"}])}, r"such as '\[E1\]'"),
        ({"tokens": None, "pipeline": pipeline(model={"vocab": {"a": 0, "b": 2}})}, "without a gap"),
        ({"tokens": None, "pipeline": pipeline(model={"vocab": [["a", 0.1]]})}, "without a gap"),
        ({"tokens": None, "pipeline": pipeline(model={"vocab": {"a": "0"}})}, "without a gap"),
        ({"tokens": None, "pipeline": pipeline(model={"vocab": {"\n": 0}})}, r"control character U\+000A"),
        ({"config": ["x"]}, "is not a JSON object"),
        ({"pipeline": {"model": "WordPiece"}}, "'model' of .* is not a JSON object"),
        ({"tokens": SPECIAL[:3]}, r"lacks \[SEP\]"),
    ],
)
def test_settings_that_would_give_other_ids_are_refused_in_one_sentence(tmp_path, content, message):
    folder = write_folder(tmp_path / "model", **content)
    with pytest.raises(InputError, match=message) as error:
        read_hugging_face_folder(folder, lowercase=True)
    assert str(folder) in one_sentence(error)


def test_broken_json_is_one_sentence(tmp_path):
    folder = write_folder(tmp_path / "model")
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(InputError, match="not valid JSON") as error:
        read_hugging_face_folder(folder, lowercase=True)
    one_sentence(error)


def test_what_is_written_is_read_back_and_loads_in_transformers_library(tmp_path):
    for vocabulary in (
        Vocabulary(TOKENS, lowercase=True, strip_accents=True),
        Vocabulary(TOKENS[:4] + TOKENS[5:], lowercase=True, strip_accents=False),
        Vocabulary(TOKENS, lowercase=False, strip_accents=False),
    ):
        write_vocabulary(vocabulary, tmp_path)
        assert read_hugging_face_folder(tmp_path, lowercase=not vocabulary.lowercase) == vocabulary
        (tmp_path / vocabularies.VOCABULARY_FILE).unlink()
        assert read_hugging_face_folder(tmp_path, lowercase=not vocabulary.lowercase) == vocabulary
    loaded = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert loaded.encode("the foxes,", "café").tokens == [
        "[CLS]",
        "the",
        "fox",
        "##es",
        ",",
        "[SEP]",
        "caf",
        "##é",
        "[SEP]",
    ]
    assert loaded.encode("the", "fox").type_ids == [0, 0, 0, 1, 1]
