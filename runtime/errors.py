"""The one exception that a user's mistake ends in, and how a command reports it."""

import errno
import os
import sys

FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class BadInput(ValueError):
    """Something from outside is missing or wrong: a file, a camera, an option, a full disk.

    The message is one line that says what (with the value) and what to do next. Commands print it and
    exit with code 2; nothing already written is lost.
    """


def run_command(main):
    """Run a command's `main()`, turning BadInput and a full disk into one line on stderr and exit code 2."""
    try:
        code = main()
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nor may Python's last flush fail
        code = 0
    except OSError as error:  # a place that did not foresee it
        if error.errno not in FULL_DISK:
            raise
        print(f"error: {error.filename or 'a file'} cannot be written: {error.strerror}; free some space and run it "
              "again", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("stopped by Ctrl-C", file=sys.stderr)
        code = 130
    sys.exit(code or 0)
