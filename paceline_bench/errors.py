"""The one error of the load test that is meant for users."""


class BenchError(Exception):
    """The load test cannot run: the server cannot be reached, or something that the command needs is missing."""
