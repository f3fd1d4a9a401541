"""What a reader will want next: pure bookkeeping, no I/O.

Each reader has up to `MAX_HEADS` *heads*, places where it reads onwards (several processes that read one file through
one mount are one reader here). A read near a head moves it; any other read starts a new head in place of the one not
used the longest. From the run of a head follows how far ahead of it to fetch:

    window = 0                        until the run is long enough to be believed
    window = min(2 x run, the limit)  then: what is fetched in vain is at most twice what was read

How long is long enough is learnt from the reader itself. A first read at offset 0 is believed after 128 KiB, one in
the middle after 512 KiB; and a reader that jumped away after runs of a certain length must run twice as far as that
before it is believed again (4 MiB are always enough). So a reader of random megabytes (rows of a matrix, pages of a Parquet file) is not
amplified, although each of its reads looks sequential to whoever sees the pieces. A strided reader is not believed
either: at least half of the distance it covered must have been asked for.

Requests of one reader arrive out of order: the kernel reads two windows of up to 16 MiB ahead, sends them as pieces of
up to 1 MiB at once, and several threads take them (pieces 4 MiB apart were seen to change places). So "near" means
within `SLACK_BYTES` on either side of the front.

`note` is on the path of every read, in any thread, without a lock. Races lose a step of a run at worst.
"""

MAX_HEADS = 4
MAX_READERS = 16_384
SLACK_BYTES = 8 * 1024 * 1024
BELIEVED_AT_START_BYTES = 128 * 1024
BELIEVED_INSIDE_BYTES = 512 * 1024
BELIEVED_AT_LAST_BYTES = 4 * 1024 * 1024
LEAST_WINDOW_BYTES = 1024 * 1024
LEAST_REQUEST_BYTES = 512 * 1024
REQUESTS_PER_WINDOW = 8
NEVER = 1 << 62


class Head:
    """One place where a reader reads onwards. `trigger` is the front at which it deserves attention again.

    `ahead_end` is how far readahead has got, `ahead_bytes` how much it fetched from the under store on the way there.
    """

    __slots__ = ("ahead_bytes", "ahead_end", "asked_bytes", "front", "start", "trigger")

    def __init__(self, offset: int, end: int, trigger: int) -> None:
        self.start = offset
        self.front = end
        self.asked_bytes = end - offset
        self.trigger = trigger
        self.ahead_end = end
        self.ahead_bytes = 0

    def move(self, offset: int, end: int) -> bool:
        """A read near the front. Whether it is time for attention."""
        front = self.front
        if end > front:
            self.front = front = end
        # A piece that comes late fills a hole behind the front; one that is read again must not count as more.
        asked = self.asked_bytes + end - offset
        run = front - self.start
        self.asked_bytes = asked if asked < run else run
        return front >= self.trigger


class Reader:
    """The heads of one reader, the one used last first, and the run length at which it usually jumps away."""

    __slots__ = ("heads", "usual_run_bytes")

    def __init__(self) -> None:
        self.heads: list[Head] = []
        self.usual_run_bytes = 0


class Readers:
    """All readers; the oldest are forgotten beyond `MAX_READERS`."""

    def __init__(self, window_bytes: int, request_bytes: int) -> None:
        self._window_bytes = window_bytes
        self._request_bytes = request_bytes
        self._readers: dict[int, Reader] = {}
        self.wasted_bytes = 0

    def __len__(self) -> int:
        return len(self._readers)

    def note(self, number: int, offset: int, end: int) -> Head | None:
        """A reader asked for [offset, end). Its head, if it is time to read ahead of it."""
        reader = self._readers.get(number)
        if reader is None:
            reader = self._add(number)
        elif reader.heads:
            head = reader.heads[0]
            front = head.front
            if front - SLACK_BYTES <= offset <= front + SLACK_BYTES:
                return head if head.move(offset, end) else None
        return self._note_elsewhere(reader, offset, end)

    def window(self, number: int, head: Head) -> int:
        """How many bytes to be ahead of a head now; 0 if it is not believed to read on."""
        if head.front < self._believed_at(number, head) or 2 * head.asked_bytes < head.front - head.start:
            return 0
        return min(max(2 * head.asked_bytes, LEAST_WINDOW_BYTES), self._window_bytes)

    def request_size(self, window: int) -> int:
        """Size of a request in a window: about eight in a window, a power of two, within the limits."""
        size = LEAST_REQUEST_BYTES
        while 2 * size * REQUESTS_PER_WINDOW <= window and 2 * size <= self._request_bytes:
            size *= 2
        return min(size, self._request_bytes)

    def reading_on(self, number: int) -> bool:
        """Whether the place where the reader was last is one from which it reads onwards."""
        reader = self._readers.get(number)
        return bool(reader and reader.heads and self.window(number, reader.heads[0]))

    def arm(self, number: int, head: Head, size: int) -> None:
        """Set the next trigger of a head in an object of `size` bytes, after it got attention."""
        window = self.window(number, head)
        if head.front >= size:
            head.trigger = NEVER
        elif window:
            head.trigger = min(head.front + self.request_size(window) // 2, size)
        else:
            # Not believed: at the place where it would be, or, for a strided one, when it has doubled its run.
            believed_at = self._believed_at(number, head)
            head.trigger = believed_at if head.front < believed_at else 2 * head.front - head.start

    def forget(self, number: int) -> None:
        reader = self._readers.pop(number, None)
        for head in reader.heads if reader else ():
            self._leave(head)

    def _believed_at(self, number: int, head: Head) -> int:
        reader = self._readers.get(number)
        return head.start + believed_after(head.start, reader.usual_run_bytes if reader else 0)

    def _add(self, number: int) -> Reader:
        if len(self._readers) >= MAX_READERS:
            try:
                self.forget(next(iter(self._readers)))
            except (RuntimeError, StopIteration):
                pass  # other threads add and forget at this moment; the next that comes makes room
        return self._readers.setdefault(number, Reader())

    def _note_elsewhere(self, reader: Reader, offset: int, end: int) -> Head | None:
        heads = reader.heads
        for index in range(1, len(heads)):
            head = heads[index]
            if head.front - SLACK_BYTES <= offset <= head.front + SLACK_BYTES:
                reader.heads = [head, *heads[:index], *heads[index + 1 :]]
                return head if head.move(offset, end) else None
        if heads:
            last = heads[0]
            reader.usual_run_bytes = (reader.usual_run_bytes + last.front - last.start + 1) // 2
            if len(heads) == MAX_HEADS:
                self._leave(heads[-1])
        head = Head(offset, end, offset + believed_after(offset, reader.usual_run_bytes))
        reader.heads = [head, *heads[: MAX_HEADS - 1]]
        return head if end >= head.trigger else None

    def _leave(self, head: Head) -> None:
        self.wasted_bytes += min(head.ahead_bytes, max(head.ahead_end - head.front, 0))


def believed_after(start: int, usual_run_bytes: int) -> int:
    """How long a run from `start` must be before it is believed to go on."""
    least = BELIEVED_AT_START_BYTES if start == 0 else BELIEVED_INSIDE_BYTES
    return min(max(least, 2 * usual_run_bytes), BELIEVED_AT_LAST_BYTES)
