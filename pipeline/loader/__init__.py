"""Batches in slots: what to make, who makes it, and how it reaches the consumer in order."""
