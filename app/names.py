"""The names that others see. `make rename` changes them, here and in the files that cannot import them."""

# Of the project and its images; the default of the database and the task queue.
NAME = "order-saga"
TITLE = "Order saga"

# These are part of every history: change them before the first order (docs/make-it-yours.md, Another name).
WORKFLOW_TYPE = "OrderWorkflow"
WORKFLOW_ID_PREFIX = "order-"
SEARCH_ATTRIBUTE = "OrderStatus"
