"""POST /v1/embeddings, /v1/rerank, /v1/score, /v1/classify, and other names of these"""

from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from ...checkpoint.encoders import EncoderConfig
from ...core.wire import Task
from ...errors import InvalidRequestError
from ..deps import ADMITTED, ServiceDep, body_of
from ..edge.answer import run_unless_disconnected
from ..edge.body import body_schema
from ..edge.document import RUNS, answers
from ..generation.prompts import as_list
from ..service import Service
from .answer import (
    Classifications,
    Embeddings,
    EncoderUsage,
    Ranking,
    Score,
    Scores,
    embed,
    label,
    normalised,
    rank,
    scores,
)
from .run import Encoded, Text, encode
from .schema import ClassifyRequest, EmbeddingRequest, EncoderFields, RerankRequest, ScoreRequest

router = APIRouter()

_EMBED: dict[str, Any] = {
    "openapi_extra": body_schema(EmbeddingRequest),
    "responses": answers(Embeddings, RUNS),
    "dependencies": ADMITTED,
}
_CLASSIFY = {**_EMBED, "openapi_extra": body_schema(ClassifyRequest), "responses": answers(Classifications, RUNS)}
_SCORE = {**_EMBED, "openapi_extra": body_schema(ScoreRequest), "responses": answers(Scores, RUNS)}
_RERANK = {**_EMBED, "openapi_extra": body_schema(RerankRequest), "responses": answers(Ranking, RUNS)}


@router.post("/v1/embeddings", **_EMBED)
async def create_embeddings(
    body: Annotated[EmbeddingRequest, Depends(body_of(EmbeddingRequest))], request: Request, service: ServiceDep
) -> Response:
    """A vector for each text."""
    config = _check(service, body, "embed")

    async def work() -> Embeddings:
        encoded = await encode(service, request, body, _texts(body.input), "input")
        data = embed(config, encoded.vectors, body.dimensions, body.encoding_format)
        return Embeddings(data=data, model=service.model_name, usage=_usage(encoded))

    return await run_unless_disconnected(request, work())


@router.post("/v1/classify", **_CLASSIFY)
@router.post("/classify", **_CLASSIFY)
async def classify(
    body: Annotated[ClassifyRequest, Depends(body_of(ClassifyRequest))], request: Request, service: ServiceDep
) -> Response:
    """A label for each text, and the probabilities of all."""
    config = _check(service, body, "classify")

    async def work() -> Classifications:
        encoded = await encode(service, request, body, _texts(body.input), "input")
        data = label(config, encoded.vectors)
        return Classifications(data=data, model=service.model_name, usage=_usage(encoded))

    return await run_unless_disconnected(request, work())


@router.post("/v1/score", **_SCORE)
@router.post("/score", **_SCORE)
async def score(
    body: Annotated[ScoreRequest, Depends(body_of(ScoreRequest))], request: Request, service: ServiceDep
) -> Response:
    """How similar texts are, or how well one answers the other."""
    config = _check(service, body, "score")
    firsts, seconds = ([text] if isinstance(text, str) else text for text in (body.text_1, body.text_2))
    if len(firsts) == 1:
        firsts = firsts * len(seconds)
    if not firsts or len(firsts) != len(seconds):
        raise InvalidRequestError("text_2: as many texts as text_1, which has one or more", "text_2")

    async def work() -> Scores:
        pairs = list(zip(firsts, seconds, strict=True))
        encoded = await _scores(config, service, request, body, pairs, "text_2")
        data = [Score(index, "score", float(value[0])) for index, value in enumerate(encoded.vectors)]
        return Scores(data=data, model=service.model_name, usage=_usage(encoded))

    return await run_unless_disconnected(request, work())


@router.post("/v1/rerank", **_RERANK)
@router.post("/v2/rerank", **_RERANK)
@router.post("/rerank", **_RERANK)
async def rerank(
    body: Annotated[RerankRequest, Depends(body_of(RerankRequest))], request: Request, service: ServiceDep
) -> Response:
    """Documents by how well they answer a query, the best first."""
    config = _check(service, body, "score")
    texts = body.texts()

    async def work() -> Ranking:
        pairs = [(body.query, text) for text in texts]
        encoded = await _scores(config, service, request, body, pairs, "documents")
        results = rank(encoded.vectors, texts, body.top_n, body.return_documents)
        id_ = f"rerank-{request.scope['request_log'].request_id}"
        return Ranking(id_, service.model_name, EncoderUsage(total_tokens=encoded.num_tokens), results)

    return await run_unless_disconnected(request, work())


async def _scores(
    config: EncoderConfig,
    service: Service,
    request: Request,
    body: EncoderFields,
    pairs: list[tuple[str, str]],
    param: str,
) -> Encoded:
    """A score for each pair: a classifier's own, or the cosine of embeddings."""
    if config.task == "classify":
        encoded = await encode(service, request, body, list(pairs), param)
        return Encoded(scores(config, encoded.vectors), encoded.num_tokens)
    texts = list(dict.fromkeys(text for pair in pairs for text in pair))  # each text is embedded once
    encoded = await encode(service, request, body, list(texts), param)
    vectors = dict(zip(texts, map(normalised, encoded.vectors), strict=True))
    return Encoded([np.atleast_1d(vectors[one] @ vectors[other]) for one, other in pairs], encoded.num_tokens)


def _check(service: Service, body: EncoderFields, task: Task) -> EncoderConfig:
    """The encoder's description. Raises UnsupportedError if the model cannot do the task."""
    service.check_model(body.model)
    service.ready()
    service.check_task(task)
    assert isinstance(service.predictor, EncoderConfig)
    return service.predictor


def _texts(given: Any) -> list[Text]:
    """One or several texts, or token ids, as a list. Raises InvalidRequestError for a single empty text."""
    if given == "":
        raise InvalidRequestError("input: must not be empty", "input")
    return as_list(given, "input")


def _usage(encoded: Encoded) -> EncoderUsage:
    return EncoderUsage(prompt_tokens=encoded.num_tokens, total_tokens=encoded.num_tokens)
