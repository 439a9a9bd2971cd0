"""A query and a document as the prompt of a judge: a model that goes on with yes if the document answers the query.

If the chat template knows the roles query and document, as sentence-transformers' CrossEncoder has it, it writes them,
and the instruction is a system message. Else the chat is the one that Qwen3-Reranker was trained on, as its card says
(Zhang et al., 2025), in the model's own chat template, without reasoning.
"""

import re
from dataclasses import dataclass
from functools import cached_property

from ..errors import InvalidRequestError
from .chat_template import ChatTemplate
from .control_tokens import Segments

_SYSTEM = (
    "Judge whether the Document meets the requirements based on the Query and the Instruct provided. "
    'Note that the answer can only be "yes" or "no".'
)
_INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
_PROBE = ("bravo", "charlie")


@dataclass(frozen=True)
class PairPrompts:
    """Writes the prompts of a judge."""

    template: ChatTemplate
    instruction: str
    """That of the model's files; empty if they have none."""
    adds_generation_prompt: bool
    """Whether a template that knows the roles is to begin the answer."""

    @cached_property
    def _knows_roles(self) -> bool:
        if not all(re.search(f"['\"]{role}['\"]", self.template.source) for role in ("query", "document")):
            return False  # a template may write whatever role there is
        try:
            text = "".join(part for part, _ in self._with_roles("alpha", *_PROBE))
        except InvalidRequestError:
            return False
        return all(word in text for word in _PROBE)

    def write(self, query: str, document: str, instruction: str | None) -> Segments:
        """The prompt, in the pieces of `ChatTemplate.render`. Raises what that raises."""
        instruction = instruction or self.instruction
        if self._knows_roles:
            return self._with_roles(instruction, query, document)
        told = f"<Instruct>: {instruction or _INSTRUCTION}\n<Query>: {query}\n<Document>: {document}"
        messages = [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": told}]
        return self.template.render(messages, kwargs={"enable_thinking": False})

    def _with_roles(self, instruction: str, query: str, document: str) -> Segments:
        system = [{"role": "system", "content": instruction}] if instruction else []
        pair = [{"role": "query", "content": query}, {"role": "document", "content": document}]
        return self.template.render([*system, *pair], add_generation_prompt=self.adds_generation_prompt)
