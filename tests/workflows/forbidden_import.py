"""A workflow with a forbidden import: settings differ between workers."""

from __future__ import annotations

from temporalio import workflow

from app.settings import Settings


@workflow.defn
class ForbiddenImportWorkflow:
    @workflow.run
    async def run(self) -> str:
        return Settings.load().task_queue
