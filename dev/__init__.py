"""Tools for development; none of this is shipped."""
