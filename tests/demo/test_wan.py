"""The plain-PyTorch Wan model, its training weights and its file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from paro_attention.demo.optimizer import FlatTrainer, OptimizerSettings, orthogonalise
from paro_attention.demo.wan import (
    MODEL_FILE,
    WanConfig,
    WanModel,
    load_demo_model,
    read_metadata,
    rope_tables,
    rotate,
)
from safetensors.torch import save_file
from torch import Tensor

SMALL = WanConfig(dim=256, ffn_dim=128, layers=2)


def random_model() -> WanModel:
    model = WanModel(SMALL)
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model.eval().requires_grad_(False)


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(2, 16, 3, 4, 6), torch.tensor([900.0, 250.0]), torch.randn(2, 5, 4096).sign()


def test_the_default_model_has_wans_keys_and_fits_the_file() -> None:
    model = WanModel()
    state = model.state_dict()
    assert sum(p.numel() for p in model.parameters()) < 20_000_000
    for key in (
        "patch_embedding.weight",
        "text_embedding.2.bias",
        "time_embedding.0.weight",
        "time_projection.1.weight",
        "blocks.7.self_attn.norm_k.weight",
        "blocks.0.cross_attn.o.bias",
        "blocks.0.norm3.weight",
        "blocks.0.ffn.2.weight",
        "blocks.0.modulation",
        "head.head.weight",
        "head.modulation",
    ):
        assert key in state
    assert WanConfig.from_state_dict(state) == WanConfig()
    assert state["patch_embedding.weight"].shape == (384, 16, 1, 2, 2)


def test_rotation_keeps_lengths_and_depends_on_offsets_alone() -> None:
    cos, sin = rope_tables((4, 4, 4), 128, torch.device("cpu"))
    assert cos.shape == (64, 64)
    x = torch.randn(1, 1, 1, 128).expand(1, 64, 1, 128)
    y = torch.randn(1, 1, 1, 128).expand(1, 64, 1, 128)
    qx, ky = rotate(x, cos, sin), rotate(y, cos, sin)
    torch.testing.assert_close(qx.norm(dim=-1), x.norm(dim=-1))
    logits = (qx[0, :, 0] @ ky[0, :, 0].T).view(4, 4, 4, 4, 4, 4)
    torch.testing.assert_close(
        logits[0, 0, 0, 1, 2, 1], logits[2, 1, 2, 3, 3, 3], rtol=1e-4, atol=1e-3
    )


def test_the_attention_hook_sees_every_layer_and_replaces_attention() -> None:
    model, (x, t, context) = random_model(), inputs()
    seen: list[tuple[int, torch.Size]] = []

    def dense(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        seen.append((layer, q.shape))
        return torch.softmax(q @ k.mT / 128**0.5, dim=-1) @ v

    torch.testing.assert_close(
        model(x, t, context, dense), model(x, t, context), rtol=1e-4, atol=1e-4
    )
    assert seen == [(0, torch.Size((2, 2, 18, 128))), (1, torch.Size((2, 2, 18, 128)))]
    other = model(x, t, context, lambda layer, q, k, v: v)
    assert not torch.allclose(other, model(x, t, context), rtol=1e-2, atol=1e-2)


def test_word_order_has_no_meaning() -> None:
    model, (x, t, context) = random_model(), inputs()
    torch.testing.assert_close(
        model(x, t, context), model(x, t, context.flip(1)), rtol=1e-4, atol=1e-4
    )


def test_wrong_shapes_are_refused() -> None:
    model, (x, t, context) = random_model(), inputs()
    with pytest.raises(ValueError, match=r"got \[2, 16, 3, 4, 5\]"):
        model(x[..., :5], t, context)
    with pytest.raises(ValueError, match=r"got \[1\]"):
        model(x, t[:1], context)
    with pytest.raises(ValueError, match="got 100"):
        WanConfig(dim=100)


def test_float8_file_is_read_back_exactly(tmp_path: Path) -> None:
    model = WanModel(SMALL)
    trainer = FlatTrainer(model, OptimizerSettings())
    trainer.publish(float8=True)
    path = tmp_path / "model.safetensors"
    save_file(trainer.export(trainer.master), path)
    loaded = load_demo_model(path=path)
    x, t, context = inputs()
    assert torch.equal(loaded(x, t, context), model(x, t, context))


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"no model")
    with pytest.raises(RuntimeError, match="must be a demo model"):
        load_demo_model(path=path)


@pytest.mark.parametrize("shape", [(2, 8, 8), (2, 16, 8), (2, 8, 16)])
def test_orthogonalise_evens_out_singular_values(shape: tuple[int, ...]) -> None:
    values = torch.linalg.svdvals(orthogonalise(torch.randn(shape)))
    assert values.min() > 0.3 and values.max() < 1.4


def test_training_steps_lower_the_loss_and_survive_a_checkpoint() -> None:
    x, t, context = inputs()
    target = torch.randn_like(x)

    def trainer_of() -> tuple[WanModel, FlatTrainer]:
        torch.manual_seed(0)
        model = WanModel(SMALL)
        return model, FlatTrainer(model, OptimizerSettings())

    def run(model: WanModel, trainer: FlatTrainer, steps: int) -> float:
        loss = torch.zeros(())
        for _ in range(steps):
            loss = torch.nn.functional.mse_loss(model(x, t, context), target)
            loss.backward()
            trainer.step(1.0, float8=False)
        return loss.item()

    model, trainer = trainer_of()
    first = run(model, trainer, 1)
    assert run(model, trainer, 5) < 0.95 * first
    other, restored = trainer_of()
    restored.restore(trainer.state())
    assert run(other, restored, 2) == pytest.approx(run(model, trainer, 2), rel=1e-4)


@pytest.mark.skipif(not MODEL_FILE.exists(), reason="the demo model is not in this checkout")
def test_bundled_model_is_small_and_says_how_it_was_made() -> None:
    assert MODEL_FILE.stat().st_size <= 20_000_000
    assert "paro_demo_training" in read_metadata()
    model = load_demo_model()
    assert model.config == WanConfig()
