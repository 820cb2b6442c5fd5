"""The messages that pass through Temporal: inputs, results, signals, updates, queries.

They hold ids and decisions, never personal data, because workflow histories keep them (G11). Imports only the standard
library and pydantic.
"""

from datetime import datetime, timedelta

from pydantic import BaseModel, ConfigDict

from app.domain import Failure, OrderStatus, StepName


class Message(BaseModel):
    """Base of all messages. Ignores unknown fields: during a rollout, an old worker receives messages of a new one."""

    model_config = ConfigDict(extra="ignore", frozen=True, json_schema_serialization_defaults_required=True)


class OrderInput(Message):
    """The workflow's input: the id, and the few values that it branches on."""

    order_id: str
    needs_approval: bool
    approval_timeout: timedelta


class OrderRef(Message):
    """The input of every step and every compensation; the rest of the order is read from MongoDB."""

    order_id: str


class ApprovalDecision(Message):
    """The reason stays in MongoDB, as does that of a cancel: people write personal data into reasons."""

    approved: bool
    timed_out: bool = False


class StatusUpdate(Message):
    """A status that no step writes, or a decision on an approval.

    `failure` is that of `step`, if it names one; MongoDB has the message that the gateway gave.
    """

    order_id: str
    status: OrderStatus
    failure: Failure | None = None
    step: StepName | None = None
    approval: ApprovalDecision | None = None


class OrderState(Message):
    """The order's state in MongoDB, from which the workflow continues: its own write may have come too late."""

    status: OrderStatus
    failure_code: str | None = None
    approved: bool | None = None


class AddressChange(Message):
    """Refers to an address proposed in the order document; the address is personal and stays out of the history."""

    order_id: str
    number: int


class OrderResult(Message):
    """The outcome of an order. A business outcome is a result, not a failure of the workflow."""

    order_id: str
    status: OrderStatus
    failure_code: str | None = None


class OrderProgress(Message):
    """The workflow's progress, which is also its answer to the query `status`.

    `step` is the one that runs or is retried; `failure_code` says why the order is compensated.
    """

    model_config = ConfigDict(frozen=False)

    order_id: str
    status: OrderStatus
    step: StepName | None = None
    waiting_for: str | None = None
    waiting_until: datetime | None = None
    failure_code: str | None = None
    compensated: list[StepName] = []
    cancel_requested: bool = False
    approved: bool | None = None

    def enter(self, status: OrderStatus) -> None:
        self.status, self.step, self.waiting_for, self.waiting_until = status, None, None, None

    def in_markdown(self) -> str:
        """Describe the progress to an operator, in Temporal's UI."""
        lines = [f"**{self.status}**" + (f": {self.step}" if self.step else "")]
        if self.waiting_for:
            lines.append(f"Waits for {self.waiting_for} until {self.waiting_until:%Y-%m-%d %H:%M} UTC")
        if self.failure_code:
            lines.append(f"Stopped by: {self.failure_code}")
        if self.compensated:
            lines.append(f"Compensations done: {', '.join(self.compensated)}")
        return "\n\n".join(lines)
