"""Models of images in real processes behind real sockets."""

import base64
import json
import struct
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import torch

from tests import web
from tests.server.examples import check_examples
from tests.server.process import Server, running_server
from tests.server.test_encoders import CLS, SEP, write_tokenizer
from tests.worker.test_image_models import FILES, LABELS, inputs_of, write_image_model


def data_url(file: bytes) -> str:
    kind = "png" if file.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(file).decode()}"


URLS = [data_url(file) for file in FILES]
LIMITS = '{"max_image_pixels": 1000000, "max_numbers": 9, "max_image_size": "1MiB"}'


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Path, Any]]:
    folder = tmp_path_factory.mktemp("clip")
    oracle = write_image_model(folder, "CLIPModel", vocab_size=258, bos_token_id=CLS, eos_token_id=SEP)
    write_tokenizer(folder)
    with running_server("--model", str(folder), "--request-limits", LIMITS) as server:
        yield server, folder, oracle


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Path, Any]]:
    folder = tmp_path_factory.mktemp("resnet")
    oracle = write_image_model(folder, "ResNetForImageClassification")
    with running_server("--model", str(folder)) as server:
        yield server, folder, oracle


def post(server: Server, path: str, body: Any) -> Any:
    answer = web.post(server.url + path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


@torch.inference_mode()
def compare(served: tuple[Server, Path, Any], file: bytes, texts: list[str]) -> Any:
    """transformers' own forward of an image and texts, each of which is read alone."""
    _, folder, oracle = served
    ids = [torch.tensor([[CLS, *text.encode(), SEP]]) for text in texts]
    outputs = [oracle(**inputs_of(folder, file), input_ids=one) for one in ids]
    return (
        outputs[0].image_embeds[0].numpy(),
        np.stack([one.text_embeds[0].numpy() for one in outputs]),
        np.array([one.logits_per_image.item() for one in outputs]),
    )


def test_embeddings_of_images_and_texts_in_all_forms(clip: tuple[Server, Path, Any]) -> None:
    server = clip[0]
    image, (text, _), _ = compare(clip, FILES[1], ["a cat", "a dog"])
    bare = base64.b64encode(FILES[1]).decode()
    forms: list[Any] = [
        {"image": URLS[1]}, {"image": bare}, {"image_url": URLS[1]},
        {"type": "image_url", "image_url": {"url": URLS[1], "detail": "low"}},
        {"type": "text", "text": "a cat"}, "a cat",
    ]  # fmt: skip
    answer = post(server, "/v1/embeddings", {"input": forms})
    for found, expected in zip(answer["data"], [image] * 4 + [text] * 2, strict=True):
        np.testing.assert_allclose(found["embedding"], expected, atol=1e-5)
    assert answer["usage"]["prompt_tokens"] == 4 * 4 + 2 * 7
    part = {"type": "image_url", "image_url": {"url": URLS[1]}}
    for body in (
        {"messages": [{"role": "user", "content": [part]}]},
        {"input": URLS[1], "modality": "image"},
        {"input": part},
    ):
        np.testing.assert_allclose(post(server, "/v1/embeddings", body)["data"][0]["embedding"], image, atol=1e-5)
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0) as client:
        found = client.embeddings.create(model=client.models.list().data[0].id, input="a cat", dimensions=5)
        np.testing.assert_allclose(found.data[0].embedding, text[:5] / np.linalg.norm(text[:5]), atol=1e-5)


def test_examples(clip: tuple[Server, Path, Any]) -> None:
    page = "docs/image-models.md"
    check_examples(clip[0].url, f"{page}: Classifying", f"{page}: Embedding", f"{page}: Files")


def test_labels_of_the_request(clip: tuple[Server, Path, Any]) -> None:
    labels = ["cat", "dog", "bee"]
    for field, options, texts in (
        ("labels", {}, [f"This is a photo of {label}." for label in labels]),
        ("candidate_labels", {"hypothesis_template": "{}!"}, [f"{label}!" for label in labels]),
    ):
        texts = [text[:14] for text in texts]
        body = {"input": [{"image": url} for url in URLS[:3]], field: labels, "top_k": 2, "truncate_prompt_tokens": -1}
        answer = post(clip[0], "/v1/classify", {**body, **options})
        for file, found in zip(FILES, answer["data"], strict=False):
            logits = compare(clip, file, texts)[2]
            probs = np.exp(logits - logits.max())
            probs /= probs.sum()
            np.testing.assert_allclose(found["probs"], probs, atol=2e-5)
            # Texts that are cut before the label are the same, and so are their probabilities, but for rounding.
            top = [probs[labels.index(one["label"])] for one in found["top"]]
            np.testing.assert_allclose(top, np.sort(probs)[:0:-1], atol=4e-5)
            assert found["label"] == found["top"][0]["label"]


def test_forms_have_files_in_the_place_of_data_urls(clip: tuple[Server, Path, Any]) -> None:
    """The same answers as for JSON, and faults that name the form's field. curl writes such forms."""

    def send(path: str, *fields: tuple[str, Any]) -> Any:
        return web.post(f"{clip[0].url}/v1/{path}", files=fields)

    def text(name: str, value: str) -> tuple[str, Any]:
        return name, (None, value)

    files = [("images[]", ("b.png", FILES[1])), text("input", "a cat"), ("file", ("c", FILES[2]))]
    fields = {"input": [{"image": URLS[1]}, "a cat", {"image": URLS[2]}], "dimensions": 5, "model": "clip0"}
    form = send("embeddings", *files, text("dimensions", "5"), text("model", "clip0"))
    for found, expected in zip(form.json()["data"], post(clip[0], "/v1/embeddings", fields)["data"], strict=True):
        np.testing.assert_allclose(found["embedding"], expected["embedding"], atol=1e-5)
    labels = [text("labels", "cat"), text("labels", "dog"), text("hypothesis_template", "{}!")]
    body = {"input": {"image": URLS[1]}, "labels": ["cat", "dog"], "hypothesis_template": "{}!", "top_k": 2}
    (found,) = send("classify", ("image", ("b.png", FILES[1])), *labels, text("top_k", "2")).json()["data"]
    (expected,) = post(clip[0], "/v1/classify", body)["data"]
    np.testing.assert_allclose(found["probs"], expected["probs"], atol=1e-5)
    assert [one["label"] for one in found["top"]] == [one["label"] for one in expected["top"]]
    for wrong, status, param, message in (
        ([("image", ("b.png", FILES[1])), ("image", ("b.png", FILES[1][:-40]))], 400, "image[1]", "cannot be read"),
        ([("image", ("b.png", FILES[1] + bytes(2**21)))], 413, "image", "max_image_size"),
        ([("picture", ("b.png", FILES[1]))], 400, "picture", "a file has to be the field image or images or file"),
        ([text("image", "b.png")], 400, "image", "no file: curl sends one with -F image=@FILE"),
        ([("file", ("b.pdf", b"%PDF-1.7"))], 400, "file", "the file is PDF"),
        ([text("input", "a cat")], 400, "input[0]", "this is a text"),
        ([], 400, "image", "a file is missing"),
        ([("file", ("b.png", FILES[1])), text("top_k", "all")], 400, "top_k", "valid integer"),
        ([("file", ("b.png", FILES[1])), text("top_k", "1"), text("top_k", "2")], 400, "top_k", "more than once"),
        ([("file", ("b.png", FILES[1])), text("input", "a"), text("messages", "b")], 400, "messages[0]", ""),
    ):
        answer = send("classify", *wrong, *labels)
        assert answer.status_code == status, answer.text
        error = answer.json()["error"]
        assert error["param"] == param, error
        assert message in error["message"], error


def test_a_crowd_gets_the_labels_of_transformers(classifier: tuple[Server, Path, Any]) -> None:
    server, folder, oracle = classifier
    bodies = [{"input": [{"image": URLS[(at + shift) % len(URLS)]} for shift in range(1 + at % 3)]} for at in range(21)]
    with ThreadPoolExecutor(len(bodies)) as pool:
        answers = list(pool.map(lambda body: post(server, "/v1/classify", body), bodies))
    expected = []
    for file in FILES:
        with torch.inference_mode():
            expected.append(torch.softmax(oracle(**inputs_of(folder, file)).logits[0], -1).numpy())
    for at, answer in enumerate(answers):
        assert len(answer["data"]) == 1 + at % 3
        for shift, found in enumerate(answer["data"]):
            probs = expected[(at + shift) % len(URLS)]
            np.testing.assert_allclose(found["probs"], probs, atol=1e-5)
            assert found["label"] == LABELS[int(probs.argmax())]


def test_what_the_service_says_of_them(clip: tuple[Server, Path, Any], classifier: tuple[Server, Path, Any]) -> None:
    for (server, *_), tasks, reads in (
        (clip, ["embed", "classify"], ["text", "image"]),
        (classifier, ["classify"], ["image"]),
    ):
        (model,) = server.get("/v1/models").json()["data"]
        assert (model["tasks"], model["input_modalities"]) == (tasks, reads)
        assert server.get("/health/deep").status_code == 200
    example = classifier[0].wait_for(r"-d '(.*)'")
    assert post(classifier[0], "/v1/classify", json.loads(example[1]))["data"][0]["num_classes"] == 3


def png_of(width: int, height: int, data: bytes = b"") -> bytes:
    """A PNG file whose head says this size, with these bytes for its pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("body", "status", "param", "message"),
    [
        ({"input": [{"image": data_url(png_of(30000, 30000))}]}, 413, "input[0]", "max_image_pixels"),
        ({"input": [URLS[1], {"image": data_url(FILES[1][:-40])}]}, 400, "input[1]", "cannot be read"),
        ({"input": {"image": "https://example.org/cat.png"}}, 400, "input", "https: URLs are not fetched"),
        ({"input": {"image": "file:///etc/passwd"}}, 400, "input", "file: URLs are not fetched"),
        ({"input": {"image": "data:image/svg+xml;base64,PHN2Zy8+"}}, 400, "input", "the file is SVG"),
        ({"input": {"image": "AAAAGGZ0eXBpc29tAAAAAA=="}}, 400, "input", "the file is an MP4 video"),
        ({"input": {"image": "!"}}, 400, "input", "not valid base64"),
        ({"input": {"image": ""}}, 400, "input", "no format that is known"),
        ({"input": {"image": data_url(FILES[1]), "text": "a"}}, 400, "input", "one of text, image and image_url"),
        ({"input": {"text": "a cat"}}, 400, "input", "reads images, and no text"),
        ({"input": []}, 400, "input", "must not be empty"),
        ({}, 400, "input", "either input or messages"),
        ({"input": URLS[1], "labels": ["cat"]}, 400, "labels", "labels of its own"),
        ({"input": URLS[1], "top_k": 0}, 400, "top_k", "greater than or equal to 1"),
        ({"input": [[1, 2]]}, 400, "input[0]", ""),
    ],
)
def test_what_is_wrong_is_named(
    classifier: tuple[Server, Path, Any], body: Any, status: int, param: str, message: str
) -> None:
    answer = classifier[0].post("/v1/classify", body)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["param"] == param
    assert message in error["message"]


def test_what_a_model_that_compares_does_not_do(clip: tuple[Server, Path, Any]) -> None:
    for path, body, message in (
        ("/v1/classify", {"input": {"image": URLS[1]}}, "labels: this model has none of its own"),
        ("/v1/classify", {"input": "a cat", "labels": ["cat"]}, "input: images are classified, and this is a text"),
        ("/v1/classify", {"input": [{"image": URLS[1]}] * 2, "labels": ["cat"] * 5}, "at most 9 pairs may be compared"),
        ("/v1/embeddings", {"input": "a cat" * 9}, "input: this model reads 16 tokens of a text"),
        ("/v1/embeddings", {"input": {"image": URLS[1]}, "dimensions": 25}, "dimensions: this model has 24"),
        ("/v1/score", {"text_1": "a", "text_2": "b"}, "this model embeds texts and images and classifies"),
        ("/v1/forecast", {"series": [[1]]}, "this model embeds"),
    ):
        answer = clip[0].post(path, body)
        assert answer.status_code == 400
        assert message in answer.json()["error"]["message"]
