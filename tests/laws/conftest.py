"""The greatest difference measured for each law, printed as a table when the tests end."""

import pytest


@pytest.fixture
def measure(record_property):
    """Returns `measure(law, value, bound)`, which asserts that a measured difference keeps the bound of a law.

    The values are printed as a table when the tests end (`make laws`).
    """

    def check(law, value, bound):
        record_property("law", (law, float(value), float(bound)))
        assert value <= bound, f"{law}: {value:.3g} is above the bound {bound:g}"

    return check


def pytest_terminal_summary(terminalreporter):
    """Prints the greatest difference measured for each law."""
    measured = {}
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            for name, value in getattr(report, "user_properties", ()):
                if name == "law" and report.when == "call":
                    law, difference, bound = value
                    previous = measured.get(law, (0.0, bound))
                    measured[law] = (max(previous[0], difference), bound)
    if not measured:
        return
    terminalreporter.section("laws: greatest difference measured, and its bound")
    for law, (difference, bound) in measured.items():
        kept = "kept" if difference <= bound else "BROKEN"
        shown = "exact" if bound == 0 else f"{bound:g}"
        terminalreporter.write_line(f"{difference:10.2e}  {shown:>6}  {kept:7} {law}")
