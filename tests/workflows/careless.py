"""A workflow that reaches for what differs from one worker to the next."""

from __future__ import annotations

from temporalio import workflow

from app.settings import Settings


@workflow.defn
class CarelessWorkflow:
    @workflow.run
    async def run(self) -> str:
        return Settings.load().task_queue
