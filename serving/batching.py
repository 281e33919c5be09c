"""Requests that arrive together are ranked together.

A forward pass of sixteen histories costs half of sixteen passes of one, and so do state reads and retrieval. Nobody
waits for a batch to fill: it takes what the event loop has read from its sockets in one turn, and while it is
computed the next ones arrive. At one request at a time a batch is that request.
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
        answer: ranks for several. most: rankings in one batch.
    """

    def __init__(self, answer: Answer, most: int) -> None:
        self._answer, self._most = answer, most
        self._waiting: list[tuple[Ask, asyncio.Future[Answered]]] = []

    async def ask(self, ask: Ask) -> Answered:
        """Rank with whoever comes at the same time.

        Raises:
            ServingError: what is wrong with this request.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answered] = loop.create_future()
        if not self._waiting:
            loop.call_soon(self._flush)
        self._waiting.append((ask, future))
        return await future

    def _flush(self) -> None:
        batch, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._flush)
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
