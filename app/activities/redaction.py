"""Keeps the texts of exceptions out of histories and logs: they may quote personal data or secrets (G11).

Also names the order of an activity in its log lines.
"""

from typing import Any

from temporalio.exceptions import ApplicationError
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor

from app import logs


class RedactErrors(Interceptor):
    """An exception of an activity keeps its type and its stack trace, but neither its text nor its cause.

    An `ApplicationError` keeps its text: an activity raises it for the workflow.
    """

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:  # noqa: A002
        return _RedactErrors(next)


class _RedactErrors(ActivityInboundInterceptor):
    async def execute_activity(self, input: ExecuteActivityInput) -> Any:  # noqa: A002
        for argument in input.args:
            logs.order_id.set(getattr(argument, "order_id", None))  # in the context of this activity's own task
        try:
            return await super().execute_activity(input)
        except ApplicationError as error:
            raise error from None
        except Exception as error:  # noqa: BLE001
            redacted = ApplicationError("its text is not recorded", type=type(error).__name__)
            raise redacted.with_traceback(error.__traceback__) from None
