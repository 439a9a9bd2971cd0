"""What encoders can do: POST /v1/embeddings, /v1/rerank, /v1/score, /v1/classify, and other names of these"""

import base64
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, Request
from numpy.typing import NDArray
from starlette.responses import Response

from app.api.deps import ADMITTED, ServiceDep, body_of
from app.api.edge.body import body_schema
from app.api.edge.disconnect import run_unless_disconnected
from app.api.edge.document import RUNS, answers
from app.api.edge.sse import encode_json
from app.api.encoders.answers import Classifications, Embeddings, Ranking, Scores
from app.api.encoders.run import Encoded, Text, Vectors, encode
from app.api.encoders.schema import ClassifyRequest, EmbeddingRequest, EncoderFields, RerankRequest, ScoreRequest
from app.api.generation.prompts import as_list
from app.api.service import Service
from app.checkpoint.encoders import EncoderConfig
from app.errors import InvalidRequestError, UnsupportedError

router = APIRouter()

_CLASSIFY: dict[str, Any] = {
    "openapi_extra": body_schema(ClassifyRequest),
    "responses": answers(Classifications, RUNS),
    "dependencies": ADMITTED,
}
_SCORE = {**_CLASSIFY, "openapi_extra": body_schema(ScoreRequest), "responses": answers(Scores, RUNS)}
_RERANK = {**_CLASSIFY, "openapi_extra": body_schema(RerankRequest), "responses": answers(Ranking, RUNS)}


@router.post(
    "/v1/embeddings",
    openapi_extra=body_schema(EmbeddingRequest),
    responses=answers(Embeddings, RUNS),
    dependencies=ADMITTED,
)
async def create_embeddings(
    body: Annotated[EmbeddingRequest, Depends(body_of(EmbeddingRequest))], request: Request, service: ServiceDep
) -> Response:
    """A vector for each text."""
    config = _check(service, body, "embed")

    async def work() -> bytes:
        encoded = await encode(service, request, body, _texts(body.input), "input")
        vectors = _embeddings(config, encoded.vectors, body.dimensions)
        data = [
            {"object": "embedding", "index": index, "embedding": _written(vector, body.encoding_format)}
            for index, vector in enumerate(vectors)
        ]
        return _list(service, encoded, data)

    return await run_unless_disconnected(request, work())


@router.post("/v1/classify", **_CLASSIFY)
@router.post("/classify", **_CLASSIFY)
async def classify(
    body: Annotated[ClassifyRequest, Depends(body_of(ClassifyRequest))], request: Request, service: ServiceDep
) -> Response:
    """A label for each text, and the probabilities of all."""
    config = _check(service, body, "classify")

    async def work() -> bytes:
        encoded = await encode(service, request, body, _texts(body.input), "input")
        data = []
        for index, logits in enumerate(encoded.vectors):
            probs = _sigmoid(logits) if config.is_multi_label else _softmax(logits)
            label = config.labels[int(probs.argmax())]
            data.append({"index": index, "label": label, "probs": probs.tolist(), "num_classes": len(probs)})
        return _list(service, encoded, data)

    return await run_unless_disconnected(request, work())


@router.post("/v1/score", **_SCORE)
@router.post("/score", **_SCORE)
async def score(
    body: Annotated[ScoreRequest, Depends(body_of(ScoreRequest))], request: Request, service: ServiceDep
) -> Response:
    """How well texts go together."""
    config = _check(service, body, None)
    firsts, seconds = ([text] if isinstance(text, str) else text for text in (body.text_1, body.text_2))
    if len(firsts) == 1:
        firsts = firsts * len(seconds)
    if not firsts or len(firsts) != len(seconds):
        raise InvalidRequestError("text_2: as many texts as text_1, which has one or more", "text_2")

    async def work() -> bytes:
        pairs = list(zip(firsts, seconds, strict=True))
        encoded = await _scores(config, service, request, body, pairs, "text_2")
        data = [{"index": i, "object": "score", "score": float(value[0])} for i, value in enumerate(encoded.vectors)]
        return _list(service, encoded, data)

    return await run_unless_disconnected(request, work())


@router.post("/v1/rerank", **_RERANK)
@router.post("/v2/rerank", **_RERANK)
@router.post("/rerank", **_RERANK)
async def rerank(
    body: Annotated[RerankRequest, Depends(body_of(RerankRequest))], request: Request, service: ServiceDep
) -> Response:
    """Documents by how well they answer a query, the best first."""
    config = _check(service, body, None)
    texts = body.texts()

    async def work() -> bytes:
        pairs = [(body.query, text) for text in texts]
        encoded = await _scores(config, service, request, body, pairs, "documents")
        values = np.concatenate(encoded.vectors)
        results = [
            {
                "index": index,
                "relevance_score": float(values[index]),
                **({"document": {"text": texts[index]}} if body.return_documents else {}),
            }
            for index in np.argsort(-values, kind="stable").tolist()[: body.top_n]
        ]
        head = {"id": f"rerank-{request.scope['request_log'].request_id}", "model": service.model_name}
        return encode_json({**head, "usage": {"total_tokens": encoded.num_tokens}, "results": results})

    return await run_unless_disconnected(request, work())


# ---------------------------------------------------------------------- scores


async def _scores(
    config: EncoderConfig,
    service: Service,
    request: Request,
    body: EncoderFields,
    pairs: list[tuple[str, str]],
    param: str,
) -> Encoded:
    """One number for each pair: a classifier's own, or the cosine of embeddings."""
    if config.task == "classify":
        if len(config.labels) != 1:
            raise UnsupportedError(
                f"this model has {len(config.labels)} labels; scores are of models with one", "model"
            )
        encoded = await encode(service, request, body, list(pairs), param)
        return Encoded([_sigmoid(logit) for logit in encoded.vectors], encoded.num_tokens)
    texts = list(dict.fromkeys(text for pair in pairs for text in pair))  # each is embedded once
    encoded = await encode(service, request, body, list(texts), param)
    vectors = dict(zip(texts, map(_normalised, encoded.vectors), strict=True))
    return Encoded([np.atleast_1d(vectors[one] @ vectors[other]) for one, other in pairs], encoded.num_tokens)


# ---------------------------------------------------------------------- in common


def _check(service: Service, body: EncoderFields, task: str | None) -> EncoderConfig:
    """The model's own description; UnsupportedError if it cannot do this."""
    service.check_model(body.model)
    service.ready()
    if service.encoder is None or task not in (None, service.encoder.task):
        kind = {"embed": "embeds texts", "classify": "classifies texts"}
        does = kind[service.encoder.task] if service.encoder else "generates text"
        raise UnsupportedError(f"this model {does}: it cannot do what this path does", "model")
    return service.encoder


def _texts(given: Any) -> list[Text]:
    """One or several texts, or token ids, as a list of them. An empty text alone is a mistake."""
    if given == "":
        raise InvalidRequestError("input: must not be empty", "input")
    return as_list(given, "input")


def _embeddings(config: EncoderConfig, vectors: Vectors, dimensions: int | None) -> Vectors:
    if dimensions is not None:
        if dimensions > len(vectors[0]):
            raise InvalidRequestError(f"dimensions: this model has {len(vectors[0])}", "dimensions")
        return [_normalised(vector[:dimensions]) for vector in vectors]
    return [_normalised(vector) for vector in vectors] if config.normalizes else vectors


def _normalised(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    """Of length 1."""
    return (vector / max(float(np.linalg.norm(vector)), 1e-12)).astype(np.float32)


def _sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    return (1 / (1 + np.exp(-logits.astype(np.float64)))).astype(np.float32)


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    weights: NDArray[np.float64] = np.exp(logits.astype(np.float64) - logits.max())
    probs: NDArray[np.float32] = (weights / weights.sum()).astype(np.float32)
    return probs


def _written(vector: NDArray[np.float32], encoding_format: str) -> str | list[float]:
    if encoding_format == "base64":
        return base64.b64encode(vector.tobytes()).decode()
    return [float(value) for value in vector]


def _list(service: Service, encoded: Encoded, data: list[dict[str, Any]]) -> bytes:
    usage = {"prompt_tokens": encoded.num_tokens, "total_tokens": encoded.num_tokens}
    return encode_json({"object": "list", "data": data, "model": service.model_name, "usage": usage})
