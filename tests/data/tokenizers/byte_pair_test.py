"""GPT-2's byte pairs: the ids of Hugging Face's `tokenizers`, from any kind of folder, by ops that a server has."""

import itertools
import json
import random

import keras_nlp
import numpy as np
import pytest
import tensorflow as tf
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from aigc_tf.config import TokenizerConfig
from aigc_tf.data.tokenizers.byte_pair import BytePair, split_words
from aigc_tf.data.tokenizers.byte_pair_files import END_OF_TEXT, BytePairs, byte_characters, hugging_face_tokenizer
from aigc_tf.data.tokenizers.character_classes import LETTER, NUMBER, OTHER, SPACE, class_borders
from aigc_tf.data.tokenizers.preset_tokenizers import load_preset
from aigc_tf.data.tokenizers.tokenizers import Tokenizer, build_tokenizer, load_tokenizer
from aigc_tf.errors import InputError
from aigc_tf.serving.gate.op_gate import check_servable, graph_ops

HOSTILE = {
    "empty": "",
    "spaces": "  a b   c    ",
    "spaces before other spaces": "a \n b\n\n c \t\td\u00a0 e  \u3000f\u2003",
    "only spaces": " \n\t \u00a0 ",
    "contractions": "it's we're I'll I'd've don't 'sabc 's'd ''s a 's 'S 'lL y'all'll 'r 'v 'l ' 're",
    "numbers": "a1b22 333²½Ⅳ ٣ 1's",
    "punctuation": "a... !?b-c --'d' ['e'] $f_g",
    "line ends": "a\r\nb\n\n\nc\rd\n",
    "control characters": "\0a\0\x01b\x1f\x7f\x85\u2028c\ufeff",
    "emoji": "good 😀 👩\u200d👩\u200d👧 👍🏽 🇫🇷 ☺️",
    "Chinese": "中文abc漢字,你好。",
    "accents": "café e\u0301 naïve Å ñ",
    "noncharacters": "\ufdd0\uffff\U0010ffff",
    "special tokens": f"a{END_OF_TEXT}b {END_OF_TEXT}",
    "characters for bytes": "Ġa Ċ Ā",
    "long words": "ab" * 5000 + " " + "a" * 5000 + " " + "!" * 5000 + " " * 5000,
    "long Chinese": "中文漢字" * 500,
}
BROKEN = [b"\xff", b"a\xc3", b"\xe2\x96b", b"\xed\xa0\xbd", b"\xf4\x90\x80\x80", b"\xc0\x80", b"\0\x80 's"]


def random_texts(count, seed=0):
    """Texts of all planes of Unicode, and of what the pattern of words looks at."""
    rng = random.Random(seed)
    usual = "aAbsretvmldl'''  \n\t\u00a0\u30001é中!.😀²"
    for _ in range(count):
        weight = rng.choice([0, 0.5, 0.9, 1])
        yield "".join(
            rng.choice(usual)
            if rng.random() < weight
            else chr(rng.choice([rng.randrange(0xD800), rng.randrange(0xE000, 0x110000)]))
            for _ in range(rng.randrange(40))
        )


def learn(texts, size):
    """Byte pairs of Hugging Face's trainer, all special tokens at the end."""
    learned = tokenizers.Tokenizer(models.BPE())
    learned.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=list(byte_characters()), show_progress=False)
    learned.train_from_iterator(texts, trainer)
    model = json.loads(learned.to_str())["model"]
    vocabulary = {**model["vocab"], END_OF_TEXT: len(model["vocab"])}
    return BytePairs(vocabulary, tuple(" ".join(pair) for pair in model["merges"]), "learned")


@pytest.fixture(scope="module")
def found():
    texts = [text for text in HOSTILE.values() if len(text) < 1000]
    return learn([*texts * 3, "the fox jumps over the foxes, and it's the fox's", "aaaaaaaa aaa", "abababab"], 400)


@pytest.fixture(scope="module")
def tokenizer(found):
    return Tokenizer(BytePair(found))


def encode(tokenizer, texts):
    return [row.tolist() for row in tokenizer.encode(texts)]


def theirs(splitter, texts):
    reference = hugging_face_tokenizer(splitter.tokens, splitter.merges, splitter.special_tokens)
    reference.encode_special_tokens = True
    return [row.ids for row in reference.encode_batch(list(texts))]


def test_ids_are_those_of_hugging_face_and_any_text_comes_back(tokenizer):
    texts = [*HOSTILE.values(), *random_texts(3000)]
    rows = encode(tokenizer, texts)
    assert rows == theirs(tokenizer.splitter, texts)
    assert [tokenizer.decode(row) for row in rows] == texts
    assert tokenizer.detokenize(tf.ragged.constant(rows, tf.int32)).numpy().tolist() == [t.encode() for t in texts]
    assert tokenizer.end_of_text_id not in {index for row in rows for index in row}


@pytest.mark.parametrize("alphabet", ["ab", "abcdefgh", "aaaaab"])
def test_long_words_are_merged_as_if_from_the_first_merge_to_the_last(alphabet):
    rng = random.Random(0)
    learned = learn(["".join(rng.choices(alphabet, k=9)) for _ in range(300)], 330)
    splitter = BytePair(learned)
    assert splitter._reach == max(map(len, learned.vocabulary)) < 20
    texts = ["".join(rng.choices(alphabet, k=rng.randrange(2000))) for _ in range(60)]
    texts += ["".join(rng.choice(alphabet) * rng.randrange(60) for _ in range(50)) for _ in range(20)]
    assert encode(Tokenizer(splitter), texts) == theirs(splitter, texts)


def test_merges_in_no_order_are_looked_for_in_whole_words(found):
    shuffled = list(found.merges)
    random.Random(0).shuffle(shuffled)
    assert BytePair(BytePairs(found.vocabulary, tuple(shuffled), "x"))._reach > 2**30


def test_without_merges_ids_are_those_of_bytes(found):
    assert encode(Tokenizer(BytePair(BytePairs(found.vocabulary, (), "x"))), ["aé"])[0] == [
        found.vocabulary[character] for character in ("a", "Ã", "©")
    ]


def test_words_are_those_of_the_pattern():
    pattern = pre_tokenizers.ByteLevel(add_prefix_space=False)
    texts = [*HOSTILE.values(), *random_texts(300, seed=1)]
    words, borders = split_words(tf.constant([text.encode() for text in texts]))
    words, borders = words.numpy().tolist(), borders.numpy().tolist()
    found = [words[start:end] for start, end in itertools.pairwise(borders)]
    cuts = [[span for _, span in pattern.pre_tokenize_str(text)] for text in texts]
    expected = [[text[start:end].encode() for start, end in spans] for text, spans in zip(texts, cuts, strict=True)]
    assert found == expected


@pytest.mark.slow
def test_every_character_of_unicode_is_of_the_class_it_has_in_hugging_face():
    pattern = pre_tokenizers.ByteLevel(add_prefix_space=False)
    borders, classes = class_borders()
    characters = np.array([code for code in range(0x110000) if not 0xD800 <= code < 0xE000])
    mine = classes[np.searchsorted(borders, characters, side="right") - 1]
    theirs = np.full(len(characters), SPACE)
    for prefix, number in (("a", LETTER), ("1", NUMBER), ("!", OTHER)):
        joined = [len(pattern.pre_tokenize_str(prefix + chr(code))) == 1 for code in characters.tolist()]
        theirs[np.array(joined)] = number
    assert [hex(code) for code in characters[mine != theirs]] == []


def test_special_tokens_have_their_places_and_vanish_from_text(tokenizer):
    end = tokenizer.vocabulary_size - 1
    assert (tokenizer.kind, tokenizer.end_of_text_id, tokenizer.padding_id) == ("byte_pair", end, end)
    assert (tokenizer.start_ids, tokenizer.between_ids, tokenizer.end_ids) == ((), (end,), (end,))
    (row,) = encode(tokenizer, ["the fox"])
    assert tokenizer.decode([end, *row, end]) == "the fox"
    assert tokenizer.piece_bytes()[end] == b""
    assert sorted(tokenizer.piece_bytes()[:256]) == [bytes([byte]) for byte in range(256)]


def test_broken_bytes_are_replaced_alike_eagerly_and_in_a_graph(tokenizer):
    rows = tokenizer.tokenize(tf.constant(BROKEN)).to_list()
    assert rows == tf.function(tokenizer.tokenize)(tf.constant(BROKEN)).to_list()
    assert rows == [tokenizer.tokenize(tf.constant([content])).to_list()[0] for content in BROKEN]
    assert rows == encode(tokenizer, [content.decode(errors="replace") for content in BROKEN[:2]]) + rows[2:]


def test_no_text_has_no_ids(tokenizer):
    assert encode(tokenizer, []) == []
    assert encode(tokenizer, ["", ""]) == [[], []]
    assert tokenizer.tokenize(tf.constant([], tf.string)).to_list() == []


def test_a_saved_model_needs_no_op_but_core_ones(tokenizer, tmp_path):
    module = tf.Module()
    module.tokenizer = tokenizer

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="text")])
    def serve(text):
        ids = tokenizer.tokenize(text)
        return {"ids": ids.values, "text": tokenizer.detokenize(ids)}

    tf.saved_model.save(module, str(tmp_path), signatures=serve)
    check_servable(tmp_path, target="2.19")
    assert {op for op in graph_ops(tmp_path) if not hasattr(tf.raw_ops, op)} == set()
    assert not {op for op in graph_ops(tmp_path) if "Table" in op or "Py" in op}
    texts = list(HOSTILE.values())
    served = tf.saved_model.load(str(tmp_path)).signatures["serving_default"](text=tf.constant(texts))
    assert served["ids"].numpy().tolist() == np.concatenate(tokenizer.encode(texts)).tolist()
    assert served["text"].numpy().tolist() == [text.encode() for text in texts]


def test_a_saved_tokenizer_is_loaded_unchanged_and_by_hugging_face(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.sha256() == tokenizer.sha256()
    texts = list(HOSTILE.values())
    assert encode(loaded, texts) == encode(tokenizer, texts)
    reference = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert reference.encode(f"the fox{END_OF_TEXT}").ids[-1] == tokenizer.end_of_text_id
    reference.encode_special_tokens = True
    assert [row.ids for row in reference.encode_batch(texts)] == encode(tokenizer, texts)
    (tmp_path / "merges.txt").write_text("\n".join(tokenizer.splitter.merges[:-1]))
    with pytest.raises(InputError, match="was changed since it was saved"):
        load_tokenizer(tmp_path)
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(InputError, match=r"lacks vocab\.json or merges\.txt; prepare the data again\.$"):
        load_tokenizer(tmp_path)


def build(source):
    return build_tokenizer(TokenizerConfig(source=str(source)), "", list)


def write(folder, found, names=("vocab.json", "merges.txt"), **settings):
    (folder / names[0]).write_text(json.dumps(found.vocabulary))
    (folder / names[1]).write_text("\n".join(["#version: 0.2", *found.merges, ""]))
    for name, content in settings.items():
        (folder / f"{name}.json").write_text(json.dumps(content))


@pytest.mark.parametrize("names", [("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")])
def test_folders_of_transformers_and_of_openai_are_read(tokenizer, found, tmp_path, names):
    write(tmp_path, found, names, config={"model_type": "gpt2"}, tokenizer_config={"tokenizer_class": "GPT2Tokenizer"})
    assert build(tmp_path).sha256() == tokenizer.sha256()


def test_a_folder_with_a_tokenizer_json_alone_is_read(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    for name in ("vocab.json", "merges.txt", "aigc_tf_tokenizer.json"):
        (tmp_path / name).unlink()
    assert build(tmp_path).sha256() == tokenizer.sha256()


def test_a_preset_of_keras_nlp_is_read_without_its_tokenizer(tokenizer, found, tmp_path):
    layer = keras_nlp.models.GPT2Tokenizer(vocabulary=found.vocabulary, merges=list(found.merges))
    size = dict(num_layers=1, num_heads=1, hidden_dim=2, intermediate_dim=2, max_sequence_length=8)
    keras_nlp.models.GPT2Backbone(vocabulary_size=len(found.vocabulary), **size).save_to_preset(tmp_path)
    layer.save_to_preset(tmp_path)
    assert build(tmp_path).sha256() == tokenizer.sha256()
    assert isinstance(load_preset(str(tmp_path)), BytePair)


def test_special_tokens_that_were_added_get_their_ids(found, tmp_path):
    size = len(found.vocabulary)
    added = [{"id": size, "content": "<|pad|>", "special": True}]
    write(tmp_path, found, tokenizer={"added_tokens": added})
    assert build(tmp_path).vocabulary_size == size + 1
    assert build(tmp_path).decode([size]) == ""


def changed(found, **changes):
    return BytePairs(**{"vocabulary": found.vocabulary, "merges": found.merges, "source": "here", **changes})


def test_byte_pairs_that_do_not_fit_together_are_one_sentence(found):
    merges = (*found.merges, "x yz")
    with pytest.raises(InputError, match=rf"Merge {len(merges)} of here, 'x yz', does not fit its vocabulary"):
        BytePair(changed(found, merges=merges))
    without_end = {token: index for token, index in found.vocabulary.items() if token != END_OF_TEXT}
    with pytest.raises(InputError, match=r"of here lacks '<\|endoftext\|>'; GPT-2's has a token for each byte"):
        BytePair(changed(found, vocabulary=without_end))
    for index in (len(found.vocabulary) + 1, 0, "1"):
        with pytest.raises(InputError, match=r"of here must map tokens to the ids 0, 1, 2, \.\.\. without a gap"):
            BytePair(changed(found, vocabulary={**found.vocabulary, "more": index}))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tokenizer_config": {"add_prefix_space": True}}, "has add_prefix_space, which changes texts"),
        ({"tokenizer": {"normalizer": {"type": "NFC"}}}, "does not split text as GPT-2 does"),
        ({"tokenizer": {"pre_tokenizer": {"type": "Sequence"}}}, r"its tokenizer\.json has \('type', 'Sequence'\)"),
        ({"added_tokens": {"<extra>": 400}}, "adds tokens such as '<extra>', which only transformers can find"),
        ({"tokenizer_config": []}, "is not a JSON object"),
        ({"vocab": []}, "is not a JSON object of tokens and ids"),
        ({"tokenizer_config": {"tokenizer_class": "CLIPTokenizer"}}, "holds no WordPiece tokenizer, no byte pairs"),
    ],
)
def test_a_folder_that_splits_otherwise_is_one_sentence(found, tmp_path, settings, message):
    write(tmp_path, found, **settings)
    with pytest.raises(InputError, match=message) as error:
        build(tmp_path)
    assert "\n" not in str(error.value)


def test_memory_goes_with_all_of_the_text_not_with_the_longest_times_their_number(tokenizer):
    texts = ["fox"] * 4096 + ["a" * 1_000_000, "the fox " * 100_000]  # a row for each as long as the longest: 16 GB
    rows = tokenizer.tokenize(tf.constant(texts))
    assert tokenizer.detokenize(rows).numpy().tolist() == [text.encode() for text in texts]
