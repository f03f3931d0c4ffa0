"""Ctrl-C and SIGTERM, which end a run between two frames."""

import signal
import threading

PATIENCE = 2.0  # seconds for the frame under way: a reader that does not read would keep its write waiting for ever


class StopRequest:
    """Ctrl-C and SIGTERM end the run between two frames, and in the middle of a write only where that takes longer
    than PATIENCE seconds, or at a second signal: by KeyboardInterrupt.

    Attribute `exit_code`: 128 and the signal's number once there was one, else 0.
    """

    def __init__(self):
        self.exit_code = 0
        self._waiting = self._finishing = False
        self._deadline: threading.Timer | None = None
        self._before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore(self):
        """Let the signals do again what they did before."""
        self._forget_deadline()
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
            self._waiting, self._finishing = False, True  # outputs are finished in their own time
            self._forget_deadline()
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
        if hasattr(signal, "pthread_kill") and not self._finishing:
            # To this thread, so that its system call ends; the handler then raises.
            self._deadline = threading.Timer(PATIENCE, signal.pthread_kill, (threading.get_ident(), number))
            self._deadline.daemon = True
            self._deadline.start()

    def _forget_deadline(self):
        if self._deadline:
            self._deadline.cancel()
