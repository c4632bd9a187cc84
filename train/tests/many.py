"""What each process of the tests of many processes runs: the runs that a JSON file describes, one after the other."""

import json
import sys
from pathlib import Path

from train import generated
from train.configuration import train_config
from train.loop import prepare
from train.parallel import connected

if __name__ == "__main__":
    generated.HELD_OUT = 20  # as in the test
    runs = [train_config(options, "many") for options in json.loads(Path(sys.argv[1]).read_text())]
    with connected(runs[0]) as processes:
        for options in runs:
            prepare(options, processes).run()
            processes.any(False)  # the next run may resume this one
