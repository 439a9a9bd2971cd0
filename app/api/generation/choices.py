"""From a validated request to the prompt, sampling and stop conditions of each of its choices."""

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from ...core.media import Media, Placed
from ...core.sampling import SamplingParams
from ...errors import ContextLengthError, InvalidRequestError, UnsupportedError
from ...text.output_processor import StopConditions
from ..service import Service
from .fields import SamplingFields
from .reasoning import Reasoning
from .sources import AS_CONFIGURED, Beginning, Languages, beginning_of

SEED_BITS = 63
_PROMPTS_PER_N = 8
"""A call may have this many times `max_n` choices, all of its prompts together."""
_TOKEN_ID_DIGITS = 10
_GREEDY_BELOW = 1e-5


@dataclass(frozen=True)
class Choice:
    """One text to generate."""

    prompt_token_ids: list[int]
    """What the text goes on from: of an encoder-decoder the decoder's beginning."""
    sampling: SamplingParams
    conditions: StopConditions
    reasoning: Reasoning | None = None
    """None if reasoning is not told from the answer."""
    max_drafts: int | None = None
    """See `GenerateCommand`."""
    adapter: str = ""
    """See `GenerateCommand`."""
    source: Media | None = None
    """See `GenerateCommand`."""
    cache_retention: float = 0.0
    """See `GenerateCommand`."""
    placed: Sequence[Placed] = ()
    """The images among the prompt's tokens."""

    @property
    def num_prompt_tokens(self) -> int:
        """Of what the client has sent."""
        return Beginning(self.prompt_token_ids, self.source).num_tokens


@dataclass(frozen=True)
class TokenLimit:
    """How many tokens a call wants at most, and which fields its errors name."""

    requested: int | None
    default: int | None
    """Used if none are requested, as far as the context allows. None means all that the context leaves."""
    param: str
    """The field with the limit."""
    prompt_param: str
    """The field with the prompt."""


def make_choices(
    service: Service,
    request: SamplingFields,
    prompts: list[list[int]],
    limit: TokenLimit,
    *,
    logprobs: int | None,
    prompt_logprobs: int | None = None,
    placed: Sequence[Placed] = (),
    grammar: str = "",
    shown: frozenset[int] = frozenset(),
    reasoning: Reasoning | None = None,
    languages: Languages = AS_CONFIGURED,
) -> list[Choice]:
    """`n` choices for each prompt (token ids). Raises InvalidRequestError that names the field."""
    check_count("stop", len(request.stop_strings), service.settings.request_limits.max_stop)
    check_count("logit_bias", len(request.logit_bias), service.settings.request_limits.max_logit_bias)
    if logprobs is not None and service.settings.worker == "echo":
        raise UnsupportedError("logprobs: the echo worker has none", "logprobs")
    _check_token_ids(service, request)
    conditions = StopConditions(
        stop=request.stop_strings,
        include_stop_str_in_output=request.include_stop_str_in_output,
        stop_token_ids=frozenset(request.stop_token_ids),
        min_tokens=request.min_tokens,
        shown=shown,
    )
    seed = secrets.randbits(SEED_BITS) if request.seed is None else request.seed % 2**SEED_BITS
    adapter, choices = service.adapter_of(request.model), []
    for prompt in prompts:
        token_ids, source = beginning_of(service, prompt, limit.prompt_param, languages)
        max_tokens = _max_tokens(len(token_ids), limit, service.ready().max_model_len)
        if request.min_tokens > max_tokens:
            raise InvalidRequestError(f"min_tokens: at most {limit.param}, which is {max_tokens}", "min_tokens")
        for index in range(request.n):
            own_seed = seed_of_choice(seed, index)
            sampling = _sampling_params(service, request, max_tokens, own_seed, logprobs, prompt_logprobs, grammar)
            drafts, seconds = request.max_drafts, request.wished_retention
            choices.append(Choice(token_ids, sampling, conditions, reasoning, drafts, adapter, source, seconds, placed))
    return choices


def _sampling_params(
    service: Service,
    request: SamplingFields,
    max_tokens: int,
    seed: int,
    logprobs: int | None,
    prompt_logprobs: int | None,
    grammar: str,
) -> SamplingParams:
    defaults = service.tokenizer.default_sampling

    def value(name: str, fallback: float) -> float:
        given = getattr(request, name)
        return float(defaults.get(name, fallback) if given is None else given)

    stop_token_ids = frozenset(request.stop_token_ids)
    if not request.ignore_eos:
        stop_token_ids |= service.tokenizer.eos_token_ids
    described = service.encoder_decoder
    return SamplingParams(
        max_tokens=max_tokens,
        seed=seed,
        min_tokens=max(request.min_tokens, min(described.min_tokens, max_tokens) if described else 0),
        temperature=usable_temperature(value("temperature", 1.0)),
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
        grammar=grammar,
        rules=described.rules if described else None,
    )


def usable_temperature(asked: float) -> float:
    """A temperature, or 0 if it is so low that logits divided by it could overflow (vLLM does the same)."""
    return 0.0 if asked < _GREEDY_BELOW else asked


def check_count(field: str, count: int, most: int) -> None:
    """Raise InvalidRequestError if a field has more elements than the setting `max_<field>` allows."""
    if count > most:
        raise InvalidRequestError(f"{field}: at most {most} (max_{field})", field)


def check_num_choices(service: Service, num_prompts: int, n: int) -> None:
    """Raise InvalidRequestError if a call asks for too many texts. To be called before prompts are tokenized."""
    max_n = service.settings.request_limits.max_n
    check_count("n", n, max_n)
    if num_prompts * n > max_n * _PROMPTS_PER_N:
        raise InvalidRequestError(f"prompt: at most {max_n * _PROMPTS_PER_N} choices in one call", "prompt")


def check_logprobs(service: Service, count: int | None, field: str) -> None:
    """Raise InvalidRequestError if more logprobs are asked for than `max_logprobs`."""
    limit = service.settings.request_limits.max_logprobs
    if count is not None and count > limit:
        raise InvalidRequestError(f"{field}: at most {limit} (max_logprobs)", field)


def _check_token_ids(service: Service, request: SamplingFields) -> None:
    vocab_size = service.ready().vocab_size
    for token in request.logit_bias:
        is_number = token.isascii() and token.isdigit() and len(token) <= _TOKEN_ID_DIGITS
        if not (is_number and int(token) < vocab_size):
            raise InvalidRequestError(f"logit_bias: {token[:20]} is not a token id below {vocab_size}", "logit_bias")
    if any(token >= vocab_size for token in request.stop_token_ids):
        raise InvalidRequestError(f"stop_token_ids: token ids are below {vocab_size}", "stop_token_ids")


def _max_tokens(num_prompt_tokens: int, limit: TokenLimit, max_model_len: int) -> int:
    """How many tokens to generate. Raises ContextLengthError if prompt and output exceed the model's context."""
    left = max_model_len - num_prompt_tokens
    wanted = 1 if limit.requested is None else limit.requested
    if wanted > left:
        raise ContextLengthError(
            f"This model's maximum context length is {max_model_len} tokens. However, you requested "
            f"{num_prompt_tokens + wanted} tokens ({num_prompt_tokens} in the {limit.prompt_param}, {wanted} in the "
            f"completion). Please reduce the length of the {limit.prompt_param} or completion.",
            limit.param if left > 0 else limit.prompt_param,
        )
    if limit.requested is not None:
        return limit.requested
    return left if limit.default is None else min(limit.default, left)


def seed_of_choice(seed: int, index: int) -> int:
    """The seed of a choice: the request's own for the first, others are derived from it."""
    if index == 0:
        return seed
    digest = hashlib.sha256(f"{seed}:{index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
