"""Exit statuses, and one tree of errors: each says what went wrong and what to do next."""

from __future__ import annotations

import enum
from typing import Any, List, Mapping, Optional, Tuple, Type


class ExitStatus(enum.IntEnum):
    """How the program ended, for the shell. EXIT_MEANINGS says it in words."""

    OK = 0
    ERROR = 1
    USAGE = 2
    BAD_WORKFLOW = 3
    NOT_CONFIRMED = 4
    NO_SERVER = 5
    REJECTED = 6
    FAILED = 7
    INTERRUPTED = 8
    LOST = 9
    PARTIAL = 10
    NOT_SAVED = 11
    TIMEOUT = 124
    CANCELLED = 130
    TERMINATED = 143


EXIT_MEANINGS: Mapping[ExitStatus, str] = {
    ExitStatus.OK: "the run succeeded, and every requested output is saved",
    ExitStatus.ERROR: "something else went wrong; the message says what",
    ExitStatus.USAGE: "the command line or a setting is wrong",
    ExitStatus.BAD_WORKFLOW: "the workflow file is missing, or contains no workflow that can run",
    ExitStatus.NOT_CONFIRMED: "you answered no, or there was nobody to ask",
    ExitStatus.NO_SERVER: "ComfyUI does not answer, refuses access, or is too old",
    ExitStatus.REJECTED: "ComfyUI refused the prompt, or --check found a problem: nothing ran",
    ExitStatus.FAILED: "a node raised an error, or rows of a batch failed",
    ExitStatus.INTERRUPTED: "someone else interrupted the run or removed it from the queue",
    ExitStatus.LOST: "the server lost the run or does not know it, or its end is unknown",
    ExitStatus.PARTIAL: "the run succeeded, but without the outputs that ComfyUI refused",
    ExitStatus.NOT_SAVED: "some outputs, the manifest or the record of the run could not be saved",
    ExitStatus.TIMEOUT: "--timeout expired, and the run was cancelled",
    ExitStatus.CANCELLED: "Ctrl+C",
    ExitStatus.TERMINATED: "SIGTERM, or the terminal was closed",
}


class RunnerError(Exception):
    """What went wrong, and what to do next.

    ``message`` and ``remedy`` are for people; neither ends with a newline. The class says which
    exit status it leads to, and which HTTP status where it is an answer to a request.
    """

    exit_status = ExitStatus.ERROR
    http_status = 500

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __reduce__(self) -> Any:
        """For pickle: without it, an error that another process raises would break its pool."""
        return rebuild_error, (type(self), self.args, self.__dict__)


def rebuild_error(
    error_class: Type[RunnerError], arguments: Tuple[Any, ...], fields: Mapping[str, Any]
) -> RunnerError:
    """An error as it was when it was pickled: its __init__() may take other arguments."""
    error = error_class.__new__(error_class, *arguments)
    error.__dict__.update(fields)
    return error


class UsageError(RunnerError):
    """A flag or a setting that cannot be followed."""

    exit_status = ExitStatus.USAGE
    http_status = 400


class WorkflowError(RunnerError):
    """A workflow that cannot be read, or is not what can be run."""

    exit_status = ExitStatus.BAD_WORKFLOW
    http_status = 400


class NotConfirmed(RunnerError):
    """The person said no, or there is nobody to ask."""

    exit_status = ExitStatus.NOT_CONFIRMED
    http_status = 409


class ServerError(RunnerError):
    """ComfyUI did not answer a call, or not as the call expects.

    ``refused``: nothing listens at the address, so nothing was received. ``status`` is the HTTP
    status of the answer, None if none came.
    """

    exit_status = ExitStatus.NO_SERVER
    http_status = 503
    refused = False
    status: Optional[int] = None


class ServerUnreachable(ServerError):
    """No answer came, or only a part of one."""

    def __init__(self, message: str, remedy: str = "", *, refused: bool = False) -> None:
        super().__init__(message, remedy)
        self.refused = refused


class ServerGone(ServerUnreachable):
    """The load balancer sends us to another server: what was on ours is lost."""


class ServerAnswer(ServerError):
    """An answer with a status that the call does not expect. ``body`` is its JSON, or its text.

    ``from_proxy``: a proxy in between made it, not ComfyUI.
    """

    status: int

    def __init__(
        self,
        message: str,
        remedy: str = "",
        *,
        status: int,
        body: Any = None,
        from_proxy: bool = False,
    ) -> None:
        super().__init__(message, remedy)
        self.status = status
        self.body = body
        self.from_proxy = from_proxy


class ServerTooOld(ServerError):
    """A ComfyUI that the runner does not work with. It answers, but counts as not connected."""


class PromptRejected(RunnerError):
    """ComfyUI's 400 to POST /prompt. ``answer`` is its body (see contract: error, node_errors)."""

    exit_status = ExitStatus.REJECTED
    http_status = 400

    def __init__(self, message: str, remedy: str = "", *, answer: Mapping[str, Any]) -> None:
        super().__init__(message, remedy)
        self.answer = answer
        self.problems: List[Any] = []  #: the answer in words, where it was looked at


class PromptUnknown(RunnerError):
    """A prompt_id that the server has never heard of, or has forgotten."""

    exit_status = ExitStatus.LOST
    http_status = 404


class RunFailed(RunnerError):
    """A run that was submitted, and did not succeed.

    ``result`` is what is known of it: a RunResult, with what it made before its end.
    """

    def __init__(self, message: str, remedy: str = "", *, result: Any = None) -> None:
        super().__init__(message, remedy)
        self.result = result

    def __reduce__(self) -> Any:
        """Without ``result``: its outputs belong to a connection, which stays in its process."""
        return rebuild_error, (type(self), self.args, {**self.__dict__, "result": None})


class NodeFailed(RunFailed):
    """A node raised an error. ``type`` is the class of that error, ``traceback`` its lines."""

    exit_status = ExitStatus.FAILED

    def __init__(
        self, message: str, remedy: str = "", *, failure: Mapping[str, Any], result: Any = None
    ) -> None:
        super().__init__(message, remedy, result=result)
        self.node_id: str = failure["node_id"]
        self.title: str = failure["title"]
        self.class_type: str = failure["class_type"]
        self.type: str = failure["type"]
        self.traceback: List[str] = failure["traceback"]


class RunInterrupted(RunFailed):
    """Somebody else interrupted the run, or removed it from the queue."""

    exit_status = ExitStatus.INTERRUPTED


class RunCancelled(RunFailed):
    """We cancelled the run: its connection was closed."""

    exit_status = ExitStatus.CANCELLED


class RunTimeout(RunFailed):
    """The run took longer than its timeout, and was cancelled."""

    exit_status = ExitStatus.TIMEOUT


class RunLost(RunFailed):
    """The server lost the run, or how it ended is unknown."""

    exit_status = ExitStatus.LOST


class SaveError(RunnerError):
    """An output, a manifest or a record that could not be saved."""

    exit_status = ExitStatus.NOT_SAVED


class Stopped(RunnerError):
    """Ctrl+C or SIGTERM before anything was submitted."""

    exit_status = ExitStatus.CANCELLED
