"""GPT-2's weights under other names: Hugging Face's, with the same shapes, and KerasNLP's, with other shapes.

Shape letters: D width, H heads, E = D / H.
"""

from collections.abc import Mapping

import numpy as np

Weights = dict[str, np.ndarray]

_HUGGING_FACE = {
    "attention_norm_scale": "ln_1.weight",
    "attention_norm_offset": "ln_1.bias",
    "attention_inputs_kernel": "attn.c_attn.weight",
    "attention_inputs_bias": "attn.c_attn.bias",
    "attention_output_kernel": "attn.c_proj.weight",
    "attention_output_bias": "attn.c_proj.bias",
    "feed_forward_norm_scale": "ln_2.weight",
    "feed_forward_norm_offset": "ln_2.bias",
    "feed_forward_input_kernel": "mlp.c_fc.weight",
    "feed_forward_input_bias": "mlp.c_fc.bias",
    "feed_forward_output_kernel": "mlp.c_proj.weight",
    "feed_forward_output_bias": "mlp.c_proj.bias",
}
_KERAS_NLP = {
    "attention_norm_scale": "self_attention_layer_norm/gamma",
    "attention_norm_offset": "self_attention_layer_norm/beta",
    "attention_output_kernel": "self_attention/attention_output/kernel",
    "attention_output_bias": "self_attention/attention_output/bias",
    "feed_forward_norm_scale": "feedforward_layer_norm/gamma",
    "feed_forward_norm_offset": "feedforward_layer_norm/beta",
    "feed_forward_input_kernel": "feedforward_intermediate_dense/kernel",
    "feed_forward_input_bias": "feedforward_intermediate_dense/bias",
    "feed_forward_output_kernel": "feedforward_output_dense/kernel",
    "feed_forward_output_bias": "feedforward_output_dense/bias",
}
_PARTS = ("query", "key", "value")


def hugging_face_names(num_layers: int) -> dict[str, str]:
    """Returns `{our path: the name of Hugging Face's GPT2Model}`; the arrays are the same."""
    names = {"embeddings/tokens": "wte.weight", "embeddings/positions": "wpe.weight"}
    for index in range(num_layers):
        names |= {f"block_{index}/{ours}": f"h.{index}.{theirs}" for ours, theirs in _HUGGING_FACE.items()}
    return names | {"final_norm/norm_scale": "ln_f.weight", "final_norm/norm_offset": "ln_f.bias"}


def from_keras_nlp(weights: Mapping[str, np.ndarray], *, num_layers: int) -> Weights:
    """Returns our weights from those of a `GPT2Backbone`, by path; queries, keys and values become one matrix."""
    ours = {path: weights[theirs] for path, theirs in _keras_nlp_names(num_layers).items()}
    for index in range(num_layers):
        parts = [f"transformer_layer_{index}/self_attention/{part}" for part in _PARTS]
        width = weights["layer_norm/gamma"].shape[0]
        kernels = [weights[f"{part}/kernel"].reshape(width, width) for part in parts]  # from (D, H, E)
        biases = [weights[f"{part}/bias"].reshape(width) for part in parts]  # from (H, E)
        output = ours[f"block_{index}/attention_output_kernel"]  # (H, E, D)
        ours |= {
            f"block_{index}/attention_inputs_kernel": np.concatenate(kernels, axis=1),
            f"block_{index}/attention_inputs_bias": np.concatenate(biases),
            f"block_{index}/attention_output_kernel": output.reshape(width, width),
        }
    return ours


def to_keras_nlp(weights: Mapping[str, np.ndarray], *, num_layers: int, num_heads: int) -> Weights:
    """Returns the weights of a `GPT2Backbone` from ours, by path."""
    theirs = {name: weights[path] for path, name in _keras_nlp_names(num_layers).items()}
    for index in range(num_layers):
        kernels = np.split(weights[f"block_{index}/attention_inputs_kernel"], 3, axis=1)
        biases = np.split(weights[f"block_{index}/attention_inputs_bias"], 3)
        layer = f"transformer_layer_{index}/self_attention"
        for part, kernel, bias in zip(_PARTS, kernels, biases, strict=True):
            theirs[f"{layer}/{part}/kernel"] = kernel.reshape(len(kernel), num_heads, -1)
            theirs[f"{layer}/{part}/bias"] = bias.reshape(num_heads, -1)
        output = theirs[f"{layer}/attention_output/kernel"]
        theirs[f"{layer}/attention_output/kernel"] = output.reshape(num_heads, -1, output.shape[-1])
    return theirs


def _keras_nlp_names(num_layers: int) -> dict[str, str]:
    names = {"embeddings/tokens": "token_embedding/embeddings", "embeddings/positions": "position_embedding/embeddings"}
    for index in range(num_layers):
        names |= {f"block_{index}/{ours}": f"transformer_layer_{index}/{theirs}" for ours, theirs in _KERAS_NLP.items()}
    return names | {"final_norm/norm_scale": "layer_norm/gamma", "final_norm/norm_offset": "layer_norm/beta"}
