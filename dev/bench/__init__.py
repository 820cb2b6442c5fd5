"""`make bench`: what this program costs, in ratios of two things that are measured in turns in the same run.

Each row of the table is a function in `rows`, whose docstring says how it is measured. It gets a `Lab`, which starts
servers, and returns `Comparison`s. `floor` is what most rows compare with, `load` the client, `shop` its requests;
`report`, `pages` and `charts` show the results.
"""
