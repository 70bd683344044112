"""The settings of a network in the config.json of a Hugging Face folder.

An ignored setting would silently give another network. So a table here has every setting of every model type that is
read: it is computed, or the folder is refused unless it has one of some values, or it changes no number of the network.
A warning names settings that are in no table. Names and defaults are those of transformers 4 and 5
(`configuration_*.py`); a setting that config.json lacks has transformers' default, not KerasNLP's.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import logging

from aigc_tf.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelType:
    """The settings of one `model_type`."""

    sizes: tuple[str, ...]
    """Computed, and required in config.json: positive integers."""
    computed: Mapping[str, float | int | None] = dataclasses.field(default_factory=dict)
    """Computed -> transformers' default. Real numbers are in [0, 1), integers not negative."""
    fixed: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
    """Not computed -> the values that it may have, including transformers' default; any other value is refused."""
    unread: frozenset[str] = frozenset()
    """Settings that change no number of the network."""
    names: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """The type's own name of a setting -> the name in this table, which transformers accepts too."""


# For every type. Another value means weights that are not those of the plain network, or another form of network.
_FIXED: Mapping[str, tuple[Any, ...]] = {
    "add_cross_attention": (False,),
    "auto_map": ({},),  # a network with its own code
    "is_encoder_decoder": (False,),
    "per_layer_config": ({},),
    "pruned_heads": ({}, []),
    "quantization_config": ({},),
}
# For every type: who wrote the file, heads (none is read), how outputs are returned, how torch computes.
_UNREAD = frozenset(
    {
        *("architectures", "model_type", "name_or_path", "transformers_version", "torch_dtype", "dtype"),
        *("finetuning_task", "id2label", "label2id", "num_labels", "problem_type", "task_specific_params"),
        *("classifier_dropout", "initializer_range", "tie_word_embeddings", "tie_encoder_decoder", "tokenizer_class"),
        *("bos_token_id", "eos_token_id", "sep_token_id", "pad_token_id", "decoder_start_token_id", "prefix"),
        *("cls_token_id", "mask_token_id", "unk_token_id"),
        *("output_attentions", "output_hidden_states", "output_past", "return_dict", "use_cache", "use_return_dict"),
        *("attn_implementation", "experts_implementation", "chunk_size_feed_forward", "gradient_checkpointing"),
        *("cross_attention_hidden_size", "tf_legacy_loss", "torchscript", "use_bfloat16"),
    }
)
# Settings of generation, which old versions wrote into config.json too; here the experiment sets generation.
_GENERATION = frozenset(
    {
        *("max_length", "min_length", "do_sample", "early_stopping", "num_beams", "num_beam_groups", "temperature"),
        *("diversity_penalty", "top_k", "top_p", "typical_p", "repetition_penalty", "length_penalty", "bad_words_ids"),
        *("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "num_return_sequences", "output_scores"),
        *("return_dict_in_generate", "forced_bos_token_id", "forced_eos_token_id", "remove_invalid_values"),
        *("exponential_decay_length_penalty", "suppress_tokens", "begin_suppress_tokens", "max_new_tokens"),
    }
)
_ENCODER_SIZES = (
    *("vocab_size", "num_hidden_layers", "num_attention_heads", "hidden_size", "intermediate_size"),
    "max_position_embeddings",
)
_ENCODER_FIXED = {
    # BERT and ALBERT of KerasNLP compute GELU by its tanh approximation, the others exactly: 2.5e-4 apart on the
    # outputs of MiniLM. Any other activation is another network.
    "hidden_act": ("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "gelu_python"),
    "position_embedding_type": ("absolute",),
    "is_decoder": (False,),
}
_DROPOUTS = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
# The first files of BERT describe a pooler that no released network has.
_OLD_BERT = frozenset(
    {
        *("directionality", "pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers"),
        *("pooler_size_per_head", "pooler_type"),
    }
)
_ROBERTA = ModelType(
    sizes=_ENCODER_SIZES,
    # Positions begin after the padding id. Only the first token type is used: RoBERTa's tokenizer gives both texts of a
    # pair type 0.
    computed={**_DROPOUTS, "layer_norm_eps": 1e-12, "pad_token_id": 1},
    fixed=_ENCODER_FIXED,
    unread=frozenset({"type_vocab_size", "normalize_embeddings"}),
)
MODEL_TYPES: Mapping[str, ModelType] = {
    "albert": ModelType(
        sizes=(*_ENCODER_SIZES, "embedding_size"),
        computed={
            **{"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "layer_norm_eps": 1e-12},
            **{"num_hidden_groups": 1, "inner_group_num": 1, "type_vocab_size": 2},
        },
        fixed=_ENCODER_FIXED,
        # The last four: the first release wrote them, and its own code did not read them either.
        unread=frozenset(
            {
                *("classifier_dropout_prob", "down_scale_factor", "gap_size", "net_structure_type"),
                *("num_memory_blocks", "layers_to_keep"),
            }
        ),
    ),
    "bert": ModelType(
        sizes=_ENCODER_SIZES,
        computed={**_DROPOUTS, "layer_norm_eps": 1e-12, "type_vocab_size": 2},
        fixed=_ENCODER_FIXED,
        unread=_OLD_BERT,
    ),
    "distilbert": ModelType(
        sizes=_ENCODER_SIZES,
        computed=_DROPOUTS,
        fixed=_ENCODER_FIXED,
        # Sinusoids are in the file as a table, as learned positions are. The epsilon is no setting of DistilBERT's.
        unread=frozenset(
            {"sinusoidal_pos_embds", "qa_dropout", "seq_classif_dropout", "tie_weights_", "layer_norm_eps"}
        ),
        names={
            **{"n_layers": "num_hidden_layers", "n_heads": "num_attention_heads", "dim": "hidden_size"},
            **{"hidden_dim": "intermediate_size", "activation": "hidden_act"},
            **{"dropout": "hidden_dropout_prob", "attention_dropout": "attention_probs_dropout_prob"},
        },
    ),
    "gpt2": ModelType(
        sizes=("vocab_size", "max_position_embeddings", "hidden_size", "num_hidden_layers", "num_attention_heads"),
        computed={"n_inner": None},
        fixed={
            "activation_function": ("gelu_new", "gelu_fast", "gelu_pytorch_tanh"),  # the tanh approximation, all
            "layer_norm_epsilon": (1e-5,),
            "reorder_and_upcast_attn": (False,),
            "scale_attn_by_inverse_layer_idx": (False,),
            "scale_attn_weights": (True,),
        },
        # The dropouts are `model.dropout`. The weights show whether the output matrix is tied.
        unread=frozenset(
            {
                *("n_ctx", "resid_pdrop", "embd_pdrop", "attn_pdrop", "is_decoder", "predict_special_tokens"),
                *("summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels"),
                "summary_first_dropout",
            }
        ),
        names={
            **{"n_positions": "max_position_embeddings", "n_embd": "hidden_size", "n_layer": "num_hidden_layers"},
            "n_head": "num_attention_heads",
        },
    ),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
}


def check_network(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuses a folder whose network differs from the one that is computed here, and warns of unknown settings.

    Args:
        folder: For the messages.
        config: Its config.json, of one of `MODEL_TYPES`.
    Raises:
        InputError: If a setting that is not computed has a value that it may not have.
    """
    kind = config["model_type"]
    table = MODEL_TYPES[kind]
    own_names = _own_names(table)
    settings = _named(table, config)
    for name, values in {**_FIXED, **table.fixed}.items():
        if settings.get(name) not in (None, *values):
            fitting = ", ".join(repr(value) for value in values if value not in ({}, [])) or "none"
            raise InputError(
                f"{folder} has {own_names.get(name, name)} {settings[name]!r}, which gives another network; the {kind} "
                f"that is computed here has {fitting}."
            )
    known = {*table.sizes, *table.computed, *table.fixed, *table.unread, *_FIXED, *_UNREAD, *_GENERATION}
    unknown = [
        f"{name} {value!r}"
        for name, value in sorted(settings.items())
        if name not in known and not name.startswith("_") and value not in (None, False, "", [], {})
    ]
    if unknown:
        logging.warning(
            "%s has settings that are unknown for %s and not computed: %s.", folder, kind, ", ".join(unknown)
        )


def read_settings(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the sizes and the computed settings of a folder, under the names of the table.

    Args:
        folder: For the messages.
        config: Its config.json, of one of `MODEL_TYPES`.
    Raises:
        InputError: If one is missing or out of range.
    """
    table = MODEL_TYPES[config["model_type"]]
    own_names = _own_names(table)
    settings = _named(table, config)
    values: dict[str, Any] = {}
    for name in table.sizes:
        values[name] = settings.get(name)
        if not _is_count(values[name]) or not values[name]:
            said = "lacks" if name not in settings else f"has {settings[name]!r} as"
            own = own_names.get(name, name)
            raise InputError(f"{folder / 'config.json'} {said} {own}; it must be a positive whole number.")
    for name, default in table.computed.items():
        value = default if settings.get(name) is None else settings[name]
        is_real = isinstance(default, float)
        fits = isinstance(value, int | float) and 0 <= value < 1 if is_real else value is None or _is_count(value)
        if not fits:
            wanted = "a number from 0 to below 1" if is_real else "a whole number"
            raise InputError(f"{folder / 'config.json'} has {value!r} as {own_names.get(name, name)}, not {wanted}.")
        values[name] = value
    if values["hidden_size"] % values["num_attention_heads"]:
        raise InputError(
            f"{folder / 'config.json'} has a width of {values['hidden_size']}, which is not a multiple of its "
            f"{values['num_attention_heads']} attention heads."
        )
    return values


def _named(table: ModelType, config: Mapping[str, Any]) -> dict[str, Any]:
    return {table.names.get(name, name): value for name, value in config.items()}


def _own_names(table: ModelType) -> dict[str, str]:
    return {ours: theirs for theirs, ours in table.names.items()}


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
