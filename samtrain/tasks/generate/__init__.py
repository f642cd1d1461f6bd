"""`task=generate`: stage 3, from a folder of images to SA-1B tars."""
