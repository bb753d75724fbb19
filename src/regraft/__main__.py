"""``python -m regraft``, which is also what a launcher of several processes starts."""

import os
import sys

from .cli import main

try:
    main()
except SystemExit as end:
    if "WORLD_SIZE" not in os.environ:
        raise
    # gloo's threads may still hold tensors; one let go of while the interpreter ends aborts the
    # process after its work is done (pytorch/pytorch#179291), so it does not end that way
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(end.code if isinstance(end.code, int) else int(end.code is not None))
