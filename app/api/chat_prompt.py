"""From a chat to token ids, for every route that takes messages."""

from app.api.schemas.chat import ChatFields
from app.api.service import Service
from app.errors import UnsupportedError


def chat_prompt(service: Service, body: ChatFields) -> list[int]:
    """Render the chat and encode it. Raises InvalidRequestError."""
    if body.chat_template is not None and not service.settings.trust_request_chat_template:
        raise UnsupportedError(
            "chat_template: this server does not run templates of requests (trust_request_chat_template)",
            "chat_template",
        )
    segments = service.chat_template.render(
        [message.model_dump(exclude_none=True) for message in body.messages],
        add_generation_prompt=body.add_generation_prompt,
        continue_final_message=body.continue_final_message,
        override=body.chat_template,
        kwargs=body.chat_template_kwargs,
    )
    return service.tokenizer.encode_segments(segments)
