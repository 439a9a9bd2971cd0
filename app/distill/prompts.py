"""Reads a file of prompts, and renders them by the teacher's chat template, as the server does."""

import json
import logging
from pathlib import Path
from typing import Any

from ..errors import InvalidRequestError, StartupError
from ..text.chat_template import ChatTemplate
from ..text.tokenizer import Tokenizer

log = logging.getLogger(__name__)
_ROLES = {"system", "developer", "user", "assistant"}


class PromptReader:
    """Turns lines of JSON, `{"prompt": text}` or `{"messages": [...]}`, into token ids.

    The service keeps prompts as `{"token_ids": [...]}` (`app.api.edge.kept_prompts`).
    """

    def __init__(self, folder: Path) -> None:
        """`folder`: of the teacher."""
        self.tokenizer = Tokenizer(folder)
        self._template = ChatTemplate.from_folder(folder, self.tokenizer)

    def read(self, file: Path, room: int) -> dict[int, list[int]]:
        """Line numbers, from 1, to the token ids of prompts. Raises StartupError, which names a wrong line.

        Of what the service has kept, prompts of more than `room` tokens are left out, and those with tokens that the
        tokenizer does not have.
        """
        try:
            lines = file.read_text(encoding="utf-8").split("\n")  # JSON may hold other ends of lines
        except OSError as error:
            raise StartupError(f"--prompts: {file} cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise StartupError(f"--prompts: {file} is not UTF-8: {error}") from error
        prompts, left_out = {}, 0
        for number, line in enumerate(lines, 1):
            try:
                content = json.loads(line) if line.strip() else None
                if isinstance(content, dict) and content.keys() == {"token_ids"}:
                    if self._is_question(kept := content["token_ids"], room):
                        prompts[number] = kept
                    else:
                        left_out += 1
                elif content is not None:
                    prompts[number] = self._tokens(content)
            except (ValueError, RecursionError, InvalidRequestError) as error:
                raise StartupError(f"--prompts: line {number} of {file}: {error}") from error
        if left_out:
            log.warning("%d prompts that were kept are left out: no answer fits behind them", left_out)
        return prompts

    def _is_question(self, token_ids: Any, room: int) -> bool:
        """Raises ValueError for what is no list of numbers."""
        if not isinstance(token_ids, list) or not all(type(token) is int for token in token_ids):
            raise ValueError('"token_ids" is not a list of whole numbers')
        known = range(self.tokenizer.vocab_size)
        return 0 < len(token_ids) <= room and all(token in known for token in token_ids)

    def _tokens(self, content: Any) -> list[int]:
        """Raises ValueError or InvalidRequestError."""
        messages = _messages(content)
        if self._template.source:
            token_ids = self.tokenizer.encode_segments(self._template.render(messages))
        elif len(messages) == 1:
            token_ids = self.tokenizer.encode(messages[0]["content"])
        else:
            raise ValueError("the teacher has no chat template for messages")
        if not token_ids:
            raise ValueError("the prompt has no tokens")
        return token_ids


def _messages(content: Any) -> list[dict[str, Any]]:
    """The chat in a line. Raises ValueError for anything else."""
    if not isinstance(content, dict) or len(content) != 1 or not content.keys() <= {"prompt", "messages"}:
        raise ValueError('not an object with either "prompt" or "messages", and nothing else')
    if "prompt" in content:
        messages: Any = [{"role": "user", "content": content["prompt"]}]
    else:
        messages = content["messages"]
    if not isinstance(messages, list) or not messages:
        raise ValueError('"messages" is not a list of messages')
    for message in messages:
        if not isinstance(message, dict) or message.keys() != {"role", "content"}:
            raise ValueError('a message is not an object with "role" and "content", and nothing else')
        if message["role"] not in _ROLES:
            raise ValueError(f"the role {json.dumps(message['role'])} is none of {', '.join(sorted(_ROLES))}")
        if not isinstance(message["content"], str):
            raise ValueError('"content" or "prompt" is not a text')
    return messages
