"""One reply to one conversation, piece by piece."""

from collections.abc import Iterable, Iterator, Sequence

from personavec.errors import ConfigError
from personavec.model.chat_model import ChatModel, Message
from personavec.model.sampling import Sampling
from personavec.steering.generate import Request, stream
from personavec.steering.steer import Steering


def pieces(
    model: ChatModel,
    messages: str | Sequence[Message],
    *,
    steer: Steering | Sequence[Steering] = (),
    system: str = "template",
    max_new_tokens: int = 256,
    temperature: float = 0.7,
    top_p: float = 0.95,
    seed: int = 0,
) -> Iterator[str]:
    """The text of a reply as it is written; see `ChatModel.chat`.

    Raises:
        ConfigError: The conversation leaves no room for a reply, or the steering is none.
        ModelError: As `ChatModel.chat`.
    """
    turns = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
    steerings = tuple(steer) if isinstance(steer, Iterable) and not isinstance(steer, str) else (steer,)
    if wrong := [steering for steering in steerings if not isinstance(steering, Steering)]:
        raise ConfigError(f"expected steer=vector.at(…), got {wrong[0]!r}; say how much of a vector, and where")
    prompt = model.render(turns, system)
    if (room := model.context - len(prompt)) < 1:
        raise ConfigError(f"expected a prompt of less than {model.context} tokens, got {len(prompt)}; shorten it")
    sampling = Sampling(min(max_new_tokens, room), temperature, top_p)
    ids: list[int] = []
    written = 0
    for step in stream(model, [Request(prompt, steerings, (seed,))], sampling):
        token = int(step.tokens[0])
        if token in model.stop_ids:
            break
        ids.append(token)
        text = model.decode(ids)
        if not text.endswith("\ufffd"):  # the rest of a character may still come
            yield text[written:]
            written = len(text)
    yield model.decode(ids)[written:]
