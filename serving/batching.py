"""Requests that arrive together are ranked together.

A forward pass of sixteen histories costs half of sixteen passes of one, and so do state reads and retrieval. A batch
takes what the event loop has read from its sockets in one turn. Where the batch before had company, more is to come:
then it waits until as many are there again, but for no longer than a fraction of a millisecond. At one request at a
time nobody waits.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence

from serving.ask import Ask
from serving.errors import ServingError
from serving.ranking import Answered

logger = logging.getLogger(__name__)

Answer = Callable[[Sequence[Ask]], list[Answered | ServingError]]


class MicroBatcher:
    """Collects rankings within one turn of the event loop.

    Args:
        answer: ranks for several. most: rankings in one batch. wait_s: for as many as came together before.
    """

    def __init__(self, answer: Answer, most: int, wait_s: float = 0.0) -> None:
        self._answer, self._most, self._wait_s = answer, most, wait_s
        self._waiting: list[tuple[Ask, asyncio.Future[Answered]]] = []
        self._before = 1  # rankings in the batch before
        self._timer: asyncio.Handle | None = None

    async def ask(self, ask: Ask) -> Answered:
        """Rank with whoever comes at the same time.

        Raises:
            ServingError: what is wrong with this request.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answered] = loop.create_future()
        self._waiting.append((ask, future))
        if len(self._waiting) == 1 and self._before > 1 and self._wait_s > 0:
            self._timer = loop.call_later(self._wait_s, self._flush)
        elif len(self._waiting) == 1:
            self._timer = loop.call_soon(self._flush)
        elif len(self._waiting) == self._before and isinstance(self._timer, asyncio.TimerHandle):
            self._timer.cancel()
            self._timer = loop.call_soon(self._flush)
        return await future

    def _flush(self) -> None:
        batch, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
        self._before = len(batch)
        if self._waiting:
            self._timer = asyncio.get_running_loop().call_soon(self._flush)
        try:
            self._settle(batch, self._answer([ask for ask, _ in batch]))
        except Exception:
            if len(batch) > 1:
                # one of them is to blame: each is asked for alone, so that only that one fails
                logger.exception("a batch of %d rankings failed; each is tried alone", len(batch))
            for one in batch:
                try:
                    self._settle([one], self._answer([one[0]]))
                except Exception as error:
                    _fail(one[1], error)

    @staticmethod
    def _settle(
        batch: Sequence[tuple[Ask, asyncio.Future[Answered]]], answers: Sequence[Answered | ServingError]
    ) -> None:
        for (_, future), answered in zip(batch, answers, strict=True):
            if isinstance(answered, ServingError):
                _fail(future, answered)
            elif not future.done():  # its caller may have gone
                future.set_result(answered)


def _fail(future: "asyncio.Future[Answered]", error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
