"""Chapter 01."""

import re

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import has_all_gradients, random, randomize, tokens_that_change

from vit_lessons import PatchEmbed, as_pair, patchify, unpatchify

SIZES = st.tuples(*[st.integers(1, 4) for _ in range(6)])
ALL_DIFFERENT = (2, 3, 4, 5, 6, 7)  # B, C, gh, gw, p1, p2


def images_of(b, c, gh, gw, p1, p2):
    return random(b, c, gh * p1, gw * p2)


def patchify_with_loops(images, p1, p2):
    rows = range(0, images.shape[2], p1)
    columns = range(0, images.shape[3], p2)
    return torch.stack(
        [
            images[:, :, top : top + p1, left : left + p2].flatten(1)
            for top in rows
            for left in columns
        ],
        dim=1,
    )


@given(SIZES)
@settings(deadline=None)
def test_patchify_equals_the_loops(sizes):
    images, patch_size = images_of(*sizes), sizes[4:]
    expected = patchify_with_loops(images, *patch_size)
    assert patchify(images, patch_size).equal(expected)


@given(SIZES)
@settings(deadline=None)
def test_unpatchify_inverts_patchify(sizes):
    images, patch_size = images_of(*sizes), sizes[4:]
    patches = patchify(images, patch_size)
    assert unpatchify(patches, patch_size, sizes[2:4]).equal(images)


def test_an_int_is_a_square_patch_and_a_square_grid():
    images = random(2, 3, 12, 12)
    patches = patchify(images, 4)
    assert patches.equal(patchify(images, (4, 4)))
    assert unpatchify(patches, 4, 3).equal(images)


def test_patchify_has_the_order_of_unfold():
    images = images_of(*ALL_DIFFERENT)
    unfolded = F.unfold(images, (6, 7), stride=(6, 7)).mT
    assert patchify(images, (6, 7)).equal(unfolded)


def test_patchify_works_on_an_image_smaller_than_any():
    assert patchify(torch.ones(1, 1, 1, 1), 1).shape == (1, 1, 1)


@pytest.mark.parametrize(
    "images", [(3, 8, 8), (2, 3, 9, 8), (2, 3, 8, 9), (1, 2, 3, 8, 8)]
)
def test_patchify_refuses_images_that_patches_do_not_fill(images):
    with pytest.raises(ValueError, match=re.escape(f"got {images}")):
        patchify(torch.zeros(images), 4)


@pytest.mark.parametrize("patches", [(9, 12), (2, 8, 12), (2, 9, 13)])
def test_unpatchify_refuses_patches_that_do_not_fit(patches):
    with pytest.raises(ValueError, match=re.escape(f"got {patches}")):
        unpatchify(torch.zeros(patches), 2, 3)


@pytest.mark.parametrize(
    "size", [0, -1, 1.5, "16", None, (4,), (4, 0), (1, 2, 3), (4, 4.0)]
)
def test_a_size_is_a_positive_int_or_a_pair_of_them(size):
    with pytest.raises(ValueError, match=r"^patch_size must be a positive"):
        as_pair("patch_size", size)


def embed_of(sizes, embed_dim=11):
    _, c, _, _, p1, p2 = sizes
    return randomize(PatchEmbed((p1, p2), c, embed_dim))


def test_patch_embed_equals_patchify_and_a_matrix_product():
    images, embed = images_of(*ALL_DIFFERENT), embed_of(ALL_DIFFERENT)
    patches = patchify_with_loops(images, 6, 7)
    expected = F.linear(patches, embed.proj.weight.flatten(1), embed.proj.bias)
    torch.testing.assert_close(embed(images), expected, rtol=0, atol=1e-12)


def test_patch_embed_equals_timm_with_its_weights():
    theirs = randomize(
        timm.layers.PatchEmbed((24, 35), (6, 7), 3, 11, strict_img_size=True)
    )
    ours = PatchEmbed((6, 7), 3, 11).double()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    images = images_of(*ALL_DIFFERENT)
    torch.testing.assert_close(ours(images), theirs(images), rtol=0, atol=1e-12)


def test_patch_embed_equals_torchvision_with_its_weights():
    theirs = randomize(
        torchvision.models.VisionTransformer(32, 8, 1, 2, 12, 24)
    )
    ours = PatchEmbed(8, 3, 12).double()
    ours.proj.load_state_dict(theirs.conv_proj.state_dict())
    images = random(2, 3, 32, 32)
    torch.testing.assert_close(
        ours(images), theirs._process_input(images), rtol=0, atol=1e-12
    )


def test_base_model_patch_embed_has_590592_weights():
    with torch.device("meta"):
        embed = PatchEmbed()
    assert sum(p.numel() for p in embed.parameters()) == 590_592


def test_a_token_depends_on_its_own_patch_only():
    images, embed = images_of(*ALL_DIFFERENT), embed_of(ALL_DIFFERENT)
    pixel = (1, 2, 13, 8)  # image 1, grid row 2, grid column 1
    changed = tokens_that_change(embed, images, pixel)
    assert changed == [[1, 2 * 5 + 1]]


def test_an_image_alone_gives_the_tokens_it_has_in_a_batch():
    images, embed = images_of(*ALL_DIFFERENT), embed_of(ALL_DIFFERENT)
    torch.testing.assert_close(
        embed(images[1:]), embed(images)[1:], rtol=0, atol=1e-12
    )


def test_gradients_reach_the_projection():
    embed = embed_of(ALL_DIFFERENT)
    assert has_all_gradients(embed, embed(images_of(*ALL_DIFFERENT)))


@pytest.mark.parametrize(
    "shape", [(3, 32, 32), (2, 1, 32, 32), (2, 3, 40, 32), (2, 3, 32, 40)]
)
def test_patch_embed_refuses_other_images(shape):
    expected = rf"\(B, 3, H, W\).*multiple of 16.*got {re.escape(str(shape))}"
    with pytest.raises(ValueError, match=expected):
        PatchEmbed(16)(torch.zeros(shape))
