"""The end of a worker process that a test started: its error is printed, and nothing is waited for."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any


def run(main: Callable[[dict[str, Any]], None]) -> None:
    """Call ``main`` with the options of the JSON file that the command line names, and end this process."""
    code = 0
    try:
        main(json.loads(Path(sys.argv[1]).read_text()))
    except Exception:  # whatever it is, the test that started this process reads it
        traceback.print_exc()
        code = 1
    sys.stderr.flush()
    os._exit(code)  # as regraft/__main__.py, and for its reason
