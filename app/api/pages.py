"""The pages: the order desk, the saga's code that it shows, and the description of the API.

`app.api.guard` limits them to their own origin.
"""

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse

from app.api.auth import AnyCaller
from app.api.route import ApiRoute

router = APIRouter(include_in_schema=False, route_class=ApiRoute)

STATIC = Path(__file__).parent / "static"
SAGA = Path(__file__).parents[1] / "workflows" / "order.py"


@router.get("/")
async def order_desk() -> FileResponse:
    return FileResponse(STATIC / "index.html")


@router.get("/docs")
async def docs(_: AnyCaller) -> FileResponse:
    return FileResponse(STATIC / "docs.html")


@router.get("/source/order.py")
async def saga(_: AnyCaller) -> FileResponse:
    return FileResponse(SAGA, media_type="text/plain")
