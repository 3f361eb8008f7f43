"""From an object store's prefix into the incoming folder, at the store's own interval."""

from __future__ import annotations

from pathlib import Path

from flows.watching.bucket import Bucket
from flows.watching.memory import Memory
from flows.watching.voice import Voice
from prefloop.errors import DataError


class BucketFeed:
    """Brings each new object once, and knows in the memory which ones it brought.

    Args:
        incoming: the folder that they are brought into.
        interval: seconds between two looks; stores charge for listing.
    """

    def __init__(
        self, bucket: Bucket, root: Path, incoming: Path, interval: float, memory: Memory, voice: Voice
    ) -> None:
        self.url = bucket.url
        self._bucket, self._root, self._incoming, self._interval = bucket, root, incoming, interval
        self._memory, self._voice = memory, voice
        self._looked = -interval

    def look(self, now: float) -> None:
        """Brings what is new, where it is time to look; a store that does not answer is asked again."""
        if now - self._looked < self._interval:
            return
        self._looked = now
        try:
            for name, version in self._bucket.new(self._memory.bucket).items():
                try:
                    file = self._bucket.fetch(name, self._root / self._incoming)
                    self._voice.say("fetched", f"{name} of {self.url} is now {file}", object=name)
                except DataError as error:  # it keeps nobody else out
                    self._voice.say("refused", f"not brought in: {error}", object=name, reason=str(error))
                self._memory.bucket[name] = version
                self._memory.save(self._root)
            self._voice.forget("bucket")
        except Exception as error:  # each store has its own errors, and most of them pass
            self._voice.say_once("bucket", f"{self.url} cannot be read, tried again: {error}")
