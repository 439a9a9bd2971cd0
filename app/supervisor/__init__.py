"""Process lifecycle: starts the engine and the API workers, watches them, and restarts them when they die."""
