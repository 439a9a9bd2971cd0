"""From a validated completion to its choices."""

from ...errors import UnsupportedError
from ..generation.choices import Choice, TokenLimit, check_logprobs, check_num_choices, make_choices
from ..generation.prompts import as_list, check_token_ids, encode_texts
from ..generation.sources import Languages
from ..generation.structured import grammar_of
from ..service import Service
from .schema import DEFAULT_MAX_TOKENS, CompletionRequest


async def prepare_completion(service: Service, body: CompletionRequest) -> list[Choice]:
    """`n` choices for each prompt. Raises InvalidRequestError that names the field."""
    service.check_model(body.model)
    service.check_task("generate")
    service.ready()
    _check_reading(service, body)
    check_logprobs(service, body.logprobs, "logprobs")
    prompts = await _prompts(service, body)
    grammar = await grammar_of(service, body, body.constraint())
    return make_choices(
        service,
        body,
        prompts,
        TokenLimit(body.max_tokens, DEFAULT_MAX_TOKENS, "max_tokens", "prompt"),
        logprobs=body.logprobs,
        prompt_logprobs=body.logprobs if body.echo else None,
        grammar=grammar,
        languages=Languages(body.source_language or "", body.target_language or ""),
    )


def _check_reading(service: Service, body: CompletionRequest) -> None:
    """Raise UnsupportedError for fields that make no sense where an encoder reads the prompt, or only there."""
    if service.encoder_decoder is not None and body.echo:
        reason = "this model's encoder reads the prompt, which its text does not go on from"
        raise UnsupportedError(f"echo: {reason}", "echo")
    for name in ("source_language", "target_language"):
        if service.encoder_decoder is None and getattr(body, name) is not None:
            raise UnsupportedError(f"{name}: this model has no tokens for languages", name)


async def _prompts(service: Service, body: CompletionRequest) -> list[list[int]]:
    """The prompts as token ids. Raises InvalidRequestError if one is empty or has unknown tokens."""
    prompt = as_list(body.prompt, "prompt")
    check_num_choices(service, len(prompt), body.n)
    prompts = prompt
    if isinstance(prompt[0], str):
        prompts = await encode_texts(service, prompt, "prompt", body.add_special_tokens)
    for token_ids in prompts:
        check_token_ids(token_ids, service.ready().vocab_size, "prompt")
    return prompts
