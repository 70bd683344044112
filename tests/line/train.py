"""scripts/train.py with the task of the line known: what a sweep starts, and what is killed."""

import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

if __name__ == "__main__":
    from tests.line.task import register

    register()
    runpy.run_path(str(ROOT / "scripts" / "train.py"), run_name="__main__")
