import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from benchmarks.random_mmdit import flux_config, random_mmdit, sd3_config
from shared.errors import ModelUnavailableError, TaskRefusedError
from shared.model_card import LayerInfo
from worker.engine.layers import get_weight, set_weight
from worker.families.diffusionkit.layers import linear_layers
from worker.families.diffusionkit.modulation import set_modulation

BLOCK = "multimodal_transformer_blocks.0"


def test_all_linear_layers_of_an_sd3_shaped_model_in_forward_order():
    mmdit = random_mmdit(sd3_config(depth=12, hidden=8))
    layers = linear_layers(mmdit)
    paths = [layer.path for layer in layers]
    # 14 a block, of which the last text block lacks o_proj, fc1 and fc2; 6 embedders, 2 in the final layer.
    assert len(paths) == len(set(paths)) == 14 * 12 - 3 + 8
    assert paths[:6] == [
        "y_embedder.mlp.layers.0",
        "y_embedder.mlp.layers.2",
        "t_embedder.mlp.layers.0",
        "t_embedder.mlp.layers.2",
        "context_embedder",
        "x_embedder.proj",
    ]
    assert paths[6:20] == [
        f"{BLOCK}.image_transformer_block.adaLN_modulation.layers.1",
        f"{BLOCK}.image_transformer_block.attn.q_proj",
        f"{BLOCK}.image_transformer_block.attn.k_proj",
        f"{BLOCK}.image_transformer_block.attn.v_proj",
        f"{BLOCK}.text_transformer_block.adaLN_modulation.layers.1",
        f"{BLOCK}.text_transformer_block.attn.q_proj",
        f"{BLOCK}.text_transformer_block.attn.k_proj",
        f"{BLOCK}.text_transformer_block.attn.v_proj",
        f"{BLOCK}.image_transformer_block.attn.o_proj",
        f"{BLOCK}.image_transformer_block.mlp.fc1",
        f"{BLOCK}.image_transformer_block.mlp.fc2",
        f"{BLOCK}.text_transformer_block.attn.o_proj",
        f"{BLOCK}.text_transformer_block.mlp.fc1",
        f"{BLOCK}.text_transformer_block.mlp.fc2",
    ]
    assert paths[-2:] == ["final_layer.adaLN_modulation.layers.1", "final_layer.linear"]
    blocks = [int(path.split(".")[1]) for path in paths[6:-2]]
    assert blocks == sorted(blocks)


def test_unified_blocks_come_after_the_others_and_before_the_final_layer():
    paths = [layer.path for layer in linear_layers(random_mmdit(flux_config()))]
    assert [path.split("_")[0] for path in paths[6:-2]] == ["multimodal"] * 14 + ["unified"] * 14
    assert len(paths) == 6 + 14 + 14 + 2


def test_every_linear_is_listed_with_its_shape_even_after_modulation_was_set():
    mmdit = random_mmdit(sd3_config())
    set_modulation(mmdit, mx.zeros((2, 64)), mx.array([1000.0, 500.0]))
    expected = {n: m.weight.shape for n, m in mmdit.named_modules() if isinstance(m, nn.Linear)}
    expected["x_embedder.proj"] = (64, 2 * 2 * 16)
    assert {layer.path: layer.shape for layer in linear_layers(mmdit)} == expected


def test_a_quantized_model_is_refused():
    mmdit = random_mmdit(sd3_config())
    nn.quantize(mmdit, class_predicate=lambda _, module: isinstance(module, nn.Linear))
    with pytest.raises(ModelUnavailableError, match="already quantized"):
        linear_layers(mmdit)


def test_a_weight_is_read_and_replaced_by_its_path():
    mmdit = random_mmdit(sd3_config())
    for layer in linear_layers(mmdit):
        assert get_weight(mmdit, layer.path).shape == layer.shape
    path = f"{BLOCK}.text_transformer_block.mlp.fc2"
    set_weight(mmdit, path, mx.zeros_like(get_weight(mmdit, path)))
    assert not np.array(mmdit.multimodal_transformer_blocks[0].text_transformer_block.mlp.fc2.weight).any()


@pytest.mark.parametrize("config", [sd3_config, flux_config])
def test_the_patch_embedding_is_the_linear_layer_that_others_hold(config):
    mmdit = random_mmdit(config())
    weight = get_weight(mmdit, "x_embedder.proj")
    x = mx.random.normal((2, 8, 8, 16), key=mx.random.key(1))
    patches = x.reshape(2, 4, 2, 4, 2, 16).transpose(0, 1, 3, 2, 4, 5)
    if mmdit.config.patchify_via_reshape:
        # FLUX's order within a patch: channel, row, column.
        patches = patches.transpose(0, 1, 2, 5, 3, 4)
    expected = patches.reshape(2, 4, 4, 64) @ weight.T + mmdit.x_embedder.proj.bias
    np.testing.assert_allclose(np.array(mmdit.x_embedder(x)), np.array(expected), atol=1e-5)
    set_weight(mmdit, "x_embedder.proj", mx.zeros_like(weight))
    assert not np.array(mmdit.x_embedder(x) - mmdit.x_embedder.proj.bias).any()


@pytest.mark.parametrize(
    "path",
    [
        "nowhere",
        "multimodal_transformer_blocks.9.image_transformer_block.attn.q_proj",
        "multimodal_transformer_blocks.x",
        "x_embedder",
        "x_pos_embedder.pos_embed",
        "t_embedder",
    ],
)
def test_a_path_that_is_no_linear_layer_is_refused(path):
    with pytest.raises(TaskRefusedError, match=path.split(".")[0]):
        get_weight(random_mmdit(sd3_config()), path)


def test_a_layer_whose_inputs_do_not_fill_groups_says_so():
    layer = LayerInfo(path="final_layer.linear", shape=(64, 96))
    assert layer.unmeasurable(32) is None
    assert "96 inputs" in layer.unmeasurable(64)
