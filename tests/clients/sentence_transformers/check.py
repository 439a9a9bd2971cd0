"""A real embedding model gives through the service, many inputs at once, what sentence-transformers makes of each."""

import base64
import os

import numpy as np
import openai
from sentence_transformers import SentenceTransformer

WORDS = ["the", "quick", "fox", "a", "北京", "Köln", "naïve", "😀", "don't", "e=mc²", "[SEP]", "CamelCase", "1,234.5"]
TEXTS = [" ".join(WORDS[(at + index) % len(WORDS)] for at in range(index * 3 % 140 + 1)) for index in range(64)]
TEXTS += [" padded\twith\n\nspace ", "?", "word " * 2000]
CUT = {"truncate_prompt_tokens": -1}

oracle = SentenceTransformer(os.environ["MODEL_FOLDER"], device="cpu")
client = openai.OpenAI(base_url=os.environ["BASE_URL"], api_key="-", max_retries=0)


def embed(**options: object) -> list[object]:
    answer = client.embeddings.create(model=os.environ["MODEL"], input=TEXTS, extra_body=CUT, **options)
    assert [item.index for item in answer.data] == list(range(len(TEXTS)))
    return [item.embedding for item in answer.data]


expected = oracle.encode(TEXTS, batch_size=1)
assert expected.shape == (len(TEXTS), 384)
as_numbers = np.array(embed(encoding_format="float"))
in_base64 = np.stack([np.frombuffer(base64.b64decode(text), "<f4") for text in embed(encoding_format="base64")])
np.testing.assert_allclose(as_numbers, expected, atol=1e-5, rtol=0)
np.testing.assert_allclose(in_base64, expected, atol=1e-5, rtol=0)

short = SentenceTransformer(os.environ["MODEL_FOLDER"], device="cpu", truncate_dim=64)
np.testing.assert_allclose(
    embed(dimensions=64), short.encode(TEXTS, batch_size=1, normalize_embeddings=True), atol=1e-5, rtol=0
)

scores = client.post("/score", body={"text_1": TEXTS[5], "text_2": TEXTS[:9]}, cast_to=object)["data"]
np.testing.assert_allclose([item["score"] for item in scores], expected[:9] @ expected[5], atol=1e-5, rtol=0)
