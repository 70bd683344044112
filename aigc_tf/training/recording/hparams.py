"""A run in TensorBoard's HParams tab: the settings it began with, and how it ended.

A run states only its own values. The tab finds its columns from all runs under its --logdir; a list of columns in a
run, as written by `tf.summary`'s hparams_config, would hide those of other tasks.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2, summary_v2

SESSION_TAGS = (metadata.SESSION_START_INFO_TAG, metadata.SESSION_END_INFO_TAG)
Setting = bool | int | float | str


def settings_of(fields: Mapping[str, Any]) -> dict[str, Setting]:
    """Returns config fields in a form that the tab can show: tuples become text."""
    return {name: ", ".join(map(str, value)) if isinstance(value, tuple) else value for name, value in fields.items()}


def session_start(settings: Mapping[str, Setting], *, started: float) -> Any:
    """Returns the summary that begins a run.

    Runs with equal settings are one group, whose metrics the tab averages.

    Args:
        settings: The result of `settings_of`.
        started: Time of the run's first start, in seconds since 1970.
    """
    canonical = json.dumps(dict(settings), sort_keys=True)
    group = hashlib.sha256(canonical.encode()).hexdigest()
    return summary_v2.hparams_pb(dict(settings), trial_id=group, start_time_secs=started)


def session_end(*, succeeded: bool, ended: float) -> Any:
    """Returns the summary that ends a run, or this part of it."""
    status = api_pb2.STATUS_SUCCESS if succeeded else api_pb2.STATUS_FAILURE
    info = plugin_data_pb2.SessionEndInfo(status=status, end_time_secs=ended)
    content = plugin_data_pb2.HParamsPluginData(session_end_info=info)
    summary = summary_v2.summary_pb2.Summary()
    summary.value.add(
        tag=metadata.SESSION_END_INFO_TAG,
        metadata=metadata.create_summary_metadata(content),
        tensor=metadata.NULL_TENSOR,
    )
    return summary
