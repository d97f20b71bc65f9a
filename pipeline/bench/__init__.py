"""One measured trial of a configuration, and the loaders it is compared with."""
