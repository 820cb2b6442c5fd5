"""What lies outside: payment, carrier, mail. A Protocol for each, and a sandbox that stands in for all three."""


class Refused(Exception):
    """A service's final no: nothing happened, and asking again will not change it. The message is for the customer."""

    code = "refused"
