"""The sandboxes fulfil the contracts of their Protocols, so tests that use them apply to any conforming service."""

from __future__ import annotations

import asyncio

import pytest

from app.domain import Address, Money, Order
from app.gateways import AddressUnserviceable, PaymentDeclined, Unavailable
from app.gateways.sandbox import SandboxCarrier, SandboxMailer, SandboxPayments, records
from app.mongo import Document, Mongo
from tests.kit.orders import ADDRESS, EMAIL, order_document

MONEY = Money(amount=2_000, currency="EUR")


@pytest.fixture
def payments(mongo: Mongo) -> SandboxPayments:
    return SandboxPayments(mongo)


@pytest.fixture
def carrier(mongo: Mongo) -> SandboxCarrier:
    return SandboxCarrier(mongo)


async def _record(mongo: Mongo, key: str) -> Document:
    return await records(mongo).find_one({"_id": key}) or {}


def _to(postal_code: str) -> Address:
    return Address.model_validate({**ADDRESS, "postal_code": postal_code})


async def test_charge_is_captured_once_per_key(mongo: Mongo, payments: SandboxPayments) -> None:
    charges = [payments.charge("k", MONEY, "pm_card_ok") for _ in range(10)]
    assert len(set(await asyncio.gather(*charges))) == 1
    # The first request with a key counts, as with any service that has idempotency keys.
    await payments.charge("k", Money(amount=9_999, currency="EUR"), "pm_card_ok")
    assert (await _record(mongo, "payment:k"))["captured"] == 2_000


async def test_refund_takes_effect_once_and_declines_later_charges(mongo: Mongo, payments: SandboxPayments) -> None:
    await payments.charge("k", MONEY, "pm_card_ok")
    assert await asyncio.gather(*(payments.refund("k") for _ in range(5))) == [True] * 5
    with pytest.raises(PaymentDeclined):
        await payments.charge("k", MONEY, "pm_card_ok")
    record = await _record(mongo, "payment:k")
    assert (record["captured"], record["refunded"]) == (2_000, 2_000)


async def test_refund_before_charge_declines_it(mongo: Mongo, payments: SandboxPayments) -> None:
    assert await payments.refund("k") is False
    with pytest.raises(PaymentDeclined):
        await payments.charge("k", MONEY, "pm_card_ok")
    assert await payments.refund("k") is False
    record = await _record(mongo, "payment:k")
    assert (record["captured"], record["refunded"]) == (0, 0)


async def test_simultaneous_charges_and_refunds_leave_no_charge(mongo: Mongo, payments: SandboxPayments) -> None:
    keys = [f"k{number}" for number in range(10)]
    await asyncio.gather(
        *(call for key in keys for call in (payments.charge(key, MONEY, "pm_card_ok"), payments.refund(key))),
        return_exceptions=True,
    )
    for key in keys:
        record = await _record(mongo, f"payment:{key}")
        assert record["captured"] == record["refunded"]


async def test_flaky_card_fails_exactly_twice(mongo: Mongo, payments: SandboxPayments) -> None:
    for _ in range(2):
        with pytest.raises(Unavailable):
            await payments.charge("k", MONEY, "pm_card_flaky")
    assert await payments.charge("k", MONEY, "pm_card_flaky") == "ch_k"
    assert await payments.charge("k", MONEY, "pm_card_flaky") == "ch_k"
    with pytest.raises(Unavailable):
        await payments.charge("other", MONEY, "pm_card_flaky")
    assert (await _record(mongo, "payment:k"))["captured"] == 2_000


async def test_declined_card_and_outage_capture_nothing(mongo: Mongo, payments: SandboxPayments) -> None:
    for _ in range(2):
        with pytest.raises(PaymentDeclined, match="the card was declined"):
            await payments.charge("k", MONEY, "pm_card_declined")
        with pytest.raises(Unavailable):
            await payments.charge("k", MONEY, "pm_card_outage")
    assert "captured" not in await _record(mongo, "payment:k")


async def test_slow_card_does_not_delay_others(payments: SandboxPayments) -> None:
    slow = asyncio.create_task(payments.charge("slow", MONEY, "pm_card_slow"))
    await payments.charge("quick", MONEY, "pm_card_ok")
    assert not slow.done()
    slow.cancel()


async def test_shipment_is_created_once_and_cancelled_once(mongo: Mongo, carrier: SandboxCarrier) -> None:
    shipments = [carrier.ship("k", _to("10115")) for _ in range(10)]
    assert len(set(await asyncio.gather(*shipments))) == 1
    assert await asyncio.gather(*(carrier.cancel("k") for _ in range(5))) == [True] * 5
    with pytest.raises(AddressUnserviceable):
        await carrier.ship("k", _to("10115"))
    record = await _record(mongo, "shipment:k")
    assert (record["shipped"], record["called_off"]) == (True, True)


async def test_cancel_before_shipment_declines_it(mongo: Mongo, carrier: SandboxCarrier) -> None:
    assert await carrier.cancel("k") is False
    with pytest.raises(AddressUnserviceable):
        await carrier.ship("k", _to("10115"))
    assert await carrier.cancel("k") is False
    assert (await _record(mongo, "shipment:k"))["shipped"] is False


async def test_unserviceable_address_and_outage_fail(carrier: SandboxCarrier) -> None:
    with pytest.raises(AddressUnserviceable):
        await carrier.ship("k", _to("00000"))
    with pytest.raises(Unavailable):
        await carrier.ship("k", _to("99999"))


async def test_confirmation_is_sent_once(mongo: Mongo) -> None:
    mailer = SandboxMailer(mongo)
    order = Order.from_document(order_document())
    await asyncio.gather(*(mailer.send_confirmation("k", order) for _ in range(5)))
    record = await _record(mongo, "mail:k")
    assert (record["mails"], record["to"]) == (1, EMAIL)
