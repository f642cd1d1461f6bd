"""Synthetic scenes: shapes, surfaces, the canvas, parts, and the scene that is made of them."""

from samtrain.data.scenes.scene import CROWDED, SCENES_VERSION, SPARSE, Scene, generate_scene

__all__ = ["CROWDED", "SCENES_VERSION", "SPARSE", "Scene", "generate_scene"]
