"""Ctrl-C and SIGTERM, which end a run between two frames."""

import signal


class StopRequest:
    """Ctrl-C and SIGTERM end the run between two frames, never in the middle of a write.

    Attribute `exit_code`: 128 and the signal's number once there was one, else 0.
    """

    def __init__(self):
        self.exit_code = 0
        self._waiting = False
        self._before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore(self):
        """Let the signals do again what they did before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def between(self, results):
        """The results until a signal comes."""
        try:
            while True:
                self._waiting = True  # before the look at the exit code, or a signal between would wait for a frame
                if self.exit_code:
                    return
                result = next(results, None)
                self._waiting = False
                if result is None:
                    return
                yield result
        except KeyboardInterrupt:
            pass  # the exit code says it
        finally:
            self._waiting = False
            results.close()

    def until(self, function, *arguments):
        """What a function returns, or None where a signal comes meanwhile."""
        try:
            self._waiting = True
            return None if self.exit_code else function(*arguments)
        except KeyboardInterrupt:
            return None
        finally:
            self._waiting = False

    def _handle(self, number, _):
        again = self.exit_code != 0
        self.exit_code = 128 + number
        if self._waiting or again:
            raise KeyboardInterrupt
