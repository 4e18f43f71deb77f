"""Where requests come in: a bad one is refused by name before the engine has it, and what is steered is kept apart."""

from typing import Any

from personavec.vllm.asked import FIELD, SELF, Asked, read
from personavec.vllm.settings import check, settings_of


def register() -> None:
    """Check the server before its engine starts, and every request of every route; each process of vLLM calls this."""
    import vllm
    from vllm.exceptions import VLLMValidationError
    from vllm.v1.engine.input_processor import InputProcessor

    if getattr(InputProcessor, "persona_checks", False):
        return
    begin, process = InputProcessor.__init__, InputProcessor.process_inputs

    def __init__(self: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        begin(self, vllm_config, *args, **kwargs)
        if settings_of(vllm_config) is not None:
            self.persona_settings, self.persona_vectors = check(vllm_config, vllm.__version__)
            self.persona_version = vllm.__version__

    def process_inputs(self: Any, request_id: str, prompt: Any, params: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            asked = admitted(self, params)
        except ValueError as error:  # of which the server would make a failure of its own
            raise VLLMValidationError(str(error), parameter=FIELD) from None
        request = process(self, request_id, prompt, params, *args, **kwargs)
        if asked is not None:
            apart(request, asked)
        return request

    InputProcessor.__init__, InputProcessor.process_inputs = __init__, process_inputs
    InputProcessor.persona_checks = True


def admitted(processor: Any, params: Any) -> Asked | None:
    """What a request asks for, None if nothing.

    Raises:
        ValueError: It cannot be obeyed; the server answers it with status 400.
    """
    value = (getattr(params, "extra_args", None) or {}).get(FIELD)
    if value is None:
        return None
    config = processor.vllm_config
    vectors = getattr(processor, "persona_vectors", None)
    if vectors is None or not str(config.parallel_config.worker_cls).endswith(".PersonaWorker"):
        raise ValueError(
            f"expected no {FIELD}, as this server does not steer, got one; start it with `python -m personavec.vllm`"
        )
    asked = read(value, vectors, processor.persona_settings, config.model_config.max_model_len)
    if not getattr(processor, "persona_checked", False) and not asked.id.startswith(SELF):
        raise ValueError(f"expected no {FIELD} before this server has checked itself, got one; start it again")
    if asked.id and getattr(params, "n", 1) != 1:
        raise ValueError(f"expected n=1 with {FIELD}.watch or {FIELD}.spans, got n={params.n}; send each by itself")
    return asked


def apart(request: Any, asked: Asked) -> None:
    """Keep what a request leaves in the cache of prefixes from requests that are steered otherwise."""
    if request.prompt_token_ids is None:
        from vllm.exceptions import VLLMValidationError

        raise VLLMValidationError(
            f"expected token ids or text with {FIELD}, got embeddings; which of them are prompt is not known",
            parameter=FIELD,
        )
    salt = asked.salt(len(request.prompt_token_ids))
    if salt:
        request.cache_salt = f"{request.cache_salt or ''}|{salt}"
    if asked.spans and request.sampling_params is not None:
        request.sampling_params.skip_reading_prefix_cache = True  # what is not computed cannot be averaged
