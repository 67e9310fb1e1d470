"""Learning beside acting: in parts, one a call, or in a thread."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Background:
    """Runs one job at a time in a thread, up to a first `pause` at once and then on.

    With `stepwise` it runs only inside `step`, from one `pause` to the next, so that nothing runs beside the caller;
    else it runs on by itself.

    Args:
        stepwise: in parts.
    """

    def __init__(self, stepwise: bool) -> None:
        self.stepwise = stepwise
        self._thread: threading.Thread | None = None
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._paused = self._ended = False  # of the job: once, for good
        self._error: BaseException | None = None

    @property
    def busy(self) -> bool:
        """Whether a job has not been seen to end."""
        return self._thread is not None

    def start(self, job: Callable[[], None]) -> None:
        """Run `job` to its first pause, or to its end. There must be no other.

        Raises:
            BaseException: what it raised until then.
        """
        assert self._thread is None

        def run() -> None:
            self._go.acquire()
            try:
                job()
            except BaseException as error:
                self._error = error
            self._ended = True
            if self.stepwise or not self._paused:
                self._back.release()

        self._paused = self._ended = False
        self._thread = threading.Thread(target=run, name="lifelong learning", daemon=True)
        self._thread.start()
        self._go.release()
        self._back.acquire()
        self._look()

    def pause(self) -> None:
        """Called by the job between its parts."""
        if threading.current_thread() is not self._thread:
            return
        if self.stepwise:
            self._back.release()
            self._go.acquire()
        elif not self._paused:
            self._paused = True
            self._back.release()

    def step(self) -> None:
        """Run one part of the job, if it is stepwise; see whether it has ended, in any case.

        Raises:
            BaseException: what it raised.
        """
        if self._thread is not None and self.stepwise:
            self._go.release()
            self._back.acquire()
        self._look()

    def finish(self) -> None:
        """Run the job to its end.

        Raises:
            BaseException: what it raised.
        """
        while self.stepwise and self._thread is not None:
            self.step()
        if self._thread is not None:
            self._thread.join()
        self._look()

    def _look(self) -> None:
        """Whether the job has ended, and how."""
        if self._thread is None or not self._ended:
            return
        self._thread.join()
        self._thread, error, self._error = None, self._error, None
        if error is not None:
            raise error
