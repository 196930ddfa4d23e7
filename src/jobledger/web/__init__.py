"""The HTTP side: create jobs, follow them, ask for health. The only place that knows FastAPI."""
