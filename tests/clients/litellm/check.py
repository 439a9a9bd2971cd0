"""litellm: chats, whole and streamed, tool calls, schemas, completions, errors as its own exceptions."""

import asyncio
import json
import os

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it fetches one

import litellm
from pydantic import BaseModel

SERVER = {"api_base": os.environ["BASE_URL"], "api_key": "-", "num_retries": 0}
CHAT = {
    **SERVER,
    "model": f"openai/{os.environ['MODEL']}",
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
    "temperature": 0,
    "max_tokens": 60,
}
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


class Place(BaseModel):
    city: str
    country: str


whole = litellm.completion(**CHAT)
text = whole.choices[0].message.content
assert "Paris" in text, text
assert whole.choices[0].finish_reason == "stop"
assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens

chunks = list(litellm.completion(**CHAT, stream=True, stream_options={"include_usage": True}))
rebuilt = litellm.stream_chunk_builder(chunks)
assert rebuilt.choices[0].message.content == text
assert rebuilt.usage.completion_tokens == whole.usage.completion_tokens
assert asyncio.run(litellm.acompletion(**CHAT)).choices[0].message.content == text

for stream in (False, True):
    answer = litellm.completion(**CHAT, tools=[TOOL], tool_choice="required", parallel_tool_calls=False, stream=stream)
    if stream:
        answer = litellm.stream_chunk_builder(list(answer))
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == "weather"
    assert json.loads(call.function.arguments).keys() == {"city"}
    assert answer.choices[0].finish_reason == "tool_calls"

placed = litellm.completion(**CHAT, response_format=Place)
Place.model_validate_json(placed.choices[0].message.content)

continued = litellm.text_completion(
    **SERVER, model=f"text-completion-openai/{os.environ['MODEL']}", prompt="One, two,", temperature=0, max_tokens=5
)
assert "three" in continued.choices[0].text, continued

too_long = None
try:
    litellm.completion(**{**CHAT, "max_tokens": 100000})
except litellm.ContextWindowExceededError as error:  # what programs catch to shorten a chat
    too_long = error
assert too_long
