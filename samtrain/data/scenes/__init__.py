"""Synthetic scenes: shapes, surfaces, the canvas, parts, and the scene that is made of them."""

from samtrain.data.scenes.scene import SCENES_VERSION, Scene, generate_scene

__all__ = ["SCENES_VERSION", "Scene", "generate_scene"]
