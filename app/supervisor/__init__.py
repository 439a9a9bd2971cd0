"""Process lifecycle: an engine and the API workers around it, started, watched, and started again when they die."""
