"""What `nbsnn init` writes: a recipe for a folder of images and a network, an example of a network, and example images."""
