"""`task=generate`: stage 3, which turns a folder of images into SA-1B tars."""
