"""How a process of several (under torchrun) ends."""

from __future__ import annotations

import sys
import time


def end_process_group() -> None:
    """Leaves torch's process group, the last thing before a process ends; does nothing where there is none.

    gloo's threads drop the tensors of the last exchange a moment after it is done, and need the interpreter's lock for it. A Python
    before 3.14 that ends in that moment aborts ("terminate called without an active exception"), in about one of thirty short runs,
    and destroying the group does not wait for the threads: so wait here, without the lock, for many times as long as they need.
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return
    gloo = "gloo" in str(distributed.get_backend_config())
    distributed.destroy_process_group()
    if gloo:
        time.sleep(0.2)
