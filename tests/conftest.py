"""How the tests run: on how many processes, and with a SIGINT that is heard.

A run in a shell's background ignores SIGINT, and so would all that the tests start.
"""

import gc
import os
import signal

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_xdist_auto_num_workers():
    """Two processes more than there are processors: the tests spend half of their time waiting."""
    return (os.cpu_count() or 1) + 2


def pytest_collection_finish():
    """Keep the collector from what is there for good: many tests have it look for what they left.

    Without this, each of its runs walks thousands of collected tests and the whole Agent SDK.
    """
    gc.collect()
    gc.freeze()
