"""`python -m blurify`, and the installed command."""

import signal
import sys


def run() -> int:
    """Run the command line that the program was started with; a signal before it begins or when it is done is one, too.

    Returns:
        The exit code.
    """
    try:
        from blurify.cli import main

        code = main()
        # What comes while Python takes itself down is no traceback: all is written.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        return code
    except KeyboardInterrupt as error:
        return getattr(error, "code", 130)


if __name__ == "__main__":
    sys.exit(run())
