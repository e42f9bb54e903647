"""The one exception a user's mistake raises."""


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message is one sentence that says what is wrong and what to do; the command line prints it and exits with 2.
    """
