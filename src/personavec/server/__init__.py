"""A model behind HTTP: an engine that batches whoever asks, the API, the log and the dashboard."""
