"""The time of day of what was measured by a clock that nobody can set; only people read it."""

import time


class TimeOfDay:
    """Tells monotonic seconds as seconds since 1970, as of the moment that it was made."""

    def __init__(self) -> None:
        """Looks at both clocks, once: times stay in their order."""
        self._epoch = time.time() - time.monotonic()

    def at(self, monotonic_s: float) -> float:
        """Seconds since 1970, to a tenth of a millisecond."""
        return round(self._epoch + monotonic_s, 4)
