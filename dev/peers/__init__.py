"""`make peers`: the same saga on DBOS with PostgreSQL and on Restate, under the same HTTP load as this program.

`dbos_orders.py` and `restate_orders.py` are the two programs, each to be read from top to bottom; `contract.py` and
`gateways.py` are what they share. They run in a virtual environment of their own, `.venv-peers`. `servers.py` starts
them, `run.py` measures, and `page.py` writes docs/peers.md from peers.md and the figures.
"""
