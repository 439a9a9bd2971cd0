"""LangChain passes the tests of images of its own standard suite, by all three APIs of chats."""

import base64
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from langchain_anthropic import ChatAnthropic
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests, chat_models

IMAGE = Path("image.png").read_bytes()
PLACES = int(os.environ["PLACES"])
chat_models.httpx = SimpleNamespace(get=lambda *_, **__: SimpleNamespace(content=IMAGE))  # the suite's is in the net


class TestChats(ChatModelIntegrationTests):
    """Images in questions and in the results of tools, in LangChain's, OpenAI's and Anthropic's forms."""

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        where = {"model": os.environ["MODEL"], "base_url": os.environ["BASE_URL"], "api_key": "-"}
        return where | {"max_retries": 0, "max_tokens": 8}

    @property
    def supports_image_inputs(self) -> bool:
        return True

    @property
    def supports_image_tool_message(self) -> bool:
        return True

    @property
    def supports_anthropic_inputs(self) -> bool:
        return True

    def test_image_as_data_url(self, model: BaseChatModel) -> None:
        """The suite's own test of URLs sends one of the net, which no server fetches; and no test looks at tokens."""
        url = f"data:image/png;base64,{base64.b64encode(IMAGE).decode()}"
        image = {"type": "image", "url": url}
        text = {"type": "text", "text": "What is it?"}
        answers = [model.invoke([HumanMessage(parts)]) for parts in ([text, image], [text])]
        seeing, blind = (answer.usage_metadata["input_tokens"] for answer in answers)
        assert seeing - blind == PLACES


class TestResponses(TestChats):
    @property
    def chat_model_params(self) -> dict[str, Any]:
        return super().chat_model_params | {"use_responses_api": True}


class TestMessages(TestChats):
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatAnthropic

    @property
    def chat_model_params(self) -> dict[str, Any]:
        params = super().chat_model_params
        return params | {"base_url": params["base_url"].removesuffix("/v1")}


if __name__ == "__main__":
    options = ["-q", "--tb=short", "-c", os.devnull, "--rootdir", ".", "--noconftest", "-p", "no:cacheprovider"]
    sys.exit(pytest.main([__file__, *options, "-k", "test_image or test_anthropic"]))
