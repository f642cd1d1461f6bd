"""Stage 3 of the data engine: from a folder of images to SA-1B tars of fully automatic masks, and their audit."""
