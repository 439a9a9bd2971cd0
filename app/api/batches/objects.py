"""Files and batches as OpenAI's API shows them, and as they are kept."""

from typing import Literal

from ..edge.answer import AnswerBody

Purpose = Literal["batch", "batch_output"]
Status = Literal["validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"]
ENDED = ("failed", "completed", "expired", "cancelled")


class FileObject(AnswerBody, kw_only=True):
    """A file of requests, or of answers."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: Purpose
    status: Literal["processed"] = "processed"


class FileList(AnswerBody, kw_only=True):
    """Files, the latest first unless another order is asked for."""

    object: Literal["list"] = "list"
    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class DeletedFile(AnswerBody):
    """A file that is gone."""

    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


class BatchProblem(AnswerBody):
    """What is wrong with a line."""

    code: str
    message: str
    param: str | None
    line: int | None


class BatchProblems(AnswerBody, kw_only=True):
    """Why a batch has failed: the first problems of its file."""

    object: Literal["list"] = "list"
    data: list[BatchProblem]


class RequestCounts(AnswerBody):
    """Of a batch's requests. What an error is the answer to has failed."""

    total: int = 0
    completed: int = 0
    failed: int = 0


class BatchObject(AnswerBody, kw_only=True):
    """Requests of a file, and how far they are answered. Times are in seconds since 1970."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    errors: BatchProblems | None = None
    input_file_id: str
    completion_window: str
    status: Status = "validating"
    output_file_id: str | None = None
    error_file_id: str | None = None
    created_at: int
    in_progress_at: int | None = None
    expires_at: int
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: RequestCounts
    metadata: dict[str, str] | None = None


class BatchList(AnswerBody, kw_only=True):
    """Batches, the latest first."""

    object: Literal["list"] = "list"
    data: list[BatchObject]
    first_id: str | None
    last_id: str | None
    has_more: bool
