"""MLproject entry points, one thin file each: parse, call, exit code."""

import sys

from entrypoints import _interrupts, _requirements

# `python -m` has this in the place of the program while it looks for it. Libraries are imported
# for seconds next, in which a signal would end the process and leave what `mlflow run` has begun.
if sys.argv[:1] == ["-m"]:
    _requirements.refuse_missing()
    _interrupts.install()
