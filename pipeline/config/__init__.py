"""The configuration's schema: one dataclass file a group. Imports no torch, so a wrong value fails at once."""
