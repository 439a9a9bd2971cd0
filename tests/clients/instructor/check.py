"""instructor gets objects through tools and through schemas, whole and in parts."""

import os
from typing import Literal

import instructor
import openai
from pydantic import BaseModel, ConfigDict, Field


class Person(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str = Field(max_length=20)
    age: int = Field(ge=0, le=150)
    mood: Literal["glad", "sad"]


ASK = {
    "model": os.environ["MODEL"],
    "messages": [{"role": "user", "content": "Ann is 30 years old and glad."}],
    "response_model": Person,
    "max_retries": 0,
    "temperature": 0,
    "max_tokens": 100,
}

for mode in (instructor.Mode.TOOLS, instructor.Mode.TOOLS_STRICT, instructor.Mode.JSON_SCHEMA):
    api = openai.OpenAI(base_url=os.environ["BASE_URL"], api_key="-", max_retries=0)
    client = instructor.from_openai(api, mode=mode)
    whole = client.create(**ASK)
    assert (whole.name, whole.age) == ("Ann", 30), (mode, whole)
    parts = list(client.create_partial(**ASK))
    assert len(parts) > 3, (mode, parts)
    assert parts[-1].model_dump() == whole.model_dump(), (mode, parts[-1])
