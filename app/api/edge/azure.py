"""Azure OpenAI's paths, as other names of those of OpenAI's API."""

import re
from urllib.parse import quote

from starlette.types import ASGIApp, Receive, Scope, Send

from ...errors import ApiError
from .errors import error_response

_PATH = re.compile(
    r"/openai(?:/v1|/deployments/(?P<model>.+?)(?=/completions$|/chat/completions$|/embeddings$))?(?P<rest>/.+)"
)
"""The model's name, which may have slashes, is in the paths of completions, chats and embeddings only."""


PATH_MODEL = "paceline.path_model"
"""The key of a scope with the model that the path names."""


class AzureMiddleware:
    """Serves `/openai/deployments/MODEL/...`, `/openai/v1/...` and `/openai/...` as `/v1/...` (pure ASGI).

    `api-version` changes nothing.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] == "http" and (found := _PATH.fullmatch(scope["path"])):
            path = f"/v1{found['rest']}"
            scope = {**scope, "path": path, "raw_path": quote(path).encode(), PATH_MODEL: found["model"]}
            try:
                state = scope["app"].state
                if not hasattr(state, "services"):  # of which there may be several: then the name chooses one
                    state.service.check_model(found["model"])
            except ApiError as error:
                await error_response(error, scope)(scope, receive, send)
                return
        await self._app(scope, receive, send)
