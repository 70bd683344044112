"""The op gate: whether a stock TensorFlow Serving of some version serves a SavedModel, by all checks.

It reads files and runs nothing, so it also checks models of other programs, in less than a second.
"""

import os
from pathlib import Path

from aigc_tf import storage
from aigc_tf.errors import RunError
from aigc_tf.serving.gate import op_checks
from aigc_tf.serving.gate.findings import REFUSED, Finding, as_text, refused
from aigc_tf.serving.gate.folder_checks import check_folder, check_layout
from aigc_tf.serving.gate.saved_model_graph import SavedGraph, read_graph
from aigc_tf.serving.gate.server_ops import ServerOps, load_server_ops
from aigc_tf.serving.gate.signature_checks import check_signatures
from aigc_tf.serving.versions import latest_version


def graph_ops(folder: str | os.PathLike[str]) -> list[str]:
    """Returns the sorted names of all ops of a SavedModel, those of its functions included."""
    return op_checks.graph_ops(read_graph(folder))


def find_problems(folder: str | os.PathLike[str], *, target: str) -> list[Finding]:
    """Returns what a stock server would refuse, or do differently than expected.

    Args:
        folder: A SavedModel.
        target: Version of TensorFlow Serving, one of config.SERVERS.
    Raises:
        InputError: If there is no table of ops for that server.
        RunError: If the SavedModel cannot be read.
    """
    graph, server = read_graph(folder), load_server_ops(target)
    return [
        *_versions(graph, server),
        *op_checks.check_ops(graph, server),
        *check_signatures(graph),
        *check_folder(Path(folder), graph),
    ]


def check_servable(folder: str | os.PathLike[str], *, target: str) -> list[Finding]:
    """Returns the warnings of `find_problems`.

    Raises:
        RunError: If the server would refuse the model; the message has every reason and what to do.
    """
    findings = find_problems(folder, target=target)
    if reasons := refused(findings):
        sentences = "; ".join(f"{one.what} ({one.where[0]}): {one.why} {one.advice}" for one in reasons)
        raise RunError(f"A stock TensorFlow Serving {target} cannot serve this model: {sentences}")
    return findings


def report(path: str | os.PathLike[str], *, target: str) -> None:
    """Prints the findings of `find_problems`.

    Args:
        path: A SavedModel, or a folder of numbered versions, of which the newest is checked.
        target: Version of TensorFlow Serving.
    Raises:
        InputError: If there is no SavedModel.
        RunError: If the server would refuse it.
    """
    source = latest_version(path)
    folder = storage.as_local_folder(source)
    findings = [*find_problems(folder, target=target), *check_layout(source)]
    if findings:
        print(f"{as_text(findings)}\n")
    count = len(refused(findings))
    others = f"{len(findings) - count} warned" if findings else "nothing found"
    if count:
        raise RunError(f"A stock TensorFlow Serving {target} does not serve {source}: {count} refused, {others}.")
    print(f"A stock TensorFlow Serving {target} serves {source}: {others}.")


def _versions(graph: SavedGraph, server: ServerOps) -> list[Finding]:
    findings = []
    needed = graph.meta_graph.graph_def.versions.min_consumer
    bad = graph.meta_graph.graph_def.versions.bad_consumers
    have, version = server.graph_def_version, server.versions["tensorflow-cpu"]
    if needed > have or have in bad:
        findings.append(
            Finding(
                grade=REFUSED,
                what=f"a graph for readers of GraphDef version {needed} or newer",
                where=("saved_model.pb, versions of the graph",),
                why=f"This server's TensorFlow {version} reads up to version {have} and refuses to load it.",
                advice="Serve it with a newer TensorFlow Serving, or export it with an older TensorFlow.",
            )
        )
    if "serve" not in graph.tags:
        findings.append(
            Finding(
                grade=REFUSED,
                what="no graph with the tag `serve`",
                where=(f"saved_model.pb, tags {', '.join(graph.tags) or 'none'}",),
                why="A stock server looks for that tag and does not load the model.",
                advice="Save it with the tag `serve`, or start the server with --saved_model_tags.",
            )
        )
    return findings
