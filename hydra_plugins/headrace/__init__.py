"""Headrace's plugins for Hydra; Hydra looks for plugins in the namespace package `hydra_plugins` only."""
