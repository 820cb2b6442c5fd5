"""Tools for development; none of this is shipped."""

import os
import signal
import sys

if sys.argv[0] == "-m":  # a command of this folder is being loaded: Ctrl-C ends it, without a traceback
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
