"""The Vision Transformer, built chapter by chapter.

Chapter 01, patch_embedding: as_pair, patchify, unpatchify, PatchEmbed
Chapter 02, class_token: prepend_token, pool
Chapter 03, position_embedding: sincos_pos_embed, resize_pos_embed,
    relative_position_index
Chapter 04, attention: scaled_dot_product_attention, MultiHeadSelfAttention
Chapter 05, mlp: Mlp
Chapter 06, encoder_block: DropPath, EncoderBlock
Chapter 07, vision_transformer: VisionTransformer, VIT_PRESETS
Chapter 08, training: parameter_groups, warmup_cosine, mixed_precision,
    train_one_epoch, evaluate, History, fit
Chapter 09, inductive_bias: equivariance_error, shuffle_patches,
    place_images, SmallCNN
Chapter 10, hybrid: ConvStem, HybridVisionTransformer
Chapter 11, fine_tuning: HEADS, PREFIX_TOKENS, TORCHVISION_NAMES,
    from_torchvision, is_part_of, fit_pos_embed, find_faults, load_pretrained,
    learning_rate_groups, layerwise_learning_rates
Chapter 12, self_supervision: draw_mask, CORRUPTIONS, draw_corruption,
    corrupt_patches, mean_color_classes, class_colors, refuse_overlap,
    MaskedPatchPrediction, normalize_patches, MaskedAutoencoder,
    paint_prediction, rotate_images, evaluate_pretext
Chapter 13, looking_inside: patch_filters, position_similarity,
    patch_distances, distance_correlation, attention_weights, patch_attention,
    attention_distance, attention_rollout, class_attention
Chapter 14, deit: DEIT_PRESETS, DistilledVisionTransformer,
    refuse_unequal_shapes, hard_distillation_loss, soft_distillation_loss,
    ask_teacher, RepeatedAugmentation, deit_augmentation, deit_mix
Chapter 15, swin_windows: window_partition, window_reverse, pad_to_windows,
    as_shift, shift_mask, WindowAttention
Chapter 16, swin_transformer: SwinPatchEmbed, PatchMerging, SwinBlock,
    SwinStage, SwinTransformer, TORCHVISION_SWIN_NAMES, swin_from_torchvision,
    SWIN_PRESETS

Around the chapters: models (presets by name), data (photographs, digits,
CIFAR-10), procedural (images drawn by a rule), weights (published weights and
the images they expect), download (patience with a connection), checkpoint (a
training run in a file), progress (bars), plotting (pictures), explorer (all
weights of attention, to look through), window_explorer (windows that shift),
recorded (results of long experiments), checks (checks of your own code).
"""

from vit_lessons.attention import *  # noqa: F403
from vit_lessons.class_token import *  # noqa: F403
from vit_lessons.deit import *  # noqa: F403
from vit_lessons.encoder_block import *  # noqa: F403
from vit_lessons.fine_tuning import *  # noqa: F403
from vit_lessons.hybrid import *  # noqa: F403
from vit_lessons.inductive_bias import *  # noqa: F403
from vit_lessons.looking_inside import *  # noqa: F403
from vit_lessons.mlp import *  # noqa: F403
from vit_lessons.models import *  # noqa: F403
from vit_lessons.patch_embedding import *  # noqa: F403
from vit_lessons.position_embedding import *  # noqa: F403
from vit_lessons.self_supervision import *  # noqa: F403
from vit_lessons.swin_transformer import *  # noqa: F403
from vit_lessons.swin_windows import *  # noqa: F403
from vit_lessons.training import *  # noqa: F403
from vit_lessons.vision_transformer import *  # noqa: F403
