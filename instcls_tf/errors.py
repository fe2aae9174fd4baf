"""The one exception for mistakes that a user can mend."""


class UserError(ValueError):
    """A wrong flag, file or folder.

    The message is one sentence that names the flag (or file), the value and what is wanted. Commands print it once,
    without a traceback, and exit with status 2.
    """
