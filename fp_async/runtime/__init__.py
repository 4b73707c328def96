"""Processes and threads: what Python code runs in. Knows nothing of pipelines."""
