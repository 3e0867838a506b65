"""Items that are made ahead of who asks for them."""

import queue
import threading
from collections.abc import Iterator
from typing import Any

from jaxvae.checks import Tree


class Ahead:
    """Items that a thread makes, one ahead of who asks; its errors are raised where it is asked."""

    def __init__(self, items: Iterator[Any]):
        self.items, self.closed = items, threading.Event()
        self.made: queue.Queue[Any] = queue.Queue(maxsize=1)
        self.thread = threading.Thread(target=self._make, name="jaxvae data", daemon=True)
        self.thread.start()

    def __iter__(self) -> "Ahead":
        return self

    def __next__(self) -> Any:
        item, error = self.made.get()
        if error is not None:
            raise error
        return item

    def close(self) -> None:
        self.closed.set()
        self.thread.join(timeout=10)  # of one that waits for its data no more can be asked

    def _make(self) -> None:
        try:
            for item in self.items:
                self._put((item, None))
                if self.closed.is_set():
                    return
            self._put((None, StopIteration()))
        except BaseException as error:  # SystemExit too, or who asks would wait for ever
            self._put((None, error))

    def _put(self, made: Tree) -> None:
        while not self.closed.is_set():
            try:
                return self.made.put(made, timeout=0.1)
            except queue.Full:
                continue
