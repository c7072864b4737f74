"""Lets the tests of this tier import the modules beside them (the import mode is importlib)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
