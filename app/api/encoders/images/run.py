"""POST /v1/embeddings and /v1/classify where a model reads images; see `app.api.encoders.route`"""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from fastapi import Request

from ....checkpoint.image_models import ImageModelConfig
from ....core.wire import Task
from ....errors import InvalidRequestError, UnsupportedError
from ...deps import ServiceDep, body_of
from ...edge.body import RequestBody
from ...generation.prompts import in_thread
from ...service import Service
from ..answer import Classification, Classifications, Embeddings, EncoderUsage, embed
from .answer import classified, compared, probabilities, vector_of
from .forms import read_images
from .inputs import Given, given_in, run_all
from .schema import ImageClassifyRequest, ImageEmbeddingRequest, ImageFields

OfTexts = TypeVar("OfTexts", bound=RequestBody)
OfImages = TypeVar("OfImages", bound=ImageFields)


def body_for(
    texts: type[OfTexts], images: type[OfImages], *tasks: Task
) -> Callable[[Request, Service], Awaitable[OfTexts | OfImages]]:
    """A dependency: the request's body, as what the served model reads.

    UnsupportedError for a body that is wrong if the model can do none of the tasks: it may be right for another model.
    """
    of_texts, of_images = body_of(texts), body_of(images, read_images)

    async def read(request: Request, service: ServiceDep) -> OfTexts | OfImages:
        try:
            if isinstance(service.predictor, ImageModelConfig):
                return await of_images(request, service)
            return await of_texts(request, service)
        except InvalidRequestError:
            service.check_task(*tasks)
            raise

    return read


async def embed_images(service: Service, request: Request, body: ImageEmbeddingRequest) -> Embeddings:
    """A vector of length 1 for each image and text."""
    config = _check(service, body, "embed")
    done = await run_all(service, request, body, config, given_in(body, config))
    vectors = [vector_of(config, numbers) for numbers in done.vectors]
    usage = EncoderUsage(prompt_tokens=done.num_tokens, total_tokens=done.num_tokens)
    data = await in_thread(lambda: embed(True, vectors, body), done.num_numbers)
    return Embeddings(data=data, model=service.model_name, usage=usage)


async def classify_images(service: Service, request: Request, body: ImageClassifyRequest) -> Classifications:
    """A label for each image, and the probabilities of all."""
    config = _check(service, body, "classify")
    given = given_in(body, config)
    if texts := [one for one in given if one.text is not None]:
        raise UnsupportedError(f"{texts[0].path}: images are classified, and this is a text", texts[0].path)
    labels = _labels(config, body)
    most = service.settings.request_limits.max_numbers
    if config.compares and len(given) * len(labels) > most:
        what = f"{len(given)} images with {len(labels)} labels, and at most {most} pairs may be compared (max_numbers)"
        raise InvalidRequestError(f"labels: {what}", "labels")
    asked = [
        Given(f"labels[{at}]", text=body.hypothesis_template.replace("{}", one))
        for at, one in enumerate(labels if config.compares else [])
    ]
    done = await run_all(service, request, body, config, given + asked)
    of_images, of_texts = done.vectors[: len(given)], done.vectors[len(given) :]

    def told() -> list[Classification]:
        probs = compared(config, of_images, of_texts) if config.compares else probabilities(config, of_images)
        return [classified(index, of_one, labels, body.top_k) for index, of_one in enumerate(probs)]

    data = await in_thread(told, len(given) * len(labels) + done.num_numbers)
    usage = EncoderUsage(prompt_tokens=done.num_tokens, total_tokens=done.num_tokens)
    return Classifications(data=data, model=service.model_name, usage=usage)


def _labels(config: ImageModelConfig, body: ImageClassifyRequest) -> list[str]:
    asked = body.labels or body.candidate_labels
    if config.compares and asked is None:
        raise InvalidRequestError("labels: this model has none of its own, so give some", "labels")
    if not config.compares and asked is not None:
        raise UnsupportedError("labels: this model has labels of its own", "labels")
    return asked or list(config.labels)


def _check(service: Service, body: ImageFields, task: Task) -> ImageModelConfig:
    """The model's description. Raises UnsupportedError if it cannot do the task."""
    service.check_model(body.model)
    service.ready()
    service.check_task(task)
    assert isinstance(service.predictor, ImageModelConfig)
    return service.predictor
