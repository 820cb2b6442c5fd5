"""The OpenAPI description: that of FastAPI, completed with the texts and examples of `description.json`."""

import json
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse

from app.api.auth import AnyCaller
from app.api.problems import responses as problems_of
from app.api.problems import schemas
from app.api.route import ApiRoute

Json = dict[str, Any]

TEXTS = json.loads((Path(__file__).parent / "description.json").read_text())
STREAM = {"text/event-stream": {"schema": {"type": "string", "description": "Events as lines of text."}}}
KNOWN = {"name": "If-None-Match", "in": "header", "description": "An ETag.", "schema": {"type": "string"}}
HEADERS_OF_STATUS = {"401": ["WWW-Authenticate"], "503": ["Retry-After"]}
HEADERS_OF_PARAMETER = {"Idempotency-Key": "Idempotency-Replayed", "Prefer": "Preference-Applied", "cursor": "Link"}
EXAMPLES = {"sku": "MUG-BLUE", "Prefer": "wait=10"}

router = APIRouter(include_in_schema=False, route_class=ApiRoute)


@router.get("/openapi.json")
async def openapi(_: AnyCaller, request: Request) -> JSONResponse:
    return JSONResponse(describe(request.app))


def describe(app: FastAPI) -> Json:
    description = app.openapi()  # made once
    description["components"]["schemas"] |= schemas()
    description["components"]["schemas"].pop("Decision", None)  # of fields that no answer has
    for methods in description["paths"].values():
        for method, operation in methods.items():
            _complete(operation, is_read=method == "get")
    return _merge(description, TEXTS)


def _complete(operation: Json, *, is_read: bool) -> None:
    """Describe the headers of all responses, the conditional GET, and streams as OpenAPI 3.1 can."""
    parameters, responses = operation.setdefault("parameters", []), operation["responses"]
    names = {parameter["name"] for parameter in parameters}
    for parameter in parameters:
        if parameter["name"] in EXAMPLES:
            parameter["example"] = EXAMPLES[parameter["name"]]
    operation.setdefault("security", [])  # public
    responses |= {str(status): response for status, response in problems_of("wrong-host-name", common=()).items()}
    is_stream = "text/event-stream" in responses.get("200", {}).get("content", {})
    if is_stream:
        responses["200"]["content"] = STREAM
    elif is_read and KNOWN not in parameters:
        parameters.append(KNOWN)
        responses["304"] = {"description": "Not changed since the ETag in `If-None-Match`"}
    for status, response in responses.items():
        headers = ["X-Request-ID", *HEADERS_OF_STATUS.get(status, [])]
        if status < "300":
            headers += [header for name, header in HEADERS_OF_PARAMETER.items() if name in names]
            headers += ["Location"] if operation["operationId"] == "placeOrder" else []
        headers += ["ETag"] if is_read and status in ("200", "304") and not is_stream else []
        response["headers"] = {name: {"$ref": f"#/components/headers/{name}"} for name in headers}


def _merge(into: Json, texts: Json) -> Json:
    for name, text in texts.items():
        into[name] = _merge(into.get(name, {}), text) if isinstance(text, dict) else text
    return into
