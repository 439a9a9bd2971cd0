"""POST /v1/embeddings, /v1/rerank, /v1/score, /v1/classify, and other names of these"""

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from ...checkpoint.encoders import EncoderConfig
from ...core.wire import Task
from ...errors import InvalidRequestError, UnsupportedError
from ..deps import ADMITTED, ServiceDep, body_of
from ..edge.answer import run_unless_disconnected
from ..edge.body import RequestBody, body_schema
from ..edge.document import RUNS, answers
from ..edge.form import FORM
from ..generation.prompts import in_thread
from ..service import Service
from .answer import (
    Classifications,
    ClassifiedText,
    Embeddings,
    EncoderUsage,
    Ranking,
    Score,
    Scores,
    cosines,
    embed,
    find_entities,
    label,
    rank,
    scores,
)
from .images.forms import images_form
from .images.run import body_for, classify_images, embed_images
from .images.schema import ImageClassifyRequest, ImageEmbeddingRequest, ImageFields
from .inputs import texts_of
from .run import Encoded, encode
from .schema import ClassifyRequest, EmbeddingRequest, EncoderFields, PairFields, RerankRequest, ScoreRequest

router = APIRouter()


def _body_schema(texts: type[RequestBody], images: type[ImageFields]) -> dict[str, Any]:
    schema = body_schema(texts, images)
    schema["requestBody"]["content"][FORM] = {"schema": images_form(images)}
    return schema


_EMBED: dict[str, Any] = {
    "openapi_extra": _body_schema(EmbeddingRequest, ImageEmbeddingRequest),
    "responses": answers(Embeddings, RUNS),
    "dependencies": ADMITTED,
}
_CLASSIFY = {
    **_EMBED,
    "openapi_extra": _body_schema(ClassifyRequest, ImageClassifyRequest),
    "responses": answers(Classifications, RUNS),
}
_SCORE = {**_EMBED, "openapi_extra": body_schema(ScoreRequest), "responses": answers(Scores, RUNS)}
_RERANK = {**_EMBED, "openapi_extra": body_schema(RerankRequest), "responses": answers(Ranking, RUNS)}


@router.post("/v1/embeddings", **_EMBED)
async def create_embeddings(
    body: Annotated[
        EmbeddingRequest | ImageEmbeddingRequest, Depends(body_for(EmbeddingRequest, ImageEmbeddingRequest, "embed"))
    ],
    request: Request,
    service: ServiceDep,
) -> Response:
    """A vector for each text, or image."""
    if isinstance(body, ImageEmbeddingRequest):
        return await run_unless_disconnected(request, embed_images(service, request, body))
    config = _check(service, body, "embed")

    async def work() -> Embeddings:
        encoded = await encode(service, request, body, await texts_of(service, body), "input")
        normalizes = config.modules.normalizes
        data = await in_thread(lambda: embed(normalizes, encoded.vectors, body), encoded.num_numbers)
        return Embeddings(data=data, model=service.model_name, usage=_usage(encoded))

    return await run_unless_disconnected(request, work())


@router.post("/v1/classify", **_CLASSIFY)
@router.post("/classify", **_CLASSIFY)
async def classify(
    body: Annotated[
        ClassifyRequest | ImageClassifyRequest,
        Depends(body_for(ClassifyRequest, ImageClassifyRequest, "classify", "token_classify")),
    ],
    request: Request,
    service: ServiceDep,
) -> Response:
    """A label for each text or image, and the probabilities of all; of a model that classifies tokens, the entities."""
    if isinstance(body, ImageClassifyRequest):
        return await run_unless_disconnected(request, classify_images(service, request, body))
    config = _check(service, body, "token_classify" if "token_classify" in service.tasks else "classify")
    finds_entities = config.task == "token_classify"
    if finds_entities and (not body.use_activation or body.messages):
        field = "messages" if body.messages else "use_activation"
        raise UnsupportedError(f"{field}: not with a model that classifies tokens", field)

    async def work() -> Classifications:
        texts = await texts_of(service, body)
        encoded = await encode(service, request, body, texts, "input")

        def told() -> Sequence[ClassifiedText]:
            if finds_entities:
                return find_entities(config, encoded, texts)
            return label(config, encoded.vectors, body.use_activation)

        data = await in_thread(told, encoded.num_numbers)
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
    body: PairFields,
    pairs: list[tuple[str, str]],
    param: str,
) -> Encoded:
    """A score for each pair: a classifier's own, or the cosine of embeddings."""
    if config.task != "embed":
        encoded = await encode(service, request, body, list(pairs), param)
        return encoded._replace(vectors=scores(config, encoded.vectors, body.use_activation))
    if not body.use_activation:
        raise UnsupportedError("use_activation: scores of embeddings are cosines, without activation", "use_activation")
    texts = list(dict.fromkeys(text for pair in pairs for text in pair))  # each text is embedded once
    encoded = await encode(service, request, body, list(texts), param)
    of_pairs = await in_thread(lambda: cosines(texts, encoded.vectors, pairs), encoded.num_numbers)
    return encoded._replace(vectors=of_pairs)


def _check(service: Service, body: EncoderFields, task: Task) -> EncoderConfig:
    """The encoder's description. Raises UnsupportedError if the model cannot do the task."""
    service.check_model(body.model)
    service.ready()
    service.check_task(task)
    assert isinstance(service.predictor, EncoderConfig)
    return service.predictor


def _usage(encoded: Encoded) -> EncoderUsage:
    return EncoderUsage(prompt_tokens=encoded.num_tokens, total_tokens=encoded.num_tokens)
