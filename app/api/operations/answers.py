"""Answers about the server, its model and its tokenizer"""

from typing import Literal

from app.api.edge.answers import AnswerBody


class ServedModel(AnswerBody):
    """A model that is served."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int | None
    """Null while the model is loading."""


class ServedModels(AnswerBody):
    """All that are served."""

    object: Literal["list"]
    data: list[ServedModel]


class Tokens(AnswerBody):
    """A text as tokens."""

    tokens: list[int]
    count: int
    max_model_len: int
    token_strs: list[str] | None
    """With return_token_strs."""


class Detokenized(AnswerBody):
    """Tokens as a text."""

    prompt: str


class Health(AnswerBody):
    """ready, loading, or what failed."""

    status: str


class Version(AnswerBody):
    """The server's."""

    version: str
