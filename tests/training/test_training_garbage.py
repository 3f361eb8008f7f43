"""What a process that trains goes through when it looks for garbage."""

import json
import subprocess
import sys

SCRIPT = """
import gc, json, weakref
from prefloop.config.compute import ComputeConfig
from prefloop.training.environment import apply, resolve
class Node: pass
apply(resolve(ComputeConfig(device="cpu")), threads=1)
frozen, watched = gc.get_freeze_count(), len(gc.get_objects())
node = Node()
node.itself = node
gone = weakref.ref(node)
del node
gc.collect()
apply(resolve(ComputeConfig(device="cpu")), threads=1)
print(json.dumps([frozen, watched, gone() is None, gc.get_freeze_count() - frozen]))
"""


def test_imported_modules_are_left_out_and_what_comes_later_is_found() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    frozen, watched, found, more = json.loads(done.stdout)
    assert frozen > 50_000 > 10 * watched
    assert found
    assert more <= 0, "what a process holds by then is not frozen once more"
