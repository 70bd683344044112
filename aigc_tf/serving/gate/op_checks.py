"""Checks for ops that a stock server lacks, does not run, or should not run."""

import re
from collections.abc import Callable, Iterator
from typing import Any

from aigc_tf.serving.gate.findings import REFUSED, WARNED, Finding
from aigc_tf.serving.gate.saved_model_graph import Place, SavedGraph
from aigc_tf.serving.gate.saved_model_protos import types_pb2
from aigc_tf.serving.gate.server_ops import ServerOps

_COMPILED = "_XlaMustCompile"
_XLA = re.compile(r"_?Xla")
_PYTHON = frozenset({"PyFunc", "PyFuncStateless", "EagerPyFunc", "NumpyFunction"})
_REWRITTEN = frozenset({"AccumulateNV2"})  # it has no kernel on any device, but TensorFlow replaces it before it runs
_TABLE_WRITE = re.compile(r"LookupTable(Insert|Import)(V2)?")
_VARIABLE_WRITE = re.compile(
    r"Assign((Add|Sub)?VariableOp|Add|Sub)?|Scatter(Nd)?(Add|Sub|Mul|Div|Min|Max|Update)"
    r"|Resource(Scatter|Apply|SparseApply|StridedSliceAssign|CountUpTo)\w*|RngSkip|RngReadAndSkip"
)
_RANDOM = re.compile(
    r"Random(Uniform(Int)?|StandardNormal|Shuffle|Gamma|Poisson(V2)?|Crop)|(Parameterized)?TruncatedNormal|Multinomial"
    r"|\w*CandidateSampler|Stateful(UniformInt|UniformFullInt|Uniform|StandardNormal(V2)?|TruncatedNormal"
    r"|RandomBinomial)|NonDeterministicInts"
)
# Ops that open files, and which of their inputs names the file.
_FILE_INPUT = {
    "FixedLengthRecordDataset": 0,
    "FixedLengthRecordDatasetV2": 0,
    "InitializeTableFromTextFile": 1,
    "InitializeTableFromTextFileV2": 1,
    "LoadDataset": 0,
    "LoadDatasetV2": 0,
    "MatchingFiles": 0,
    "MatchingFilesDataset": 0,
    "ReadFile": 0,
    "TFRecordDataset": 0,
    "TFRecordDatasetV2": 0,
    "TextLineDataset": 0,
    "WriteFile": 0,
}
_ABSOLUTE_PATH = re.compile(rb"(/[^/\0\n]+){2,}/?|[A-Za-z]:\\[^\0\n]+|(gs|s3|hdfs|file|cns)://[^\0\n]+")


def check_ops(graph: SavedGraph, server: ServerOps) -> Iterator[Finding]:
    """Yields the problems of a graph's ops on a server."""
    yield from _unknown(graph, server)
    yield from _newer_attributes(graph, server)
    yield from _compiled_functions(graph)
    yield from _ops_of(
        graph,
        lambda op: op in server.ops and bool(_XLA.match(op)),
        kind="XLA op",
        why='XLA is switched off in a stock server, which answers a request with "XLA compilation disabled".',
        advice="Use an op of TensorFlow instead. KerasNLP's generate() and keras.ops.slice_update use XLA ops.",
    )
    yield from _ops_of(
        graph,
        lambda op: op in _PYTHON,
        kind="Python op",
        why="It calls a Python function of the process that built the graph; a server has no Python.",
        advice="Write the function in TensorFlow ops: no py_function, numpy_function or from_generator.",
    )
    yield from _no_kernel(graph, server)
    yield from _state(graph)
    yield from _random(graph)
    yield from _files(graph)


def _by_op(graph: SavedGraph, wanted: Callable[[str], bool]) -> dict[str, list[tuple[Place, Any]]]:
    """Returns the nodes of the wanted ops, in the order of the ops' names."""
    found: dict[str, list[tuple[Place, Any]]] = {}
    for place, node in graph.nodes:
        if wanted(node.op):
            found.setdefault(node.op, []).append((place, node))
    return dict(sorted(found.items()))


def _places(found: list[tuple[Place, Any]]) -> tuple[str, ...]:
    return tuple(str(place) for place, _ in sorted(found, key=lambda one: not one[0].signatures))


def _is_asked(found: list[tuple[Place, Any]]) -> bool:
    return any(place.signatures for place, _ in found)


def _ops_of(graph: SavedGraph, wanted: Callable[[str], bool], *, kind: str, why: str, advice: str) -> Iterator[Finding]:
    """Yields ops that fail when they run: refused if a signature runs one."""
    for op, found in _by_op(graph, wanted).items():
        grade = REFUSED if _is_asked(found) else WARNED
        yield Finding(grade=grade, what=f"{kind} {op}", where=_places(found), why=why, advice=advice)


def _unknown(graph: SavedGraph, server: ServerOps) -> Iterator[Finding]:
    """Yields unknown ops. One anywhere, even in an unused function, prevents the server from loading the model."""
    functions = {function.signature.name for _, function in graph.functions}
    known = server.ops.keys() | functions
    for op, found in _by_op(graph, lambda op: op not in known and op not in _PYTHON).items():
        if op in server.lacking:
            package = server.lacking[op]
            why = f"This server links {package} {server.versions[package]}, which does not contain it yet."
            advice = "Serve it with a newer TensorFlow Serving, or export it without this op"
            advice += ": KerasNLP's preprocessor combines its tokens with it." if "RoundRobin" in op else "."
        else:
            linked = ", ".join(f"{package} {version}" for package, version in server.versions.items())
            why = f"It is in none of the packages that this server links ({linked})."
            advice = "Export it without this op, or build a TensorFlow Serving that links its library."
        why += f" Loading fails: Op type not registered '{op}'."
        yield Finding(
            grade=REFUSED, what=f"op {op} is unknown to this server", where=_places(found), why=why, advice=advice
        )


def _newer_attributes(graph: SavedGraph, server: ServerOps) -> Iterator[Finding]:
    version = server.versions["tensorflow-cpu"]
    found: dict[str, list[tuple[Place, Any]]] = {}
    for place, node in graph.nodes:
        for name, value in node.attr.items():
            if name.startswith("_") or node.op not in server.ops:
                continue
            if name not in server.ops[node.op]:
                found.setdefault(f"attribute {name} of op {node.op}", []).append((place, node))
            elif value.type and value.type in server.lacking_types.get(node.op, {}).get(name, ()):
                data_type = types_pb2.DataType.Name(value.type)
                found.setdefault(f"{data_type} as {name} of op {node.op}", []).append((place, node))
    for what, places in sorted(found.items()):
        yield Finding(
            grade=REFUSED if _is_asked(places) else WARNED,
            what=f"{what} is unknown to this server",
            where=_places(places),
            why=f"This server's TensorFlow is {version}, which does not know it and fails when the node runs.",
            advice="Export it with that version of TensorFlow, or serve it with a newer TensorFlow Serving.",
        )


def _compiled_functions(graph: SavedGraph) -> Iterator[Finding]:
    marked = [one for one in (*graph.functions, *graph.nodes) if _COMPILED in one[1].attr and one[1].attr[_COMPILED].b]
    if marked:
        yield Finding(
            grade=REFUSED if _is_asked(marked) else WARNED,
            what="a function that XLA must compile",
            where=_places(marked),
            why='XLA is switched off in a stock server, which answers a request with "XLA compilation disabled".',
            advice="Export it without jit_compile=True.",
        )


def _no_kernel(graph: SavedGraph, server: ServerOps) -> Iterator[Finding]:
    def wanted(op: str) -> bool:
        return op in server.without_cpu_kernel - _PYTHON - _REWRITTEN and not _XLA.match(op)

    for op, found in _by_op(graph, wanted).items():
        if _is_asked(found):
            yield Finding(
                grade=WARNED,
                what=f"op {op} does not run on a CPU",
                where=_places(found),
                why="TensorFlow has no CPU kernel for it, so a server without the right device cannot answer.",
                advice="Export from a machine without GPU or TPU, or serve it on the device that it was built for.",
            )


def _state(graph: SavedGraph) -> Iterator[Finding]:
    tables = _by_op(graph, lambda op: bool(_TABLE_WRITE.fullmatch(op)))
    for op, found in tables.items():
        if _is_asked(found):
            yield Finding(
                grade=REFUSED,
                what=f"a table that requests write to ({op})",
                where=_places([one for one in found if one[0].signatures]),
                why="It grows with every new key until the server's memory is used up, and all clients share it.",
                advice="Look up in a table that is filled when the model is loaded. KerasNLP's byte-pair tokenizer has "
                "such a cache: serve token ids, or a tokenizer without one.",
            )
    for op, found in _by_op(graph, lambda op: bool(_VARIABLE_WRITE.fullmatch(op))).items():
        if _is_asked(found):
            yield Finding(
                grade=WARNED,
                what=f"requests change a variable ({op})",
                where=_places([one for one in found if one[0].signatures]),
                why="An answer then depends on the requests before it, and a restarted server answers differently.",
                advice="Call the model with training=False, and take the seed of random draws as an input.",
            )


def _random(graph: SavedGraph) -> Iterator[Finding]:
    for op, found in _by_op(graph, lambda op: bool(_RANDOM.fullmatch(op))).items():
        asked = [one for one in found if one[0].signatures]
        if asked:
            fixed = any(name in node.attr and node.attr[name].i for _, node in asked for name in ("seed", "seed2"))
            seeded = "Its seed is in the graph: the server repeats the same draws after each start."
            unseeded = "It draws from the server's own state: no answer can be reproduced."
            yield Finding(
                grade=WARNED,
                what=f"random op {op}",
                where=_places(asked),
                why=seeded if fixed else unseeded,
                advice="Take the seed as an input (tf.random.stateless_*), or call the model with training=False.",
            )


def _files(graph: SavedGraph) -> Iterator[Finding]:
    constants = {
        (place.function, node.name): value for place, node in graph.nodes if (value := _text_constant(node)) is not None
    }
    sources = {(place.function, node.name): node.input[0] for place, node in graph.nodes if node.op == "Identity"}
    opened: dict[str, list[tuple[Place, Any]]] = {}
    used: set[tuple[str, str]] = set()
    asked: list[tuple[Place, Any]] = []
    for place, node in graph.nodes:
        if node.op not in _FILE_INPUT or len(node.input) <= _FILE_INPUT[node.op]:
            continue
        name = node.input[_FILE_INPUT[node.op]].partition(":")[0]
        while (place.function, name) in sources:
            name = sources[place.function, name].partition(":")[0]
        if (place.function, name) in constants:
            used.add((place.function, name))
            path = constants[place.function, name].decode("utf-8", "replace")
            opened.setdefault(path, []).append((place, node))
        elif place.signatures:
            asked.append((place, node))
    for path, found in opened.items():
        yield Finding(
            grade=REFUSED,
            what=f"the file {path!r} is opened by its path",
            where=_places(found),
            why="The file belongs to the machine that exported the model; the server has none or another one.",
            advice="Make it an asset, which travels with the model: tf.saved_model.Asset, held by the saved module.",
        )
    if asked:
        yield Finding(
            grade=WARNED,
            what="requests open files of the server",
            where=_places(asked),
            why="A client may be able to read or write what it should not.",
            advice="Read files on the client and send their content, unless the paths are those of assets.",
        )
    yield from _paths(graph, constants, used)


def _paths(graph: SavedGraph, constants: dict[tuple[str, str], bytes], used: set[tuple[str, str]]) -> Iterator[Finding]:
    for place, node in graph.nodes:
        key = (place.function, node.name)
        if place.signatures and key not in used and _ABSOLUTE_PATH.fullmatch(constants.get(key, b"")):
            yield Finding(
                grade=WARNED,
                what=f"the text {constants[key].decode('utf-8', 'replace')!r} looks like the path of a file",
                where=(str(place),),
                why="If it is opened, it is a file of the machine that exported the model; the server has none.",
                advice="Make it an asset, which travels with the model: tf.saved_model.Asset, held by the module.",
            )


def _text_constant(node: Any) -> bytes | None:
    """Returns the first string of a Const of strings; None for any other node."""
    if node.op != "Const" or node.attr["dtype"].type != types_pb2.DT_STRING:
        return None
    tensor = node.attr["value"].tensor
    return tensor.string_val[0] if len(tensor.string_val) == 1 and not tensor.tensor_shape.dim else None


def graph_ops(graph: SavedGraph) -> list[str]:
    """Returns the sorted names of all ops, including those inside functions, without calls of functions by name."""
    functions = {function.signature.name for _, function in graph.functions}
    return sorted({node.op for _, node in graph.nodes} - functions)
