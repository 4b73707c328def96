"""`fp-agent`: the worker daemon for edge boxes. Imports fp_async, is never imported by it."""
