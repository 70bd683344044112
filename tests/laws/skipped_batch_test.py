"""Law: a skipped batch == a run whose order omits it, to the bit."""

import json

import pytest

from tests.training.bad_steps_test import bad_steps, bytes_of, train


@pytest.mark.parametrize("strategy", ["none", "mirrored"])
def test_a_skipped_batch_equals_a_run_whose_order_omits_it(tmp_path, strategy, measure):
    skipped, watcher, task = train(tmp_path / "skip", on_bad_step="skip", strategy=strategy)
    omitted_steps = bad_steps(task)
    assert len(omitted_steps) >= 2
    omitted, omitted_watcher, _ = train(tmp_path / "omit", omit=omitted_steps, strategy=strategy)
    differing = [path for path, value in bytes_of(skipped).items() if bytes_of(omitted)[path] != value]
    measure("a skipped batch == a run whose order omits it, variables that differ in any bit", len(differing), 0)
    assert [step for step, _ in watcher.skipped] == omitted_steps
    assert [r["step"] for r in watcher.records] == [r["step"] for r in omitted_watcher.records] == list(range(1, 25))
    bad = [record for record in watcher.records if record.get("train/skipped")]
    assert [record["train/loss"] for record in bad] == [float("inf")] * len(omitted_steps), "logs are not repaired"
    lines = [json.loads(line) for line in (tmp_path / "skip" / "skipped.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss"], line["policy"], line["omitted"]) for line in lines] == [
        (step, "inf", "skip", [step]) for step in omitted_steps
    ]
