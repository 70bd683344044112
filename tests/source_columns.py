"""The columns that a config's section names, as a task would read them."""

from aigc_tf.data.sources.records import SourceColumn


def columns_of(data):
    """Text, second text and label, those that are named."""
    columns = [SourceColumn(data.text_column, is_text=True, field="data.text_column")]
    if data.text_b_column:
        columns.append(SourceColumn(data.text_b_column, is_text=True, field="data.text_b_column"))
    if data.label_column:
        may_be_empty = data.problem_type == "multi_label"
        columns.append(SourceColumn(data.label_column, False, "data.label_column", may_be_empty=may_be_empty))
    return columns
