"""The table of what smaller weights cost."""

from aigc_tf.serving.publishing.weights_cost import cost_table

MEASURED = {"megabytes": 1.0, "resident_megabytes": None, "peak_megabytes": None, "per_second": 2.0}


def test_a_metric_that_is_undefined_is_said_to_be():
    judged = {"metric": "matthews", "rows": 5, "split": "validation", "values": [0.5, None], "logits_difference": 0.1}
    table = cost_table({"unit": "examples", "float32": MEASURED, "int8": MEASURED, "judged": judged}, weights="int8")
    [line] = [line for line in table.splitlines() if "matthews" in line]
    assert line.split()[-2:] == ["0.5000", "undefined"]
