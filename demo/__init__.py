"""The bundled demo video model: its data, training, sampling and the demo page."""

from pathlib import Path

MODEL_FILE = Path(__file__).with_name("paro_demo_wan.safetensors")
