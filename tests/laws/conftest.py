"""The greatest difference measured for each law, printed as a table when the tests end."""

import datetime
import importlib.metadata
import os
import platform
from pathlib import Path

import pytest

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


@pytest.fixture
def measure(record_property):
    """Returns `measure(law, value, bound)`, which asserts that a measured difference keeps the bound of a law.

    The values are printed as a table when the tests end (`make laws`).
    """

    def check(law, value, bound):
        assert value == value, f"{law}: the difference is NaN"
        record_property("law", (law, float(value), float(bound)))
        assert value <= bound, f"{law}: {value:.3g} is above the bound {bound:g}"

    return check


def pytest_terminal_summary(terminalreporter, exitstatus):
    """Prints the greatest difference measured for each law, and with LAWS_PAGE writes them into that page."""
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
    page = os.environ.get("LAWS_PAGE")
    if page and exitstatus == 0:
        write_page(Path(page), measured)
        terminalreporter.write_line(f"written into {page}")


def write_page(page, measured):
    """Puts what was measured, and where, between the two marks of the page."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("tensorflow", "keras", "keras-nlp"))
    today = datetime.date.today().isoformat()
    lines = [
        f"Measured on {os.cpu_count()} cores of {processor()}, {versions}, {today}, by `make laws`:",
        "",
        "| law | greatest difference | bound |",
        "|---|---|---|",
        *(f"| {law} | {difference:.2g} | {bound:g} |" for law, (difference, bound) in sorted(measured.items())),
    ]
    before, rest = page.read_text().split(BEGIN)
    _, after = rest.split(END)
    page.write_text(f"{before}{BEGIN}\n" + "\n".join(lines) + f"\n{END}{after}")


def processor():
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
