"""OpenAI's Agents SDK runs an agent with its models for Responses and for chats, at once and as a stream."""

import asyncio
import os

from agents import (
    Agent,
    Model,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    RunConfig,
    Runner,
    function_tool,
)
from openai import AsyncOpenAI
from pydantic import BaseModel

calls: list[str] = []
SETTINGS = ModelSettings(max_tokens=40, temperature=0, extra_body={"frequency_penalty": 0.5})
QUIET = RunConfig(tracing_disabled=True)


@function_tool
def get_weather(city: str) -> str:
    """The weather of a city."""
    calls.append(city)
    return "sunny"


class City(BaseModel):
    name: str


async def check_tools(model: Model) -> None:
    """A tool is called and its result read; then the whole history is sent again."""
    required = SETTINGS.resolve(ModelSettings(tool_choice="required", parallel_tool_calls=False))
    agent = Agent("Weather", instructions="Be brief.", model=model, model_settings=required, tools=[get_weather])
    whole = await Runner.run(agent, "How is the weather in Paris?", run_config=QUIET)
    streamed = Runner.run_streamed(agent, "How is the weather in Paris?", run_config=QUIET)
    events = [event.type async for event in streamed.stream_events()]
    assert "raw_response_event" in events
    kinds = [item.type for item in whole.new_items]
    assert kinds[:2] == ["tool_call_item", "tool_call_output_item"], kinds
    assert [item.type for item in streamed.new_items] == kinds
    assert calls[0] == calls[1]
    assert streamed.final_output == whole.final_output != ""
    calls.clear()
    speaker = Agent("Speaker", model=model, model_settings=SETTINGS)
    again = await Runner.run(speaker, [*whole.to_input_list(), {"role": "user", "content": "So?"}], run_config=QUIET)
    assert again.final_output


async def check_schema(model: Model) -> None:
    """The final output has a type."""
    agent = Agent("Namer", model=model, model_settings=SETTINGS, output_type=City)
    result = await Runner.run(agent, "Name the capital of France.", run_config=QUIET)
    assert isinstance(result.final_output, City), result.final_output


async def check_chain(model: Model) -> None:
    """A conversation goes on by the id of its last response."""
    agent = Agent("Speaker", model=model, model_settings=SETTINGS)
    first = await Runner.run(agent, "My name is Ann.", run_config=QUIET)
    second = await Runner.run(agent, "What is my name?", previous_response_id=first.last_response_id, run_config=QUIET)
    assert second.final_output
    read = [response.usage.input_tokens for response in (*first.raw_responses, *second.raw_responses)]
    assert read[1] > read[0] + 10, read


async def main() -> None:
    client = AsyncOpenAI(base_url=os.environ["BASE_URL"], api_key="-", max_retries=0)
    for kind in (OpenAIResponsesModel, OpenAIChatCompletionsModel):
        model = kind(os.environ["MODEL"], client)
        await check_tools(model)
        await check_schema(model)
    await check_chain(OpenAIResponsesModel(os.environ["MODEL"], client))


asyncio.run(main())
