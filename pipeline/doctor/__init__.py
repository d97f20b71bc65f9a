"""`python -m pipeline.doctor`: looks at the machine, the packages and the data that a training run would meet."""
