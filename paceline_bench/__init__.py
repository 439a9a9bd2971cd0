"""The load test behind `paceline bench`: for any OpenAI-compatible streaming server."""
