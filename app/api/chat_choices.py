"""From a chat to the choices that answer it: what all endpoints with conversations have in common."""

from app.api.generation import Choice
from app.api.prompts import check_token_ids, encode_chat
from app.api.sampling import TokenLimit, check_logprobs, check_num_choices, make_choices
from app.api.schemas.chat import ChatRequest
from app.api.service import Service
from app.api.structured import grammar_of


async def choices_of_chat(service: Service, chat: ChatRequest, limit: TokenLimit) -> list[Choice]:
    """The `n` choices that answer a chat. Raises InvalidRequestError that names the field."""
    ready = service.ready()
    check_logprobs(service, chat.top_logprobs, "top_logprobs")
    check_num_choices(service, 1, chat.n)
    prompt = await encode_chat(service, chat)
    check_token_ids(prompt, ready.vocab_size, "messages")
    grammar = await grammar_of(service, chat, chat.constraint())
    logprobs = (chat.top_logprobs or 0) if chat.logprobs else None
    return make_choices(service, chat, [prompt], limit, logprobs=logprobs, grammar=grammar)
