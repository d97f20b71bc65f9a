"""Whether two settings train to the same accuracy: `python -m pipeline.equivalence`."""
