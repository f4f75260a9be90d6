"""The bundled demo video model: its data, training, sampling and the demo page."""
