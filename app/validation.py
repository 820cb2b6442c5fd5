"""Explains invalid input: a stable code for programs and a message for people."""

from pydantic_core import ErrorDetails

IDENTIFIER = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
# NUL and other control characters never reach the database. Nor does a line or paragraph separator, a
# byte order mark or a character that changes the direction of text: with it, a label or a log reads differently.
# Zero-width spaces and joiners (U+200B to U+200D) are allowed: Khmer, Persian and Indic names need them.
READABLE = r"^[^\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ufeff]+$"
# Nothing invisible, and no character that could add a recipient or a header to an e-mail.
_ATOM = r"""[^@\s\\,:;<>()\[\]"\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]+"""
EMAIL = rf"^{_ATOM}@{_ATOM}\.{_ATOM}$"
COUNTRY_CODE = r"^[A-Za-z]{2}$"
CURRENCY_CODE = r"^[A-Z]{3}$"
IDEMPOTENCY_KEY = r"^[\x20-\x7e]{1,255}$"
CURSOR = r"^-?[0-9]{1,19}\.[0-9]{1,7}$"  # milliseconds and a count
EVENT_ID = r"^[0-9]{1,10}\.[0-9]{1,10}$"  # MongoDB's time: seconds and a count

PATTERNS = {
    IDENTIFIER: ("not_an_identifier", "must be 1 to 64 letters, digits, dots, underscores or hyphens"),
    EMAIL: ("not_an_email_address", "must be one e-mail address, such as ada@example.com"),
    READABLE: ("not_printable", "must not contain control characters or characters that change the direction of text"),
    COUNTRY_CODE: ("not_a_country_code", "must be a two-letter country code, such as DE"),
    CURRENCY_CODE: ("not_a_currency_code", "must be a currency code of three capital letters, such as EUR"),
    IDEMPOTENCY_KEY: ("not_printable", "must be 1 to 255 printable ASCII characters"),
    CURSOR: ("not_a_cursor", "must be a cursor that this API returned"),
    EVENT_ID: ("not_an_event_id", "must be an event id that this API sent"),
}
MESSAGES = {  # by pydantic's error type, which is also the code
    "missing": "required",
    "extra_forbidden": "unknown field",
    "string_type": "must be text",
    "string_unicode": "must be valid Unicode text",
    "string_too_short": "must not be empty",
    "string_too_long": "must have at most {max_length} characters",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
    "too_short": "choose at least one product",
    "too_long": "choose at most {max_length} products",
    "bool_type": "must be true or false",
    "list_type": "must be a list",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
    "enum": "must be one of {expected}",
    "value_error": "{error}",
}


def explain(error: ErrorDetails) -> tuple[str, str]:
    """Return code and message of a pydantic error, without patterns and without the value, which may be personal."""
    context = error.get("ctx", {})
    if "pattern" in context:
        return PATTERNS.get(context["pattern"], ("wrong_format", "has an invalid format"))
    message = MESSAGES.get(error["type"])
    return error["type"], message.format(**context) if message else error["msg"]
