"""Synthetic scenes are composed of shapes, surfaces and parts that are painted on a canvas."""

from samtrain.data.scenes.scene import CROWDED, SCENES_VERSION, SPARSE, Scene, generate_scene

__all__ = ["CROWDED", "SCENES_VERSION", "SPARSE", "Scene", "generate_scene"]
