"""`python -m blurify`, and the installed command."""

import sys


def run() -> int:
    """Run the command line that the program was started with; an interrupt while it is imported is one, too."""
    try:
        from blurify.cli import main
    except KeyboardInterrupt:
        return 130
    return main()


if __name__ == "__main__":
    sys.exit(run())
