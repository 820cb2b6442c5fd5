"""Gateways to copy, and patterns of Temporal that the saga does not need: docs/make-it-yours.md lists them."""
