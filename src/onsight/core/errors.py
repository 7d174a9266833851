"""Every error that Onsight raises on purpose, as one tree.

    OnsightError
    ├── StartError               the server cannot start (exit code 2)
    └── RequestError             one request cannot be answered; the others go on
        ├── InvalidRequest       the request is wrong: what, the value, what to do
        │   ├── Unsupported      right in itself, but not offered here
        │   ├── InvalidMedia     a picture or video that cannot be fetched, read or allowed
        │   └── ContextTooLong   more tokens than the model can hold
        ├── UnknownModel         no model of that name is loaded
        ├── TooLarge             the body or a picture has too many bytes
        ├── Overloaded           the queue is full; try again after `retry_after_s`
        ├── Unavailable          loading, draining or dead; try again after `retry_after_s`
        ├── TimedOut             a client or a remote host was too slow
        ├── DeadlineMissed       the answer was not whole in the time that a request may take
        ├── UnreadableAnswer     the model answered, but not in the form that the task needs
        └── EngineFailed         the engine broke on this request
            └── OutOfMemory      the machine has too little memory left for it

HTTP statuses live elsewhere, in one table (`onsight.api.errors`).
"""


class OnsightError(Exception):
    """The root of the tree; its text is safe to show to a client."""


class StartError(OnsightError):
    """The server cannot start: a missing model, an unreadable folder, a missing tensor, a setting that contradicts."""


class RequestError(OnsightError):
    """One request cannot be answered.

    `param` names the request field at fault (`messages.0.content.1.image_url`), `code` is a short machine-readable
    word.
    """

    code: str = "error"

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        if code is not None:
            self.code = code


class InvalidRequest(RequestError):
    """The request is wrong; the text says what, the value, and what to do."""

    code = "invalid_request"


class Unsupported(InvalidRequest):
    """The request is well formed, but this server or this model does not offer what it asks for."""

    code = "unsupported"


class InvalidMedia(InvalidRequest):
    """A picture, a PDF or a video cannot be fetched, cannot be decoded, or is not allowed; a video's code says so."""

    code = "invalid_image"


class ContextTooLong(InvalidRequest):
    """Prompt and answer need more tokens than the model's context holds."""

    code = "context_length_exceeded"


class UnknownModel(RequestError):
    """No loaded model answers to that name."""

    code = "model_not_found"


class TooLarge(RequestError):
    """A body, a download or a picture has more bytes than the limit."""

    code = "request_too_large"


class TimedOut(RequestError):
    """A client or a remote host was slower than the time limit."""

    code = "timeout"


class DeadlineMissed(RequestError):
    """The answer was not whole in the time that a request may take."""

    code = "deadline_exceeded"


class UnreadableAnswer(RequestError):
    """The model answered, but not in the form that the task needs; `answer` is what it said, word for word."""

    code = "unreadable_answer"

    def __init__(self, message: str, *, answer: str) -> None:
        super().__init__(message)
        self.answer = answer


class _RetryLater(RequestError):
    """An error that a client should retry after `retry_after_s` seconds."""

    def __init__(self, message: str, *, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Overloaded(_RetryLater):
    """The bounded queue is full."""

    code = "queue_full"


class Unavailable(_RetryLater):
    """The engine is loading, draining or dead."""

    code = "unavailable"


class EngineFailed(RequestError):
    """The engine broke while it worked on this request; what happened is in the server's log, not in the text."""

    code = "engine_error"


class OutOfMemory(EngineFailed):
    """The machine has no memory left for this request, which keeps to the limits."""

    code = "out_of_memory"

    def __init__(self) -> None:
        super().__init__("there was not enough memory for this request; send fewer or smaller pictures, or less text")
