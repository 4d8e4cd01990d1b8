"""The OpenAPI document, made of the routes."""

import re
from collections.abc import Sequence
from typing import Any

import pydantic
from pydantic.json_schema import models_json_schema

from pref_jax.serve.http import Route
from pref_jax.serve.schemas import FaultAnswer
from pref_jax.version import __version__

_REF = "#/components/schemas/{model}"
# What any route may answer beside 200, and why.
_FAULTS = {
    400: "no JSON, or a request of another shape",
    401: "no key, or no such key",
    403: "the key lacks the right",
    404: "no such user, vote, pool or model",
    408: "the request came too slowly",
    409: "an id is taken by something else",
    413: "the body is too large",
    415: "the body is not JSON by its header",
    421: "another host's name",
    422: "a request of another shape, or texts that cannot be read",
    429: "too many texts wait, or too many votes; see Retry-After",
    503: "the store or the model cannot answer now; see Retry-After",
}


def _parts(model: Any) -> list[Any]:
    """The models of a union."""
    return [one for part in model.__args__ for one in _parts(part)] if hasattr(model, "__args__") else [model]


def document(routes: Sequence[Route], bodies: dict[str, Sequence[Any]]) -> dict[str, Any]:
    """The document.

    Args:
      routes: all of them.
      bodies: of paths whose handler looks at the body itself, what it takes.
    """
    asked = {route: bodies.get(route.path) or (_parts(route.body) if route.body else []) for route in routes}
    answered = {route: _parts(route.answer) if route.answer else [] for route in routes}
    wanted: list[Any] = [(model, "validation") for models in asked.values() for model in models]
    wanted += [(model, "serialization") for models in answered.values() for model in models]
    found, schemas = models_json_schema([*dict.fromkeys(wanted), (FaultAnswer, "serialization")], ref_template=_REF)
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        own: dict[str, Any] = {"summary": route.summary, "operationId": _operation(route)}
        own["parameters"] = [*_in_path(route), *_in_query(route)]
        if asked[route]:
            body = _any([found[model, "validation"] for model in asked[route]])
            own["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
        answers = [found[model, "serialization"] for model in answered[route]]
        content = {"application/json": {"schema": _any(answers)}} if answers else {}
        fault = {"application/json": {"schema": found[FaultAnswer, "serialization"]}}
        own["responses"] = {"200": {"description": "done", **({"content": content} if content else {})}}
        own["responses"] |= {str(code): {"description": why, "content": fault} for code, why in _FAULTS.items()}
        own["security"] = [{"key": []}, {}] if route.right else []
        paths.setdefault(route.path, {})[route.method.lower()] = own
    key = {"type": "http", "scheme": "bearer", "description": "where the service asks for keys"}
    info = {"title": "pref serve", "version": __version__, "description": "Personalised rewards, votes and questions."}
    components = {"schemas": schemas.get("$defs", {}), "securitySchemes": {"key": key}}
    return {"openapi": "3.1.0", "info": info, "paths": paths, "components": components}


def _operation(route: Route) -> str:
    words = re.sub(r"[^a-z0-9]+", "_", route.path.lower()).strip("_")
    return f"{route.method.lower()}_{words}"


def _any(schemas: list[Any]) -> dict[str, Any]:
    return schemas[0] if len(schemas) == 1 else {"anyOf": schemas}


def _in_path(route: Route) -> list[dict[str, Any]]:
    schema = {"type": "string", "minLength": 1, "maxLength": 256}
    return [
        {"name": name, "in": "path", "required": True, "schema": schema} for name in re.findall(r"{(\w+)}", route.path)
    ]


def _in_query(route: Route) -> list[dict[str, Any]]:
    model: type[pydantic.BaseModel] | None = route.query
    properties = {} if model is None else model.model_json_schema()["properties"]
    return [{"name": name, "in": "query", "required": False, "schema": own} for name, own in properties.items()]
