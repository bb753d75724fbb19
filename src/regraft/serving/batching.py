"""A queue and one thread, by which concurrent requests share a forward pass.

The thread takes the queued rows, waits a few milliseconds for rows on their way, and computes all together. A
lone request never waits.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

Answer = TypeVar("Answer")


class Batcher(Generic[Answer]):
    """A queue before ``compute(samples)``, which returns an answer a sample, in order. Only its thread calls it."""

    def __init__(
        self,
        compute: Callable[[Sequence[Any]], Sequence[Answer]],
        *,
        size: int,
        wait: float,  # seconds
        coming: Callable[[], int] = lambda: 0,  # number of rows on their way to submit()
        seen: Callable[[int], None] = lambda rows: None,  # counts the rows of each batch
    ) -> None:
        self._compute, self._coming, self._seen = compute, coming, seen
        self._size, self._wait = size, wait
        self._queue: queue.SimpleQueue[tuple[Any, Future[Answer]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="regraft-batches", daemon=True)
        self._closed = False
        self._lock = threading.Lock()  # keeps submit() from adding rows behind the end of the queue

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Return whether the thread answers."""
        return self._thread.is_alive() and not self._closed

    def submit(self, sample: Any) -> Future[Answer]:
        """Queue a sample and return its future answer. Raises RuntimeError once the batcher is closed."""
        future: Future[Answer] = Future()
        with self._lock:
            if self._closed:
                raise RuntimeError("the server is stopping")
            self._queue.put((sample, future))
        return future

    def close(self, wait: float | None = None) -> None:
        """Answer the queued rows, then end the thread; wait ``wait`` seconds for it, or without limit for None."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._queue.put(None)
        if self._thread.is_alive():
            self._thread.join(wait)

    def _work(self) -> None:
        more = True
        while more:
            batch, more = self._gather()
            batch = [(s, f) for s, f in batch if f.set_running_or_notify_cancel()]
            if not batch:
                continue
            self._seen(len(batch))
            try:
                answers = self._compute([sample for sample, _ in batch])
                if len(answers) != len(batch):
                    raise RuntimeError(f"{len(answers)} answers to {len(batch)} rows")
            except Exception as error:  # each request gets the error, and the thread goes on
                for _, future in batch:
                    future.set_exception(error)
            else:
                for (_, future), answer in zip(batch, answers, strict=True):
                    future.set_result(answer)

    def _gather(self) -> tuple[list[tuple[Any, Future[Answer]]], bool]:
        """Return the next batch, and whether another may follow."""
        first = self._queue.get()
        if first is None:
            return [], False
        batch, until = [first], time.monotonic() + self._wait
        while len(batch) < self._size:
            left = until - time.monotonic() if self._coming() > 0 else 0.0
            try:
                item = self._queue.get(timeout=left) if left > 0 else self._queue.get_nowait()
            except queue.Empty:
                break
            if item is None:
                return batch, False
            batch.append(item)
        return batch, True
