"""The request of POST /v1/batches"""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from ...core.nearest import did_you_mean
from ...errors import InvalidRequestError
from ..edge.body import RequestBody, Unsupported, refused
from .lines import ENDPOINTS

_UNSUPPORTED: Unsupported = refused("output_expires_after")


class BatchRequest(RequestBody):
    """Answer the requests of a file."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "input_file_id": "file-0123456789abcdef01234567",
                "endpoint": "/v1/chat/completions",
                "completion_window": "24h",
            }
        }
    )

    unsupported = _UNSUPPORTED
    input_file_id: str
    endpoint: str = Field(description="what all requests of the file are sent to")
    completion_window: Literal["24h"] = Field(description="what is not answered then gets an error")
    metadata: dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]] | None = Field(
        None, max_length=16
    )

    def check(self) -> None:
        """See `RequestBody.check`."""
        if self.endpoint not in ENDPOINTS:
            hint = did_you_mean(self.endpoint, ENDPOINTS)
            raise InvalidRequestError(f"endpoint: one of {', '.join(ENDPOINTS)}{hint}", "endpoint")
