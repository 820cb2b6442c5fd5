"""Gateways to copy, and patterns of Temporal that the order saga does not need: docs/make-it-yours.md lists them."""
