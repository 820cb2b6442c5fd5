"""Patterns of Temporal that the order saga does not need, each in one file: docs/make-it-yours.md lists them."""
