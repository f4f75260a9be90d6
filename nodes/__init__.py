"""The ComfyUI nodes: the only part of the pack that knows the host.

Importing this package loads nothing; ComfyUI enters through `nodes.extension`.
"""
