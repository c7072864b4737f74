"""Lets the tests of this folder import the modules beside them and the scripted servers of the contract tier."""

import sys
from pathlib import Path

HERE = Path(__file__).parent

sys.path[:0] = [str(HERE), str(HERE.parents[1] / "contract")]
