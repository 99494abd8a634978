"""The demo: the main job on real data, step by step, with its measured figures."""
