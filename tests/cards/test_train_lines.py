"""The lines of a card that put adapters on the model run as they stand, and a hostile name stays a name in them."""

from __future__ import annotations

from pathlib import Path

from hubprune.cards.overview import train_code


def test_the_lines_put_adapters_on_a_model(tmp_path: Path, capsys):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, vocab_size=64
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "m")
    values: dict[str, object] = {}
    exec(train_code(str(tmp_path / "m"), tag=None, custom_code=False), values)
    assert "trainable params" in capsys.readouterr().out
    assert any("lora_A" in name for name, _ in values["model"].named_parameters())


def test_a_hostile_name_stays_a_string():
    code = train_code('a"\nimport os #', tag='b"', custom_code=True)
    compile(code, "card", "exec")
    assert "\nimport os" not in code
