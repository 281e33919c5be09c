"""One long piece of work on a thread of its own, whose error comes out where its owner looks."""

import threading
from collections.abc import Callable


class Background:
    """Runs `work(halt)` once; `work` returns soon after the event `halt` is set."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._halt = threading.Event()
        self._thread: threading.Thread | None = None
        self._result: int | None = None
        self._error: BaseException | None = None

    def begin(self, work: Callable[[threading.Event], int]) -> None:
        """Start the thread. Only once: a second call raises RuntimeError."""
        if self._thread is not None:
            raise RuntimeError(f"{self._name} was begun already; make a new one")

        def run() -> None:
            try:
                self._result = work(self._halt)
            except BaseException as error:  # kept for the owner, raised by done() and finish()
                self._error = error

        self._thread = threading.Thread(target=run, name=self._name, daemon=True)
        self._thread.start()

    def done(self) -> bool:
        """Whether the work has ended; raises its error."""
        if self._error is not None:
            raise self._error
        return self._result is not None

    def cancel(self, timeout_s: float) -> None:
        """Ask the work to end and wait for it, whatever comes of it; nothing to do where it never began."""
        self._halt.set()
        if self._thread is not None:
            self._thread.join(timeout_s)

    def finish(self, timeout_s: float) -> int:
        """Ask the work to end and return its result; raises its error, or TimeoutError after `timeout_s`."""
        if self._thread is None:
            raise RuntimeError(f"{self._name} was never begun")
        self._halt.set()
        self._thread.join(timeout_s)
        if self._error is not None:
            raise self._error
        if self._result is None:
            raise TimeoutError(f"{self._name} did not end within {timeout_s:.0f} s")
        return self._result
