"""Lets the tests of the inbox import the modules beside them, and the harness that runs real processes."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "faults")]
