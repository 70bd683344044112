"""Answers one request of a line of JSON, with the messages of TensorFlow Serving's RunPredict (predict_util.cc)."""

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from aigc_tf.serving.stand_in.c_api import Model
from aigc_tf.serving.stand_in.status import StatusError, invalid
from aigc_tf.serving.stand_in.tensors import tensor_from_bytes, tensor_from_json, tensor_to_bytes, tensor_to_json

DEFAULT_SIGNATURE = "serving_default"
_KEYS = ("signature_name", "inputs", "tensors", "output_filter")


def answer_line(model: Model, line: bytes) -> dict[str, Any]:
    """Returns the reply to a line; errors of the request are in the reply."""
    number = None
    try:
        request = _parse(line)
        number = request.pop("id", None)
        return {"id": number, **answer_request(model, request)}
    except StatusError as error:
        return {"id": number, "error": error.message, "code": error.code}
    except (RecursionError, MemoryError) as error:
        return {
            "id": number,
            "error": f"The request is too large: {type(error).__name__}",
            "code": "RESOURCE_EXHAUSTED",
        }


def answer_request(model: Model, request: Mapping[str, Any]) -> dict[str, Any]:
    """Runs a signature.

    Args:
        model: The loaded model.
        request: `signature_name`, by default serving_default; by name `inputs`, as nested lists, or `tensors`, as
            bytes; optionally `output_filter`, the names of the outputs wanted.
    Returns:
        `outputs` by name, or `tensors` if the request has `tensors`, and the `seconds` that TensorFlow took.
    Raises:
        StatusError: If the request does not fit, or TensorFlow fails.
    """
    unknown = sorted(set(request) - set(_KEYS))
    if unknown:
        raise invalid(f"A request has the keys id, {', '.join(_KEYS)}; received {', '.join(map(repr, unknown))}.")
    name = request.get("signature_name") or DEFAULT_SIGNATURE
    if not isinstance(name, str):
        raise invalid("'signature_name' key must be a string value.")
    if name not in model.signatures:
        raise StatusError("FAILED_PRECONDITION", f'Serving signature key "{name}" not found.')
    signature = model.signatures[name]
    kind = "tensors" if "tensors" in request else "inputs"
    inputs = request.get(kind, {})
    if not isinstance(inputs, dict) or {"tensors", "inputs"} <= request.keys():
        raise invalid("One of 'inputs' and 'tensors' must be an object that maps names to values.")
    check_names({key: info.tensor for key, info in signature.inputs.items()}, inputs)
    outputs = wanted_outputs(list(signature.outputs), request.get("output_filter") or [])
    if kind == "tensors":
        fed = {key: tensor_from_bytes(value) for key, value in inputs.items()}
    else:
        fed = {key: tensor_from_json(inputs[key], info.dtype) for key, info in signature.inputs.items()}
    started = time.perf_counter()
    found = model.run(signature, fed, outputs)
    seconds = time.perf_counter() - started
    if kind == "tensors":
        return {"tensors": {key: tensor_to_bytes(tensor) for key, tensor in found.items()}, "seconds": seconds}
    return {"outputs": {key: tensor_to_json(tensor) for key, tensor in found.items()}, "seconds": seconds}


def _parse(line: bytes) -> dict[str, Any]:
    try:
        request = json.loads(line)
    except ValueError as error:  # also for bytes that are not UTF-8
        raise invalid(f"JSON Parse error: {error}") from None
    if not isinstance(request, dict):
        raise invalid("JSON Value: a request is an object")
    return request


def check_names(expected: Mapping[str, str], given: Iterable[str]) -> None:
    """Checks that a request has the inputs of a signature.

    Args:
        expected: Tensor of each input, by name.
        given: Names in the request.
    Raises:
        StatusError: If it does not.
    """
    given, names = sorted(given), sorted(expected)
    extra, missing = sorted(set(given) - set(names)), sorted(set(names) - set(given))
    if len(given) != len(names):
        raise invalid(
            f"input size does not match signature: {len(given)}!={len(names)} len({{{','.join(given)}}}) "
            f"!= len({{{','.join(names)}}}). Sent extra: {{{','.join(extra)}}}. "
            f"Missing but required: {{{','.join(missing)}}}."
        )
    if missing:
        raise invalid(
            f"Signature input alias: {missing[0]}(feed name: {expected[missing[0]]}) not found in request and no "
            f"default value provided. Inputs expected to be in the request {{{','.join(given)}}}, or default input "
            "alias set: "
        )


def wanted_outputs(outputs: Sequence[str], output_filter: Any) -> list[str]:
    """Returns the names in `output_filter`, or all outputs of a signature if it is empty.

    Raises:
        StatusError: If a name is not an output, or is repeated.
    """
    if not isinstance(output_filter, list) or not all(isinstance(name, str) for name in output_filter):
        raise invalid("'output_filter' must be a list of names.")
    for number, name in enumerate(output_filter):
        if name not in outputs:
            raise invalid(
                f"output tensor alias not found in signature: {name} Outputs expected to be in the set "
                f"{{{','.join(outputs)}}}."
            )
        if name in output_filter[:number]:
            raise invalid(f"duplicate output tensor alias: {name}")
    return output_filter or list(outputs)
