"""Tiny models of every family, one file per group; imported only inside a ComfyUI."""
