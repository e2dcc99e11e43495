"""For all tests and notebooks, wherever pytest is started."""

import os

import torch

os.environ["TQDM_DISABLE"] = "1"  # notebooks store no progress bars
torch.set_num_threads(1)  # the tensors of the tests are tiny
