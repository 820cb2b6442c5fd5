"""For those who work on this project; nothing in here is shipped."""
