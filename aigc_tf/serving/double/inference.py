"""The calls that both protocols make to a model: predict, classify, regress, its signatures and its state.

Messages and codes of errors are those of TensorFlow Serving (predict_util.cc, classifier.cc, regressor.cc).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2

from aigc_tf.serving.double.loaded_version import NO_TIMEOUT, LoadedVersion
from aigc_tf.serving.double.served_models import Models, ModelSpec
from aigc_tf.serving.stand_in.answering import DEFAULT_SIGNATURE, check_names, wanted_outputs
from aigc_tf.serving.stand_in.status import CODES, StatusError, invalid
from aigc_tf.serving.stand_in.tensors import NUMBERS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """Outputs of a signature, and the model, version and signature that gave them."""

    version: LoadedVersion
    signature: str
    outputs: dict[str, np.ndarray]


def predict(
    models: Models,
    spec: ModelSpec,
    inputs: Mapping[str, np.ndarray],
    *,
    output_filter: Sequence[str] = (),
    timeout: float = NO_TIMEOUT,
) -> Answer:
    """Runs any signature.

    Raises:
        StatusError: As the server raises it.
    """
    name = spec.signature or DEFAULT_SIGNATURE
    with models.using(spec) as version:
        if name not in version.signatures:
            raise StatusError("FAILED_PRECONDITION", f'Serving signature key "{name}" not found.')
        signature = version.signatures[name]
        check_names({key: info["tensor"] for key, info in signature["inputs"].items()}, inputs)
        outputs = wanted_outputs(list(signature["outputs"]), list(output_filter))
        return Answer(version=version, signature=name, outputs=version.run(name, inputs, outputs, timeout=timeout))


def classify(models: Models, spec: ModelSpec, examples: Sequence[bytes], *, timeout: float = NO_TIMEOUT) -> Answer:
    """Runs a signature from serialized tf.Examples to `classes` (B, C) strings and `scores` (B, C) float32, or one.

    Raises:
        StatusError: As the server raises it.
    """
    with models.using(spec) as version:
        return _classify(version, _signature_of(version, spec), examples, timeout)


def _classify(version: LoadedVersion, name: str, examples: Sequence[bytes], timeout: float) -> Answer:
    signature = version.signatures[name]
    if len(signature["inputs"]) != 1:
        raise invalid("Expected one input Tensor.")
    if len(signature["outputs"]) not in (1, 2):
        raise invalid(f"Expected one or two output Tensors, found {len(signature['outputs'])}")
    if "inputs" not in signature["inputs"]:
        raise invalid(f"No classification inputs found in SignatureDef: {name}")
    outputs = [key for key in ("classes", "scores") if key in signature["outputs"]]
    if not outputs:
        raise invalid(
            'Expected classification signature outputs to contain at least one of "classes" or "scores". '
            f"Signature was: {name}"
        )
    found = _run_examples(version, name, examples, outputs, timeout)
    for key, kind in (("classes", "DT_STRING"), ("scores", "DT_FLOAT")):
        if key in found:
            _check_columns(found[key], key, kind, len(examples))
    if len({value.shape[1] for value in found.values()}) > 1:
        sizes = " vs. ".join(str(value.shape[1]) for value in found.values())
        raise invalid(f"Tensors class and score should match in dim_size(1). Got {sizes}")
    return Answer(version=version, signature=name, outputs=found)


def regress(models: Models, spec: ModelSpec, examples: Sequence[bytes], *, timeout: float = NO_TIMEOUT) -> Answer:
    """Runs a signature from serialized tf.Examples to `outputs`, (B,) or (B, 1) float32.

    Raises:
        StatusError: As the server raises it.
    """
    with models.using(spec) as version:
        return _regress(version, _signature_of(version, spec), examples, timeout)


def _regress(version: LoadedVersion, name: str, examples: Sequence[bytes], timeout: float) -> Answer:
    signature = version.signatures[name]
    for kind in ("input", "output"):
        if len(signature[f"{kind}s"]) != 1:
            raise invalid(f"Expected one {kind} Tensor.")
        if f"{kind}s" not in signature[f"{kind}s"]:
            raise invalid(f"No regression {kind}s found in SignatureDef: {name}")
    found = _run_examples(version, name, examples, ["outputs"], timeout)["outputs"]
    if found.ndim != 1 and not (found.ndim == 2 and found.shape[1] == 1):
        raise invalid(
            f"Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got {_shape(found)}"
        )
    if len(found) != len(examples):
        raise invalid(f"Input batch size did not match output batch size: {len(examples)} vs. {len(found)}")
    if found.dtype != np.float32:
        raise invalid(f"Expected output Tensor of DT_FLOAT.  Got: {_dtype_name(found)}")
    return Answer(version=version, signature=name, outputs={"outputs": found.reshape(-1)})


def _signature_of(version: LoadedVersion, spec: ModelSpec) -> str:
    name = spec.signature or DEFAULT_SIGNATURE
    if name not in version.signatures:
        raise invalid(f"No signature was found with the name: {name}")
    return name


def _run_examples(
    version: LoadedVersion, name: str, examples: Sequence[bytes], outputs: Sequence[str], timeout: float
) -> dict[str, np.ndarray]:
    if not examples:
        raise invalid("Input is empty.")
    rows = np.empty(len(examples), object)
    rows[:] = list(examples)
    return version.run(name, {"inputs": rows}, outputs, timeout=timeout)


def _check_columns(value: np.ndarray, key: str, kind: str, num_examples: int) -> None:
    if value.ndim != 2:
        raise invalid(f"Expected Tensor shape: [batch_size num_classes] but got {_shape(value)}")
    if _dtype_name(value) != kind:
        raise invalid(f"Expected {key} Tensor of {kind}. Got: {_dtype_name(value)}")
    if len(value) != num_examples:
        raise invalid(f"Expected {key} output batch size of {num_examples}. Got: {len(value)}")


def _shape(value: np.ndarray) -> str:
    return f"[{','.join(map(str, value.shape))}]"


def _dtype_name(value: np.ndarray) -> str:
    names = {"object": "DT_STRING", "float32": "DT_FLOAT", "float64": "DT_DOUBLE", "float16": "DT_HALF"}
    return names.get(value.dtype.name, f"DT_{value.dtype.name.upper()}")


def describe_signatures(models: Models, spec: ModelSpec) -> get_model_metadata_pb2.GetModelMetadataResponse:
    """Returns the signatures of a version.

    Raises:
        StatusError: If there is no such version.
    """
    version = models.find(spec)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    for name, found in version.signatures.items():
        signature = signatures.signature_def[name]
        signature.method_name = found["method"]
        for key in ("inputs", "outputs"):
            for alias, info in found[key].items():
                _fill_info(getattr(signature, key)[alias], info)
    response = get_model_metadata_pb2.GetModelMetadataResponse()
    response.model_spec.name, response.model_spec.version.value = version.name, version.number
    response.metadata["signature_def"].Pack(signatures)
    return response


def _fill_info(message: Any, info: Mapping[str, Any]) -> None:
    message.name, message.dtype = info["tensor"], NUMBERS[info["dtype"]]
    if info["shape"] is None:
        message.tensor_shape.unknown_rank = True
    for size in info["shape"] or ():
        message.tensor_shape.dim.add(size=size)


def describe_states(models: Models, spec: ModelSpec) -> get_model_status_pb2.GetModelStatusResponse:
    """Returns the states of all versions, or of the requested one; labels are ignored.

    Raises:
        StatusError: If there are no such versions.
    """
    states = models.states(spec.name)
    if spec.version is not None:
        if spec.version not in states:
            raise StatusError("NOT_FOUND", f"Could not find version {spec.version} of model {spec.name}")
        states = {spec.version: states[spec.version]}
    elif not states:
        raise StatusError("NOT_FOUND", f"Could not find any versions of model {spec.name}")
    response = get_model_status_pb2.GetModelStatusResponse()
    for number, (state, error) in sorted(states.items(), reverse=True):
        status = response.model_version_status.add(version=number)
        status.state = get_model_status_pb2.ModelVersionStatus.State.Value(state)
        status.status.error_code = CODES.index(error.code) if error else 0
        status.status.error_message = error.message if error else ""
    return response
