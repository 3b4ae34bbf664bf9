"""Who is gone? When the connection to another rank breaks, the ranks call the roll and name the one that is missing.

A process that is killed cannot say so, and what the others see is a connection that closed. Each rank has a thread that
answers when it is called, through the store by which `torchrun` brought the ranks together: also where the rank itself
waits for somebody who will not come. Whoever is called and does not answer is gone.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Iterator
from datetime import timedelta

import torch

from tarflow.ranks import Ranks

LISTEN_SECONDS = 0.3  # between two looks whether the roll is called
ANSWER_SECONDS = 3.0  # until then whoever is there has answered


class RankLost(RuntimeError):
    """Another process of the job is gone. `spoken_for` where another rank says so already."""

    def __init__(self, message: str, spoken_for: bool) -> None:
        super().__init__(message)
        self.spoken_for = spoken_for


@contextlib.contextmanager
def naming_the_lost(ranks: Ranks) -> Iterator[None]:
    """Turn a broken connection between the ranks into a `RankLost` that names who is gone."""
    if ranks.alone:
        yield
        return
    roll = _Roll(ranks)
    try:
        yield
    except RuntimeError as error:
        if not _is_broken_connection(error):
            raise
        raise roll.call(error) from error
    finally:
        roll.close()


def _is_broken_connection(error: RuntimeError) -> bool:
    """torch's own errors of communication, or gloo's, which are plain ones that name a file of it."""
    return isinstance(error, torch.distributed.DistError) or "gloo" in str(error).lower()


class _Roll:
    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        # A connection of our own: another one may be busy waiting. After a restart of the job the store is the old one.
        place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = torch.distributed.TCPStore(  # type: ignore[attr-defined]
            *place, is_master=False, timeout=timedelta(seconds=60)
        )
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        self.store = torch.distributed.PrefixStore(  # type: ignore[attr-defined]
            f"tarflow/roll/{attempt}", store
        )
        self.answered = False  # a roll, which another rank has called
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._listen, name="tarflow-roll", daemon=True)
        self.thread.start()

    def _listen(self) -> None:
        with contextlib.suppress(RuntimeError):  # the store is gone, and with it the job
            while not self.stopped.wait(LISTEN_SECONDS):
                if self.store.check(["called"]):
                    self.store.set(f"here/{self.ranks.rank}", "yes")
                    self.answered = True
                    return

    def call(self, error: RuntimeError) -> RankLost:
        """Find out who is gone. The first rank to call speaks for the others."""
        reason = " ".join(str(error).split())[:200]
        spoken_for = self.answered  # also where who has called has left since, and the store with it
        try:
            spoken_for = self.store.add("callers", 1) > 1
            if not spoken_for:
                self.store.set("called", "yes")
                time.sleep(ANSWER_SECONDS)
                gone = [r for r in range(self.ranks.size) if not self.store.check([f"here/{r}"])]
                self.store.set("verdict", json.dumps(gone))
        except RuntimeError:
            if not spoken_for:
                return RankLost("the process that brought the ranks together (rank 0's, or torchrun's) is gone", False)
        if spoken_for:
            self._wait_for_verdict()
            return RankLost("another rank has said who is gone", True)
        if not gone:
            return RankLost(f"the ranks lost each other, though all of them are there ({reason})", False)
        names = f"rank {gone[0]} is" if len(gone) == 1 else f"ranks {', '.join(map(str, gone))} are"
        return RankLost(f"{names} gone, of {self.ranks.size}: killed, or ended by an error of its own", False)

    def _wait_for_verdict(self) -> None:
        """Stay until it is known: a rank that leaves before would be missing, too."""
        end = time.monotonic() + 2 * ANSWER_SECONDS
        with contextlib.suppress(RuntimeError):  # who has spoken may leave, and take the store along
            while time.monotonic() < end and not self.store.check(["verdict"]):
                time.sleep(LISTEN_SECONDS)

    def close(self) -> None:
        self.stopped.set()
        self.thread.join()
