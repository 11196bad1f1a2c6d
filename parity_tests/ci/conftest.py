"""The scripts of ci/ import each other by name, so their folder is on the path, as when run."""

import sys
from pathlib import Path

CI = Path(__file__).parents[2] / "ci"
if str(CI) not in sys.path:
    sys.path.append(str(CI))
