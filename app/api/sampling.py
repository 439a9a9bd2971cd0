"""From a validated request to what the engine needs for each of its choices."""

import hashlib
import secrets

from app.api.generation import Choice
from app.api.schemas.common import SamplingFields
from app.api.service import Service
from app.core.sampling import SamplingParams
from app.errors import InvalidRequestError
from app.text.output_processor import StopConditions

_SEED_BITS = 63


def make_choices(
    service: Service,
    request: SamplingFields,
    prompts: list[list[int]],
    *,
    max_tokens: int | None,
    max_tokens_field: str,
    logprobs: int | None,
    prompt_logprobs: int | None = None,
) -> list[Choice]:
    """`n` choices for each prompt (token ids). Raises InvalidRequestError that names the field.

    `max_tokens` None: as many as the model's context leaves room for.
    """
    limit = service.settings.max_n
    if request.n > limit:
        raise InvalidRequestError(f"n: at most {limit} (max_n)", "n")
    if len(prompts) * request.n > limit * 8:
        raise InvalidRequestError(f"prompt: at most {limit * 8} choices in one call", "prompt")
    _check_token_ids(service, request)
    conditions = StopConditions(
        stop=request.stop_strings,
        include_stop_str_in_output=request.include_stop_str_in_output,
        stop_token_ids=frozenset(request.stop_token_ids),
        min_tokens=request.min_tokens,
    )
    seed = secrets.randbits(_SEED_BITS) if request.seed is None else request.seed % 2**_SEED_BITS
    choices = []
    for prompt in prompts:
        room = _room(service, prompt, max_tokens, max_tokens_field)
        for index in range(request.n):
            sampling = _sampling_params(service, request, room, _seed_of_choice(seed, index), logprobs, prompt_logprobs)
            choices.append(Choice(prompt, sampling, conditions))
    return choices


def _sampling_params(
    service: Service,
    request: SamplingFields,
    max_tokens: int,
    seed: int,
    logprobs: int | None,
    prompt_logprobs: int | None,
) -> SamplingParams:
    defaults = service.tokenizer.default_sampling

    def value(name: str, fallback: float) -> float:
        given = getattr(request, name)
        return float(defaults.get(name, fallback) if given is None else given)

    stop_token_ids = frozenset(request.stop_token_ids)
    if not request.ignore_eos:
        stop_token_ids |= service.tokenizer.eos_token_ids
    return SamplingParams(
        max_tokens=max_tokens,
        seed=seed,
        min_tokens=request.min_tokens,
        temperature=value("temperature", 1.0),
        top_k=max(0, int(value("top_k", 0))),
        top_p=value("top_p", 1.0),
        min_p=value("min_p", 0.0),
        presence_penalty=request.presence_penalty,
        frequency_penalty=request.frequency_penalty,
        repetition_penalty=value("repetition_penalty", 1.0),
        logit_bias={int(token): bias for token, bias in request.logit_bias.items()},
        stop_token_ids=stop_token_ids,
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
    )


def check_logprobs(service: Service, count: int | None, field: str) -> None:
    """InvalidRequestError if more are asked for than the server reports."""
    limit = service.settings.max_logprobs
    if count is not None and count > limit:
        raise InvalidRequestError(f"{field}: at most {limit} (max_logprobs)", field)


def _check_token_ids(service: Service, request: SamplingFields) -> None:
    vocab_size = service.ready().vocab_size
    for token in request.logit_bias:
        if not (token.isascii() and token.isdigit() and int(token) < vocab_size):
            raise InvalidRequestError(f"logit_bias: {token[:20]} is not a token id below {vocab_size}", "logit_bias")
    if any(token >= vocab_size for token in request.stop_token_ids):
        raise InvalidRequestError(f"stop_token_ids: token ids are below {vocab_size}", "stop_token_ids")


def _room(service: Service, prompt: list[int], max_tokens: int | None, field: str) -> int:
    """Tokens to generate after a prompt; InvalidRequestError if both do not fit the context together."""
    context = service.ready().max_model_len
    left = context - len(prompt)
    if max_tokens is None and left > 0:
        return left
    if max_tokens is None or max_tokens > left:
        wanted = "" if max_tokens is None else f" and {max_tokens} of {field}"
        name = "messages" if max_tokens is None else field
        raise InvalidRequestError(
            f"the model's context is {context} tokens; you asked for {len(prompt)} of prompt{wanted}", name
        )
    return max_tokens


def _seed_of_choice(seed: int, index: int) -> int:
    """Choices of one call differ, and the first is what the seed alone gives."""
    if index == 0:
        return seed
    digest = hashlib.sha256(f"{seed}:{index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
