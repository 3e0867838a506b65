"""SIGINT and SIGTERM in a run that wants to save first: the first is noted, a second ends it."""

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import jax


class Received:
    """Which signal has come; `number` is None until one does."""

    number: int | None = None


@contextmanager
def stop_signals() -> Iterator[Received]:
    """Note the first SIGINT or SIGTERM; end the process at once at the second.

    Python runs a handler only between two of its own instructions, so not while a compiled program
    runs. The C part of `signal` writes the number to a socket right away, and a thread reads that.
    Signals that were ignored, as SIGINT is of a shell's background jobs, stay so. Among several
    processes SIGTERM is left to JAX, which tells all of them. Outside the main thread, where Python
    allows no handlers, nothing is changed.
    """
    received = Received()
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)

    def listen() -> None:
        come = 0
        while byte := ours.recv(1):
            come += byte[0] in before
            if come > 1:
                os._exit(128 + byte[0])
            if come:
                received.number = received.number or byte[0]

    def note(number: int, _: FrameType | None) -> None:
        received.number = received.number or number

    before: dict[int, Any] = {}
    alone = jax.process_count() == 1
    for number in (signal.SIGINT, signal.SIGTERM) if alone else (signal.SIGINT,):
        if signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, note)
    descriptor = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    try:
        yield received
    finally:
        signal.set_wakeup_fd(descriptor)
        for number, handler in before.items():
            signal.signal(number, handler)
        theirs.close()
        thread.join()
        ours.close()


def stop(number: int) -> None:
    """End the run as the signal would have: KeyboardInterrupt, or SystemExit of 143."""
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)
