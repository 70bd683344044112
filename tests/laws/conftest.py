"""Prints the laws that were checked as a table, with what was measured.

A law's name is its test's name. What it measures it states with pytest's `record_property`:

    record_property("difference", float(largest))   # and "bound", if it is no equality
"""

LAWS = "tests/laws/"


def pytest_terminal_summary(terminalreporter):
    rows = []
    for outcome in ("passed", "failed", "skipped"):
        for report in terminalreporter.stats.get(outcome, []):
            if LAWS in report.nodeid and (report.when == "call" or outcome != "passed"):
                measured = dict(report.user_properties)
                numbers = [f"{measured[name]:.1e}" if name in measured else "" for name in ("difference", "bound")]
                law = report.nodeid.split("::", 1)[1].removeprefix("test_").replace("_", " ")
                rows.append((law, *numbers, outcome))
    if not rows:
        return
    width = max(len(row[0]) for row in rows)
    terminalreporter.section("laws")
    for law, difference, bound, outcome in [("law", "difference", "bound", "outcome"), *sorted(rows)]:
        terminalreporter.write_line(f"{law:<{width}}  {difference:>10}  {bound:>8}  {outcome}")
