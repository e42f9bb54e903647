"""Tasks for the tests of `onp.pool`; nothing heavy is imported, so that their processes start at once."""

import os
import signal


class Stubborn(Exception):
    """Cannot be read back by pickle."""

    def __init__(self, one, two):
        super().__init__(one)


def double(item):
    if item == 3:
        raise ValueError("three")
    return 2 * item


def doubled_in(marker_and_item):
    """The process and twice the item; dies on 5 the first time, on 6 always."""
    marker, item = marker_and_item
    if item == 6 or (item == 5 and not marker.exists()):
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if item == 7:
        os._exit(3)
    if item == 8:
        raise Stubborn(1, 2)
    return (lambda: item) if item == 9 else (os.getpid(), double(item))
