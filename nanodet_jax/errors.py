"""The one error a user is meant to read."""


class UserError(Exception):
    """Input that cannot be used: the message names the file, field or key, and the way out.

    The doors (`train.py`, `eval.py`, `nanodet-jax`) print the message on one line and exit with
    code 2; a traceback is kept for faults of the program.
    """
