"""Whether the process keeps what it has freed, for itself."""

from __future__ import annotations

import ctypes
from typing import Literal

FreedMemory = Literal["kept", "returned"]

_state: FreedMemory = "returned"


def keep_freed_memory() -> None:
    """Keep what is freed, as a program does that works on batch after batch.

    By default the C library gives large blocks back to the system, and whoever gets them next takes
    a page fault for every 4096 bytes of them. On a virtual machine a fault was seen to take 3 us,
    ten times as long as to write the page; and who takes them depends on what was freed before. So
    a contender with large temporaries looks slower than it is, now by a half and now not at all.

    There is no way back within a process. Does nothing where the C library is not glibc.
    """
    global _state
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        m_trim_threshold, m_mmap_threshold = -1, -3
        libc.mallopt(m_mmap_threshold, 32 << 20)
        libc.mallopt(m_trim_threshold, (1 << 31) - 1)
        _state = "kept"


def freed_memory() -> FreedMemory:
    """What happens to freed memory in this process."""
    return _state
