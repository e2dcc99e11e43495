"""For all tests and notebooks, wherever pytest is started."""

import os

os.environ["TQDM_DISABLE"] = "1"  # notebooks store no progress bars
