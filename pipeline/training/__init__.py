"""What `train.py` is made of; `run.train` is the whole of it, in order. Importing this imports nothing else."""
