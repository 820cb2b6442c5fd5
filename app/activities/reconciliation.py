"""CompareOrders: finds orders whose steps, or whose payment in the gateway's records, contradict their status.

In theory there are none. In practice a person edits a document, a database is restored, or a service captures a
payment after it was refunded. Only orders that changed a while ago are compared, and none in progress.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from temporalio import activity
from temporalio.exceptions import ApplicationError

from app.activities.order_step import Dependencies
from app.domain import IRREVERSIBLE, MALFORMED, STATUS_AFTER, TERMINAL, Money, Order, StepName, StepStatus
from app.messages import Message
from app.workflows.steps import REVERSIBLE_STEPS

logger = logging.getLogger(__name__)

CHARGE = StepName.CHARGE_PAYMENT
COMPENSATED = TERMINAL - set(IRREVERSIBLE)
REQUIRED = {step.name for step in REVERSIBLE_STEPS}  # of an order that was shipped
KEPT = {step.name for step in REVERSIBLE_STEPS if not step.compensation}  # of an order that was compensated
# A charge is captured before it is recorded (its attempts take ten minutes), and the gateway has a clock of its own.
MARGIN = timedelta(hours=1)
LOOK_BACK = timedelta(days=90)  # for charges of orders that changed since; a wrong date in a document goes further
MAX_FINDINGS = 1_000  # of a window; more are a mistake, such as a wrong database, so a person has to look first


class Kind(StrEnum):
    NOT_COMPENSATED = "not_compensated"  # the order failed or was cancelled, but a step is done
    NOT_REFUNDED = "not_refunded"  # the order failed or was cancelled, but the gateway has money for it
    STEP_MISSING = "step_missing"  # the order was shipped, but a step up to the shipment is not done
    WRONG_AMOUNT = "wrong_amount"  # the order was shipped, but the gateway does not have its total
    UNKNOWN_ORDER = "unknown_order"  # the gateway has money for an order that does not exist


class Window(Message):
    """Orders are compared if their last change is from `begin` until before `end`."""

    begin: datetime
    end: datetime


class Finding(Message):
    """A contradiction. To compensate `step` is safe and repairs it; None: a person has to decide."""

    order_id: str
    kind: Kind
    step: StepName | None = None


class Reconciliation:
    def __init__(self, dependencies: Dependencies) -> None:
        self._orders = dependencies.orders
        self._payments = dependencies.gateways.payments

    @activity.defn(name="CompareOrders")
    async def compare(self, window: Window) -> list[Finding]:
        """Log and count all contradictions; return those that can be repaired.

        Raises:
            ApplicationError: not retryable; there are more than `MAX_FINDINGS`.
        """
        findings, unpaid, begin = set[Finding](), set[str](), window.begin  # a set: a page may come twice
        async for order in self._orders.changed_since(window.begin, window.end):
            activity.heartbeat()
            findings.update(_check_steps(order))
            if charge := order.step(CHARGE):
                begin = min(begin, (charge.first_attempt_at or charge.at).astimezone(UTC))  # a text may lack the zone
            if order.status in IRREVERSIBLE and order.total.amount:
                unpaid.add(order.order_id)
        begin = max(begin, window.begin - LOOK_BACK)
        async for page in self._payments.captured_between(begin - MARGIN, window.end + MARGIN):
            activity.heartbeat()
            captured = {capture.idempotency_key: capture.net for capture in page}
            orders = await self._orders.among(list(captured))
            for order_id, net in captured.items():
                findings.update(_check_payment(order_id, net, orders.get(order_id), window.end))
            unpaid -= captured.keys()
        findings.update(Finding(order_id=order_id, kind=Kind.WRONG_AMOUNT) for order_id in unpaid)
        _report(findings)
        if len(findings) > MAX_FINDINGS:
            raise ApplicationError(f"not repaired: {len(findings)} findings", type="TooMany", non_retryable=True)
        repairs = {(finding.order_id, finding.step): finding for finding in findings if finding.step}
        orders = await self._orders.among([order_id for order_id, _ in repairs])  # it may have been corrected since
        return [repair for repair in repairs.values() if _is_safe(orders.get(repair.order_id), repair.step)]


def _check_steps(order: Order) -> Iterator[Finding]:
    done = {record.step for record in order.steps if record.status is StepStatus.DONE}
    if order.status in IRREVERSIBLE and REQUIRED - done:
        yield Finding(order_id=order.order_id, kind=Kind.STEP_MISSING)
    for step in done - KEPT if order.status in COMPENSATED else ():
        yield Finding(order_id=order.order_id, kind=Kind.NOT_COMPENSATED, step=step if _is_safe(order, step) else None)


def _check_payment(order_id: str, net: Money, order: Order | None, end: datetime) -> Iterator[Finding]:
    if order is None and net.amount:
        yield Finding(order_id=order_id, kind=Kind.UNKNOWN_ORDER)
    if order is None or order.updated_at >= end:  # a later window has it
        return
    if order.status in IRREVERSIBLE and net != order.total:
        yield Finding(order_id=order_id, kind=Kind.WRONG_AMOUNT)
    if order.status in COMPENSATED and net.amount:
        yield Finding(order_id=order_id, kind=Kind.NOT_REFUNDED, step=CHARGE if _is_safe(order, CHARGE) else None)


def _is_safe(order: Order | None, step: StepName | None) -> bool:
    """Return True to compensate: nothing was shipped, the document is reliable, and it was not compensated before."""
    if order is None or step is None or order.status not in COMPENSATED:
        return False
    shipped = any(each.status is StepStatus.DONE and STATUS_AFTER[each.step] in IRREVERSIBLE for each in order.steps)
    malformed = order.failure is not None and order.failure.code == MALFORMED
    record = order.step(step)
    return not (shipped or malformed or (record and record.status is StepStatus.COMPENSATED))


def _report(findings: set[Finding]) -> None:
    counter = activity.metric_meter().create_counter("reconciliation_findings", "Contradictions, by kind")
    for kind in Kind:
        counter.add(0, {"kind": kind.value})  # so that the first finding is an increase
    for finding in findings:
        counter.add(1, {"kind": finding.kind.value})
        fields = {"order_id": finding.order_id}
        logger.warning("reconciliation: order %s: %s", finding.order_id, finding.kind, extra=fields)
