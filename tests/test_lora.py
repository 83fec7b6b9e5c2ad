"""LoRAs in every common spelling change the same weights by the same amount; others give one clear error."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from setevsr_core import checkpoints
from setevsr_core.checkpoints import key_maps, lora
from setevsr_core.errors import CheckpointError, SettingsError
from setevsr_core.networks.denoiser import Denoiser, DenoiserConfig

CONFIG = DenoiserConfig(channels=(32, 64, 64, 64), layers=2, head_dim=16, context_dim=24, map_channels=32,
                        spade_hidden=32, lr_channels=(32, 32, 64, 64), lr_layers=1, semantic_levels=(1,),
                        temporal_sites="up", temporal_spatial_sites="none", baseline_temporal=False)
RANK, ALPHA = 4, 2.0
LINEAR = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
OUT = "mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0"
CONV = "up_blocks.2.resnets.1.conv1"
LAYERS = (LINEAR, OUT, CONV)

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def base() -> State:
    torch.manual_seed(0)
    return {key: 0.1 * torch.randn(value.shape) for key, value in Denoiser(CONFIG).state_dict().items()}


def pairs(base: State) -> dict[str, tuple[Tensor, Tensor]]:
    """Layer -> (up, down) of the shapes that training programs write."""
    generator = torch.Generator().manual_seed(1)
    made = {}
    for layer in LAYERS:
        out, *rest = base[f"unet.{layer}.weight"].shape
        up = torch.randn(out, RANK, *(1,) * (len(rest) - 1), generator=generator)
        made[layer] = (up, torch.randn(RANK, *rest, generator=generator))
    return made


def kohya(layer: str, up: Tensor, down: Tensor) -> State:
    name = "lora_unet_" + layer.replace(".", "_")
    return {f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down, f"{name}.alpha": torch.tensor(ALPHA)}


def kohya_original(layer: str, up: Tensor, down: Tensor) -> State:
    table = key_maps.flipped(key_maps.unet_table(key_maps.Depth(4, 2, (True, True, True, False))))
    return kohya(key_maps.rename(f"{layer}.weight", table).removesuffix(".weight"), up, down)


def peft(layer: str, up: Tensor, down: Tensor) -> State:
    return {f"unet.{layer}.lora_A.weight": down, f"unet.{layer}.lora_B.weight": up,
            f"unet.{layer}.alpha": torch.tensor(ALPHA)}


def peft_model(layer: str, up: Tensor, down: Tensor) -> State:
    return {f"base_model.model.{layer}.lora_A.default.weight": down, f"base_model.model.{layer}.lora_B.default.weight":
            up, f"base_model.model.{layer}.alpha": torch.tensor(ALPHA)}


def peft_adapter(layer: str, up: Tensor, down: Tensor) -> State:
    return {key.replace(".default.", ".my-style."): value for key, value in peft_model(layer, up, down).items()}


def lycoris(layer: str, up: Tensor, down: Tensor) -> State:
    return {key.replace("lora_unet_", "lycoris_"): value for key, value in kohya(layer, up, down).items()}


def old_diffusers(layer: str, up: Tensor, down: Tensor) -> State:
    place, _, name = layer.removesuffix(".0").rpartition(".")
    middle = f"{place}.processor.{name}_lora" if name.startswith("to_") else f"{layer}.lora"
    return {f"unet.{middle}.up.weight": up, f"unet.{middle}.down.weight": down,
            f"unet.{middle.removesuffix('_lora').removesuffix('.lora')}.alpha": torch.tensor(ALPHA)}


def original_model(layer: str, up: Tensor, down: Tensor) -> State:
    spelled = kohya_original(layer, up, down)
    table = key_maps.flipped(key_maps.unet_table(key_maps.Depth(4, 2, (True, True, True, False))))
    name = key_maps.rename(f"{layer}.weight", table).removesuffix(".weight")
    return {f"model.diffusion_model.{name}.{key.partition('.')[2]}": value for key, value in spelled.items()}


SPELLINGS = [kohya, kohya_original, lycoris, peft, peft_model, peft_adapter, old_diffusers, original_model]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_changes_the_same_weights(spelling: Any, base: State, tmp_path: Path) -> None:
    made = pairs(base)
    path = tmp_path / "style.safetensors"
    save_file({key: value for layer, (up, down) in made.items() for key, value in spelling(layer, up, down).items()},
              path)
    network = checkpoints.load_denoiser(base, head_dim=16, lr_heads=4, loras=[(path, 0.5)])
    for key, value in network.state_dict().items():
        layer = key.removeprefix("unet.").removesuffix(".weight")
        change = torch.zeros_like(value)
        if layer in made:
            up, down = made[layer]
            change = 0.5 * ALPHA / RANK * (up.flatten(1) @ down.flatten(1)).view(value.shape)
            assert change.abs().max() > 0.1
        torch.testing.assert_close(value, base[key] + change)


def test_strengths_add_up_and_zero_changes_nothing(base: State) -> None:
    state = {key: value for layer, (up, down) in pairs(base).items() for key, value in kohya(layer, up, down).items()}
    once = lora.apply_loras(base, [(state, 0.75)])
    twice = lora.apply_loras(base, [(state, 1.0), (state, -0.25)])
    nothing = lora.apply_loras(base, [(state, 0.0)])
    key = f"unet.{CONV}.weight"
    torch.testing.assert_close(once[key], twice[key])
    assert not torch.equal(once[key], base[key]) and torch.equal(nothing[key], base[key])


def test_locon_with_a_middle_part(base: State) -> None:
    """LoCon splits a 3x3 convolution into 1x1, 3x3 on the rank's channels, and 1x1."""
    out, channels, *_ = base[f"unet.{CONV}.weight"].shape
    up, mid, down = torch.randn(out, RANK, 1, 1), torch.randn(RANK, RANK, 3, 3), torch.randn(RANK, channels, 1, 1)
    name = "lora_unet_" + CONV.replace(".", "_")
    state = {f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down, f"{name}.lora_mid.weight": mid}
    changed = lora.apply_loras(base, [(state, 1.0)])[f"unet.{CONV}.weight"]
    pixels = torch.randn(1, channels, 6, 6)
    conv = torch.nn.functional.conv2d
    expected = conv(pixels, base[f"unet.{CONV}.weight"]) + conv(conv(conv(pixels, down), mid), up)
    torch.testing.assert_close(conv(pixels, changed), expected, rtol=1e-3, atol=1e-3)


def test_modules_of_this_project_can_have_a_lora(base: State) -> None:
    layer = next(key for key in base if ".semantic_attention.attn.to_k.weight" in key).removesuffix(".weight")
    out, width = base[f"{layer}.weight"].shape
    state = {f"{layer}.lora_A.weight": torch.ones(1, width), f"{layer}.lora_B.weight": torch.ones(out, 1)}
    changed = lora.apply_loras(base, [(state, 1.0)])
    torch.testing.assert_close(changed[f"{layer}.weight"], base[f"{layer}.weight"] + 1)


@pytest.mark.parametrize("place", ["metadata", "adapter_config.json", "pattern", "expression"])
def test_alpha_kept_outside_the_tensors(place: str, base: State, tmp_path: Path) -> None:
    up, down = pairs(base)[LINEAR]
    tensors = {f"unet.{LINEAR}.lora_A.weight": down, f"unet.{LINEAR}.lora_B.weight": up}
    settings: dict[str, Any] = {"r": RANK, "lora_alpha": ALPHA}
    if place == "pattern":
        settings = {"lora_alpha": 100, "alpha_pattern": {"attn1.to_q": ALPHA}}
    if place == "expression":
        settings = {"lora_alpha": 100, "alpha_pattern": {"q": 50, r"down_blocks\.1.*\.to_q": ALPHA}}
    path = tmp_path / "adapter_model.safetensors"
    if place == "adapter_config.json":
        save_file(tensors, path)
        (tmp_path / place).write_text(json.dumps(settings))
    else:
        stored = {f"unet.{key}": value for key, value in settings.items()}
        save_file(tensors, path, metadata={"lora_adapter_metadata": json.dumps(stored)})
    changed = lora.apply_loras(base, [(path, 1.0)])[f"unet.{LINEAR}.weight"]
    torch.testing.assert_close(changed, base[f"unet.{LINEAR}.weight"] + ALPHA / RANK * up @ down)


def test_rank_stabilised_lora(base: State, tmp_path: Path) -> None:
    """peft's rsLoRA divides alpha by the root of the rank."""
    up, down = pairs(base)[LINEAR]
    stored = json.dumps({"unet.r": RANK, "unet.lora_alpha": ALPHA, "unet.use_rslora": True})
    save_file({f"unet.{LINEAR}.lora_A.weight": down, f"unet.{LINEAR}.lora_B.weight": up},
              tmp_path / "rs.safetensors", metadata={"lora_adapter_metadata": stored})
    changed = lora.apply_loras(base, [(tmp_path / "rs.safetensors", 1.0)])[f"unet.{LINEAR}.weight"]
    torch.testing.assert_close(changed, base[f"unet.{LINEAR}.weight"] + ALPHA / math.sqrt(RANK) * up @ down)


def test_layers_without_a_place_are_named(base: State, caplog: pytest.LogCaptureFixture) -> None:
    up, down = pairs(base)[LINEAR]
    stray = {"lora_unet_down_blocks_9_x.lora_up.weight": up, "lora_unet_down_blocks_9_x.lora_down.weight": down}
    text = {"lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": up,
            "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": down}
    lora.apply_loras(base, [({**kohya(LINEAR, up, down), **stray, **text}, 1.0)])
    assert "1 layers of the LoRA have no place" in caplog.text and "lora_unet_down_blocks_9_x" in caplog.text
    assert "lora_te" not in caplog.text  # the text encoder's part is not this network's business
    with pytest.raises(CheckpointError, match="changes nothing in this denoiser: 1 layers .*down_blocks_9_x"):
        lora.apply_loras(base, [({**stray, **text}, 1.0)])


def test_a_lora_of_the_text_encoder_alone(base: State) -> None:
    name = "lora_te_text_model_encoder_layers_0_mlp_fc1"
    state = {f"{name}.lora_up.weight": torch.zeros(2, 2), f"{name}.lora_down.weight": torch.zeros(2, 2)}
    with pytest.raises(CheckpointError, match="is a LoRA of a text encoder alone"):
        lora.apply_loras(base, [(state, 1.0)])


def test_lora_of_another_base_model(base: State) -> None:
    """SD 1.5 has the same layer names, but a text width of 768 (here: another width)."""
    layer = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    state = kohya(layer, torch.zeros(32, RANK), torch.zeros(RANK, 40))
    with pytest.raises(CheckpointError, match=r"for another base model: for unet.down_blocks.0.*is \[32, 24\]"):
        lora.apply_loras(base, [(state, 1.0)])
    xl = {"lora_unet_input_blocks_7_1_transformer_blocks_9_attn1_to_q.lora_up.weight": torch.zeros(2, 2),
          "lora_unet_input_blocks_7_1_transformer_blocks_9_attn1_to_q.lora_down.weight": torch.zeros(2, 2)}
    with pytest.raises(CheckpointError, match="is a LoRA of Stable Diffusion XL"):
        lora.apply_loras(base, [({**xl, **kohya(LINEAR, *pairs(base)[LINEAR])}, 1.0)])


@pytest.mark.parametrize(("key", "kind"), [("x.hada_w1_a", "a LoHa"), ("x.lokr_w1", "a LoKr"),
                                           ("x.lora_magnitude_vector", "a DoRA"), ("x.dora_scale", "a DoRA")])
def test_other_adapters_are_named(key: str, kind: str, base: State) -> None:
    with pytest.raises(CheckpointError, match=f"is {kind}, which is not supported; expected a LoRA"):
        lora.apply_loras(base, [({key: torch.zeros(2, 2)}, 1.0)])


@pytest.mark.parametrize(("change", "message"), [
    ({"lora_down.weight": torch.zeros(())}, "damaged LoRA: of .*_to_q rank or alpha"),
    ({"alpha": torch.ones(2)}, "damaged LoRA: of .*_to_q rank or alpha"),
    ({"lora_up.weight": torch.full((64, RANK), math.nan)}, "is damaged: 1 tensors hold NaN"),
])
def test_damaged_loras(change: State, message: str, base: State) -> None:
    name = "lora_unet_" + LINEAR.replace(".", "_")
    state = kohya(LINEAR, *pairs(base)[LINEAR]) | {f"{name}.{part}": value for part, value in change.items()}
    with pytest.raises(CheckpointError, match=message):
        lora.apply_loras(base, [(state, 1.0)])


@pytest.mark.parametrize("settings", [{"lora_alpha": "x"}, {"lora_alpha": 4, "alpha_pattern": {"(": 2}}])
def test_damaged_settings_of_peft(settings: dict[str, Any], base: State, tmp_path: Path) -> None:
    up, down = pairs(base)[LINEAR]
    save_file({f"unet.{LINEAR}.lora_A.weight": down, f"unet.{LINEAR}.lora_B.weight": up}, tmp_path / "a.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match="a.safetensors is a damaged LoRA"):
        lora.apply_loras(base, [(tmp_path / "a.safetensors", 1.0)])


def test_a_file_that_is_no_lora(base: State) -> None:
    with pytest.raises(CheckpointError, match=r"is a denoiser \(.*\); expected a LoRA"):
        lora.apply_loras(base, [(base, 1.0)])
    checkpoint = {"model.diffusion_model.label_emb.0.0.weight": torch.zeros(1)}
    with pytest.raises(CheckpointError, match="is a Stable Diffusion XL model; expected a LoRA"):
        lora.apply_loras(base, [(checkpoint, 1.0)])


@pytest.mark.parametrize("strength", [math.nan, math.inf, 1e6, None, "1"])
def test_strength_is_checked(strength: Any, base: State) -> None:
    with pytest.raises(SettingsError, match="strength of a LoRA"):
        lora.apply_loras(base, [(kohya(LINEAR, *pairs(base)[LINEAR]), strength)])


@pytest.mark.parametrize("given", ["file.safetensors", ("file.safetensors",), None])
def test_what_is_no_pair_of_file_and_strength_is_named(given: Any, base: State) -> None:
    with pytest.raises(SettingsError, match=r"pairs \(file, strength\)"):
        lora.apply_loras(base, [given])


def test_convert_merges_a_lora_and_an_empty_prompt(base: State, tmp_path: Path) -> None:
    from setevsr_core import cli

    source, style, text = (str(tmp_path / f"{name}.safetensors") for name in ("base", "style", "text"))
    up, down = pairs(base)[LINEAR]
    save_file(base, source)
    save_file(kohya(LINEAR, up, down), style)
    save_file({"embedding": torch.ones(1, 3, CONFIG.context_dim)}, text)
    target = tmp_path / "out.safetensors"
    command = ["convert", source, str(target), "--head-dim", "16", "--lora", style, "0.5"]
    assert cli.main([*command, "--empty-text", text]) == 0
    loaded = checkpoints.load_denoiser(target)
    expected = base[f"unet.{LINEAR}.weight"] + 0.5 * ALPHA / RANK * up @ down
    torch.testing.assert_close(loaded.state_dict()[f"unet.{LINEAR}.weight"], expected)
    assert loaded.empty_text is not None and torch.equal(loaded.empty_text, torch.ones(1, 3, CONFIG.context_dim))
    assert cli.main([*command, "--empty-text", style]) == 2
    assert cli.main(["convert", source, str(target), "--lora", style, "much"]) == 2
