"""KerasNLP presets: BERT's WordPiece becomes a vocabulary, anything else goes through KerasNLP's own class."""

import io
import json
from pathlib import Path

import keras_nlp
import numpy as np
import pytest
import requests
import sentencepiece
import tensorflow as tf
from tokenizers import normalizers

from aigc_tf.config import TokenizerConfig
from aigc_tf.data.tokenizers.preset_tokenizers import PresetTokenizer, is_preset_name, load_preset, unknown_preset
from aigc_tf.data.tokenizers.tokenizers import Tokenizer, build_tokenizer, load_tokenizer
from aigc_tf.data.tokenizers.vocabularies import Vocabulary
from aigc_tf.data.tokenizers.wordpiece import WordPiece
from aigc_tf.errors import InputError, RunError
from aigc_tf.serving.gate.op_gate import check_servable

pytestmark = pytest.mark.slow

TINY = dict(num_layers=1, num_heads=1, hidden_dim=4, intermediate_dim=4, max_sequence_length=8)
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
BYTES = [chr(code) for code in (*range(33, 127), *range(161, 173), *range(174, 256))]
BYTES += [chr(256 + index) for index in range(256 - len(BYTES))]  # GPT-2's names of the other bytes


@pytest.fixture(scope="module")
def presets(tmp_path_factory):
    """Folders of presets with tiny random backbones."""
    models = keras_nlp.models
    words = ["<s>", "<pad>", "</s>", "<mask>", *BYTES, "Ġf", "ox", "Ġfox", "<|endoftext|>"]
    byte_pairs = {
        "vocabulary": {word: index for index, word in enumerate(words)},
        "merges": ["Ġ f", "o x", "Ġf ox"],
    }
    pieces = sentence_pieces(unk_id=0, bos_id=1, eos_id=2, pad_id=-1)
    albert = sentence_pieces(
        pad_id=0, unk_id=1, bos_id=2, eos_id=3, unk_piece="[UNK]", bos_piece="[CLS]", eos_piece="[SEP]",
        user_defined_symbols="[MASK]",
    )  # fmt: skip
    t5 = sentence_pieces(pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    word_pieces = [*SPECIAL, "the", "fox", "##es", "cafe"]
    made = {
        "roberta": (models.RobertaTokenizer(**byte_pairs), models.RobertaBackbone, {}),
        "xlm_roberta": (models.XLMRobertaTokenizer(proto=pieces), models.XLMRobertaBackbone, {}),
        "albert": (models.AlbertTokenizer(proto=albert), models.AlbertBackbone, {"embedding_dim": 4}),
        "opt": (models.OPTTokenizer(**byte_pairs), models.OPTBackbone, {}),
        "t5": (models.T5Tokenizer(proto=t5), models.T5Backbone, {}),
        "bert": (models.BertTokenizer(vocabulary=word_pieces, lowercase=True), models.BertBackbone, {}),
        "distil_bert": (models.DistilBertTokenizer(vocabulary=word_pieces), models.DistilBertBackbone, {}),
    }
    folders = {}
    for name, (tokenizer, backbone, arguments) in made.items():
        folders[name] = str(tmp_path_factory.mktemp(name))
        backbone(vocabulary_size=tokenizer.vocabulary_size(), **TINY, **arguments).save_to_preset(folders[name])
        tokenizer.save_to_preset(folders[name])
    return folders


def sentence_pieces(**arguments):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the quick brown fox", "the fox slept", "earth is round"]),
        model_writer=model,
        vocab_size=40,
        hard_vocab_limit=False,
        minloglevel=2,
        **arguments,
    )
    return model.getvalue()


def test_word_piece_presets_become_vocabularies_with_their_case(presets):
    tokens = (*SPECIAL, "the", "fox", "##es", "cafe")
    # Accents go with the case, as in the models the presets were converted from; KerasNLP leaves them on.
    assert load_preset(presets["bert"]) == Vocabulary(tokens, lowercase=True, strip_accents=True)
    assert load_preset(presets["distil_bert"]) == Vocabulary(tokens, lowercase=False, strip_accents=False)


def test_roberta_packs_pairs_with_two_separators(presets):
    tokenizer = Tokenizer(load_preset(presets["roberta"]))
    assert (tokenizer.start_ids, tokenizer.between_ids, tokenizer.end_ids) == ((0,), (2, 2), (2,))
    assert (tokenizer.padding_id, tokenizer.kind, tokenizer.uses_segments) == (1, "keras_nlp", False)
    fox = 4 + 256 + 2
    assert [row.tolist() for row in tokenizer.encode(["fox fox", ""])] == [[4 + BYTES.index("f"), fox - 1, fox], []]
    assert tokenizer.decode([0, 4 + BYTES.index("f"), fox - 1, fox, 2, 1]) == "fox fox"


def test_sentence_piece_presets_know_their_special_tokens(presets):
    albert, roberta = (Tokenizer(load_preset(presets[name])) for name in ("albert", "xlm_roberta"))
    assert (albert.start_ids, albert.between_ids, albert.end_ids, albert.padding_id) == ((2,), (3,), (3,), 0)
    assert albert.uses_segments
    assert (roberta.start_ids, roberta.between_ids, roberta.end_ids, roberta.padding_id) == ((0,), (2, 2), (2,), 1)
    assert not roberta.uses_segments
    assert roberta.decode([*roberta.start_ids, *roberta.encode(["the fox"])[0], *roberta.end_ids]) == "the fox"


@pytest.mark.parametrize("name", ["roberta", "xlm_roberta", "albert"])
def test_packing_agrees_with_the_preprocessor_of_keras_nlp(presets, name):
    tokenizer = Tokenizer(load_preset(presets[name]))
    preprocessor = keras_nlp.models.TextClassifierPreprocessor.from_preset(presets[name], sequence_length=32)
    expected = np.asarray(preprocessor(x=(["the fox"], ["fox"]))["token_ids"])[0]
    first, second = (row.tolist() for row in tokenizer.encode(["the fox", "fox"]))
    packed = [*tokenizer.start_ids, *first, *tokenizer.between_ids, *second, *tokenizer.end_ids]
    assert packed + [tokenizer.padding_id] * (32 - len(packed)) == expected.tolist()


@pytest.mark.parametrize("name", ["roberta", "xlm_roberta", "albert"])
def test_a_text_that_spells_special_tokens_never_becomes_one(presets, name):
    tokenizer = Tokenizer(load_preset(presets[name]))
    special = {*tokenizer.start_ids, *tokenizer.between_ids, *tokenizer.end_ids, tokenizer.padding_id}
    (row,) = tokenizer.encode(["<s> a</s> <pad> </s></s> [CLS] a [SEP] [PAD]"])
    assert not special & set(row.tolist())


@pytest.mark.parametrize("name", ["roberta", "xlm_roberta", "albert"])
def test_a_saved_preset_tokenizer_gives_the_same_ids(presets, tmp_path, name):
    tokenizer = Tokenizer(load_preset(presets[name]))
    texts = ["the fox </s>", "", "naïve 中文 🦊", "a\0b", "half \ud83d"]
    tokenizer.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.sha256() == tokenizer.sha256()
    for row, expected in zip(loaded.encode(texts), tokenizer.encode(texts), strict=True):
        np.testing.assert_array_equal(row, expected)


@pytest.mark.parametrize("name", ["roberta", "opt", "xlm_roberta", "albert"])
def test_the_exported_graph_gives_the_ids_of_prepare_time_and_remembers_no_words(presets, tmp_path, name):
    module = tf.Module()
    module.tokenizer = tokenizer = Tokenizer(load_preset(presets[name]))

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="text")])
    def serve(text):
        ids = tokenizer.tokenize(text)
        return {"ids": ids.values, "lengths": ids.row_lengths()}

    texts = ["the fox </s>", "", "naïve 中文 🦊", "new words: foxen"]
    expected = tokenizer.encode(texts)
    tf.saved_model.save(module, str(tmp_path), signatures=serve)
    check_servable(tmp_path, target="2.19")
    loaded = tf.saved_model.load(str(tmp_path))
    served = loaded.signatures["serving_default"](text=tf.constant([*map(str.encode, texts), b"fox\xff"]))
    np.testing.assert_array_equal(served["ids"][: -served["lengths"][-1]], np.concatenate(expected))
    assert served["ids"].numpy()[-served["lengths"][-1] :].tolist() == tokenizer.encode(["fox"])[0].tolist()


def test_a_hugging_face_folder_of_byte_pairs_is_converted_by_keras_nlp(presets, tmp_path):
    words = ["<s>", "<pad>", "</s>", "<mask>", *BYTES, "Ġf", "ox", "Ġfox"]
    (tmp_path / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\nĠ f\no x\nĠf ox\n")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "roberta"}))
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"type": "BPE"}}))
    tokenizer = build_tokenizer(TokenizerConfig(source=str(tmp_path)), "", list)
    expected = Tokenizer(load_preset(presets["roberta"]))
    assert tokenizer.encode(["fox fox"])[0].tolist() == expected.encode(["fox fox"])[0].tolist()
    assert tokenizer.between_ids == (2, 2)


@pytest.fixture(scope="module")
def albert_folder(presets, tmp_path_factory):
    """A Hugging Face folder of ALBERT, whose pieces are lower-case letters."""
    folder = tmp_path_factory.mktemp("hugging_face_albert")
    content = next(Path(presets["albert"]).rglob("vocabulary.spm")).read_bytes()
    (folder / "spiece.model").write_bytes(content)
    (folder / "config.json").write_text(json.dumps({"model_type": "albert"}))
    return folder


def test_albert_spells_texts_as_transformers_does(albert_folder, presets, tmp_path):
    plain = Tokenizer(load_preset(presets["albert"]))
    settings = albert_folder / "tokenizer_config.json"
    settings.write_text(json.dumps({"tokenizer_class": "AlbertTokenizer"}))  # lower case, without accents
    tokenizer = Tokenizer(load_preset(str(albert_folder)))
    texts = ["THE Quick", "thé  fóx", "ΑΣ", "``fox''"]
    normalizer = normalizers.Sequence(
        [
            normalizers.Replace("``", '"'),
            normalizers.Replace("''", '"'),
            normalizers.NFKD(),
            normalizers.StripAccents(),
            normalizers.Lowercase(),
        ]
    )
    expected = [row.tolist() for row in plain.encode([normalizer.normalize_str(text) for text in texts])]
    assert [row.tolist() for row in tokenizer.encode(texts)] == expected
    assert expected[0] != plain.encode(texts)[0].tolist()
    tokenizer.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.sha256() == tokenizer.sha256() != plain.sha256()
    assert [row.tolist() for row in loaded.encode(texts)] == expected
    settings.write_text(json.dumps({"do_lower_case": False, "keep_accents": True}))
    cased = Tokenizer(load_preset(str(albert_folder)))
    assert [row.tolist() for row in cased.encode(texts[:3])] == [row.tolist() for row in plain.encode(texts[:3])]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer_config.json", {"add_prefix_space": True}, "has add_prefix_space"),
        ("added_tokens.json", {"<new>": 41}, "adds tokens such as '<new>'"),
        ("tokenizer_config.json", [], "not a JSON object"),
    ],
)
def test_settings_of_a_converted_tokenizer_that_change_ids_are_refused(albert_folder, tmp_path, name, content, message):
    for file in albert_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(InputError, match=message) as error:
        build_tokenizer(TokenizerConfig(source=str(tmp_path)), "", list)
    assert "\n" not in str(error.value)


def test_a_tokenizer_of_neither_a_classifier_nor_a_generator_is_refused(presets):
    message = (
        r"no text classifier and no causal language model for the T5Tokenizer of .*AlbertTokenizer.* GPT2Tokenizer"
    )
    with pytest.raises(InputError, match=message):
        load_preset(presets["t5"])


def test_a_tokenizer_of_a_generator_knows_where_texts_end_and_gives_them_back(presets, tmp_path):
    tokenizer = Tokenizer(load_preset(presets["opt"]))
    assert (tokenizer.kind, tokenizer.end_of_text_id, tokenizer.padding_id) == ("keras_nlp", 2, 1)
    rows = tokenizer.encode(["fox fox\n", "中文 </s>"])
    text = tokenizer.detokenize(tf.ragged.constant([[*row, 2] for row in rows], tf.int32))
    assert text.numpy().tolist() == [b"fox fox\n", "中文 </s>".encode()]
    tokenizer.save(tmp_path)
    assert load_tokenizer(tmp_path).sha256() == tokenizer.sha256()


def test_sentence_piece_presets_of_generators_spell_their_pieces():
    names = dict(pad_piece="<pad>", eos_piece="<eos>", bos_piece="<bos>")
    proto = sentence_pieces(pad_id=0, eos_id=1, bos_id=2, unk_id=3, **names)
    tokenizer = Tokenizer(PresetTokenizer(keras_nlp.models.GemmaTokenizer(proto=proto), "here"))
    assert tokenizer.decode_bytes([2, *tokenizer.encode(["the fox"])[0], 1]) == b" the fox"
    assert (tokenizer.start_of_text_id, tokenizer.end_of_text_id) == (2, 1)


@pytest.mark.parametrize("name", ["bert", "roberta", "xlm_roberta"])
def test_a_tokenizer_of_a_classifier_alone_cannot_write_text(presets, name):
    loaded = load_preset(presets[name])
    with pytest.raises(RunError, match="does not keep all of a text"):
        Tokenizer(WordPiece(loaded) if name == "bert" else loaded).piece_bytes()


def test_a_folder_that_is_no_preset_is_one_sentence(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError) as error:
        load_preset(str(tmp_path))
    assert "\n" not in str(error.value)
    (tmp_path / "config.json").write_text('{"model_type": "no_such_model"}')
    with pytest.raises(InputError) as error:
        load_preset(str(tmp_path))
    assert "\n" not in str(error.value)


def test_a_preset_that_cannot_be_fetched_fails_the_run_in_one_sentence(monkeypatch):
    def refuse(*args, **kwargs):
        raise requests.ConnectionError("HTTPSConnectionPool(host='api.kaggle.com', port=443)\nMax retries exceeded")

    monkeypatch.setattr(keras_nlp.tokenizers.Tokenizer, "from_preset", refuse)
    with pytest.raises(
        RunError, match=r"'bert_tiny_en_uncased' is not in this machine's cache .*ConnectionError"
    ) as error:
        load_preset("bert_tiny_en_uncased")
    assert "\n" not in str(error.value)


def test_names_of_presets_are_known_without_a_network():
    assert is_preset_name("bert_tiny_en_uncased")
    assert is_preset_name("hf://user/model")
    assert not is_preset_name("bert_tiny_en_uncase")
    assert "Did you mean 'bert_tiny_en_uncased'?" in str(unknown_preset("bert_tiny_en_uncase"))
    assert "Did you mean 'train'?" in str(unknown_preset("trian"))
    with pytest.raises(InputError, match="no tokenizer; it is not a text model"):
        load_preset("resnet_50_imagenet")


def test_a_changed_class_name_in_a_saved_folder_is_never_imported(presets, tmp_path):
    Tokenizer(load_preset(presets["roberta"])).save(tmp_path)
    info = tmp_path / "aigc_tf_tokenizer.json"
    info.write_text(info.read_text().replace("RobertaTokenizer", "os.system"))
    with pytest.raises(InputError, match=r"has a os\.system, which no text model of KerasNLP .* uses"):
        load_tokenizer(tmp_path)
    assert isinstance(load_preset(presets["roberta"]), PresetTokenizer)
