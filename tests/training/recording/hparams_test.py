"""What TensorBoard's own backend finds of several runs under one --logdir."""

from tensorboard import context
from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer
from tensorboard.plugins import base_plugin
from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups

from aigc_tf.training.recording.hparams import settings_of
from aigc_tf.training.recording.telemetry import Telemetry

SETTINGS = {
    "training.optimizer.learning_rate": 1e-3,
    "training.schedule.name": "linear",
    "training.loss.balance_classes": False,
}


def live(workdir, *, learning_rate, accuracy, resume_step=0, succeeded=True, steps=4, **settings):
    """One life of a run, as the commands report it."""
    with Telemetry(workdir, resume_step=resume_step) as telemetry:
        fields = (
            SETTINGS
            | {"training.optimizer.learning_rate": learning_rate, "training.loss.class_weights": (1.0, 2.0)}
            | settings
        )
        telemetry.session_start(settings_of(fields), started=1000.0)
        telemetry.scalars(resume_step + steps, {"validation/accuracy": accuracy})
        telemetry.session_end(succeeded=succeeded)


def session_groups(logdir):
    """The rows of the HParams tab, as TensorBoard's server computes them."""
    multiplexer = plugin_event_multiplexer.EventMultiplexer()
    multiplexer.AddRunsFromDirectory(str(logdir))
    multiplexer.Reload()
    provider = data_provider.MultiplexerDataProvider(multiplexer, str(logdir))
    backend = backend_context.Context(base_plugin.TBContext(data_provider=provider))
    ctx = context.RequestContext()
    metadata = backend.hparams_metadata(ctx, "")
    experiment = backend.experiment_from_metadata(
        ctx, "", True, metadata, backend.hparams_from_data_provider(ctx, "", limit=None)
    )
    statuses = [api_pb2.STATUS_SUCCESS, api_pb2.STATUS_FAILURE, api_pb2.STATUS_RUNNING, api_pb2.STATUS_UNKNOWN]
    request = api_pb2.ListSessionGroupsRequest(
        allowed_statuses=statuses,
        slice_size=100,
        aggregation_type=api_pb2.AGGREGATION_AVG,
        col_params=[api_pb2.ColParams(metric=info.name) for info in experiment.metric_infos],
        include_metrics=True,
    )
    handler = list_session_groups.Handler(ctx, backend, "", request)
    return experiment, handler.run().session_groups


def test_two_runs_are_two_rows_with_their_settings_metrics_and_ends(tmp_path):
    live(tmp_path / "a", learning_rate=1e-3, accuracy=0.5)
    live(tmp_path / "b", learning_rate=2e-3, accuracy=0.75, succeeded=False)
    experiment, groups = session_groups(tmp_path)
    types = {info.name: info.type for info in experiment.hparam_infos}
    assert types["training.optimizer.learning_rate"] == api_pb2.DATA_TYPE_FLOAT64
    assert types["training.schedule.name"] == api_pb2.DATA_TYPE_STRING
    assert types["training.loss.balance_classes"] == api_pb2.DATA_TYPE_BOOL
    assert "validation/accuracy" in {info.name.tag for info in experiment.metric_infos}
    rows = {group.sessions[0].name: group for group in groups}
    assert set(rows) == {"a/logs", "b/logs"}
    assert rows["a/logs"].hparams["training.optimizer.learning_rate"].number_value == 1e-3
    assert rows["b/logs"].hparams["training.loss.class_weights"].string_value == "1.0, 2.0"
    assert [value.value for value in rows["b/logs"].metric_values] == [0.75]
    assert rows["a/logs"].sessions[0].status == api_pb2.STATUS_SUCCESS
    assert rows["b/logs"].sessions[0].status == api_pb2.STATUS_FAILURE
    assert rows["a/logs"].sessions[0].start_time_secs == 1000.0


def test_runs_with_equal_settings_are_one_row(tmp_path):
    live(tmp_path / "a", learning_rate=1e-3, accuracy=0.5)
    live(tmp_path / "b", learning_rate=1e-3, accuracy=0.75)
    _, groups = session_groups(tmp_path)
    assert [len(group.sessions) for group in groups] == [2]


def test_a_run_that_goes_on_has_its_last_settings_and_its_last_end(tmp_path):
    live(tmp_path / "a", learning_rate=1e-3, accuracy=0.5, succeeded=False, **{"training.num_steps": 4})
    live(tmp_path / "a", learning_rate=1e-3, accuracy=0.75, resume_step=4, **{"training.num_steps": 8})
    _, (group,) = session_groups(tmp_path)
    assert group.hparams["training.num_steps"].number_value == 8
    assert group.sessions[0].status == api_pb2.STATUS_SUCCESS


def test_a_run_that_is_on_has_no_end_yet(tmp_path):
    live(tmp_path / "a", learning_rate=1e-3, accuracy=0.5, succeeded=False)
    telemetry = Telemetry(tmp_path / "a", resume_step=4)
    telemetry.session_start(settings_of(SETTINGS), started=1000.0)
    telemetry.flush()
    _, (group,) = session_groups(tmp_path)
    telemetry.close()
    assert group.sessions[0].status == api_pb2.STATUS_UNKNOWN  # what TensorBoard makes of a start without an end
