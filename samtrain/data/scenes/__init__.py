"""Synthetic scenes: shapes, surfaces, the canvas, parts, and the scene that is made of them."""

from samtrain.data.scenes.scene import CROWD, CROWD_RADIUS, SCENES_VERSION, Scene, generate_scene

__all__ = ["CROWD", "CROWD_RADIUS", "SCENES_VERSION", "Scene", "generate_scene"]
