"""Jobs of the engine, and how tests wait for them."""

import threading
import time
from collections.abc import Sequence

from personavec.model.chat_model import ChatModel
from personavec.model.sampling import Sampling
from personavec.server.reply import News, RunningReply
from personavec.server.writing.engine import Engine
from personavec.server.writing.job import Job

SAMPLING = Sampling(12, 0.9)


class Asked:
    """A job, and what it was told."""

    def __init__(
        self, model: ChatModel, ids: tuple[int, ...], seed: int = 0, tokens: int = 12, **options: object
    ) -> None:
        self.news: list[News] = []
        self.over = threading.Event()
        sampling = Sampling(tokens, 0.9)
        reply = RunningReply(model, tokens, options.pop("stops", ()))  # type: ignore[arg-type]
        self.job = Job(ids, sampling, reply, self.tell, (seed,), **options)  # type: ignore[arg-type]

    def tell(self, news: News) -> None:
        self.news.append(news)
        if news.over:
            self.over.set()

    def wait(self) -> "Asked":
        assert self.over.wait(30)
        return self


def ask(engine: Engine, asked: Sequence[Asked], pause: float = 0) -> list[Asked]:
    for one in asked:
        engine.submit([one.job])
        time.sleep(pause)
    return [one.wait() for one in asked]
