import os
import threading
from concurrent.futures import ThreadPoolExecutor

from noria.kit.priority import NICE, yield_to_others


def test_only_the_thread_that_asks_goes_behind_the_others():
    before = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    with ThreadPoolExecutor(1, initializer=yield_to_others) as pool:
        inside = pool.submit(lambda: os.getpriority(os.PRIO_PROCESS, threading.get_native_id())).result()
    assert inside == max(NICE, before)
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == before
