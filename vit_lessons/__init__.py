"""The Vision Transformer, built chapter by chapter.

Chapter 01, patch_embedding: as_pair, patchify, unpatchify, PatchEmbed
Chapter 04, attention: scaled_dot_product_attention, MultiHeadSelfAttention

Around the chapters: data (images without a download), plotting (pictures),
checks (checks of your own code).
"""

from vit_lessons.attention import *  # noqa: F403
from vit_lessons.patch_embedding import *  # noqa: F403
