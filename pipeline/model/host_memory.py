"""Keep freed memory in the process, so that each image does not pay for its pages again.

By default glibc gives every large block straight back to the kernel, which then zeroes the same pages anew
for the next one; with feature maps of 100 MB a tenth of a CPU's time goes there.
"""

from __future__ import annotations

import ctypes
import ctypes.util
from functools import lru_cache

# glibc's malloc.h
_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_MAX = -4
_NEVER = 2**31 - 1


@lru_cache(maxsize=1)  # tasks call it for each block, and looking for the library starts a process
def keep_freed_memory() -> bool:
    """Ask glibc, for this whole process and once, to reuse large blocks. False where the C library is another."""
    try:
        mallopt = ctypes.CDLL(ctypes.util.find_library("c")).mallopt
    except (OSError, AttributeError):
        return False
    # Large blocks from the heap instead of a mapping each, and the heap's top is not given back.
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _NEVER), (_M_TOP_PAD, 64 << 20))
    return all(mallopt(key, value) == 1 for key, value in settings)
