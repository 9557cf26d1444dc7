"""The refusal of an operator that is being read."""


class UnsupportedOperator(Exception):
    """An operator or layer cannot be read; carries the reason, the reader adds which one it is."""
