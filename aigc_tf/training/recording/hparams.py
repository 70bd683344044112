"""What TensorBoard's HParams tab shows of a run: the settings it began with, and how it ended.

A run says only what is its own. Which settings and metrics the tab has columns for, it finds out itself from the runs
under its --logdir; a list of them in a run, as `tf.summary`'s hparams_config writes, would hide those of other tasks.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2, summary_v2

SESSION_TAGS = (metadata.SESSION_START_INFO_TAG, metadata.SESSION_END_INFO_TAG)
Setting = bool | int | float | str


def settings_of(fields: Mapping[str, Any]) -> dict[str, Setting]:
    """Returns config fields as the tab can show them: tuples become text."""
    return {name: ", ".join(map(str, value)) if isinstance(value, tuple) else value for name, value in fields.items()}


def session_start(settings: Mapping[str, Setting], *, started: float) -> Any:
    """Returns the summary that begins a run.

    Runs with equal settings are one group, whose metrics the tab averages.

    Args:
        settings: What `settings_of` returned.
        started: Time of the run's first start, in seconds since 1970.
    """
    canonical = json.dumps(dict(settings), sort_keys=True)
    group = hashlib.sha256(canonical.encode()).hexdigest()
    return summary_v2.hparams_pb(dict(settings), trial_id=group, start_time_secs=started)


def session_end(*, succeeded: bool, ended: float) -> Any:
    """Returns the summary that ends a run, or this life of it."""
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
