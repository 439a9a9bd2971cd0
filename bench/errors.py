"""The one error of the load test that is meant for users."""


class BenchError(Exception):
    """A load test cannot be made: the server cannot be reached, or something that was asked for is missing."""
