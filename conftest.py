"""For all tests and notebooks, wherever pytest is started."""

import os

# For the kernels of notebooks. Threads that wait for each other on busy cores
# made a chapter five times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["TQDM_DISABLE"] = "1"  # notebooks store no progress bars

import torch

torch.set_num_threads(1)  # the tensors of the tests are tiny
